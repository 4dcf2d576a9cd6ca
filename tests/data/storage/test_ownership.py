"""What others keep in or below a storage: refused before the first run, and never removed by a later one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from s3 import s3_server
from support import plain_row, run_stages, silent, write_lines

from rm_assets.data.sources.content_version import content_listing
from rm_assets.data.sources.discovery import find_annotations
from rm_assets.data.stages.raw import files_to_read, publish_raw
from rm_assets.data.storage import publication as publication_module
from rm_assets.data.storage.files import StorageError, file_sizes, remove_files, resolve_path
from rm_assets.data.storage.latest import LATEST, latest_name
from rm_assets.data.storage.ownership import ASSETS, BESIDE, MANIFEST, MARKER, claim_storage, published_files
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, REJECTS, Snapshot, latest_snapshot
from rm_assets.data.storage.writing import write_json
from rm_assets.data.tables.schemas import Stage
from rm_assets.definitions import definitions
from rm_assets.defs.automation.arrival import published_version
from rm_assets.defs.project import ProjectResource
from rm_assets.settings import Settings, SettingsError

ASSET = "raw_preferences"
SNAPSHOT = "0123456789abcdef"
HEX = "0123456789abcdef" * 2


def published(storage: Path, *values: int, keep: int = 1, num_rejects: int = 0) -> Snapshot:
    """A snapshot of one shard for each value."""
    with open_publication(storage, ASSET, keep, silent) as publication:
        shards = []
        for value in values:
            tables = {DATA: pa.table({"value": [value]}), REJECTS: pa.table({"line": list(range(num_rejects))})}
            key = f"{value:032x}{num_rejects:032x}"
            shards.append(
                publication.find(key)
                or write_shard(publication.directory, f"s-{value}", "", key, tables_writer(tables, {}))
            )
        return publication.publish(shards, {}, {})


# --- refused before the first run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        "raw_preferences/2026-01/a.jsonl",
        "validated_preferences/.gitignore",
        "reward_model/config.json",
        "padded_pairs/0123456789ABCDEF/x",
        "padded_pairs/0123456789abcde/x",
        f"tokenized_pairs/.notes.txt.{HEX}",
        "suspect_annotations/latest.json.bak",
        "annotation_files/a.jsonl",
        "promoted_reward_model",
    ],
)
def test_a_storage_that_holds_what_is_not_ours_is_refused_before_any_work(settings: Settings, entry: str) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1)])
    foreign = Path(settings.storage) / entry
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    named = str(Path(settings.storage, *Path(entry).parts[:2]))
    with pytest.raises(StorageError) as error:
        publish_raw(settings, silent)
    assert f"{named!r} was not made by rm_assets. Move it elsewhere, or set storage (or RM_STORAGE)" in str(error.value)
    with pytest.raises(SettingsError, match=r"storage \(or RM_STORAGE\): .* was not made by rm_assets"):
        ProjectResource(storage=settings.storage).ready()
    assert [path for path in Path(settings.storage).rglob("*") if path.is_file()] == [foreign]


@pytest.mark.parametrize(
    "content", ["", "mine", "{}", '{"snapshot": "v2"}', '{"snapshot": "0123456789abcdef", "x": 1}', "[1]"]
)
@pytest.mark.parametrize("name", ["latest.json", "stamps.json", "listing.json", "history.json"])
def test_files_of_others_that_have_names_of_ours_are_refused_and_not_replaced(
    tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / ASSET / name
    path.parent.mkdir()
    path.write_text(content)
    if (name, content) == ("stamps.json", "{}"):  # that is one of ours which knows of no file
        claim_storage(tmp_path)
        return
    with pytest.raises(StorageError, match=rf"{name}' was not made by rm_assets\. Move it elsewhere"):
        published(tmp_path, 1)
    assert path.read_text() == content


def test_links_that_have_names_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / ASSET).mkdir()
    for target in ("nothing", "."):
        (tmp_path / ASSET / LATEST).symlink_to(target)
        with pytest.raises(StorageError, match=r"latest\.json' was not made by rm_assets"):
            published(tmp_path, 1)
        (tmp_path / ASSET / LATEST).unlink()


def test_a_directory_that_holds_other_things_beside_the_assets_may_be_the_storage(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    published(tmp_path, 1)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_storage_made_before_there_was_a_marker_is_taken_over(settings: Settings) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(number) for number in range(9)])
    before = run_stages(settings)
    storage = Path(settings.storage)
    (storage / MARKER).unlink()
    for directory in (".staging", ".training", ".folds", SNAPSHOT):
        (storage / "reward_model" / directory).mkdir(parents=True)
    (storage / ASSET / f".latest.json.{HEX}").write_text("{")
    after = run_stages(settings)
    assert sum(snapshot.num_new_shards for snapshot in after.values()) == 0
    assert {stage: found.name for stage, found in after.items()} == {
        stage: found.name for stage, found in before.items()
    }
    assert (storage / MARKER).is_file()
    assert not (storage / ASSET / f".latest.json.{HEX}").exists()


def test_the_known_assets_are_those_of_the_graph() -> None:
    keys = {key.to_user_string() for asset in definitions().assets or [] for key in asset.keys}  # type: ignore[union-attr]
    assert keys == set(ASSETS)


# --- annotations and storage apart ---------------------------------------------------------------------------


def test_annotations_inside_the_storage_are_refused_wherever_links_lead(tmp_path: Path, monkeypatch) -> None:
    storage = tmp_path / "storage"
    write_lines(storage / "annotations" / "deep" / "a.jsonl", [plain_row(1)])
    (tmp_path / "link").symlink_to(storage / "annotations")
    (tmp_path / "one.jsonl").symlink_to(storage / "annotations" / "deep" / "a.jsonl")
    (tmp_path / "to_storage").symlink_to(storage)
    monkeypatch.chdir(tmp_path)
    inside = [
        "storage",
        "storage/annotations",
        "storage/nothing/yet",
        "storage/annotations/deep/a.jsonl",
        "storage/annotations/*/a.jsonl",
        "./x/../storage/annotations",
        "link",
        "link/deep",
        "one.jsonl",
        f"file://{storage}/annotations",
    ]
    (tmp_path / "x").mkdir()
    for setting in inside:
        for name in ("storage", str(storage), "to_storage", "x/../storage"):
            with pytest.raises(SettingsError, match="inside the storage"):
                files_to_read(Settings(annotations=setting, storage=name))
    with pytest.raises(
        SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\), 'held', is .* inside the sto"
    ):
        files_to_read(Settings(storage="storage", evaluation_files={"held": "link"}))


@pytest.mark.parametrize("setting", [".", "**/*.jsonl", "*/*/*/*.jsonl", "../{name}"])
def test_a_storage_among_the_annotations_is_not_read(tmp_path: Path, monkeypatch, setting: str) -> None:
    write_lines(tmp_path / "x" / "y" / "z" / "a.jsonl", [plain_row(number) for number in range(5)])
    monkeypatch.chdir(tmp_path)
    settings = Settings(annotations=setting.format(name=tmp_path.name), num_workers=1)
    (tmp_path / "x" / "y" / "z" / "b.jsonl").symlink_to(tmp_path / "rm_storage" / "reward_model" / SNAPSHOT / "m.jsonl")
    claim_storage(Path(settings.storage))
    versions = []
    for number in range(2):
        write_lines(tmp_path / "rm_storage" / "reward_model" / SNAPSHOT / "m.jsonl", [{"loss": number}])
        raw = publish_raw(settings, silent)
        assert {shard.source.rsplit("/", 1)[-1] for shard in raw.manifest.shards} == {"a.jsonl"}
        assert raw.manifest.facts["ignored_files"] == []
        versions.append(content_listing(files_to_read(settings)[1], Path(settings.storage)).version)
    assert versions[0] == versions[1] == raw.manifest.facts["content_version"]
    assert published_version(Path(settings.storage)) is None  # no rejects yet


@pytest.mark.parametrize("setting", [".", "**/*.jsonl", "*/*/*/*.jsonl", "../{name}"])
def test_no_other_storage_among_the_annotations_is_read(tmp_path: Path, monkeypatch, setting: str) -> None:
    write_lines(tmp_path / "x" / "y" / "z" / "a.jsonl", [plain_row(1)])
    for other in ("x/first", "second"):
        claim_storage(tmp_path / other)
        write_lines(tmp_path / other / "reward_model" / SNAPSHOT / "metrics.jsonl", [{"loss": 1}])
    monkeypatch.chdir(tmp_path)
    for storage in (Path("storage"), None):
        found = find_annotations(setting.format(name=tmp_path.name), storage)
        assert [file.path.name for file in found.files] == ["a.jsonl"]
    assert found.ignored == (() if "*" in setting else ("second/", "x/first/"))
    found = find_annotations("second", Path("storage"))  # that is what was asked for
    assert [file.source for file in found.files] == [f"reward_model/{SNAPSHOT}/metrics.jsonl"]


# --- what may not be read or changed ----------------------------------------------------------------------------


@pytest.fixture
def storage_of_a_user() -> Iterator[Path]:
    """A storage in which permissions count: whoever has all of them becomes somebody with none, once all is loaded."""
    with tempfile.TemporaryDirectory() as name:
        storage = Path(name) / "storage"
        published(storage, 1)
        shutil.rmtree(storage)
        is_root = os.geteuid() == 0
        if is_root:
            (storage / "lost+found").mkdir(parents=True, mode=0o700)
            for path in (Path(name), storage):
                os.chown(path, 65534, -1)
            os.seteuid(65534)
        else:
            (storage / "lost+found").mkdir(parents=True, mode=0)
        try:
            yield storage
        finally:
            if is_root:
                os.seteuid(0)
            for path in [storage, *storage.rglob("*")]:
                if path.is_dir():
                    path.chmod(0o700)


def test_a_directory_of_others_that_may_not_be_read_is_passed_over(storage_of_a_user: Path) -> None:
    with pytest.raises(PermissionError):
        list((storage_of_a_user / "lost+found").iterdir())
    for value in (1, 2, 3):
        last = published(storage_of_a_user, value)
    assert [path.name for path in (storage_of_a_user / ASSET).glob("?" * 16)] == [last.name]


@pytest.mark.parametrize("of_what", [".", "data"])
@pytest.mark.parametrize("mode", [0o500, 0])
def test_a_snapshot_that_may_not_be_changed_stays_and_stops_no_run(
    storage_of_a_user: Path, of_what: str, mode: int
) -> None:
    protected = published(storage_of_a_user, 1).directory
    published(storage_of_a_user, 2, keep=2)
    (protected / "loop").symlink_to("loop")
    (protected / of_what).chmod(mode)
    published(storage_of_a_user, 3)
    last = published(storage_of_a_user, 1, 4)
    (protected / of_what).chmod(0o700)
    assert {path.name for path in (storage_of_a_user / ASSET).glob("?" * 16)} == {protected.name, last.name}
    assert (protected / "data" / "s-1.parquet").is_file()
    assert (protected / MANIFEST).is_file() == (of_what == ".")
    published(storage_of_a_user, 4)
    assert [path.name for path in protected.iterdir()] == ["loop"]


def test_a_directory_of_others_that_looks_like_snapshots_keeps_nothing_of_ours(tmp_path: Path) -> None:
    foreign = tmp_path / "runs" / SNAPSHOT / MANIFEST
    foreign.parent.mkdir(parents=True)
    foreign.write_text("not JSON")
    for value in (1, 2, 3):
        last = published(tmp_path, value)
    assert [path.name for path in (tmp_path / ASSET).glob("?" * 16)] == [last.name]
    assert foreign.read_text() == "not JSON"


# --- what comes later survives -------------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(
        [
            SNAPSHOT,
            SNAPSHOT.upper(),
            SNAPSHOT[1:],
            f"{SNAPSHOT}0",
            HEX,
            f"s-1.{HEX}",
            f".{HEX}.x.parquet",
            f".x.{HEX}",
            f".latest.json.{HEX.upper()}",
            f".latest.json.{HEX[1:]}",
            f"{HEX}.token.txt",
            ".DS_Store",
            "latest.json~",
            "my notes",
            "data",
            "manifest.json.bak",
            "x.parquet",
            "x.png",
            "part.json",
            f"{SNAPSHOT}.files",
            f"{SNAPSHOT}.json",
        ]
    ),
    st.text("0123456789abcdef", min_size=15, max_size=17),
    st.text("0123456789abcdefX.-_ é", min_size=1, max_size=33).filter(lambda name: name.strip(".")),
)
PLACES = st.sampled_from(
    ["", ASSET, f"{ASSET}/.staging", f"{ASSET}/{{latest}}", f"{ASSET}/{{latest}}/data", f"{ASSET}/{{older}}", "new"]
)
KINDS = st.sampled_from(["file", "directory", "full directory", "link", "link to a directory", "broken link"])
STEPS = st.sampled_from(["run", "rejects", "change", "cut short", "damaged", "lost latest"])


class CutShort(BaseException):
    """Stands for a kill between two files."""


@contextlib.contextmanager
def cut_short(after: int) -> Iterator[None]:
    """The writer stops before the JSON file of this number."""
    left = [after]

    def write(path: Path, value: object, **options: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise CutShort
        write_json(path, value, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CutShort):
        patch.setattr(publication_module, "write_json", write)
        patch.setattr("rm_assets.data.storage.ownership.write_json", write)
        patch.setattr("rm_assets.data.storage.shards.write_json", write)
        yield


def put(storage: Path, outside: Path, place_of: str, name: str, kind: str) -> list[Path]:
    """Something of a user's in the storage, unless the name is taken; what there is to look after."""
    latest = latest_snapshot(storage, ASSET)
    names = sorted(path.parent.name for path in (storage / ASSET).glob(f"*/{MANIFEST}"))
    folder = storage / place_of.format(latest=latest.name if latest else SNAPSHOT, older=names[0] if names else "none")
    if not place_of.startswith(ASSET) or folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not folder.is_dir() or path.exists() or path.is_symlink():
        return []
    if kind == "file":
        path.write_text("mine")
    elif "link" in kind:
        path.symlink_to(outside / {"link": "a.txt", "broken link": "nothing"}.get(kind, "."))
    else:
        path.mkdir()
        if kind == "full directory":
            (path / "data").mkdir()
            for inner in ("data/s-1.parquet", "manifest.json", "latest.json", ".hidden"):
                (path / inner).write_text("{}")
    return [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]


def state(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return f"file {path.read_text()!r}" if path.is_file() else "directory" if path.is_dir() else "gone"


def step(storage: Path, kind: str, number: int) -> None:
    if kind == "damaged":
        for directory in (path.parent for path in (storage / ASSET).glob(f"*/{MANIFEST}")):
            if published_files(directory) is not None and directory.name != latest_name(storage, ASSET):
                (directory / MANIFEST).write_text("{")
    elif kind == "lost latest":
        (storage / ASSET / LATEST).unlink(missing_ok=True)
    elif kind == "cut short":
        with cut_short(number % 7):
            published(storage, 1, number)
    else:
        published(storage, 1, *([number] if kind == "change" else []), num_rejects=number if kind == "rejects" else 0)


def check_that_foreign_files_survive(
    storage: Path, outside: Path, foreign: list[tuple[int, str, str, str]], steps: list[str]
) -> None:
    outside.mkdir()
    (outside / "a.txt").write_text("mine")
    (outside / "s-1.parquet").write_text("mine")
    published(storage, 1)
    looked_after: dict[Path, str] = {}
    for number, kind in enumerate([*steps, "run"], start=2):
        for when, place_of, name, what in foreign:
            if when == number:
                looked_after |= {path: state(path) for path in put(storage, outside, place_of, name, what)}
        step(storage, kind, number)
        assert {path: state(path) for path in looked_after} == looked_after, kind
    assert sorted(path.name for path in outside.iterdir()) == ["a.txt", "s-1.parquet"]


FOREIGN = st.lists(st.tuples(st.integers(2, 6), PLACES, NAMES, KINDS), min_size=1, max_size=8)


@example(
    [(2, ASSET, SNAPSHOT, "full directory"), (2, f"{ASSET}/{{latest}}", "x.parquet", "file")], ["change", "rejects"]
)
@example([(2, f"{ASSET}/.staging", f"s-1.{HEX}", "full directory")], ["cut short", "change"])
@given(FOREIGN, st.lists(STEPS, min_size=1, max_size=5))
@hypothesis_settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_others_put_into_a_storage_survives_every_sequence_of_runs(
    tmp_path: Path, foreign: list[tuple[int, str, str, str]], steps: list[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as one:
        check_that_foreign_files_survive(Path(one, "storage"), Path(one, "outside"), foreign, steps)


@pytest.mark.soak
@given(FOREIGN, st.lists(STEPS, min_size=1, max_size=9))
@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_others_put_into_a_storage_survives_hundreds_of_sequences(
    tmp_path: Path, foreign: list[tuple[int, str, str, str]], steps: list[str]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as one:
        check_that_foreign_files_survive(Path(one, "storage"), Path(one, "outside"), foreign, steps)


def test_nothing_of_ours_is_left_after_runs_that_were_cut_short_at_each_file(tmp_path: Path) -> None:
    def tree(storage: Path) -> dict[str, int]:
        return {name: size for name, size in file_sizes(storage).items() if not name.endswith("writer.lock")}

    for number in range(8):
        storage = tmp_path / str(number)
        published(storage, 1, num_rejects=3)
        with cut_short(number):
            published(storage, 1, 2)
        published(storage, 1)
        assert tree(storage) == tree_of_one(tmp_path, number)


def tree_of_one(tmp_path: Path, number: int) -> dict[str, int]:
    storage = tmp_path / f"undisturbed-{number}"
    published(storage, 1)
    return {name: size for name, size in file_sizes(storage).items() if not name.endswith("writer.lock")}


def test_pictures_and_reports_of_ours_go_with_their_snapshot(tmp_path: Path) -> None:
    first = published(tmp_path, 1).directory
    for name in BESIDE:
        (first / name).write_text("ours")
    published(tmp_path, 2)
    assert not first.exists()


def test_a_manifest_copied_from_another_asset_proves_nothing(tmp_path: Path) -> None:
    first = published(tmp_path, 1)
    copied = tmp_path / ASSET / SNAPSHOT
    shutil.copytree(first.directory, copied)
    shutil.copytree(first.directory, tmp_path / "tokenized_pairs" / first.name)
    for value in (2, 3):
        published(tmp_path, value)
    assert sorted(file_sizes(copied)) == ["README.md", "data/s-1.parquet", "manifest.json"]
    assert len(file_sizes(tmp_path / "tokenized_pairs")) == 3


def test_what_others_put_into_a_remote_storage_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_assets.data.storage.retention._READING_SECONDS", -1.0)
    monkeypatch.setattr("rm_assets.data.storage.files._ABANDONED_SECONDS", -1.0)
    with s3_server() as bucket:
        (resolve_path(f"{bucket}/taken") / ASSET / "my_notes" / "a.txt").write_bytes(b"mine")
        with pytest.raises(StorageError, match="raw_preferences/my_notes' was not made by rm_assets"):
            published(resolve_path(f"{bucket}/taken"), 1)
        home = resolve_path(f"{bucket}/a[bc]*?/storage")  # which is no pattern for other prefixes
        first = published(home, 1)
        foreign = [
            resolve_path(bucket) / name
            for name in (
                f"a[bc]*?/storage/{ASSET}/{SNAPSHOT}/data/s-1.parquet",
                f"a[bc]*?/storage/{ASSET}/{first.name}/data/x.parquet",
                f"a[bc]*?/storage/{ASSET}/.staging/notes.txt",
                f"a[bc]*?/storage/{ASSET}/.notes.txt.{HEX}",
                f"abxx/storage/{ASSET}/{first.name}/data/s-1.parquet",
            )
        ]
        for path in foreign:
            path.write_bytes(b"mine")
        with cut_short(3):
            published(home, 2)
        for value in (3, 4):
            last = published(home, value)
        remove_files([home / "nothing"])
        left = set(file_sizes(resolve_path(bucket))) - {f"taken/{ASSET}/my_notes/a.txt"}
        ours = {MARKER, f"{ASSET}/latest.json", *(f"{ASSET}/{last.name}/{name}" for name in file_sizes(last.directory))}
        assert left == {f"a[bc]*?/storage/{name}" for name in ours} | {
            str(path).removeprefix(f"{bucket}/") for path in foreign
        }


def test_remote_annotations_and_a_remote_storage_stay_apart() -> None:
    with s3_server() as bucket:
        for name in ("annotations/a.jsonl", "team/storage/reward_model/m.jsonl", "team/storage2/b.jsonl"):
            (resolve_path(bucket) / name).write_bytes(b"{}\n")
        storage = resolve_path(f"{bucket}/team//storage/")
        for setting in (bucket, f"{bucket}/", f"{bucket}/**/*.jsonl"):
            sources = {file.source for file in find_annotations(setting, storage).files}
            assert sources == {"annotations/a.jsonl", "team/storage2/b.jsonl"}
        claim_storage(resolve_path(f"{bucket}/team/storage2"))
        for setting in (bucket, f"{bucket}/**/*.jsonl"):
            assert {file.source for file in find_annotations(setting, storage).files} == {"annotations/a.jsonl"}
        for setting in ("team/storage", "team/storage/reward_model", "team/storage/*/m.jsonl", "team/storage/new"):
            with pytest.raises(SettingsError, match="inside the storage"):
                find_annotations(f"{bucket}/{setting}", storage)
        for setting in (bucket, f"{bucket}/team"):
            with pytest.raises(SettingsError, match="inside the storage"):
                find_annotations(setting, resolve_path(bucket))
        assert Stage.RAW == ASSET
