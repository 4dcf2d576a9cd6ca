"""Pictures of the report: that they are small, and that what they should show can be seen in them."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rm_assets.defs.results.plots import BLUE, ORANGE, WIDTH_PIXELS, new_figure, render_png
from rm_assets.defs.results.report_plots import MAX_SLICES, history_plot, length_plot, slices_plot


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def num_pixels(png, color):
    """Pixels of a colour; a palette may move it by a shade."""
    wanted = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)])
    return int((np.abs(pixels(png) - wanted).max(axis=2) <= 8).sum())


def row(name="all", value="all", accuracy=0.8, longer=0.6):
    ends = {"accuracy_low": accuracy - 0.1, "accuracy_high": min(accuracy + 0.1, 1.0)}
    figures = {"accuracy": accuracy, "log_loss": 0.5, "longer_wins": longer, "shorter_wins": 1 - longer}
    return {"slice": name, "value": value, "num_pairs": 50} | ends | figures


def history(*accuracies):
    return [{"model": "m", "accuracy": a, "accuracy_low": a - 0.05, "accuracy_high": a + 0.05} for a in accuracies]


def pairs(difference, tokens):
    chosen, count = 100 + np.array(tokens), len(difference)
    frame = {"pair_id": [f"p{n}" for n in range(count)], "source": "a", "line": range(count)}
    return pd.DataFrame(frame | {"difference": difference, "chosen_length": chosen, "rejected_length": 100})


def test_every_slice_has_a_line_and_long_names_are_cut():
    few, more = (slices_plot(pd.DataFrame([row(), *[row("source", "x" * 90)] * count])) for count in (2, 9))
    assert pixels(few).shape[1] == pixels(more).shape[1] == WIDTH_PIXELS
    assert pixels(more).shape[0] > pixels(few).shape[0]
    assert num_pixels(more, BLUE) > num_pixels(few, BLUE) + 100
    assert len(more) < 60_000


def test_of_many_slices_whole_evaluation_sets_are_shown_before_single_files():
    files = [row("source", f"file {number}") for number in range(MAX_SLICES)]
    cut = slices_plot(pd.DataFrame([row(), *files]))
    with_set = slices_plot(pd.DataFrame([row(), *files, row("evaluation/bench", "all", accuracy=0.6)]))
    assert pixels(cut).shape == pixels(with_set).shape
    assert cut != with_set


def test_slices_that_the_picture_has_no_room_for_are_told_of():
    full = [row(), *[row("source", f"file {number}") for number in range(MAX_SLICES - 1)]]
    with_more = [slices_plot(pd.DataFrame([*full, *[row("source", "last")] * count])) for count in (0, 1, 3)]
    assert len(set(with_more)) == 3


def test_a_benchmarks_own_rule_is_in_the_table_and_not_among_the_slices():
    rule = row("evaluation/bench", "best of prompt") | {"log_loss": np.nan, "longer_wins": np.nan}
    assert slices_plot(pd.DataFrame([row(), rule])) == slices_plot(pd.DataFrame([row()]))


def test_a_length_rule_has_no_mark_where_slices_are_made_by_length():
    marked = slices_plot(pd.DataFrame([row(), row("format", "plain")]))
    unmarked = slices_plot(pd.DataFrame([row(), row("length_difference", "plain")]))
    assert num_pixels(marked, ORANGE) > num_pixels(unmarked, ORANGE) > 0


@pytest.mark.parametrize("correlation", [None, -0.36])
def test_right_and_wrong_pairs_have_their_colours_by_length(correlation):
    png = length_plot(pairs([1.0] * 40 + [-1.0] * 40, [*range(40), *range(-40, 0)]), correlation)
    assert pixels(png).shape == (330, 900, 3)
    assert len(png) < 60_000
    right = length_plot(pairs([1.0] * 80, range(-40, 40)), correlation)
    assert right != png


def test_pairs_of_equal_length_and_no_pairs_can_be_drawn():
    length_plot(pairs([1.0], [0]), None)
    length_plot(pairs([], np.array([], dtype=int)), None)


def test_the_history_grows_by_a_point_for_each_model():
    one, two, many = (history_plot(history(*accuracies)) for accuracies in ((0.7,), (0.7, 0.8), [0.7, 0.8] * 40))
    assert num_pixels(one, BLUE) < num_pixels(two, BLUE) < num_pixels(many, BLUE)
    assert len(many) < 60_000


# --- names that mean something to matplotlib, or that it cannot write ------------------------------------------

HOSTILE = [
    "$x_{$", "prices_$5_to_$10_.jsonl", "$\\frac{$", "\\$", "100% {} %s", "\x00\x1b[31m", "a\nb\r\n" * 20, "\u202eevil",
    "\U0001f9e8" * 40, "\ufdfd" * 34, "\u0301" * 40, "\U0010ffff\ue000", "\u05e9\u05dc\u05d5\u05dd" * 9, "W" * 34, "",
    " " * 50, "x" * 3_000_000, "&<b>",
]  # fmt: skip


def test_a_picture_is_made_of_every_name_without_a_warning():
    rows = [row(), *[row("subset", name) for name in HOSTILE]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = slices_plot(pd.DataFrame(rows))
    assert pixels(png).shape[1] == WIDTH_PIXELS
    assert num_pixels(png, BLUE) > 20 * len(rows)  # each has its line


@pytest.mark.parametrize("name", ["$x_{$", "$\\frac{$", "a_$5_to_$10_"])
def test_no_text_of_any_picture_is_read_as_mathematics(name):
    def picture(text):
        figure = new_figure(height_pixels=200)
        axes = figure.subplots()
        axes.plot([0, 1], label=text)
        axes.set(title=text, xlabel=text, ylabel=text)
        axes.set_yticks([0, 1], [text, text])
        axes.annotate(text, (0, 0))
        axes.legend()
        figure.legend()
        figure.suptitle(text)
        return render_png(figure)

    assert picture(name) != picture(name.replace("$", ""))


def test_of_two_long_names_with_the_same_ends_each_has_its_own_label():
    one, other = (slices_plot(pd.DataFrame([row("subset", "s" * 50 + sign + "e" * 50)])) for sign in "ab")
    assert one != other
