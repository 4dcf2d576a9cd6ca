"""What holds for all tests."""

import signal

from hypothesis import settings

# No test is timed: an example may take long on a machine that does other things, too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell has its background jobs ignore SIGINT, and programs that they start until these set a handler. Tests that
# interrupt a program expect what happens at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
