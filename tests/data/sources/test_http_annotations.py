"""Annotations from HTTP servers that tell of a file what is not so, or nothing."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import plain_row, rows, silent, write_lines

from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.storage.files import StorageError
from rm_assets.settings import Settings, SettingsError


@contextlib.contextmanager
def served(content: bytes, *, told: int | None) -> Iterator[str]:
    """The address of a file whose server tells this size of it where it is asked for that alone."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, headers: dict[str, object]) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(200, {"Accept-Ranges": "bytes"} | ({} if told is None else {"Content-Length": told}))

        def do_GET(self) -> None:
            if (asked := self.headers.get("Range")) and told is not None:
                first = int(asked.removeprefix("bytes=").split("-")[0])
                if first >= len(content):
                    self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
                    return
                last = min(int(asked.split("-")[1]), len(content) - 1)
                part, place = content[first : last + 1], f"bytes {first}-{last}/{len(content)}"
                self.answer(206, {"Content-Range": place, "Content-Length": len(part)})
                self.wfile.write(part)
                return
            self.answer(200, {} if told is None else {"Accept-Ranges": "bytes", "Content-Length": len(content)})
            with contextlib.suppress(OSError):  # who asked may have heard enough
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a.jsonl"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (None, "cannot be read: its server does not report its size; download it and use the copy"),
        (5000, r"cannot be read: it ends 5,000 bytes before the size that its server reports"),
    ],
)
def test_a_file_that_is_not_as_long_as_its_server_says_is_an_error_and_no_shorter_file(
    tmp_path: Path, more: int | None, complaint: str
) -> None:
    content = write_lines(tmp_path / "a.jsonl", [plain_row(number) for number in range(30)]).read_bytes()
    with served(content, told=None if more is None else len(content) + more) as address:
        settings = Settings(annotations=address, storage=str(tmp_path / "storage"))
        with pytest.raises((SettingsError, StorageError), match=f"http://127.0.0.1:.*/a.jsonl' {complaint}"):
            publish_raw(settings, silent)
    with served(content, told=len(content)) as address:
        settings = Settings(annotations=address, storage=str(tmp_path / "storage"))
        assert len(rows(publish_raw(settings, silent))) == 30
