"""The places of the replies in lines of evaluation sets, and the lines of which a pair is missing."""

from pathlib import Path

from support import plain_row, run_stages, write_lines

from rm_assets.data.storage.parquet import read_table
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.snapshots.rescoring import num_incomplete_lines, pair_facts, preferences_of
from rm_assets.settings import Settings

STYLES = [
    (["good", "good", "better"], ["bad", "bad", "bad"], "chat"),
    (["good", "good ", "better"], ["bad", "worse", "bad  "], "safety-refuse"),
    (["fine", "fine", "fine"], ["bad", "awful", "worse"], "code"),
    (["good", "fine", "better"], ["fine", "bad", "good"], "chat"),
    (["good", "good", "fine"], ["fine", "good", "bad"], "chat"),
    (["fine", "word " * 90, "better"], ["bad", "awful", "worse"], "math"),
]


def test_every_reply_of_a_line_has_its_place_also_beside_equal_ones(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [plain_row(number) for number in range(20)])
    rows = [
        {"id": number, "prompt": f"Which of {number}?", "chosen": chosen, "rejected": rejected, "domain": domain}
        for number, (chosen, rejected, domain) in enumerate(STYLES)
    ]
    write_lines(tmp_path / "bench.jsonl", rows)
    stages = run_stages(
        Settings(
            annotations=str(tmp_path / "pairs.jsonl"),
            evaluation_files={"bench": str(tmp_path / "bench.jsonl")},
            storage=str(tmp_path / "storage"),
            max_length=64,
        )
    )
    validated, padded = stages[Stage.VALIDATED], stages[Stage.PADDED]
    scored = set(read_table(padded.paths("evaluation/bench"), schemas.PADDED, ["pair_id"])["pair_id"].to_pylist())
    preferences = preferences_of(validated, scored)
    texts = {
        (row["line"], row["pair_id"]): (row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in preferences.to_pylist()
    }
    found = [
        (row.line, row.chosen_place, row.rejected_place, *texts[row.line, row.pair_id], row.subset)
        for row in pair_facts(validated, preferences).itertuples()
    ]
    expected = [
        (line, i, j, good, bad, domain)
        for line, (chosen, rejected, domain) in enumerate(STYLES, start=1)
        for i, good in enumerate(chosen)
        for j, bad in enumerate(rejected)
        if len(good) < 200 and good != bad
    ]
    assert sorted(found) == sorted(expected)
    assert num_incomplete_lines(validated, scored) == 1
