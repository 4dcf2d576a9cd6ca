"""S3 on a bad day: refused requests, lost connections, answers cut short, and listings that are late."""

import re
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import s3_server
from support import plain_row, silent, violations, write_lines
from upath import UPath

from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.files import StorageError, resolve_path
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Environ = dict[str, Any]
Answer = Iterable[bytes]
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Network:
    """What lies between the clients and the server, and by what it does to a request. At first it does nothing."""

    def __init__(self, application: Callable[..., Answer]) -> None:
        self.application = application
        self.treat: Callable[[Network, Environ, Any], Answer] = Network.passes_on
        self.num_requests = self.num_readings = self.num_spoilt = 0
        self.late: set[str] = set()  # keys that listings do not show yet

    def __call__(self, environ: Environ, start_response: Any) -> Answer:
        self.num_requests += 1
        return self.treat(self, environ, start_response)

    def passes_on(self, environ: Environ, start_response: Any) -> Answer:
        return self.application(environ, start_response)

    def is_spoilt(self, chosen: bool) -> bool:
        self.num_spoilt += chosen
        return chosen

    def refuses_all(self, environ: Environ, start_response: Any) -> Answer:
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [SLOW_DOWN]

    def refuses_every_fourth(self, environ: Environ, start_response: Any) -> Answer:
        if self.is_spoilt(self.num_requests % 4 == 0):
            return self.refuses_all(environ, start_response)
        return self.application(environ, start_response)

    def fails_every_second_write(self, environ: Environ, start_response: Any) -> Answer:
        if self.is_spoilt(environ["REQUEST_METHOD"] == "PUT" and self.num_requests % 2 == 0):
            start_response("500 Internal Server Error", [])
            return [b""]
        return self.application(environ, start_response)

    def hangs_up_on_every_fifth(self, environ: Environ, start_response: Any) -> Answer:
        if self.is_spoilt(self.num_requests % 5 == 0):
            environ["werkzeug.socket"].shutdown(2)
        return self.application(environ, start_response)

    def cuts_every_fourth_reading(self, environ: Environ, start_response: Any) -> Answer:
        answer = b"".join(self.application(environ, start_response))
        is_reading = environ["REQUEST_METHOD"] == "GET" and not environ["QUERY_STRING"] and len(answer) > 1
        self.num_readings += is_reading
        if self.is_spoilt(is_reading and self.num_readings % 4 == 0):
            return [answer[: len(answer) // 2]]
        return [answer]

    def lists_new_objects_late(self, environ: Environ, start_response: Any) -> Answer:
        if environ["REQUEST_METHOD"] == "PUT":
            self.late.add(environ["PATH_INFO"].split("/", 2)[-1])
        if "list-type" not in environ["QUERY_STRING"]:
            return self.application(environ, start_response)
        told: list[Any] = []
        listing = b"".join(self.application(environ, lambda *given: told.extend(given))).decode()
        listing = re.sub("<Contents>.*?</Contents>", self._unless_late, listing, flags=re.DOTALL)
        start_response(told[0], [(name, value) for name, value in told[1] if name.lower() != "content-length"])
        return [listing.encode()]

    def _unless_late(self, entry: re.Match[str]) -> str:
        is_late = any(f"<Key>{key}</Key>" in entry[0] for key in self.late)
        return "" if self.is_spoilt(is_late) else entry[0]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Network, str]]:
    networks: list[Network] = []

    def between(application: Callable[..., Answer]) -> Network:
        networks.append(Network(application))
        return networks[0]

    with s3_server(between) as bucket:
        yield networks[0], bucket


@pytest.fixture
def network(served: tuple[Network, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    # attempts of the client follow each other at once
    monkeypatch.setattr("botocore.retryhandler.random", types.SimpleNamespace(random=lambda: 0.0))
    network, _ = served
    network.num_requests = network.num_readings = network.num_spoilt = 0
    yield network
    network.treat = Network.passes_on


@pytest.fixture
def settings(served: tuple[Network, str], request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Two annotation files on S3, and a storage there; both are written before anything goes wrong."""
    home = resolve_path(f"{served[1]}/{re.sub('[^a-z_]', '-', request.node.name)}")
    for name, first in (("a", 0), ("b", 100)):
        rows = [*(plain_row(number) for number in range(first, first + 30)), b"{broken"]
        content = write_lines(tmp_path / "annotations" / f"{name}.jsonl", rows).read_bytes()
        (home / "annotations" / f"{name}.jsonl").write_bytes(content)
    UPath(home).fs.invalidate_cache()
    return Settings(annotations=str(home / "annotations"), storage=str(home / "storage"), shard_bytes=5000)


def first_stages(settings: Settings) -> dict[Stage, Snapshot]:
    raw = publish_raw(settings, silent)
    return {Stage.RAW: raw, Stage.VALIDATED: publish_validated(settings, raw, silent)}


def names(stages: dict[Stage, Snapshot]) -> list[str]:
    assert not any(violations(stages).values())
    return [snapshot.name for snapshot in stages.values()]


@pytest.fixture
def expected(tmp_path: Path, settings: Settings) -> list[str]:
    """The names of the snapshots of the same files on this machine."""
    places = {"annotations": str(tmp_path / "annotations"), "storage": str(tmp_path / "storage")}
    return names(first_stages(settings.model_copy(update=places)))


@pytest.mark.parametrize(
    "treat",
    [
        Network.refuses_every_fourth,
        Network.fails_every_second_write,
        pytest.param(Network.hangs_up_on_every_fifth, marks=pytest.mark.soak),
        pytest.param(Network.cuts_every_fourth_reading, marks=pytest.mark.soak),
    ],
)
def test_requests_that_go_wrong_are_repeated_until_the_snapshots_are_those_of_a_local_run(
    network: Network, settings: Settings, expected: list[str], treat: Callable[..., Answer]
) -> None:
    network.treat = treat
    found = first_stages(settings)
    network.treat = Network.passes_on
    assert network.num_spoilt > 2
    assert names(found) == expected


def test_a_server_that_refuses_everything_is_one_clear_error_and_the_next_run_heals(
    network: Network, settings: Settings, expected: list[str]
) -> None:
    raw = publish_raw(settings, silent)
    network.treat = Network.refuses_all
    with pytest.raises(StorageError, match="Please reduce your request rate") as error:
        publish_validated(settings, raw, silent)
    assert "\n" not in str(error.value)
    network.treat = Network.passes_on
    assert names(first_stages(settings)) == expected


def test_a_listing_that_does_not_show_what_was_just_written_is_one_clear_error_and_the_next_run_heals(
    network: Network, settings: Settings, expected: list[str]
) -> None:
    network.treat = Network.lists_new_objects_late
    with pytest.raises(SnapshotError, match="disappeared before it was published: run again"):
        first_stages(settings)
    assert network.num_spoilt
    network.treat = Network.passes_on
    assert names(first_stages(settings)) == expected
