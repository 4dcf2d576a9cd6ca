from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.training.report.baselines import (
    EMPTY_PROMPT,
    baseline_results,
    near_baselines,
    other_prompts,
    prompt_variants,
)


def pair(number, prompt):
    return {
        "source": "a",
        "line": number,
        "pair_id": f"p{number}",
        "prompt_key": prompt,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": f"good {number}"}],
        "rejected": [{"role": "assistant", "content": f"bad {number}"}],
        "tools": f"[{number}]",
    }


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40))
def test_every_pair_gets_a_prompt_of_another_pair_wherever_that_is_possible(prompts):
    others = other_prompts(prompts)
    assert sorted(others) == list(range(len(prompts)))
    kept = sum(prompts[row] == prompts[other] for row, other in enumerate(others))
    most = max(Counter(prompts).values())
    # Of 5 rows of which 4 share a prompt, three must keep theirs.
    assert kept == max(0, 2 * most - len(prompts))


def test_the_exchange_is_the_same_every_time_and_no_mere_shift():
    prompts = [f"prompt {number}" for number in range(50)]
    others = other_prompts(prompts)
    assert others.tolist() == other_prompts(prompts).tolist()
    assert len(set((others - np.arange(50)) % 50)) > 10


def test_no_pairs_have_no_other_prompts():
    assert other_prompts([]).tolist() == []


def test_variants_change_the_prompt_and_leave_the_replies():
    pairs = [pair(1, "a"), pair(2, "b")]
    without_1, without_2, other_1, other_2 = prompt_variants(pairs)
    assert without_1 == pairs[0] | {"variant": "without_prompt", "prompt": EMPTY_PROMPT, "tools": None}
    assert without_2["chosen"] == pairs[1]["chosen"]
    assert other_1 == pairs[0] | {"variant": "other_prompt", "prompt": pairs[1]["prompt"], "tools": "[2]"}
    assert other_2["prompt"] == pairs[0]["prompt"]


def test_a_pair_without_another_prompt_has_no_such_variant():
    assert [row["variant"] for row in prompt_variants([pair(1, "a"), pair(2, "a")])] == ["without_prompt"] * 2


def test_results_are_a_row_per_pair_with_a_tie_as_half():
    scored = pd.DataFrame(
        [
            ("a", 1, "p1", "without_prompt", 2.0, 1.0),
            ("a", 1, "p1", "other_prompt", 1.0, 1.0),
            ("a", 2, "p2", "without_prompt", 0.0, 1.0),
            ("a", 2, "p2", "other_prompt", np.nan, np.nan),
        ],
        columns=["source", "line", "pair_id", "variant", "chosen_score", "rejected_score"],
    )
    results = baseline_results(scored).set_index("pair_id")
    assert results.loc["p1", ["without_prompt", "other_prompt"]].tolist() == [1.0, 0.5]
    assert results.loc["p2", "without_prompt"] == 0
    assert np.isnan(results.loc["p2", "other_prompt"])


def test_without_scores_there_are_still_both_columns():
    columns = ["source", "line", "pair_id", "variant", "chosen_score", "rejected_score"]
    empty = pd.DataFrame({name: pd.Series(dtype="float64" if "score" in name else "object") for name in columns})
    assert {"without_prompt", "other_prompt"} <= set(baseline_results(empty))


@pytest.mark.parametrize(
    ("reaches", "near"), [(0.59, []), (0.6, ["longer_wins"]), (0.9, ["longer_wins"]), (np.nan, [])]
)
def test_a_baseline_is_near_where_it_reaches_the_interval(reaches, near):
    row = {
        "slice": "all",
        "value": "all",
        "num_pairs": 30,
        "accuracy": 0.7,
        "accuracy_low": 0.6,
        "longer_wins": reaches,
    }
    few = row | {"slice": "subset", "num_pairs": 29, "longer_wins": 1.0}
    by_length = row | {"slice": "length_difference", "longer_wins": 1.0}
    found = near_baselines(pd.DataFrame([row, few, by_length]), ["longer_wins"])
    assert found["baseline"].tolist() == near
    assert (found["slice"] == "all").all()
    columns = ["slice", "value", "num_pairs", "accuracy", "accuracy_low", "baseline", "reaches"]
    assert list(found.columns) == columns
