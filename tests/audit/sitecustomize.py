"""Loaded by every Python process of an audited run: notes what it unpickles, opens and connects to.

Each note is a line of JSON in the file that AUDIT_OF_TEST names: [event, what, where in the program].
"""

import json
import os
import sys
import traceback

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npz", ".ckpt")


def _note(event: str, what: str) -> None:
    frames = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()[:-2]]
    line = json.dumps([event, what, frames]) + "\n"
    descriptor = os.open(os.environ["AUDIT_OF_TEST"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        _note(event, f"{arguments[0]}.{arguments[1]}")
    elif event in ("socket.connect", "socket.sendto"):
        _note(event, repr(arguments[1]))
    elif event == "socket.getaddrinfo":
        _note(event, repr(arguments[0]))
    elif event == "open" and str(arguments[0]).endswith(PICKLES):
        _note(event, str(arguments[0]))


if "AUDIT_OF_TEST" in os.environ:
    _note("process", " ".join(sys.orig_argv))
    sys.addaudithook(_hook)
