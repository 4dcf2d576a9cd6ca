"""Lengths of the padded pairs, as figures and a plot. Both depend only on a snapshot's data and are stored with it:
a refresh without new pairs does not read the lengths of all of them.

The plot is an SVG written here: a refresh draws nothing else, and importing matplotlib would take longer than one new
file takes at all stages.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
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
from rm_assets.defs.results.plots import BLUE, GREY, INK, ORANGE, markdown_picture

_COLUMNS = ["chosen_length", "rejected_length", "prefix_length"]
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 260" width="900" height="260" font-family="sans-serif" '
    f'font-size="12" fill="{INK}"><rect width="900" height="260" fill="white"/>'
)
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 30, 885, 210  # the area within the axes, in pixels
_NUM_BARS = 40


class _Lengths(msgspec.Struct):
    median: float
    percentiles: dict[str, dict[str, float]]
    svg: str


def lengths_metadata(snapshot: Snapshot) -> dict[str, Any]:
    """Median, percentiles and histogram of the lengths of a snapshot of padded_pairs, in tokens."""
    found = _kept(snapshot) or _measured(snapshot)
    rows = [{"tokens": name, **_rounded(figures)} for name, figures in found.percentiles.items()]
    return {
        "median_length": found.median,
        "length_percentiles": table(rows),
        "lengths": dg.MetadataValue.md(
            markdown_picture(found.svg.encode(), "tokens of the chosen and the rejected sides", "svg+xml")
        ),
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
        svg=length_histogram(of_sides["chosen_length"], of_sides["rejected_length"]),
    )
    with contextlib.suppress(StorageError):  # a protected or full storage: measured again next time
        write_file(snapshot.directory / LENGTHS, json_bytes(found))
    return found


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in figures.items()}


def length_histogram(chosen: np.ndarray, rejected: np.ndarray) -> str:
    """An SVG of the lengths in tokens of both sides of the same pairs, (pairs,) each.

    The last bar holds the longest hundredth of the sides: one outlier must not squeeze all other bars.
    """
    both = np.concatenate([chosen, rejected])
    last = float(np.percentile(both, 99)) if len(both) else 1.0
    edges = np.histogram_bin_edges(np.minimum(both, last), bins=_NUM_BARS)
    sides = {"rejected": (rejected, ORANGE), "chosen": (chosen, BLUE)}
    counts = {name: np.histogram(np.minimum(lengths, last), edges)[0] for name, (lengths, _) in sides.items()}
    highest = 1.05 * max(1, *(int(each.max()) for each in counts.values()))
    parts = list(_axes(edges[0], edges[-1], highest))
    for left, (name, (_, color)) in zip((400, 480), sides.items(), strict=True):
        style = f'fill="{color}" fill-opacity="0.3" stroke="{color}" stroke-width="1.3"'
        parts.append(f'<path d="{_outline(counts[name], highest)}" {style}/>')
        parts.append(f'<rect x="{left}" y="9" width="18" height="9" {style}/>' + _text(left + 24, 18, name, "start"))
    return "".join([_SVG, *parts, "</svg>"])


def _axes(first: float, last: float, highest: float) -> Iterator[str]:
    """Frame, grid, ticks and names of the axes: tokens from `first` to `last`, and up to `highest` pairs."""
    for tick in _ticks(0, highest, 5):
        y = np.interp(tick, [0, highest], [_BOTTOM, _TOP])
        yield f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="#e6e6e6"/>' + _text(_LEFT - 8, y + 4, f"{tick:,}", "end")
    for tick in _ticks(first, last, 10):
        x = np.interp(tick, [first, last], [_LEFT, _RIGHT])
        yield f'<path d="M{x:.1f} {_BOTTOM}v4" stroke="{GREY}"/>' + _text(x, _BOTTOM + 18, f"{tick:,}")
    yield f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="{GREY}"/>'
    yield _text((_LEFT + _RIGHT) / 2, 250, "tokens of a side (the last bar holds all longer ones)")
    yield f'<g transform="translate(20 {(_TOP + _BOTTOM) / 2}) rotate(-90)">{_text(0, 0, "pairs")}</g>'


def _outline(counts: np.ndarray, highest: float) -> str:
    """The path around the bars, from the lower left corner: up or down to each bar's height, and along its top."""
    heights = np.interp(counts, [0, highest], [_BOTTOM, _TOP])
    ends = np.linspace(_LEFT, _RIGHT, len(counts) + 1)[1:]
    steps = [f"V{height:.1f}H{end:.1f}" for height, end in zip(heights, ends, strict=True)]
    return f"M{_LEFT} {_BOTTOM}{''.join(steps)}V{_BOTTOM}Z"


def _ticks(low: float, high: float, most: int) -> range:
    """At most `most` + 1 whole numbers from low to high whose distance is 1, 2 or 5 times a power of ten."""
    distances = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    distance = next(each for each in distances if (high - low) / each <= most)
    return range(math.ceil(low / distance) * distance, math.floor(high) + 1, distance)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
