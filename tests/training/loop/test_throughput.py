import numpy as np
import pytest

from rm_assets.training.loop.throughput import Tally, tally_step
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.packing.planning import Packing, plan_rows

# the sides have 5 and 4 tokens, of which 2 are shared, then 3 and 3, of which 1 is
PAIRS = [([7, 8, 5, 9, 1], [7, 8, 6, 1]), ([9, 5, 1], [9, 6, 1])]


@pytest.fixture
def tally(make_job, tmp_path):
    pairs = read_splits(make_job(splits={"train": PAIRS}), tmp_path)["train"]
    rows = np.arange(2)
    return lambda packing: tally_step(pairs, rows, plan_rows(pairs, rows, packing, 1000, 1))


def test_sharing_saves_the_prefix_of_every_pair_once(tally):
    found = tally(Packing.SHARED)
    assert (found.pairs, found.pair_tokens, found.real_tokens, found.computed_tokens) == (2, 15, 12, 12)
    figures = found.figures(seconds=2.0)
    assert figures["pairs_per_second"] == 1.0
    assert figures["tokens_per_second"] == 7.5
    assert figures["saved_by_sharing"] == pytest.approx(3 / 15)
    assert figures["padding"] == 0.0


def test_padding_is_what_was_computed_beside_the_tokens(tally):
    found = tally(Packing.PADDED)
    assert found.pair_tokens == found.real_tokens == 15
    # the pairs differ too much in length for one row: 2 sides of 5 tokens, and 2 of 3
    assert found.computed_tokens == 16
    assert found.figures(1.0)["padding"] == pytest.approx(1 / 16)


def test_tallies_add_up_and_are_compared_with_the_peak_of_the_gpus():
    both = Tally(1, 10, 5, 6, 3e12) + Tally(2, 20, 10, 11, 5e12)
    assert both == Tally(3, 30, 15, 17, 8e12)
    assert both.figures(2.0, peak_flops=10e12)["mfu"] == pytest.approx(0.4)
    assert "mfu" not in both.figures(2.0)
