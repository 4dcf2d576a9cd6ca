"""Several annotators: the majority of those who judged two responses, or a pair of each of them."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.formats.exports.ballots import Ballots, Standings, voted_pairs
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.formats.rankings import MAX_CHARACTERS
from rm_assets.data.tables.reasons import Reason

ALL = ParsingRules(max_pairs_per_prompt=1000)
EACH = ParsingRules(max_pairs_per_prompt=1000, annotators="each")
FIRST, SECOND, TIE = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
Pairs = set[tuple[str, str, float, int, int]]


def votes(standings: list[Standings], rules: ParsingRules = ALL, *, scored: bool = False) -> list[tuple]:
    responses = [f"r{number}" for number in range(len(standings[0]))]
    ballots = Ballots(row={"prompt": "q"}, responses=responses, standings=standings, scored=scored)
    return [
        (row["chosen"], row["rejected"], row.get("margin", 0.0), vote.num_annotators, vote.num_agreeing)
        for row, vote in voted_pairs(ballots, rules).pairs
    ]


def reason_for(standings: list[Standings], rules: ParsingRules = ALL) -> Reason:
    with pytest.raises(PreferenceError) as error:
        votes(standings, rules)
    return error.value.reason


def test_the_majority_states_one_pair_with_how_many_agree() -> None:
    assert votes([FIRST]) == [("r0", "r1", 0.0, 1, 1)]
    assert votes([FIRST, SECOND, FIRST]) == [("r0", "r1", 0.0, 3, 2)]
    assert votes([SECOND, SECOND, FIRST, TIE, SECOND]) == [("r1", "r0", 0.0, 5, 3)]


@pytest.mark.parametrize("standings", [[FIRST, SECOND], [TIE], [FIRST, TIE], [FIRST, FIRST, SECOND, TIE]])
def test_where_no_more_than_half_agree_it_is_a_tie(standings: list[Standings]) -> None:
    assert reason_for(standings) == Reason.TIE


def test_each_annotator_states_a_pair_and_ties_state_none() -> None:
    found = votes([FIRST, SECOND, FIRST, TIE], EACH)
    assert found == [("r0", "r1", 0.0, 4, 2), ("r0", "r1", 0.0, 4, 2), ("r1", "r0", 0.0, 4, 1)]
    assert reason_for([TIE, TIE], EACH) == Reason.TIE


def test_who_did_not_judge_a_response_has_no_vote_on_it() -> None:
    assert votes([[None, 0.0], FIRST]) == [("r0", "r1", 0.0, 1, 1)]
    assert reason_for([[None, 1.0], [None, None]]) == Reason.UNLABELLED


def test_the_margin_is_the_mean_difference_of_those_who_agree() -> None:
    assert votes([[5, 1], [4, 2], [1, 2]], scored=True) == [("r0", "r1", 3.0, 3, 2)]  # (4 + 2) / 2
    assert votes([[5, 1], [1, 2]], EACH, scored=True) == [("r0", "r1", 4.0, 2, 1), ("r1", "r0", 1.0, 2, 1)]


def test_each_two_of_three_responses_are_voted_on_by_themselves() -> None:
    found = votes([[3, 2, 1], [3, 1, 2], [1, 3, 2]])
    # r0 against r1: 3>2, 3>1, 1<3; r0 against r2: 3>1, 3>2, 1<2; r1 against r2: 2>1, 1<2, 3>2
    assert found == [("r0", "r1", 0.0, 3, 2), ("r0", "r2", 0.0, 3, 2), ("r1", "r2", 0.0, 3, 2)]


STANDINGS = st.lists(st.lists(st.none() | st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=4)


@given(standings=STANDINGS, data=st.data())
def test_neither_the_order_of_annotators_nor_that_of_responses_matters(
    standings: list[Standings], data: st.DataObject
) -> None:
    order = data.draw(st.sampled_from(list(permutations(range(3)))))

    def found(given: list[Standings], names: list[str]) -> object:
        ballots = Ballots(row={}, responses=names, standings=given, scored=True)
        try:
            voted = voted_pairs(ballots, ParsingRules(max_pairs_per_prompt=2))
        except PreferenceError as error:
            return error.reason
        pairs = sorted(repr((row, vote.num_annotators, vote.num_agreeing)) for row, vote in voted.pairs)
        return pairs, voted.num_tied, voted.num_not_taken

    shuffled = [[given[place] for place in order] for given in data.draw(st.permutations(standings))]
    names = ["a", "b", "c"]
    assert found(standings, names) == found(shuffled, [names[place] for place in order])


def test_pairs_beyond_the_setting_are_counted_and_so_are_ties() -> None:
    ballots = Ballots(row={}, responses=["a", "b", "c", "d"], standings=[[4, 3, 2, 2]])
    voted = voted_pairs(ballots, ParsingRules(max_pairs_per_prompt=3))
    assert (len(voted.pairs), voted.num_tied, voted.num_not_taken) == (3, 1, 2)  # 4 * 3 / 2 = 6 = 3 + 1 + 2


def test_empty_responses_are_left_out_and_counted() -> None:
    voted = voted_pairs(Ballots(row={}, responses=["a", " ", None, "b"], standings=[[1, 9, None, 2]]), ALL)
    assert ([row for row, _ in voted.pairs], voted.num_left_out) == ([{"chosen": "b", "rejected": "a"}], 2)
    with pytest.raises(PreferenceError, match="empty_reply: 1 of 2 responses are empty"):
        voted_pairs(Ballots(row={}, responses=["a", ""], standings=[FIRST]), ALL)


def test_too_many_or_too_long_responses_are_a_reject() -> None:
    many = Ballots(row={}, responses=["a"] * 257, standings=[[0.0] * 257])
    long = Ballots(row={"prompt": "q" * (MAX_CHARACTERS // 2)}, responses=["a", "b", "c"], standings=[[3, 2, 1]])
    for ballots in (many, long):
        with pytest.raises(PreferenceError, match="too_many_responses"):
            voted_pairs(ballots, ALL)
