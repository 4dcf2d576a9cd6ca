"""A PostgreSQL server of its own for tests, where one is installed: on loopback, with a password, gone at the end."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runs import for_a_team

PASSWORD = "of a test"
SECONDS_TO_START = 60


def programs() -> Path | None:
    """The directory of the server's programs; Debian keeps them off the path."""
    found = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((directory for directory in found if (directory / "postgres").exists()), None)


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of an empty database. The server refuses to run as root, who starts it as the user `postgres`.

    The URL names the driver that dagster-postgres brings: SQLAlchemy 2.1 takes another by itself.
    """
    directory = programs()
    assert directory is not None
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        (home / "password").write_text(PASSWORD)
        if user is not None:
            shutil.chown(home / "password", user)
            shutil.chown(home, user)
        options = ["--auth=scram-sha-256", "--username=dagster", f"--pwfile={home / 'password'}", "--no-sync"]
        made = subprocess.run(
            [directory / "initdb", *options, home / "data"],
            user=user,
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [directory / "postgres", "-D", home / "data", "-k", home, "-h", "127.0.0.1", "-p", str(port)]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, user=user, cwd=home, stdout=log, stderr=log)
        try:
            _wait_for(port, server, home / "log")
            yield f"postgresql+psycopg2://dagster:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its fast way to shut down
            server.wait()
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def instance_on_postgresql() -> Iterator[str]:
    """The dagster.yaml of a team, with a server behind it; skips the test where there is no server or no driver."""
    pytest.importorskip("dagster_postgres")
    if programs() is None:
        pytest.skip("no PostgreSQL server is installed")
    with postgresql_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_POSTGRES_URL", url)
        yield for_a_team()


def _wait_for(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())
