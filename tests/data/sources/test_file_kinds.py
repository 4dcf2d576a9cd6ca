"""What the name of a file says of its content, and what is told of those that are not read."""

from pathlib import Path

import pytest
from datasets import Dataset
from support import plain_row, rows, silent, write_lines

from rm_assets.data.sources.file_kinds import SUFFIXES, file_kind, what_is_not_read
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.stages import stage_result
from rm_assets.settings import Settings


def test_a_kind_is_known_by_the_name_in_whichever_case_and_compression() -> None:
    for suffix in SUFFIXES:
        assert file_kind(f"a{suffix}") is file_kind(f"A{suffix.upper()}") is not None
        assert (file_kind(f"a{suffix}.gz") is file_kind(f"a{suffix}.ZST")) is True
        assert (file_kind(f"a{suffix}.gz") is None) == (suffix == ".parquet")
    for name in ("a.txt", "a.jsonl.bz2", "jsonl", "a.jsonl~", "a.parquet.gz", "dataset_info.json", "a.arrow", "a.gz"):
        assert file_kind(name) is None


DIRECTORY = "a directory found by a glob or a link is not searched; name it in the setting"


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ([], ""),
        (["README.md", "a/LICENSE", "linked/", "state.json", "_SUCCESS"], ""),
        (["a.txt"], "'a.txt' is not read: if each line is a JSON object, rename it to end in .jsonl"),
        (["a.data", "b.xlsx", "c.data"], "'b.xlsx' and 2 more files are not read: save it as CSV in UTF-8"),
        (["a.data", "b.xlsx"], "'b.xlsx' and 1 more file are not read: save it as CSV in UTF-8"),
        (["linked/", "x/Part.parquet/"], f"'x/Part.parquet/' is not read: {DIRECTORY}"),
        (
            ["a.csv?download=true"],
            "'a.csv?download=true' is not read: omit the ? and what follows, or download it",
        ),
        (["a.data"], f"'a.data' is not read: only files ending in {', '.join(SUFFIXES)} are"),
        (["a.parquet.gz"], "'a.parquet.gz' is not read: unpack it"),
    ],
)
def test_files_that_are_not_read_are_reported_with_advice(ignored: list[str], expected: str) -> None:
    assert what_is_not_read(ignored) == expected


def test_the_way_on_for_an_arrow_file_gives_back_the_same_texts(settings: Settings, tmp_path: Path) -> None:
    Dataset.from_list([plain_row(7, chosen="007"), plain_row(8, chosen="NA")]).save_to_disk(str(tmp_path / "saved"))
    [name] = (str(path) for path in (tmp_path / "saved").glob("*.arrow"))
    way = what_is_not_read([name]).split(": ", 2)[-1]
    assert way == "Dataset.from_file(NAME).to_parquet(NAME + '.parquet')"
    eval(way, {"Dataset": Dataset, "NAME": name})
    Path(f"{name}.parquet").rename(Path(settings.annotations_path) / "a.parquet")
    raw = publish_raw(settings, silent)
    assert [row["text"].split('"chosen":')[1][:6] for row in rows(raw)] == ['"007",', '"NA","']


def test_a_file_that_is_not_read_is_a_warning_and_a_last_line(settings: Settings) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "a.jsonl", [plain_row(1)])
    said: list[str] = []
    for name in ("README.md", "old [1](x).xlsx"):
        (directory / name).write_bytes(b"x")
        raw = publish_raw(settings, said.append)
        [check] = [
            check
            for check in stage_result(Stage.RAW, raw, None, settings).check_results or []
            if check.check_name == "no_file_is_ignored"
        ]
        assert check.passed == (name == "README.md")
    assert check.severity.value == "WARN"
    assert check.description == "`old [1](x).xlsx` is not read: save it as CSV in UTF-8"
    assert "'old [1](x).xlsx' is not read: save it as CSV in UTF-8" in said
