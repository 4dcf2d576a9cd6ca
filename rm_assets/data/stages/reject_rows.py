"""Rows of rejects, as every stage writes and counts them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage


def reject_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rejects as a table."""
    return pa.Table.from_pylist(list(rows), schema=schemas.REJECTS)


def pair_reject(row: Mapping[str, Any], stage: Stage, reason: Reason, detail: str) -> dict[str, Any]:
    """A reject after validation, where a row is known by its pair: `line_sha256` is left empty."""
    return {
        "source": row["source"],
        "line": row["line"],
        "stage": stage,
        "reason": reason,
        "detail": detail,
        "line_sha256": "",
    }


Refusal = tuple[Reason, str]
"""A reason and its detail."""


def refused_rows(rows: pa.Table, stage: Stage, refused: Mapping[int, Refusal]) -> pa.Table:
    """The rejects of a stage, from rows with `source` and `line` and, by their place, why some go no further."""
    places = sorted(refused)
    keys = rows.select(["source", "line"]).take(pa.array(places, pa.int64())).to_pylist()
    return reject_table(pair_reject(key, stage, *refused[place]) for key, place in zip(keys, places, strict=True))


def reason_counts(reasons: Counter[Reason]) -> dict[str, int]:
    """How often each reason occurs, in alphabetical order."""
    return {str(reason): count for reason, count in sorted(reasons.items())}


def num_rejects(paths: Mapping[str, Path], source: str) -> int:
    """Rows of this source in the written file of rejects, if there is one."""
    batches = read_batches(paths.get(REJECTS), schemas.REJECTS, ["source"])
    return sum(schemas.num_rows_of(source, rows) for rows in batches)
