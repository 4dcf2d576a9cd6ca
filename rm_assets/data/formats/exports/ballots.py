"""Several annotators' votes on the responses to one prompt, and the pairs that follow.

Three annotators who prefer A, A and B state one pair by their majority, with 2 of 3 agreeing; with `annotators: each`
they state three, one of them reversed. A pair on which no more than half of those who judged it agree is a
tie. Of three or more responses each two are voted on by themselves; empty ones are left out.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from rm_assets.data.formats.field_names import Row
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.formats.rankings import draw_pairs, require_few
from rm_assets.data.tables.reasons import Reason

Standings = list[float | None]
"""One annotator's: a number for each response, higher is better; None for one that was not judged."""


class Ballots(Struct, frozen=True, kw_only=True):
    """The responses to the prompt of `row`, and each annotator's standings.

    Differences of standings are margins where they are `scored`.
    """

    row: Row
    responses: list[Any]
    standings: list[Standings]
    scored: bool = False


class Vote(NamedTuple):
    """Which response is better, which is worse, by how much, how many annotators judged both, and how many agree."""

    better: int
    worse: int
    margin: float
    num_annotators: int
    num_agreeing: int


class Voted(NamedTuple):
    """Rows with `chosen` and `rejected`, and the vote behind each.

    Also how many pairs are ties or over `max_pairs_per_prompt`, and how many responses are empty.
    """

    pairs: list[tuple[Row, Vote]]
    num_tied: int
    num_not_taken: int
    num_left_out: int


def voted_pairs(ballots: Ballots, rules: ParsingRules) -> Voted:
    """The pairs that the annotators voted for; raises PreferenceError where there are none."""
    num_responses = len(ballots.responses)
    require_few(num_responses)
    ballots = _without_empty(ballots)
    votes, num_tied = _votes(ballots, each=rules.annotators == "each")
    if not votes and num_tied:
        raise PreferenceError(Reason.TIE, "the annotators prefer neither response, or are split")
    if not votes:
        raise PreferenceError(Reason.UNLABELLED, "no annotator judged two or more of the responses")
    texts = [msgspec.json.encode(response).decode() for response in ballots.responses]
    drawn = draw_pairs(votes, texts, len(msgspec.json.encode(ballots.row)), rules)
    return Voted(
        [(_row_of(ballots, vote), vote) for vote in drawn],
        num_tied,
        len(votes) - len(drawn),
        num_responses - len(ballots.responses),
    )


def _without_empty(ballots: Ballots) -> Ballots:
    there = [
        place for place, text in enumerate(ballots.responses) if text and not (isinstance(text, str) and text.isspace())
    ]
    if len(there) < 2:
        problem = f"{len(ballots.responses) - len(there)} of {len(ballots.responses)} responses are empty"
        raise PreferenceError(Reason.EMPTY_REPLY, problem)
    responses = [ballots.responses[place] for place in there]
    standings = [[given[place] for place in there] for given in ballots.standings]
    return msgspec.structs.replace(ballots, responses=responses, standings=standings)


def _votes(ballots: Ballots, *, each: bool) -> tuple[list[Vote], int]:
    votes: list[Vote] = []
    num_tied = 0
    for one, other in combinations(range(len(ballots.responses)), 2):
        differences = [
            first - second
            for standings in ballots.standings
            if (first := standings[one]) is not None and (second := standings[other]) is not None
        ]
        found = _votes_of_two(one, other, differences, each=each)
        votes += found if ballots.scored else [vote._replace(margin=0.0) for vote in found]
        num_tied += bool(differences) and not found
    return votes, num_tied


def _votes_of_two(one: int, other: int, differences: Sequence[float], *, each: bool) -> list[Vote]:
    """For 1, 3 and -2 the majority prefers the first, by 2 on average, with 2 of 3 agreeing."""
    found = []
    for better, worse, sign in ((one, other, 1), (other, one, -1)):
        agreeing = [sign * difference for difference in differences if sign * difference > 0]
        counts = (len(differences), len(agreeing))
        if each:
            found += [Vote(better, worse, margin, *counts) for margin in agreeing]
        elif len(agreeing) * 2 > len(differences):
            found.append(Vote(better, worse, sum(agreeing) / len(agreeing), *counts))
    return found


def _row_of(ballots: Ballots, vote: Vote) -> Row:
    sides = {"chosen": ballots.responses[vote.better], "rejected": ballots.responses[vote.worse]}
    return ballots.row | sides | ({"margin": vote.margin} if vote.margin else {})
