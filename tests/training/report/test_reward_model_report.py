import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import is_linear

from rm_assets.training.jobs.result import judged_pairs
from rm_assets.training.report.intervals import wilson_interval
from rm_assets.training.report.reward_model_report import build_report, is_above_chance
from rm_assets.training.report.slice_table import TABLE_COLUMNS

LN2, LN5, LN11 = math.log(2), math.log(5), math.log(11)


def scored(chosen, rejected, *, chosen_length=None, rejected_length=None, prompt_key=None):
    """Scores of the test split, one prompt per pair unless said otherwise."""
    count = len(chosen)
    return pd.DataFrame(
        {
            "source": "a.jsonl",
            "line": range(1, count + 1),
            "pair_id": [f"pair{index}" for index in range(count)],
            "prompt_key": prompt_key or [f"prompt{index}" for index in range(count)],
            "split": "test",
            "chosen_score": np.array(chosen, dtype=np.float32),
            "rejected_score": np.array(rejected, dtype=np.float32),
            "chosen_length": np.array(chosen_length or [10] * count, dtype=np.int32),
            "rejected_length": np.array(rejected_length or [10] * count, dtype=np.int32),
            "margin": np.float32(0),
        }
    )


def sliced(scores, **columns):
    """Slices of the same pairs: all alike unless said otherwise."""
    known = {"format": "hh", "num_turns": 1, "script": "Latin", "subset": "", "agreement": ""} | columns
    return scores[["source", "line", "pair_id"]].assign(**known)


def metrics_of(*arguments, **options):
    scores = scored(*arguments, **options)
    return build_report(scores, sliced(scores)).metrics


def rows_of(report, name):
    rows = report.table[report.table["slice"] == name]
    return rows.set_index("value")


def test_a_tie_counts_as_half_a_right_answer():
    assert metrics_of([2, 0, 1, 1], [0, 1, 1, 0])["accuracy"] == (1 + 0 + 0.5 + 1) / 4


def test_log_loss_of_known_odds():
    # Odds 2 for, 2 against, and even: probabilities 2/3, 1/3, 1/2; the product of their inverses is 9.
    assert metrics_of([LN2, 0, 5], [0, LN2, 5])["log_loss"] == pytest.approx(math.log(9) / 3)


def test_log_loss_of_a_hopeless_score_is_its_difference():
    assert metrics_of([-900], [100])["log_loss"] == 1000
    assert metrics_of([100], [-900])["log_loss"] == 0


def test_means_spreads_and_counts():
    metrics = metrics_of([1, 3, 5], [0, 0, 3], prompt_key=["a", "a", "b"])
    assert (metrics["num_pairs"], metrics["num_prompts"]) == (3, 2)
    assert (metrics["mean_chosen_score"], metrics["mean_rejected_score"]) == (3, 1)
    assert metrics["mean_score_margin"] == 2
    assert metrics["std_chosen_score"] == pytest.approx(math.sqrt(8 / 3))
    assert metrics["std_rejected_score"] == pytest.approx(math.sqrt(2))
    assert all(type(value) in (int, float) for value in metrics.values())


def test_preferring_the_longer_side_is_a_baseline():
    metrics = metrics_of([1] * 4, [0] * 4, chosen_length=[5, 3, 4, 9], rejected_length=[3, 5, 4, 1])
    assert (metrics["longer_wins"], metrics["shorter_wins"]) == ((1 + 0 + 0.5 + 1) / 4, 1.5 / 4)


def test_correlation_of_score_and_length_is_over_both_sides():
    # (score, tokens): (1, 1), (2, 2), (3, 3), (6, 10). From the means 3 and 4 the products sum to
    # 6 + 2 + 0 + 18 = 26, the squares to 4 + 1 + 0 + 9 = 14 and 9 + 4 + 1 + 36 = 50.
    metrics = metrics_of([1, 6], [2, 3], chosen_length=[1, 10], rejected_length=[2, 3])
    assert metrics["score_length_pearson"] == pytest.approx(26 / math.sqrt(14 * 50))
    assert metrics["score_length_spearman"] == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"chosen_length": [1, 2]}])
def test_an_undefined_correlation_is_left_out(options):
    metrics = metrics_of([3, 3], [3, 3] if options else [1, 2], **options)
    assert "score_length_pearson" not in metrics
    assert "score_length_spearman" not in metrics


def test_three_of_three_is_not_yet_above_chance_but_six_of_six_is():
    # Wilson's lower end of n of n is n / (n + 1.96^2): 0.438 for 3, 0.610 for 6.
    three, six = metrics_of([1] * 3, [0] * 3), metrics_of([1] * 6, [0] * 6)
    assert three["accuracy_low"] == pytest.approx(3 / (3 + 1.959964**2))
    assert (three["accuracy_high"], six["accuracy_high"]) == (1, 1)
    assert not is_above_chance(three)
    assert is_above_chance(six)


def test_an_interval_that_touches_a_half_is_not_above_chance():
    assert not is_above_chance({"accuracy_low": 0.5})
    assert is_above_chance({"accuracy_low": 0.501})


def test_calibration_error_by_hand():
    # Odds 2, one right of two: confidence 2/3, frequency 1/2. Odds 5, three right of three: 5/6 against 1.
    metrics = metrics_of([LN2, 0, LN5, LN5, LN5], [0, LN2, 0, 0, 0])
    assert metrics["expected_calibration_error"] == pytest.approx(2 / 5 * (2 / 3 - 1 / 2) + 3 / 5 * (1 - 5 / 6))


def test_counting_each_pair_from_both_sides_gives_the_same_calibration_error():
    difference = np.random.default_rng(3).normal(size=200)
    probability = 1 / (1 + np.exp(-np.concatenate([difference, -difference])))
    won = np.repeat([1.0, 0.0], 200)
    error = 0.0
    for low in np.arange(0, 1, 0.05):
        inside = (probability > low) & (probability <= low + 0.05)
        if inside.any():
            error += inside.mean() * abs(probability[inside].mean() - won[inside].mean())
    metrics = build_report(scores := scored(difference, [0] * 200), sliced(scores)).metrics
    assert metrics["expected_calibration_error"] == pytest.approx(error, abs=1e-6)


def test_the_table_has_a_row_per_slice_in_a_stable_order():
    scores = scored([1, 0, 1], [0, 1, 1], chosen_length=[100, 10, 10], rejected_length=[10, 10, 11])
    slices = sliced(scores, format=["trl", "hh", "hh"], num_turns=[10, 9, 10], subset=["", "chat", "chat"])
    report = build_report(scores, slices)
    assert list(report.table.columns) == TABLE_COLUMNS
    assert list(zip(report.table["slice"], report.table["value"], report.table["num_pairs"], strict=True)) == [
        ("all", "all", 3),
        ("format", "hh", 2),
        ("format", "trl", 1),
        ("num_turns", "9", 1),
        ("num_turns", "10", 2),
        ("script", "Latin", 3),
        ("length_difference", "chosen shorter by 1 to 16 tokens", 1),
        ("length_difference", "equal length", 1),
        ("length_difference", "chosen longer by over 64 tokens", 1),
        ("subset", "(none)", 1),
        ("subset", "chat", 2),
        ("source", "a.jsonl", 3),
    ]
    hh = rows_of(report, "format").loc["hh"]
    assert hh["accuracy"] == 0.25
    assert hh["log_loss"] == pytest.approx((math.log(1 + math.e) + LN2) / 2)
    assert (hh["longer_wins"], hh["shorter_wins"]) == (0.25, 0.75)
    assert (hh["accuracy_low"], hh["accuracy_high"]) == pytest.approx(wilson_interval(0.25, 2))


def test_pairs_are_sliced_by_the_agreement_of_their_annotators_where_any_row_states_it():
    scores = scored([1, 0, 1], [0, 1, 0])
    report = build_report(scores, sliced(scores, agreement=["unanimous", "2 of 3", ""]))
    assert rows_of(report, "agreement")["accuracy"].to_dict() == {"2 of 3": 0.0, "not stated": 1.0, "unanimous": 1.0}
    assert report.pairs["agreement"].tolist() == ["unanimous", "2 of 3", ""]
    assert rows_of(build_report(scores, sliced(scores)), "agreement").empty


@pytest.mark.parametrize(
    ("tokens", "bucket"),
    [
        (-65, "chosen shorter by over 64 tokens"),
        (-64, "chosen shorter by 17 to 64 tokens"),
        (-17, "chosen shorter by 17 to 64 tokens"),
        (-16, "chosen shorter by 1 to 16 tokens"),
        (-1, "chosen shorter by 1 to 16 tokens"),
        (0, "equal length"),
        (1, "chosen longer by 1 to 16 tokens"),
        (16, "chosen longer by 1 to 16 tokens"),
        (17, "chosen longer by 17 to 64 tokens"),
        (64, "chosen longer by 17 to 64 tokens"),
        (65, "chosen longer by over 64 tokens"),
    ],
)
def test_length_differences_fall_into_the_bucket_that_names_them(tokens, bucket):
    scores = scored([1], [0], chosen_length=[100 + tokens], rejected_length=[100])
    assert list(rows_of(build_report(scores, sliced(scores)), "length_difference").index) == [bucket]


def test_the_row_of_all_pairs_agrees_with_the_metrics():
    scores = scored([1, 1, 0, 1], [0, 0, 1, 0], prompt_key=["a", "a", "b", "c"])
    report = build_report(scores, sliced(scores))
    row = rows_of(report, "all").loc["all"].drop(["slice", "without_prompt", "other_prompt"])
    assert row.to_dict() == pytest.approx({name: report.metrics[name] for name in TABLE_COLUMNS[2:-2]})


def test_a_slice_has_figures_of_its_own():
    scores = scored([3, 1, 0], [1, 0, 1], prompt_key=["a", "a", "b"])
    facts = sliced(scores, script=["Latin", "Latin", "Han"])
    latin = rows_of(build_report(scores, facts), "script").loc["Latin"]
    assert (latin["num_pairs"], latin["num_prompts"], latin["accuracy"]) == (2, 1, 1)
    assert (latin["mean_chosen_score"], latin["std_chosen_score"]) == (2, 1)
    assert (latin["mean_rejected_score"], latin["std_rejected_score"]) == (0.5, 0.5)
    # Differences 2 and 1, both right: confidence sigmoid(2) and sigmoid(1) against 1.
    assert latin["expected_calibration_error"] == pytest.approx(
        1 - (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-1))) / 2
    )


def test_margins_slice_the_pairs_where_annotations_give_any():
    scores = scored([1, 0, 1], [0, 1, 0]).assign(margin=np.float32([0, 0.5, -1]))
    report = build_report(scores, sliced(scores))
    assert list(rows_of(report, "margin")["accuracy"].items()) == [
        ("below 0", 1),
        ("0, or none given", 1),
        ("up to 1", 0),
    ]
    without = build_report(scores.assign(margin=np.float32(0)), sliced(scores))
    assert "margin" not in set(without.table["slice"])


def test_baselines_of_the_pairs_that_were_scored_anew_stand_in_every_slice():
    scores = scored([1, 1, 1], [0, 0, 0])
    baselines = scores[["source", "line", "pair_id"]].assign(
        without_prompt=[1.0, 0.0, np.nan], other_prompt=[0.5, np.nan, np.nan]
    )
    report = build_report(scores, sliced(scores, script=["Latin", "Latin", "Han"]), baselines)
    assert (report.metrics["without_prompt"], report.metrics["other_prompt"]) == (0.5, 0.5)
    scripts = rows_of(report, "script")
    assert scripts.loc["Latin", "without_prompt"] == 0.5
    assert np.isnan(scripts.loc["Han", "without_prompt"])


def test_evaluation_sets_have_rows_of_their_own_by_subset():
    test, bench = scored([1], [0]), scored([1, 0, 1, 0], [0, 1, 0.5, 0]).assign(split="evaluation/bench", source="b")
    scores = pd.concat([test, bench])
    report = build_report(scores, sliced(scores, subset=["", "x", "x", "y", "y"]))
    assert report.metrics["num_pairs"] == 1
    assert report.table[report.table["slice"] == "evaluation/bench"]["value"].tolist() == ["all", "x", "y"]
    rows = rows_of(report, "evaluation/bench")
    assert rows["accuracy"].tolist() == [2.5 / 4, 0.5, 0.75]
    assert report.pairs["split"].value_counts().to_dict() == {"evaluation/bench": 4, "test": 1}
    assert report.pairs.index.tolist() == [*range(5)]
    assert report.table.index.tolist() == [*range(len(report.table))]


def test_judgebench_has_a_row_for_each_of_its_categories():
    names = ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
    scores = scored([1, 0, 1, 0, 1], [0, 1, 0, 1, 0]).assign(split="evaluation/judge")
    rows = rows_of(build_report(scores, sliced(scores, subset=names)), "evaluation/judge")
    assert rows["accuracy"].to_dict() == {
        "all": 0.6, "mmlu-pro-law": 1, "mmlu-pro-math": 0, "livebench-reasoning": 1, "livebench-math": 0,
        "livecodebench": 1, "knowledge": 0.5, "reasoning": 1, "math": 0, "code": 1,
    }  # fmt: skip
    assert rows.loc["knowledge", "num_pairs"] == 2
    assert list(rows.index) == ["all", *sorted(names), "code", "knowledge", "math", "reasoning"]
    mixed = sliced(scores, subset=[*names[:4], "other"])
    assert "knowledge" not in rows_of(build_report(scores, mixed), "evaluation/judge").index


def test_the_work_that_subsets_cost_grows_with_their_number():
    def report_of(count):
        scores = scored([1] * count, [0] * count)
        report = build_report(scores, sliced(scores, subset=[f"s{number}" for number in range(count)]))
        assert len(rows_of(report, "subset")) == count

    assert is_linear(report_of, 5)


def test_the_temperature_comes_from_the_validation_split_and_is_judged_on_the_test_split():
    # Validation: three of four right at d = 3 ln 3 gives T = 3. Test: one right at the same d.
    size = 3 * math.log(3)
    validation = scored([size] * 3 + [0], [0] * 3 + [size]).assign(split="validation", source="v")
    scores = pd.concat([validation, scored([size], [0])])
    metrics = build_report(scores, sliced(scores)).metrics
    assert metrics["temperature"] == pytest.approx(3)
    assert metrics["log_loss_at_temperature"] == pytest.approx(math.log(4 / 3))
    assert metrics["calibration_error_at_temperature"] == pytest.approx(1 / 4)


def test_without_validation_pairs_no_temperature_is_stated():
    assert not {name for name in metrics_of([1], [0]) if "temperature" in name}


def test_a_model_of_length_alone_correlates_with_it_within_the_pairs():
    # Prompts of very different lengths blur the correlation over all sides, not that of the differences.
    generator = np.random.default_rng(0)
    prompt, chosen, rejected = generator.integers(1, 1_000, 200), *generator.integers(1, 40, (2, 200))
    metrics = metrics_of(chosen, rejected, chosen_length=list(prompt + chosen), rejected_length=list(prompt + rejected))
    assert metrics["difference_length_spearman"] > 0.99
    assert abs(metrics["score_length_spearman"]) < 0.3


def test_the_correlation_within_the_pairs_by_hand():
    # Differences of scores 1, 2, 3 and of lengths -1, 3, 1, each from both sides. Their ranks, less the mean 3.5, are
    # 0.5, 1.5, 2.5 and -1, 2.5, 1 and the opposites: products 2 * 5.75, squares 17.5 and 16.5.
    metrics = metrics_of([1, 2, 3], [0, 0, 0], chosen_length=[9, 13, 11], rejected_length=[10, 10, 10])
    assert metrics["difference_length_spearman"] == pytest.approx(11.5 / math.sqrt(17.5 * 16.5))


def test_the_share_of_ties():
    assert metrics_of([1, 2, 2, 0], [1, 0, 0, 2])["tied_share"] == 1 / 4


def test_a_report_on_one_evaluation_set_has_the_others_as_rows():
    scores = scored([1, 1, 0], [0, 0, 1]).assign(split=["evaluation/a", "evaluation/b", "test"])
    report = build_report(scores, sliced(scores), split="evaluation/a")
    assert set(report.table["slice"]) & {"all", "evaluation/a", "evaluation/b", "test"} == {"all", "evaluation/b"}
    assert report.metrics["num_pairs"] == 1
    assert sorted(report.pairs["split"]) == ["evaluation/a", "evaluation/b"]


def test_without_subsets_there_is_no_slice_of_them():
    scores = scored([1], [0])
    assert "subset" not in set(build_report(scores, sliced(scores)).table["slice"])


def test_the_order_of_the_rows_does_not_matter():
    generator = np.random.default_rng(5)
    scores = scored(generator.normal(size=50), generator.normal(size=50), prompt_key=list("abcde") * 10)
    slices = sliced(scores, num_turns=generator.integers(1, 4, size=50))
    straight = build_report(scores, slices)
    shuffled = build_report(scores.sample(frac=1, random_state=1), slices.sample(frac=1, random_state=2))
    assert shuffled.metrics == straight.metrics
    pd.testing.assert_frame_equal(shuffled.table, straight.table)
    pd.testing.assert_frame_equal(shuffled.calibration, straight.calibration)


def test_only_the_pairs_of_the_split_count():
    scores = scored([1, 0, 0], [0, 1, 1]).assign(split=["test", "train", "validation"])
    assert build_report(scores, sliced(scores)).metrics["accuracy"] == 1
    assert build_report(scores, sliced(scores), split="validation").metrics["accuracy"] == 0


def test_without_test_pairs_all_evaluation_sets_together_are_judged():
    splits = ["train", "evaluation/a", "evaluation/b", "evaluation/b", "evaluation/b"]
    scores = scored([0, 1, 1, 1, 0], [1, 0, 0, 0, 1]).assign(split=splits)
    report = build_report(scores, sliced(scores))
    assert report.metrics["accuracy"] == 3 / 4
    assert report.metrics["num_pairs"] == 4
    whole = report.table[report.table["value"] == "all"].set_index("slice")
    assert whole["accuracy"].to_dict() == pytest.approx({"all": 3 / 4, "evaluation/a": 1, "evaluation/b": 2 / 3})
    assert sorted(report.pairs["split"]) == splits[1:]
    assert list(judged_pairs(scores).index) == [1, 2, 3, 4]
    with_test = scores.assign(split=["test", *splits[1:]])
    assert list(judged_pairs(with_test).index) == [0]
    assert build_report(with_test, sliced(with_test)).metrics["accuracy"] == 0


@pytest.mark.parametrize(
    ("split", "advice"),
    [
        (
            "test",
            r"split 'test' holds no pairs: it needs a larger test_fraction or annotations of more prompts",
        ),
        (
            "evaluation/bench",
            r"split 'evaluation/bench' holds no pairs: it needs annotations of more prompts",
        ),
    ],
)
def test_an_empty_split_is_an_error_that_says_what_to_do(split, advice):
    scores = scored([1], [0]).assign(split="train")
    with pytest.raises(ValueError, match=advice):
        build_report(scores, sliced(scores), split=split)


def test_a_scored_pair_without_a_slice_is_an_error():
    scores = scored([1, 1], [0, 0])
    with pytest.raises(ValueError, match=r"1 scored pairs have no row .* 'a\.jsonl' line 2 pair 'pair1'"):
        build_report(scores, sliced(scores).iloc[:1])


def test_a_pair_that_its_line_states_twice_is_counted_once():
    scores = scored([1, 0], [0, 1])
    slices = sliced(scores)
    assert build_report(scores, pd.concat([slices, slices])).metrics["num_pairs"] == 2


def test_a_pair_that_is_scored_twice_is_an_error():
    scores = scored([1], [0])
    with pytest.raises(ValueError, match=r"1 pairs are scored twice, first 'a\.jsonl' line 1"):
        build_report(pd.concat([scores, scores]), sliced(scores))


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_an_error(score):
    scores = scored([1, 1], [0, score])
    with pytest.raises(ValueError, match=r"1 pairs have no finite score, first 'a\.jsonl' line 2"):
        build_report(scores, sliced(scores))


# Eighths are exact in binary, also after a shift by a whole number: equal differences stay equal.
eighths = st.integers(-80, 80).map(lambda value: value / 8)
pairs_of_scores = st.lists(st.tuples(eighths, eighths), min_size=1, max_size=30)


@settings(max_examples=15, deadline=None)
@given(pairs_of_scores)
def test_swapping_chosen_and_rejected_turns_accuracy_around(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    straight, swapped = metrics_of(chosen, rejected), metrics_of(rejected, chosen)
    assert swapped["accuracy"] == pytest.approx(1 - straight["accuracy"])
    assert swapped["mean_score_margin"] == -straight["mean_score_margin"]
    assert swapped["std_chosen_score"] == straight["std_rejected_score"]
    assert swapped["log_loss"] - straight["log_loss"] == pytest.approx(straight["mean_score_margin"])


@settings(max_examples=15, deadline=None)
@given(pairs_of_scores, st.integers(-100, 100))
def test_a_constant_added_to_all_scores_changes_only_their_means(pairs, shift):
    chosen, rejected = (np.array(side) for side in zip(*pairs, strict=True))
    lengths = {"chosen_length": list(range(1, len(pairs) + 1))}
    straight = metrics_of(chosen, rejected, **lengths)
    shifted = metrics_of(chosen + shift, rejected + shift, **lengths)
    for side in ("chosen", "rejected"):
        name = f"mean_{side}_score"
        assert shifted.pop(name) == pytest.approx(straight.pop(name) + shift)
    assert shifted == pytest.approx(straight)


# --- subsets named as the report names its own rows ------------------------------------------------------------

OWN_NAMES = ["all", "(none)", "best of prompt", "style: easy", "'all'", '"x']


def test_subsets_with_the_names_of_the_reports_own_rows_have_rows_of_their_own():
    # of 12 pairs the six without a subset and "all" are right
    scores = scored([1] * 7 + [0] * 5, [0] * 7 + [1] * 5)
    names = ["", "", "", "", "", "", *OWN_NAMES]
    report = build_report(scores, sliced(scores, subset=names))
    rows = report.table[report.table["slice"] == "subset"]
    assert rows["value"].is_unique
    found = dict(zip(rows["value"], zip(rows["num_pairs"], rows["accuracy"], strict=True), strict=True))
    assert found == {
        "(none)": (6, 1.0),
        "'all'": (1, 1.0),
        "'(none)'": (1, 0.0),
        "'best of prompt'": (1, 0.0),
        "'style: easy'": (1, 0.0),
        "\"'all'\"": (1, 0.0),
        "'\"x'": (1, 0.0),
    }
    assert report.pairs["subset"].tolist() == names  # data keep the names that the annotations give


def test_no_subset_of_an_evaluation_set_takes_the_row_of_the_set_or_of_its_rules():
    # a line with two rejected replies, so that the set has the rule `best of prompt` of RewardBench 2
    scores = scored([1] * 8, [0] * 7 + [2]).assign(split=["test", *["evaluation/bench"] * 7])
    scores.loc[6:, "line"] = 90
    facts = sliced(scores, subset=["", *OWN_NAMES[:5], "", ""])
    facts = facts.assign(chosen_place=0, rejected_place=[0] * 7 + [1], num_stated=[1] * 6 + [2, 2], num_equal=0)
    rows = rows_of(build_report(scores, facts), "evaluation/bench")
    assert rows.index.is_unique
    assert rows.loc["all", ["num_pairs", "accuracy"]].tolist() == [7, pytest.approx(6 / 7)]
    assert rows.loc["'all'", ["num_pairs", "accuracy"]].tolist() == [1, 1]
    assert rows.loc["(none)", "num_pairs"] == 2
    assert rows.loc["best of prompt", ["num_pairs", "accuracy"]].tolist() == [1, 0]
    assert rows.loc["'best of prompt'", ["num_pairs", "accuracy"]].tolist() == [1, 1]
