"""Plots of a run as PNG bytes, small enough for Dagster's metadata.

They use matplotlib's object interface on Agg canvases: `pyplot` keeps a global list of figures and is not thread-safe.
The background is white, in the light UI and in the dark one.
"""

import base64
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

WIDTH_PIXELS = 900
PIXELS_PER_INCH = 110
NUM_COLORS = 64
BLUE, ORANGE, GREY, INK = "#2166ac", "#d6730f", "#9a9a9a", "#333333"

# A font for other scripts may lack the normal weight: matplotlib takes another one, and warns on the console.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def training_curves(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss and accuracy over the optimizer steps, from the lines of metrics.jsonl.

    Training lines have step, loss and accuracy; validation lines have step, validation_loss and validation_accuracy.
    Of a step that a resumed run logs again, the later line counts.
    """
    figure = new_figure(height_pixels=300)
    left, right = figure.subplots(1, 2)
    _curve(left, steps, "loss", "loss per pair")
    _curve(right, steps, "accuracy", "accuracy (share of pairs)")
    right.axhline(0.5, color=GREY, linewidth=1, linestyle="--", label="chance", zorder=1)
    right.set_ylim(min(0.45, right.get_ylim()[0]), 1.02)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return render_png(figure)


def score_histogram(chosen: np.ndarray, rejected: np.ndarray) -> bytes:
    """Left: the scores of both sides. Right: chosen minus rejected; the share above zero is the accuracy.

    `chosen` and `rejected` are the scores of the same pairs, (pairs,) each, in the model's unit (log-odds).
    """
    figure = new_figure(height_pixels=300)
    left, right = figure.subplots(1, 2)
    num_bins = min(max(int(len(chosen) ** 0.5), 10), 40)
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=num_bins)
    _histogram_of_sides(left, chosen, rejected, edges)
    name_axes(left, "score (log-odds)", "pairs")
    difference = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    _histogram_of_differences(right, difference, num_bins)
    for axes in (left, right):
        axes.yaxis.get_major_locator().set_params(integer=True)
        legend_above(axes)
    return render_png(figure)


def calibration_plot(calibration: "pd.DataFrame") -> bytes:
    """Reliability diagram (Guo et al. 2017, figure 1) with 95 % intervals, above the number of pairs per bin.

    `calibration` is that of `rm_assets.training.report.reward_model_report.calibration_bins`; empty bins are left out.
    """
    figure = new_figure(height_pixels=440)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration[calibration["num_pairs"] > 0]
    spread = [bins["frequency"] - bins["frequency_low"], bins["frequency_high"] - bins["frequency"]]
    upper.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    upper.errorbar(
        bins["confidence"], bins["frequency"], yerr=spread, color=BLUE, fmt="o", markersize=5, linewidth=1.3,
        capsize=2, label="model, with 95 % interval",
    )  # fmt: skip
    middle, width = (bins["bin_low"] + bins["bin_high"]) / 2, bins["bin_high"] - bins["bin_low"]
    lower.bar(middle, bins["num_pairs"], width=width, color=BLUE, alpha=0.4, edgecolor="white")
    name_axes(upper, "", "accuracy (share of pairs)")
    name_axes(lower, "confidence: probability of the preferred side", "pairs")
    upper.set_xlim(0.49, 1.01)
    lower.yaxis.get_major_locator().set_params(integer=True)
    legend_above(upper)
    return render_png(figure)


def markdown_picture(picture: bytes, alt: str, kind: str = "png") -> str:
    """Markdown with the picture inline, for `MetadataValue.md`; brackets in `alt` become spaces.

    `kind` is the second part of its media type, `image/png` by default.
    """
    words = "".join(" " if sign in "[]\\\r\n" else sign for sign in alt)
    return f"![{words}](data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')})"


def moving_average(values: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average over about `span` values, bias-corrected (Kingma and Ba 2015, section 3).

    For [1, 1, 4] and span 3 it is [1, 1, 2.714]: weights 1/2, 1/4, 1/8 back from each value, scaled to sum to
    one.
    """
    decay = 1 - 2 / (span + 1)
    averages = np.empty(len(values))
    total = weight = 0.0
    for index, value in enumerate(values):
        total = decay * total + value
        weight = decay * weight + 1
        averages[index] = total / weight
    return averages


def _curve(axes: Any, steps: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    step, value = _series(steps, name)
    axes.plot(step, value, color=BLUE, alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(
        step, moving_average(value, max(8.0, len(value) / 20)), color=BLUE, linewidth=1.6, label="smoothed",
        marker="." if len(step) < 3 else "",
    )  # fmt: skip
    step, value = _series(steps, f"validation_{name}")
    axes.plot(step, value, color=ORANGE, linewidth=1, marker="o", markersize=4, label="validation")
    axes.margins(x=0.02)
    name_axes(axes, "optimizer step", label)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _series(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    values = {line["step"]: line[name] for line in steps if line.get(name) is not None}
    ordered = sorted(values)
    return np.array(ordered, dtype=np.int64), np.array([values[step] for step in ordered], dtype=np.float64)


def _histogram_of_sides(axes: Any, chosen: np.ndarray, rejected: np.ndarray, edges: np.ndarray) -> None:
    for values, color, label in ((rejected, ORANGE, "rejected"), (chosen, BLUE, "chosen")):
        axes.hist(values, bins=edges, histtype="stepfilled", color=color, alpha=0.3)
        axes.hist(values, bins=edges, histtype="step", color=color, linewidth=1.3, label=label)


def _histogram_of_differences(axes: Any, difference: np.ndarray, num_bins: int) -> None:
    # zero is a bin edge: no bar mixes right and wrong pairs
    low, high = min(difference.min(initial=0.0), 0.0), max(difference.max(initial=0.0), 0.0)
    width = (high - low or 1.0) / num_bins
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 2)
    edges[0] = min(edges[0], low)  # rounding must not exclude the lowest pair
    parts = {"wrong": difference < 0, "tied": difference == 0, "right": difference > 0}
    axes.hist(
        [difference[part] for part in parts.values()],
        bins=edges,
        stacked=True,
        color=[ORANGE, GREY, BLUE],
        alpha=0.6,
        label=[f"{name} {part.mean():.1%}" if part.any() else "" for name, part in parts.items()],
    )
    axes.axvline(0, color=INK, linewidth=0.8)
    name_axes(axes, "chosen score − rejected score (log-odds)", "pairs")


def legend_above(axes: Any, markerscale: float = 1.0) -> None:
    """A legend in one row above the axes, off the data; `markerscale` times the size of the markers there."""
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "markerscale": markerscale}
    axes.legend(**place, frameon=False, fontsize=8, columnspacing=1.2, handlelength=1.5)


def new_figure(height_pixels: int) -> Any:
    """An empty white figure of WIDTH_PIXELS whose layout avoids overlaps."""
    from matplotlib.figure import Figure

    size = (WIDTH_PIXELS / PIXELS_PER_INCH, height_pixels / PIXELS_PER_INCH)
    return Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained", facecolor="white")


def name_axes(axes: Any, x_label: str, y_label: str) -> None:
    """Label both axes, and set the frame and grid that all plots share."""
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel(y_label, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def render_png(figure: Any) -> bytes:
    """The figure as PNG bytes; equal figures give equal bytes.

    Texts are drawn literally, as some come from users: `$` does not begin math, and a missing glyph is a box.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from PIL import Image

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about missing glyphs, and texts wider than the plot
        canvas.draw()
    # A palette makes the PNG of a noisy curve a third as large, and leaves out matplotlib's version. Maximal coverage,
    # because the default quantizer spends the palette on the text's shades of grey.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image = image.quantize(NUM_COLORS, method=Image.Quantize.MAXCOVERAGE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
