"""Plots of the report that compare: accuracy by slice, length bias, and the history of all models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_assets.defs.results.plots import BLUE, GREY, INK, ORANGE, legend_above, name_axes, new_figure, render_png
from rm_assets.display_text import shorten

if TYPE_CHECKING:
    import pandas as pd

MAX_SLICES = 28
MAX_VALUE_CHARACTERS = 34
MAX_POINTS = 1500
MAX_TICKS = 20
_FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Microsoft YaHei"),
)
_ROW_PIXELS, _MARGIN_PIXELS = 19, 110


def slices_plot(table: "pd.DataFrame") -> bytes:
    """Accuracy of each slice with its 95 % interval, and the accuracy of the better length rule there.

    `table` has the schema schemas.REPORT. At most MAX_SLICES are shown, chosen by `first_slices`; the axis label counts
    the others.
    """
    rows, num_left_out = first_slices(table[table["log_loss"].notna()], MAX_SLICES)
    figure = new_figure(height_pixels=_MARGIN_PIXELS + _ROW_PIXELS * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    accuracy = np.array([row["accuracy"] for row in rows])
    low, high = (np.array([row[f"accuracy_{end}"] for row in rows]) for end in ("low", "high"))
    # In slices by length, a length rule is right or wrong by definition: no mark there.
    rules = [max(row["longer_wins"], row["shorter_wins"]) for row in rows]
    rule = np.array([np.nan if row["slice"] == "length_difference" else r for row, r in zip(rows, rules, strict=True)])
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle="--", zorder=1, label="chance")
    axes.scatter(rule, places, color=ORANGE, marker="|", s=70, zorder=2, label="better length rule")
    axes.errorbar(
        accuracy, places, xerr=[accuracy - low, high - accuracy], color=BLUE, fmt="o", markersize=4, linewidth=1.3,
        capsize=2, label="model, with 95 % interval", zorder=3,
    )  # fmt: skip
    left_out = f"\n{num_left_out:,} more slices are in the table" if num_left_out else ""
    name_axes(axes, f"accuracy (share of pairs){left_out}", "")
    axes.set_yticks(places, [_slice_name(row) for row in rows], fontsize=8, fontfamily=_families())
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(min(0.4, float(low.min(initial=1)) - 0.02), 1.02)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return render_png(figure)


def first_slices(table: "pd.DataFrame", limit: int) -> tuple[list[dict[str, Any]], int]:
    """At most `limit` slices to show, and how many are left out.

    In this order: all test pairs, whole evaluation sets, slices of the test pairs, subsets of evaluation sets. If not
    all are shown, the values of a slice with the most pairs come first.
    """
    rows = sorted(table.to_dict("records"), key=_rank)
    if len(rows) <= limit:
        return rows, 0
    order = {name: number for number, name in enumerate(dict.fromkeys(row["slice"] for row in rows))}
    rows.sort(key=lambda row: (_rank(row), order[row["slice"]], -row["num_pairs"]))
    return rows[:limit], len(rows) - limit


def _rank(row: Mapping[str, Any]) -> int:
    if row["slice"].startswith("evaluation/"):
        return 1 if row["value"] == "all" else 3
    return 0 if row["slice"] == "all" else 2


def _families() -> list[str]:
    """Matplotlib's own font, and installed fonts for scripts it lacks, as users name slices."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


def _slice_name(row: Mapping[str, Any]) -> str:
    value = shorten(str(row["value"]), MAX_VALUE_CHARACTERS)
    name = "all pairs" if row["slice"] == "all" else f"{str(row['slice']).replace('_', ' ')}: {value}"
    return f"{name}  ({row['num_pairs']:,})"


def length_plot(pairs: "pd.DataFrame", correlation: float | None) -> bytes:
    """Difference of lengths against difference of scores within pairs; a model that knows only length draws a line.

    `pairs` has the schema schemas.REPORT_PAIRS; `correlation` is Spearman's, of both differences.
    """
    shown = pairs.sort_values(["pair_id", "source", "line"]).head(MAX_POINTS)
    tokens = (shown["chosen_length"] - shown["rejected_length"]).to_numpy()
    difference = shown["difference"].to_numpy()
    figure = new_figure(height_pixels=330)
    axes = figure.subplots()
    for right, color, name in ((difference > 0, BLUE, "ranked right"), (difference <= 0, ORANGE, "wrong or tied")):
        axes.scatter(tokens[right], difference[right], s=9, color=color, alpha=0.55, linewidths=0, label=name)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    if len(tokens) and np.ptp(tokens):
        reach = float(np.percentile(np.abs(tokens), 99)) * 1.1 or 1.0
        axes.set_xlim(-reach, reach)
    note = "" if correlation is None else f"  (Spearman {correlation:+.2f})"
    name_axes(axes, f"chosen length − rejected length (tokens){note}", "chosen score − rejected score")
    legend_above(axes, markerscale=2.0)
    return render_png(figure)


def history_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy of every model so far with its 95 % interval, oldest first; the newest is labelled."""
    figure = new_figure(height_pixels=300)
    axes = figure.subplots()
    number = np.arange(1, len(rows) + 1)
    accuracy, low, high = (np.array([row[name] for row in rows]) for name in _HISTORY)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle="--", label="chance", zorder=1)
    axes.errorbar(
        number, accuracy, yerr=[accuracy - low, high - accuracy], color=BLUE, fmt="-o", markersize=4, linewidth=1.3,
        capsize=2, label="model, with 95 % interval",
    )  # fmt: skip
    axes.annotate(
        f"{accuracy[-1]:.3f}", (number[-1], accuracy[-1]), xytext=(8, -3), textcoords="offset points", fontsize=8
    )
    name_axes(axes, "model, oldest first", "accuracy (share of pairs)")
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_ylim(min(0.45, float(low.min()) - 0.02), 1.02)
    axes.set_xticks(number[:: -(-len(number) // MAX_TICKS)])
    legend_above(axes)
    return render_png(figure)


_HISTORY = ("accuracy", "accuracy_low", "accuracy_high")
