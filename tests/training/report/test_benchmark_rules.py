import itertools
import random

import numpy as np
import pandas as pd
import pytest

from rm_assets.training.report.benchmark_rules import benchmark_rows, with_places
from rm_assets.training.report.intervals import bootstrap_interval
from rm_assets.training.report.reward_model_report import build_report


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
    assert found["style: mean"] == [1, 0, 0, 1, 1, 0, 0, 0, 0]


def test_a_tie_of_styles_is_wrong():
    found = judged(grid(1, [2, 2], [2, 1]))
    assert (found["style: normal"], found["style: easy"], found["style: hard"]) == ([0, 1], [0], [1])


def test_a_line_of_which_a_pair_is_missing_is_left_out():
    whole, cut = grid(1, [5], [1, 2, 3]), grid(2, [5], [1, 2, 3]).iloc[:2]
    assert judged(whole, cut) == {"best of prompt": [1]}


def test_plain_pairs_have_no_rule_but_their_accuracy():
    assert judged(grid(1, [5], [1]), grid(2, [5], [1])) == {}
    assert dict(benchmark_rows(grid(1, [5], [1]).drop(columns="num_stated"))) == {}


# --- whole lines, as RM-Bench's own script counts them ----------------------------------------------------------


def line_of(number, domain, chosen, rejected):
    """A line as a benchmark's file has it: texts and their scores."""
    return {"line": number, "domain": domain, "chosen": chosen, "rejected": rejected}


def official(lines):
    """Liu et al. 2025: a matrix of wins per domain, whose triangles and diagonal are means of its cells."""
    domains = {}
    for line in lines:
        kind = next((name for name in ("chat", "math", "code", "safety") if line["domain"].startswith(name)), "")
        domains.setdefault(kind or line["domain"], []).append(line)
    figures = {}
    for name, members in domains.items():
        share = np.zeros((3, 3))
        for line in members:
            for i, j in itertools.product(range(3), repeat=2):
                share[i, j] += line["chosen"][i][1] > line["rejected"][j][1]
        share /= len(members)
        cells = list(itertools.product(range(3), repeat=2))
        figures[name] = {
            "style: easy": np.mean([share[i, j] for i, j in cells if i > j]),
            "style: normal": np.mean([share[i, i] for i in range(3)]),
            "style: hard": np.mean([share[i, j] for i, j in cells if i < j]),
        }
    means = {name: np.mean(list(styles.values())) for name, styles in figures.items()}
    found = {style: np.mean([figures[name][style] for name in figures]) for style in figures[name]}
    several = {f"style: mean of {name}": mean for name, mean in means.items()} if len(means) > 1 else {}
    return found | several | {"style: mean": np.mean(list(means.values()))}


def reported(lines):
    """The rows of the report on these lines as an evaluation set, whose scores have a row for every cell but ties."""
    rows = [
        {
            "source": "evaluation:bench/a.jsonl",
            "line": line["line"],
            "pair_id": f"{line['line']} {good} {bad}",
            "prompt_key": f"prompt {line['line']}",
            "chosen_key": " ".join(good.split()),
            "rejected_key": " ".join(bad.split()),
            "subset": line["domain"],
            "chosen_score": good_score,
            "rejected_score": bad_score,
        }
        for line in lines
        for good, good_score in line["chosen"]
        for bad, bad_score in line["rejected"]
        if good != bad
    ]
    pairs = pd.DataFrame(rows)
    equal = {
        ("evaluation:bench/a.jsonl", line["line"]): [
            (i, j)
            for i, (good, _) in enumerate(line["chosen"])
            for j, (bad, _) in enumerate(line["rejected"])
            if good == bad
        ]
        for line in lines
    }
    equal = {name: cells for name, cells in equal.items() if cells}
    facts = with_places(pairs, equal).assign(format="reply_lists", num_turns=1, script="Latin", agreement="")
    facts = facts.drop(columns=["prompt_key", "chosen_score", "rejected_score"])
    scores = pairs.drop(columns=["subset", "chosen_key", "rejected_key"])
    scores = scores.assign(split="evaluation/bench", chosen_length=2, rejected_length=2, margin=0.0)
    table = build_report(scores.sample(frac=1, random_state=0), facts).table
    return table[table["slice"] == "evaluation/bench"].set_index("value")


def a_line(number, domain, draw):
    """Three replies a side, of which any may be equal, or equal but for white space, with few different scores.

    In every other line a reply may be on both sides, but not alone on one of them, and none differs in white space.
    """
    names = "cr" if draw.randrange(2) else "cc"
    sides = [[""], [""]]
    while (names == "cc" and min(len({*side}) for side in sides) == 1) or sides == [[""], [""]]:
        ends = ["", "", " "] if names == "cr" else [""]
        sides = [[f"{name}{draw.randrange(4)}" + draw.choice(ends) for _ in range(3)] for name in names]
    scores = {text: float(draw.randrange(3)) for text in sorted({*sides[0], *sides[1]})}
    return line_of(number, domain, *[[(text, scores[text]) for text in side] for side in sides])


@pytest.mark.parametrize(
    "domains", [[""], ["chat"], ["chat", "code", "math", "safety-refuse", "safety-response"], ["law", "", "code"]]
)
def test_every_cell_of_every_line_counts_as_in_the_script_of_rm_bench(domains):
    for seed in range(8):
        draw = random.Random(seed)
        named = [*domains, *draw.choices(domains, k=20)]
        lines = [a_line(number, domain, draw) for number, domain in enumerate(named)]
        table, expected = reported(lines), official(lines)
        if "style: mean of " in expected:
            expected["style: mean of (none)"] = expected.pop("style: mean of ")
        found = table.loc[[value for value in table.index if value.startswith("style: ")], "accuracy"].to_dict()
        assert found == pytest.approx(expected, abs=1e-12)
        assert table.loc["style: mean", ["num_pairs", "num_prompts"]].tolist() == [9 * len(lines), len(lines)]
        low, high = table.loc["style: mean", ["accuracy_low", "accuracy_high"]]
        assert 0 <= low < expected["style: mean"] < high <= 1


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (["a", "b", "c"], ["a", "x", "y"]),  # the diagonal lacks a cell
        (["a", "b", "c"], ["x", "a", "y"]),
        (["a", "b", "c"], ["x", "y", "a"]),
        (["a", "b", "c"], ["x", "b", "y"]),
        (["a", "b", "c"], ["c", "x", "c"]),
        (["a", "b", "c"], ["b", "c", "a"]),  # every row lacks one
        (["a", "a", "b"], ["x", "a", "a"]),
        (["a", "b"], ["b", "a"]),
        (["a", "a", "b"], ["b", "a", "x"]),
        (["a", "b", "c"], ["a", "a", "a"]),  # the first row is gone
        (["b", "b", "b"], ["a", "b", "c"]),  # and here a column
        (["a", "b", "c", "d"], ["x", "c", "y", "c"]),
    ],
)
def test_a_chosen_reply_that_is_also_a_rejected_one_ties(chosen, rejected):
    keys = [
        {
            "source": "bench",
            "line": 1,
            "chosen_key": good,
            "rejected_key": bad,
            "place": (i, j),
        }
        for i, good in enumerate(chosen)
        for j, bad in enumerate(rejected)
        if good != bad
    ]
    equal = [(i, j) for i, j in itertools.product(range(len(chosen)), repeat=2) if chosen[i] == rejected[j]]
    placed = with_places(pd.DataFrame(keys).assign(source="bench"), {("bench", 1): equal})
    assert [*zip(placed["chosen_place"], placed["rejected_place"], strict=True)] == placed["place"].tolist()
    assert placed["num_equal"].tolist() == [len(chosen) ** 2 - len(keys)] * len(keys)
    scored = placed.assign(prompt_key="prompt", chosen_score=1.0, rejected_score=0.0)
    found = {name: row["correct"].tolist() for name, row in benchmark_rows(scored)}
    assert len(found["style: mean"]) == len(chosen) ** 2
    assert sum(found["style: mean"]) == len(keys)
    assert sum(found["style: normal"]) == sum(good != bad for good, bad in zip(chosen, rejected, strict=True))


def test_equal_styles_count_in_every_cell_that_they_fill():
    # [2, 2, 0] against [1, 1, 1]: wins are the rows of the matrix (1, 1, 1), (1, 1, 1), (0, 0, 0).
    table = reported([line_of(1, "", [("a", 2.0), ("a", 2.0), ("b", 0.0)], [("x", 1.0)] * 3)])
    assert table["num_pairs"].to_dict() == {
        "all": 2, "style: easy": 3, "style: normal": 3, "style: hard": 3, "style: mean": 9
    }  # fmt: skip
    assert table["accuracy"].to_dict() == pytest.approx(
        {"all": 1 / 2, "style: easy": 1 / 3, "style: normal": 2 / 3, "style: hard": 1, "style: mean": 2 / 3}
    )


def test_equal_rejected_replies_share_the_credit_of_the_best():
    table = reported([line_of(1, "", [("a", 1.0)], [("x", 1.0), ("x", 1.0), ("y", 0.0)])])
    assert table.loc["best of prompt", ["num_pairs", "accuracy"]].tolist() == [1, pytest.approx(1 / 3)]


@pytest.mark.parametrize("rejected", ["xx", "xxx", "xyyy"])
def test_one_chosen_reply_is_a_ranking_however_its_rejected_replies_repeat(rejected):
    table = reported([line_of(1, "", [("a", 1.0)], [(name, {"x": 0.0, "y": 1.0}[name]) for name in rejected])])
    benchmark = table.drop("all")["accuracy"].to_dict()
    assert benchmark == {"best of prompt": pytest.approx(1 / (1 + rejected.count("y")))}


@pytest.mark.parametrize(("chosen", "rejected"), [("abb", "x"), ("ab", "xyz"), ("aab", "xy")])
def test_a_line_with_several_chosen_replies_and_more_or_fewer_rejected_ones_has_no_rule(chosen, rejected):
    table = reported([line_of(1, "", [(name, 1.0) for name in chosen], [(name, 0.0) for name in rejected])])
    assert table.index.tolist() == ["all"]


def test_repeated_pairs_in_another_order_than_chosen_by_chosen_keep_the_places_of_their_texts():
    pairs = pd.DataFrame({"source": "bench", "line": 1, "chosen_key": [*"abab"], "rejected_key": "x"})
    placed = with_places(pairs)
    assert placed["chosen_place"].tolist() == [0, 1, 0, 1]
    assert placed["rejected_place"].tolist() == [0, 0, 0, 0]


def test_two_domains_weigh_the_same_however_many_lines_they_have():
    # Math: 1 and 1 against 2 and 0 win in the cells (0, 1) and (1, 1); chat: 3 and 1 win in (0, 0) as well.
    math = [line_of(number, "math", [("c", 1.0), ("d", 1.0)], [("x", 2.0), ("y", 0.0)]) for number in (1, 2)]
    chat = line_of(3, "chat", [("a", 3.0), ("b", 1.0)], [("x", 2.0), ("y", 0.0)])
    table = reported([*math, chat])
    assert [value for value in table.index if value.startswith("style: mean")] == [
        "style: mean of chat", "style: mean of math", "style: mean"
    ]  # fmt: skip
    assert table.loc["style: easy", "accuracy"] == 0
    assert table.loc["style: normal", "accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert table.loc["style: hard", "accuracy"] == 1
    assert table.loc["style: mean of math", "accuracy"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert table.loc["style: mean of chat", "accuracy"] == pytest.approx((0 + 1 + 1) / 3)
    assert table.loc["style: mean", "accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_the_interval_of_a_mean_over_domains_counts_each_domain_alike():
    correct, prompts = pd.Series([1.0] * 90 + [0.0] * 10), pd.Series(np.arange(100))
    weights = pd.Series([1 / 90] * 90 + [1 / 10] * 10)
    low, high = bootstrap_interval(correct, prompts, weights)
    assert 0.2 < low < 0.5 < high < 0.8
    assert bootstrap_interval(correct, prompts, 3.0) == bootstrap_interval(correct, prompts)
