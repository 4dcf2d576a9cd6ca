import pandas as pd
import pytest

from rm_assets.training.report.benchmark_rules import benchmark_rows, with_places


def grid(line, chosen, rejected):
    """A line with these scores of its chosen and its rejected replies, every one against every other."""
    rows = [
        {
            "source": "bench",
            "line": line,
            "prompt_key": f"prompt {line}",
            "chosen_key": f"c{i}",
            "rejected_key": f"r{j}",
            "chosen_score": good,
            "rejected_score": bad,
            "correct": float(good > bad) + 0.5 * (good == bad),
        }
        for i, good in enumerate(chosen)
        for j, bad in enumerate(rejected)
    ]
    return with_places(pd.DataFrame(rows))


def judged(*grids):
    return {name: rows["correct"].tolist() for name, rows in benchmark_rows(pd.concat(grids, ignore_index=True))}


def test_replies_have_the_places_in_which_their_line_names_them():
    pairs = grid(1, [5, 6], [1, 2])
    assert pairs[["chosen_place", "rejected_place", "num_stated"]].to_numpy().tolist() == [
        [0, 0, 4], [0, 1, 4], [1, 0, 4], [1, 1, 4],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rejected", "credit"),
    [([1, 2, 3], 1), ([1, 2, 6], 0), ([5, 2, 3], 1 / 2), ([5, 5, 3], 1 / 3), ([5, 5, 5], 1 / 4), ([5, 6, 1], 0)],
)
def test_the_best_of_four_takes_all_and_shares_with_ties(rejected, credit):
    assert judged(grid(1, [5], rejected)) == {"best of prompt": [pytest.approx(credit)]}


def test_a_line_counts_once_however_many_replies_it_has():
    assert judged(grid(1, [5], [1, 2, 3]), grid(2, [0], [1, 2])) == {"best of prompt": [1, 0]}


def test_styles_are_easy_below_the_diagonal_normal_on_it_and_hard_above():
    # Rejected replies score 1, 3 and 5 from plain to rich; chosen ones 2, 4 and 0.
    # Rows of the matrix: 2 against (1, 3, 5), 4 against (1, 3, 5), 0 against (1, 3, 5).
    found = judged(grid(1, [2, 4, 0], [1, 3, 5]))
    assert found["style: normal"] == [1, 1, 0]
    assert found["style: easy"] == [1, 0, 0]  # 4 > 1; 0 < 1, 0 < 3
    assert found["style: hard"] == [0, 0, 0]  # 2 < 3, 2 < 5, 4 < 5


def test_a_line_of_which_a_pair_is_missing_is_left_out():
    whole, cut = grid(1, [5], [1, 2, 3]), grid(2, [5], [1, 2, 3]).iloc[:2]
    assert judged(whole, cut) == {"best of prompt": [1]}


def test_plain_pairs_have_no_rule_but_their_accuracy():
    assert judged(grid(1, [5], [1]), grid(2, [5], [1])) == {}
    assert dict(benchmark_rows(grid(1, [5], [1]).drop(columns="num_stated"))) == {}
