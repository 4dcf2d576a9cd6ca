import math
from dataclasses import replace

import pandas as pd
import pytest

from rm_assets.training.report.promotion import compare_models, sign_test, verdict


def scores(right, prompts=None):
    """A pair per entry: True scores its chosen side higher, False its rejected side, None neither."""
    chosen = [{True: 1.0, False: -1.0, None: 0.0}[answer] for answer in right]
    keys = prompts or [f"prompt {number}" for number in range(len(right))]
    frame = {"source": "a", "line": range(len(right)), "pair_id": "p", "chosen_score": chosen, "rejected_score": 0.0}
    return pd.DataFrame(frame).assign(prompt_key=keys)


def champion(right):
    return scores(right).drop(columns="prompt_key")


def test_the_sign_test_by_hand():
    # At most one head in four throws: (1 + 4) of 16.
    assert sign_test(1, 3) == 5 / 16
    assert sign_test(0, 5) == 1 / 32
    assert sign_test(0, 0) == 1
    assert sign_test(3, 0) == 1


def test_a_model_that_loses_five_of_five_changed_prompts_is_worse():
    found = compare_models(champion([True] * 8), scores([False] * 5 + [True] * 3))
    assert (found.champion_accuracy, found.challenger_accuracy) == (1, 3 / 8)
    assert (found.prompts_won, found.prompts_lost, found.p_value) == (0, 5, 1 / 32)
    decided = verdict(found, 0.05)
    assert not decided.promoted
    assert "the new model is worse: 0.375 against the champion's 1.000 on 8 pairs of 8 prompts" in decided.reason


def test_a_loss_that_chance_explains_is_no_reason():
    found = compare_models(champion([True] * 30), scores([False] * 4 + [True] * 26))
    assert found.p_value == 1 / 16
    assert verdict(found, 0.05).promoted
    assert not verdict(found, 0.1).promoted


def test_an_equal_and_a_better_model_are_promoted_at_any_level():
    answers = [True] * 9 + [False]
    same, better = (
        compare_models(champion(answers), scores(answers)),
        compare_models(champion([False] * 9), scores([True] * 9)),
    )
    assert (same.difference, same.p_value) == (0, 1)
    assert same.difference_low == pytest.approx(-same.difference_high)
    assert verdict(same, 1).promoted
    assert verdict(better, 1).promoted


def test_where_labels_are_noise_no_new_model_is_promoted():
    # Both are right on half of the pairs, and win and lose as often: not worse, and yet no better than a coin.
    found = compare_models(champion([True, True, False, False] * 10), scores([True, False, True, False] * 10))
    assert found.difference == 0
    decided = verdict(found, 0.05)
    assert not decided.promoted
    assert "the new model's accuracy is not above chance (at least 0.3" in decided.reason


def test_many_pairs_of_one_prompt_are_one_vote():
    prompts = ["crowd"] * 20 + ["other"]
    found = compare_models(champion([True] * 21), scores([False] * 20 + [True], prompts))
    assert (found.num_pairs, found.num_prompts, found.prompts_lost, found.p_value) == (21, 2, 1, 0.5)


def test_a_tie_is_half_a_right_answer():
    found = compare_models(champion([True, None]), scores([None, None]))
    assert (found.champion_accuracy, found.challenger_accuracy, found.prompts_lost) == (0.75, 0.5, 1)


def test_only_pairs_that_both_scored_count():
    found = compare_models(champion([True, True, True]).iloc[1:], scores([False, True, True]))
    assert (found.num_pairs, found.challenger_accuracy) == (2, 1)
    with pytest.raises(ValueError, match="no scored pair in common"):
        compare_models(champion([True]).iloc[1:], scores([True]))


def test_the_interval_of_the_difference_holds_it():
    found = compare_models(champion([True, False] * 20), scores([True, True, True, False] * 10))
    assert found.difference_low < found.difference < found.difference_high
    assert found.difference == pytest.approx(0.25)


def test_a_p_value_at_the_level_is_worse_and_half_is_not_above_chance():
    found = compare_models(champion([True] * 8), scores([False] * 5 + [True] * 3))
    assert "the new model is worse" in verdict(found, found.p_value).reason
    assert "the new model is worse" not in verdict(found, math.nextafter(found.p_value, 0)).reason
    level = replace(found, challenger_accuracy=1.0, challenger_accuracy_low=0.5)
    assert "not above chance" in verdict(level, 0.05).reason
    assert verdict(replace(level, challenger_accuracy_low=math.nextafter(0.5, 1)), 0.05).promoted


def test_a_model_is_right_where_its_chosen_score_is_above_its_rejected_one():
    # Negative scores: their sum would say the opposite of their difference.
    old = champion([True, True, False]).assign(chosen_score=[-1.0, -3.0, -2.0], rejected_score=[-2.0, -1.0, -1.0])
    new = scores([True, True, True]).assign(chosen_score=[-5.0, -4.0, -3.0], rejected_score=[-6.0, -5.0, -2.0])
    found = compare_models(old, new)
    assert (found.champion_accuracy, found.challenger_accuracy) == (1 / 3, 2 / 3)
    assert (found.prompts_won, found.prompts_lost) == (1, 0)
    assert found.figures()["difference"] == found.difference == 2 / 3 - 1 / 3
