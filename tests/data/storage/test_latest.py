"""`latest.json` under several writers: a publication becomes the latest, or its run is told which one overtook it."""

import json
import multiprocessing
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3 import s3_server
from support import silent
from worker_functions import SCHEMA, publish_until_told, published

from rm_assets.data.storage.files import file_sizes, resolve_path
from rm_assets.data.storage.latest import LATEST, ConcurrentPublicationError, LatestPointer, latest_name, replace_file
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, latest_snapshot, read_snapshot

Answer = Iterable[bytes]
A, B, C = ("0123456789abcdef", "1123456789abcdef", "2123456789abcdef")


class Store:
    """An S3 server which carries out one write of a `latest.json` at a time, as S3 does, and notes those it accepted.

    `spoil` sees each such write's answer: it returns the status to send in its place, or None.
    """

    def __init__(self, application: Callable[..., Answer]) -> None:
        self.application = application
        self.lock = threading.Lock()
        self.accepted: list[str] = []
        self.headers: list[tuple[str | None, str | None]] = []
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda _: None
        self.spoil: Callable[[], str | None] = lambda: None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Answer:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith(LATEST):
            return self.application(environ, start_response)
        status: list[str] = []

        def note(first: str, headers: Any, *rest: Any) -> Any:
            status.append(first)
            if changed := self.spoil():
                return start_response(changed, [("Content-Length", "0")], *rest)
            return start_response(first, headers, *rest)

        with self.lock:
            self.headers.append((environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")))
            if refused := self.refuse(environ):
                start_response(refused, [("Content-Length", "0")])
                return [b""]
            answer = list(self.application(environ, note))
            if status[0].startswith("200"):
                path = resolve_path(f"s3:/{environ['PATH_INFO']}")
                self.accepted.append(str(latest_name(path.parent.parent, path.parent.name)))
            return answer


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Store, str]]:
    stores: list[Store] = []

    def between(application: Callable[..., Answer]) -> Store:
        stores.append(Store(application))
        return stores[0]

    with s3_server(between) as bucket:
        yield stores[0], bucket


@pytest.fixture
def store(served: tuple[Store, str]) -> Iterator[Store]:
    store, _ = served
    store.accepted, store.headers = [], []
    yield store
    store.spoil, store.refuse = lambda: None, lambda _: None


@pytest.fixture(params=["local", "s3", "memory"])
def home(served: tuple[Store, str], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = re.sub("[^a-z_]", "-", request.node.name)
    homes = {"local": str(tmp_path), "s3": f"{served[1]}/{name}", "memory": f"memory://{name}"}
    return resolve_path(homes[request.param])


@pytest.fixture
def on_s3(served: tuple[Store, str], store: Store, request: pytest.FixtureRequest) -> Path:
    return resolve_path(f"{served[1]}/{re.sub('[^a-z_]', '-', request.node.name)}")


# --- one pointer ---------------------------------------------------------------------------------------------


def test_a_run_replaces_the_latest_that_it_found_and_no_other(home: Path) -> None:
    one, other = LatestPointer(home / "asset"), LatestPointer(home / "asset")
    one.set(A)
    assert latest_name(home, "asset") == A
    with pytest.raises(ConcurrentPublicationError) as error:
        other.set(B)
    assert str(error.value) == (
        f"asset: another run, perhaps on another machine, published {A} while this one made {B}: {A} stays the latest "
        f"and {B} stays in the storage; run again; finished work is kept"
    )
    assert latest_name(home, "asset") == A
    one.set(B)
    one.set(C)
    assert latest_name(home, "asset") == C
    LatestPointer(home / "asset").set(A)
    assert latest_name(home, "asset") == A


def test_two_runs_that_made_the_same_snapshot_do_not_overtake_each_other(home: Path) -> None:
    one, other = LatestPointer(home / "asset"), LatestPointer(home / "asset")
    one.set(A)
    other.set(A)
    other.set(B)
    assert latest_name(home, "asset") == B


@pytest.mark.parametrize("content", [b"", b"{", b'{"snapshot": "nonsense"}'])
def test_a_damaged_or_lost_latest_is_replaced(home: Path, content: bytes) -> None:
    (home / "asset").mkdir(parents=True, exist_ok=True)
    (home / "asset" / LATEST).write_bytes(content)
    pointer = LatestPointer(home / "asset")
    assert pointer.name is None
    pointer.set(A)
    (home / "asset" / LATEST).unlink()
    pointer.set(B)
    assert latest_name(home, "asset") == B


def test_s3_compares_and_replaces_in_one_step(on_s3: Path, store: Store) -> None:
    """Another machine's write falls between reading and writing: only the condition of the write can notice it."""
    path = on_s3 / "asset" / LATEST
    for before, others in ((None, b"theirs 1"), (b"theirs 1", b"theirs 2")):

        def write_meanwhile(present: bytes | None, before: bytes | None = before, others: bytes = others) -> bool:
            if present == before:
                path.write_bytes(others)
                return True
            return False

        assert not replace_file(path, b"ours", write_meanwhile)
        assert path.read_bytes() == others
    conditions = [(match is not None, none_match) for match, none_match in store.headers]
    assert conditions == [(False, None), (False, "*"), (False, None), (True, None)]


def test_a_write_that_was_carried_out_although_its_answer_was_lost_is_no_defeat(on_s3: Path, store: Store) -> None:
    answers = iter(["500 Internal Server Error"])
    store.spoil = lambda: next(answers, None)
    pointer = LatestPointer(on_s3 / "asset")
    pointer.set(A)
    assert (latest_name(on_s3, "asset"), store.accepted) == (A, [A])
    assert len(store.headers) > 1, "the client tried again"


def test_a_store_without_conditional_writes_is_written_to_all_the_same(on_s3: Path, store: Store) -> None:
    def not_implemented(environ: dict[str, Any]) -> str | None:
        conditions = environ.get("HTTP_IF_MATCH") or environ.get("HTTP_IF_NONE_MATCH")
        return "501 Not Implemented" if conditions else None

    store.refuse = not_implemented
    one, other = LatestPointer(on_s3 / "asset"), LatestPointer(on_s3 / "asset")
    one.set(A)
    with pytest.raises(ConcurrentPublicationError):
        other.set(B)
    one.set(B)
    assert latest_name(on_s3, "asset") == B


# --- publications --------------------------------------------------------------------------------------------


def test_an_overtaken_snapshot_stays_and_is_the_latest_when_its_run_is_started_again(home: Path) -> None:
    with open_publication(home, "asset", 3, silent) as publication:
        shard = write_shard(
            publication.directory, "s1", "", "key-1", tables_writer({DATA: pa.table({"value": [1]}, SCHEMA)}, {})
        )
        LatestPointer(home / "asset").set(A)  # as another machine does
        with pytest.raises(ConcurrentPublicationError):
            publication.publish([shard], {}, {})
    assert latest_name(home, "asset") == A
    names = {name.split("/")[0] for name in file_sizes(home / "asset") if name.endswith(MANIFEST)}
    assert len(names) == 1
    assert read_table(read_snapshot(home / "asset" / names.pop()).paths(), SCHEMA)["value"].to_pylist() == [1]
    again = published(home, 1)
    assert (again.num_new_shards, latest_name(home, "asset")) == (0, again.name)


def test_a_run_with_nothing_new_leaves_what_another_machine_published_meanwhile(home: Path) -> None:
    published(home, 1)
    theirs, said = published(home, 2).name, list[object]()
    ours = published(home, 1)
    with open_publication(home, "asset", 3, said.append) as publication:
        shards = [shard for shard in [publication.find("key-1")] if shard]
        LatestPointer(home / "asset").set(theirs)
        assert publication.publish(shards, {}, {}).name == ours.name
    assert latest_name(home, "asset") == theirs
    assert [str(line).split(" while")[0] for line in said] == [
        f"asset: another run, perhaps on another machine, published {theirs}"
    ]


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_of_two_machines_no_publication_is_lost_unseen(on_s3: Path, store: Store, tmp_path: Path, count: int) -> None:
    """Each is the latest at some time, in place of one that its run had seen, or its run is told what overtook it."""
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(
            target=publish_until_told,
            args=(str(tmp_path / name), str(on_s3), list(range(first, first + count)), tmp_path / f"{name}.json"),
        )
        for first, name in ((0, "one"), (1000, "other"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    outcomes = {**json.loads((tmp_path / "one.json").read_text()), **json.loads((tmp_path / "other.json").read_text())}
    assert len(outcomes) == 2 * count
    successes = [name for name, (_, outcome) in outcomes.items() if outcome == "published"]
    assert sorted(store.accepted) == sorted(successes)
    seen_by = {name: before for name, (before, _) in outcomes.items()}
    assert [seen_by[name] for name in store.accepted] == [None, *store.accepted[:-1]]
    for name, (_, outcome) in outcomes.items():
        told = re.search("published ([0-9a-f]{16}) while this one made ([0-9a-f]{16})", outcome)
        assert outcome == "published" or (told and told[1] in store.accepted and told[2] == name)
    assert latest_snapshot(on_s3, "asset").name == store.accepted[-1]
