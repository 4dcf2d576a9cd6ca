"""What is told of a line or a pair: kept, a duplicate, a reject, an evaluation pair, and what is not there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import plain_row, rows, run_stages, silent, write_lines

from rm_assets import trace
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.tables.reasons import MEANINGS, Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings_loading import load_settings


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory):
    """Two files and an evaluation set: a.jsonl has a broken line 3, b.jsonl an equal pair and one that is too long."""
    directory = tmp_path_factory.mktemp("trace")
    write_lines(directory / "in" / "a.jsonl", [plain_row(1), plain_row(2), b"{broken", *map(plain_row, range(3, 30))])
    write_lines(directory / "in" / "sub" / "b.jsonl", [plain_row(2), plain_row(50, chosen="many words " * 900)])
    ranking = {"prompt": "Which?", "responses": ["one", "two", "three"], "scores": [3, 2, 1]}
    write_lines(directory / "held.jsonl", [ranking])
    settings = {"annotations": str(directory / "in"), "storage": str(directory / "storage")}
    settings["evaluation_files"] = {"held": str(directory / "held.jsonl")}
    return directory / "storage", run_stages(load_settings(settings, {}))


@pytest.fixture
def told(stages, monkeypatch, capsys):
    """A function that gives the trace of its arguments as lines, and the exit code."""
    monkeypatch.setenv("RM_STORAGE", str(stages[0]))

    def tell(*arguments):
        code = trace.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return tell


def pair_at(stages, source, line):
    """The id of a line's first pair."""
    found = rows(stages[1][Stage.VALIDATED])
    return next(row["pair_id"] for row in found if (row["source"], row["line"]) == (source, line))


def told_of(lines, stage):
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {stage} ")]


def test_a_kept_row_is_followed_through_every_stage(stages, told) -> None:
    code, lines, _ = told("a.jsonl", "2")
    [pair] = [
        row["pair_id"] for row in rows(stages[1][Stage.VALIDATED]) if row["line"] == 2 and row["source"] == "a.jsonl"
    ]
    [row] = [row for row in rows(stages[1][Stage.PADDED]) if row["pair_id"] == pair]
    assert code == 0
    assert lines[0] == "a.jsonl, line 2"
    assert told_of(lines, "raw_preferences") == [
        f"{len(str(plain_row(2)))} bytes: " + str(plain_row(2)).replace("'", '"')[:100] + "…"
    ]
    assert told_of(lines, "validated_preferences") == [f"pair {pair}: plain, 1 turns, margin 0"]
    lengths = f"chosen {row['chosen_length']} tokens, rejected {row['rejected_length']}"
    assert told_of(lines, "tokenized_pairs") == [f"pair {pair}: {lengths}"]
    assert told_of(lines, "padded_pairs")[0].startswith(f"pair {pair}: in ")


def test_a_duplicate_names_the_row_that_was_kept(told) -> None:
    _, lines, _ = told("sub/b.jsonl", "1")
    [padded] = told_of(lines, "padded_pairs")
    assert padded.startswith("rejected, duplicate: An equal pair occurs earlier")
    assert padded.endswith("kept is a.jsonl, line 2")


def test_a_rejected_row_has_its_reason_at_its_stage(told) -> None:
    _, lines, _ = told("a.jsonl", "3")
    assert told_of(lines, "validated_preferences")[0].startswith(
        "rejected, not_json: The line is not a single JSON value"
    )
    assert told_of(lines, "padded_pairs") == []
    _, lines, _ = told("b.jsonl", "2")
    assert told_of(lines, "tokenized_pairs")[0].startswith("rejected, too_long: A side has more than max_length tokens")


def test_a_pair_is_told_of_every_line_that_states_it(stages, told) -> None:
    [pair] = {
        row["pair_id"]
        for row in rows(stages[1][Stage.VALIDATED])
        if row["source"] == "sub/b.jsonl" and row["line"] == 1
    }
    _, lines, _ = told(pair)
    assert [line for line in lines if not line.startswith(" ")] == ["a.jsonl, line 2", "sub/b.jsonl, line 1"]


def test_of_a_ranking_all_pairs_are_told_and_one_by_its_id(stages, told) -> None:
    _, lines, _ = told("held.jsonl", "1")
    assert lines[0] == "evaluation:held/held.jsonl, line 1"
    assert len(told_of(lines, "validated_preferences")) == 3
    assert all(text.endswith("in evaluation/held") for text in told_of(lines, "padded_pairs"))
    _, lines, _ = told(pair_at(stages, "evaluation:held/held.jsonl", 1))
    assert len(told_of(lines, "validated_preferences")) == len(told_of(lines, "padded_pairs")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("a.jsonl", "99"), 1, "'a.jsonl' has no line 99"),
        (("c.jsonl", "1"), 1, "no file 'c.jsonl' among the sources"),
        (("nosuchpair",), 1, "no pair 'nosuchpair'"),
        (("\udcff",), 1, r"no pair '\udcff'"),
        (("a.jsonl", "9" * 18), 1, "'a.jsonl' has no line 999999999999999999"),
        (("a.jsonl", "9" * 19), 2, "usage: python -m rm_assets.trace"),
        (("a.jsonl", "9" * 5000), 2, "usage: python -m rm_assets.trace"),
        (("a.jsonl", "first"), 2, "usage: python -m rm_assets.trace"),
        ((), 2, "usage: python -m rm_assets.trace"),
    ],
)
def test_what_is_not_there_is_a_clear_error(told, arguments, code, complaint) -> None:
    found, lines, error = told(*arguments)
    assert (found, lines) == (code, [])
    assert complaint in error


HOSTILE = "\x1b]0;title\x07\x1b[2J\r\x00\x9b8m\u202e\u2066\u200b"


def test_no_control_character_of_a_row_reaches_the_terminal(tmp_path: Path, monkeypatch, capsys) -> None:
    raw = b'{"prompt": "' + HOSTILE.encode() + b'"'
    sound = plain_row(1, subset=HOSTILE + "s" * 3_000_000)
    write_lines(
        tmp_path / "in" / "\u202ea.jsonl", [raw, sound, plain_row(2, prompt=HOSTILE), *map(plain_row, range(3, 40))]
    )
    settings = load_settings({"annotations": str(tmp_path / "in"), "storage": str(tmp_path / "storage")}, {})
    snapshots = run_stages(settings)
    assert rows(snapshots[Stage.VALIDATED])[0]["subset"] == sound["subset"]
    monkeypatch.setenv("RM_STORAGE", str(tmp_path / "storage"))
    told = []
    for arguments in (
        ["a.jsonl", "1"],
        ["\u202ea.jsonl", "1"],
        ["\u202ea.jsonl", "2"],
        ["\u202ea.jsonl", "3"],
        [HOSTILE],
    ):
        assert trace.main(arguments) in (0, 1)
        told += capsys.readouterr()
    text = "".join(told)
    assert "\\x1b]0;title\\x07" in text
    assert not set("\x1b\x07\r\x00\x9b\u202e\u2066\u200b") & set(text)
    assert len(text) < 10_000


def test_a_file_that_is_rejected_whole_is_told_once_for_each_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_lines(tmp_path / "a" / "good.jsonl", [plain_row(1)])
    (tmp_path / "a" / "b.csv").write_bytes(b"")
    settings = load_settings({"annotations": str(tmp_path / "a"), "storage": str(tmp_path / "s")}, {})
    publish_raw(settings, silent)
    for number in ("0", "7"):
        assert list(trace.trace(tmp_path / "s", "b.csv", number)) == [
            f"b.csv, line {number}",
            f"  raw_preferences          rejected, damaged_file: {MEANINGS[Reason.DAMAGED_FILE]} (it has no header)",
        ]


def test_without_snapshots_it_says_what_to_do(told, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RM_STORAGE", str(tmp_path))
    code, _, error = told("a.jsonl", "1")
    assert code == 1
    assert "set RM_STORAGE, or materialize the assets first" in error


def test_the_command_loads_neither_torch_nor_dagster() -> None:
    code = (
        "import sys, rm_assets.trace; sys.exit(bool({'torch', 'transformers', 'dagster', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_damaged_files_of_the_storage_are_one_line_that_names_them(stages, told, tmp_path, monkeypatch) -> None:
    storage = tmp_path / "storage"
    shutil.copytree(stages[0], storage)
    monkeypatch.setenv("RM_STORAGE", str(storage))
    write_lines(storage / "reward_model" / "notes" / "manifest.json", [{}])
    model = storage / "reward_model" / ("a" * 16)
    write_lines(model / "manifest.json", [[]])
    scores = {"source": "", "line": 0, "pair_id": "", "split": "", "chosen_score": 0.0, "rejected_score": 0.0}
    pq.write_table(pa.Table.from_pylist([scores]), model / "scores.parquet")
    (storage / "reward_model" / "latest.json").write_text("{")
    code, _, error = told("a.jsonl", "2")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith(f"error: {str(model / 'manifest.json')!r} is damaged (")
    shutil.rmtree(model)
    assert told("a.jsonl", "2")[0] == 0
    raw = storage / "raw_preferences"
    manifest = raw / stages[1][Stage.RAW].name / "manifest.json"
    manifest.write_bytes(b"\xff")
    assert told("a.jsonl", "2")[2].startswith(f"error: {str(manifest)!r} cannot be read: remove that directory")
