"""The same rows give the same pairs, whatever kind of file they were written as."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import rejects, rows, silent, violations

from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

FLAT = ("prompt", "chosen", "rejected")
Row = dict[str, Any]


def json_lines(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parquet(rows: list[Row], size: int) -> bytes:
    stream = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in FLAT}
    pq.write_table(pa.table(columns), stream, row_group_size=size)
    return stream.getvalue()


def separated(rows: list[Row], delimiter: str) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, FLAT, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def found(written: dict[str, bytes]) -> dict[str, tuple[list[Row], list[tuple[int, str]]]]:
    """The pairs and rejects of each file, without its name."""
    with tempfile.TemporaryDirectory() as directory:
        annotations = Path(directory, "annotations")
        annotations.mkdir()
        for name, content in written.items():
            (annotations / name).write_bytes(content)
        settings = Settings(annotations=str(annotations), storage=f"{directory}/storage", num_workers=1)
        settings = settings.model_copy(update={"max_malformed_fraction": 1.0, "shard_bytes": 200})
        raw = publish_raw(settings, silent)
        validated = publish_validated(settings, raw, silent)
        assert set(violations({Stage.RAW: raw, Stage.VALIDATED: validated}).values()) == {0}
        pairs = rows(validated)
        told = [*rejects(raw), *rejects(validated)]
    return {
        name: (
            [row | {"source": ""} for row in pairs if row["source"] == name],
            [(line, reason) for source, line, reason in told if source == name],
        )
        for name in written
    }


TEXTS = st.text(alphabet="ab \"',;\t\r\n\\é{[", min_size=1, max_size=6)
ROLES = st.sampled_from(["user", "assistant"])
MESSAGES = st.builds(lambda role, text: [{"role": role, "content": text}], ROLES, TEXTS)


@pytest.mark.parametrize("is_flat", [True, False], ids=["texts", "messages"])
@examples(max_examples=4, derandomize=True)
@given(data=st.data())
def test_the_same_rows_give_the_same_pairs_in_files_of_all_kinds(is_flat: bool, data: st.DataObject) -> None:
    texts = TEXTS if is_flat else MESSAGES
    table = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(FLAT, texts)), min_size=1, max_size=4))
    written = {
        "a.jsonl": json_lines(table),
        "a.ndjson": json_lines(table),
        "a.json": json.dumps(table).encode(),
        "b.json": json.dumps({"data": table}, indent=2, ensure_ascii=False).encode(),
        "a.parquet": parquet(table, 1),
        "b.parquet": parquet(table, 3),
    }
    if is_flat:
        written |= {"a.csv": separated(table, ","), "a.tsv": separated(table, "\t")}
    expected, *others = found(written).values()
    assert others == [expected] * len(others)
