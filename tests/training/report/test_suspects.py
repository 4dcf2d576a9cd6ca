from collections import Counter

import pandas as pd
import pytest

from rm_assets.training.report.suspects import fold_of, folds_of, rank_suspects


def test_a_prompt_stays_in_its_fold_and_folds_are_of_like_size():
    keys = [f"prompt {number}" for number in range(3_000)]
    folds = folds_of(keys, 3)
    assert folds.tolist() == [fold_of(key, 3) for key in keys]
    assert set(folds) == {0, 1, 2}
    assert all(900 < count < 1_100 for count in Counter(folds.tolist()).values())


def scored(*rows):
    columns = ["line", "fold", "chosen_score", "rejected_score"]
    return pd.DataFrame(rows, columns=columns).assign(source="a", pair_id="p", prompt_key="q")


def test_contradicted_pairs_come_most_suspect_first_and_others_not_at_all():
    found = rank_suspects(scored((1, 0, 1.0, 0.0), (2, 0, 0.0, 3.0), (3, 0, 0.0, 1.0), (4, 0, 2.0, 2.0)))
    assert found["line"].tolist() == [2, 3]
    assert found["margin"].tolist() == [-3, -1]
    assert found.index.tolist() == [0, 1]


def test_folds_of_different_spread_are_brought_to_one_scale():
    # Margins -2, 2 have a spread of 2, margins -30, 10, 20 one of 21.6: 1 against 1.39 of them.
    found = rank_suspects(
        scored((1, 0, 0.0, 2.0), (2, 0, 2.0, 0.0), (3, 1, 0.0, 30.0), (4, 1, 10.0, 0.0), (5, 1, 20.0, 0.0))
    )
    assert found["line"].tolist() == [3, 1]
    assert found["suspicion"].tolist() == [pytest.approx(30 / (1400 / 3) ** 0.5), 1]


def test_equal_margins_have_no_spread_to_be_measured_in():
    found = rank_suspects(scored((1, 0, 0.0, 2.0), (2, 0, 1.0, 3.0)))
    assert found["suspicion"].tolist() == [2, 2]
    close = rank_suspects(scored((1, 0, 0.0, 1.0), (2, 0, 1.0, 1.0)))  # margins -1 and 0 have a spread of a half
    assert close["suspicion"].tolist() == [2]


def test_equal_scores_everywhere_give_no_suspect():
    assert rank_suspects(scored((1, 0, 1.0, 1.0), (2, 0, 1.0, 1.0))).empty
