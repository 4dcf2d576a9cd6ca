"""Lengths of the padded pairs, as figures and a picture. Both depend on a snapshot's data alone and are kept beside it:
a refresh without new pairs neither reads the lengths of all of them nor loads matplotlib.
"""

import contextlib
from typing import Any

import dagster as dg
import msgspec
import numpy as np

from rm_assets.data.storage.files import StorageError, read_file
from rm_assets.data.storage.ownership import LENGTHS
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.storage.writing import json_bytes, write_file
from rm_assets.data.tables import schemas
from rm_assets.defs.results.metadata import percentiles, table
from rm_assets.defs.results.plots import length_histogram, markdown_picture

_COLUMNS = ["chosen_length", "rejected_length", "prefix_length"]


class _Lengths(msgspec.Struct):
    median: float
    percentiles: dict[str, dict[str, float]]
    png: bytes


def lengths_metadata(snapshot: Snapshot) -> dict[str, Any]:
    """Median, percentiles and histogram of the lengths of a snapshot of padded_pairs, in tokens."""
    found = _kept(snapshot) or _measured(snapshot)
    rows = [{"tokens": name, **_rounded(figures)} for name, figures in found.percentiles.items()]
    return {
        "median_length": found.median,
        "length_percentiles": table(rows),
        "lengths": dg.MetadataValue.md(markdown_picture(found.png, "tokens of the chosen and the rejected sides")),
    }


def _kept(snapshot: Snapshot) -> _Lengths | None:
    with contextlib.suppress(OSError, StorageError, msgspec.MsgspecError):
        return msgspec.json.decode(read_file(snapshot.directory / LENGTHS), type=_Lengths)
    return None


def _measured(snapshot: Snapshot) -> _Lengths:
    rows = read_table(snapshot.paths(), schemas.PADDED, _COLUMNS)
    of_sides = {name: rows[name].to_numpy() for name in _COLUMNS}
    longer = np.maximum(of_sides["chosen_length"], of_sides["rejected_length"])
    found = _Lengths(
        median=float(np.median(longer)) if len(longer) else 0.0,
        percentiles={name: percentiles(lengths) for name, lengths in (*of_sides.items(), ("longer_side", longer))},
        png=length_histogram(of_sides["chosen_length"], of_sides["rejected_length"]),
    )
    with contextlib.suppress(StorageError):  # a protected or full storage: measured again next time
        write_file(snapshot.directory / LENGTHS, json_bytes(found))
    return found


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in figures.items()}
