"""What the command prints of two snapshots of pairs, and of two models."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets import diff
from rm_assets.data.storage.writing import write_json
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings_loading import load_settings


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RM_STORAGE", str(tmp_path / "storage"))
    return tmp_path / "storage"


def prepare(storage: Path, lines: list) -> str:
    """The name of padded_pairs for these annotations."""
    write_lines(storage.parent / "in" / "a.jsonl", lines)
    settings = load_settings({"annotations": str(storage.parent / "in"), "storage": str(storage)}, {})
    return run_stages(settings)[Stage.PADDED].name


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = diff.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_pairs_and_rejects_are_compared(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [plain_row(number) for number in range(20)]
    flipped = rows[2] | {"chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    before = prepare(storage, [b"{broken", *rows])
    now = prepare(storage, [plain_row(30), rows[0], rows[1], flipped, *rows[4:], {**rows[5], "extra": 1}])
    code, lines, _ = printed(capsys, before, "latest")
    assert code == 0
    assert lines[:2] == [
        f"padded_pairs {before} -> {now}",
        "pairs: 20 -> 20; 1 added, 1 removed, 1 flipped, 0 moved",
    ]
    assert [line.split(", pair")[0] for line in lines[2:5]] == [
        "  + a.jsonl, line 1",
        "  - a.jsonl, line 5",
        "  ! a.jsonl, line 4",
    ]
    assert lines[5:] == [
        "rejects: 2 lines changed",
        "  1: not rejected -> duplicate",
        "  1: not_json -> not rejected",
    ]


def test_long_lists_are_cut(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prepare(storage, [plain_row(number) for number in range(20)])
    now = prepare(storage, [plain_row(number) for number in range(27)])
    _, lines, _ = printed(capsys, before, now, "--limit", "3")
    assert [line for line in lines if line.startswith("  + ")][3:] == ["  + 4 more added (--limit)"]


def leave_model(storage: Path, name: str, differences: list[float]) -> None:
    """What the command reads of a model, which scored pairs with these differences."""
    rows = [
        {field.name: "x" if field.type == pa.string() else 0 for field in schemas.SCORES}
        | {"line": number, "split": "test", "chosen_score": difference, "rejected_score": 0.0}
        for number, difference in enumerate(differences, 1)
    ]
    directory = storage / "reward_model" / name
    directory.mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schemas.SCORES), directory / "scores.parquet", write_page_checksum=True
    )
    manifest = {"key": name * 4, "data_snapshot": "0" * 16, "files": {}, "metrics": {}, "versions": {}}
    write_json(directory / "manifest.json", manifest)
    write_json(storage / "reward_model" / "latest.json", {"snapshot": name})


def test_models_are_compared_by_the_pairs_that_both_scored(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_model(storage, "0123456789abcdef", [1.0, -1.0, 0.5])
    leave_model(storage, "fedcba9876543210", [2.0, 1.5, -0.5, 3.0])
    code, lines, _ = printed(capsys, "0123456789abcdef", "latest")
    assert (code, lines) == (
        0,
        [
            "reward_model 0123456789abcdef -> fedcba9876543210",
            "held-out pairs with both scores: 3; 1 ranked better now, 1 worse",
            "  + x, line 2, pair x (test): chosen -1.0000 -> +1.5000, rejected +0.0000 -> +0.0000",
            "  - x, line 3, pair x (test): chosen +0.5000 -> -0.5000, rejected +0.0000 -> +0.0000",
        ],
    )


def test_what_is_not_there_is_one_error(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = prepare(storage, [plain_row(number) for number in range(20)])
    for arguments in (("0" * 16, "latest"), (name, name), ("../x", "latest"), ("latest", "latest")):
        code, lines, error = printed(capsys, *arguments)
        assert (code, lines) == (1, [])
        assert error.startswith("error: ")
        assert "of padded_pairs or of reward_model" in error
        assert error.count("\n") == 1
