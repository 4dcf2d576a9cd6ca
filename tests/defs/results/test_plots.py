import base64
import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rm_assets.defs.results.plots import (
    BLUE,
    GREY,
    ORANGE,
    calibration_plot,
    markdown_picture,
    moving_average,
    score_histogram,
    training_curves,
)


def pixels(png):
    """(height, width, 3) colours of a PNG."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def num_pixels(png, color, *, alpha=1.0):
    """Pixels that show a colour laid over white at `alpha`; a palette may move it by a shade."""
    wanted = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)])
    blended = alpha * wanted + (1 - alpha) * 255
    return int((np.abs(pixels(png) - blended).max(axis=2) <= 8).sum())


def steps(count, *, validation_every=0):
    """Lines like those of metrics.jsonl: a falling loss with noise."""
    generator = np.random.default_rng(0)
    for step in range(1, count + 1):
        share = step / count
        loss = 0.7 - 0.3 * share + generator.normal() / 20
        yield {"step": step, "epoch": 1, "loss": loss, "accuracy": 0.5 + 0.3 * share, "learning_rate": 1e-5}
        if validation_every and step % validation_every == 0:
            yield {"step": step, "validation_loss": 0.6, "validation_accuracy": 0.7}


def calibration(num_pairs):
    low = np.linspace(0.5, 0.95, 10)
    shares = np.where(np.array(num_pairs) > 0, low, np.nan)
    return pd.DataFrame(
        {"bin_low": low, "bin_high": low + 0.05, "num_pairs": num_pairs, "confidence": shares + 0.02,
         "frequency": shares, "frequency_low": shares - 0.1, "frequency_high": shares + 0.05}
    )  # fmt: skip


def test_curves_are_a_small_picture_on_white():
    png = training_curves(list(steps(500, validation_every=100)))
    assert pixels(png).shape == (300, 900, 3)
    assert (pixels(png)[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert len(png) < 60_000


def test_noise_does_not_make_a_picture_large():
    noise = np.random.default_rng(0).random((200, 2))
    lines = [{"step": step, "loss": loss, "accuracy": share} for step, (loss, share) in enumerate(noise)]
    assert len(training_curves(lines)) < 60_000


def test_validation_points_are_drawn_where_there_are_any():
    without = num_pixels(training_curves(list(steps(20))), ORANGE)
    assert num_pixels(training_curves(list(steps(20, validation_every=5))), ORANGE) > without + 100


def test_one_step_is_already_visible():
    empty, one = training_curves([]), training_curves(list(steps(1)))
    # The legend is the same in both; the point of the one step shows in both halves.
    assert num_pixels(one, BLUE) >= num_pixels(empty, BLUE) + 6


def test_the_later_line_of_a_repeated_step_counts():
    first, second = {"step": 3, "loss": 9.0, "accuracy": 0.1}, {"step": 3, "loss": 0.5, "accuracy": 0.8}
    before = list(steps(2))
    assert training_curves([*before, first, second]) == training_curves([*before, second])
    assert training_curves([*before, first, second]) != training_curves([*before, first])


def test_equal_input_gives_equal_bytes():
    assert training_curves(list(steps(30))) == training_curves(list(steps(30)))


def test_smoothed_by_hand():
    # Span 3 halves the weight with each step back: (4 + 1/2 + 1/4) / (1 + 1/2 + 1/4) = 19/7.
    assert list(moving_average(np.array([1.0, 1.0, 4.0]), span=3)) == pytest.approx([1, 1, 19 / 7])


def test_smoothing_leaves_a_constant_alone_from_its_first_value():
    assert list(moving_average(np.full(50, 0.3), span=20)) == pytest.approx([0.3] * 50)


def test_histogram_is_a_small_picture():
    generator = np.random.default_rng(0)
    png = score_histogram(generator.normal(1, 1, 5_000), generator.normal(0, 1, 5_000))
    assert pixels(png).shape == (300, 900, 3)
    assert len(png) < 60_000


def test_the_colours_of_the_differences_are_right_wrong_and_tied():
    right, wrong, tied = (
        score_histogram(np.full(30, score, dtype=np.float32), np.zeros(30, dtype=np.float32))
        for score in (2.0, -2.0, 0.0)
    )
    for color, shown, others in (
        (BLUE, right, (wrong, tied)),
        (ORANGE, wrong, (right, tied)),
        (GREY, tied, (right, wrong)),
    ):
        assert all(num_pixels(shown, color, alpha=0.6) > 500 + num_pixels(other, color, alpha=0.6) for other in others)


def test_calibration_is_a_small_picture():
    png = calibration_plot(calibration([5, 0, 3, 8, 9, 20, 30, 40, 50, 60]))
    assert pixels(png).shape == (440, 900, 3)
    assert len(png) < 60_000


def test_an_empty_bin_draws_no_point():
    full, half = calibration_plot(calibration([9] * 10)), calibration_plot(calibration([9] * 5 + [0] * 5))
    assert num_pixels(full, BLUE) > num_pixels(half, BLUE) + 100


def test_markdown_carries_the_picture_itself():
    png = calibration_plot(calibration([1] * 10))
    markdown = markdown_picture(png, "calibration [test]\nsplit")
    head, _, data = markdown.removesuffix(")").partition("](data:image/png;base64,")
    assert head == "![calibration  test  split"
    assert base64.b64decode(data, validate=True) == png


def test_no_global_state_of_matplotlib_is_used():
    code = (
        "import sys; from rm_assets.defs.results.plots import training_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "training_curves([{'step': 1, 'loss': 0.7, 'accuracy': 0.5}])\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
