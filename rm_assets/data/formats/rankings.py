"""Rankings: one prompt and many responses, of which every pair of different rank is a preference."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from rm_assets.data.formats.chosen_rejected import Common, preference, score_margin
from rm_assets.data.formats.conversations.messages import MessageRecord, Prompt, Reply, content_of, split_sides
from rm_assets.data.formats.preferences import Format, ParsedLine, ParsingRules, PreferenceError
from rm_assets.data.storage.fingerprint import short_hash
from rm_assets.data.tables.reasons import Reason

MAX_RESPONSES = 256
"""The pairs of a row grow with the square of its responses."""
MAX_CHARACTERS = 2**26
"""Limit for all pairs of one row, as each repeats the prompt and the tools; they take about ten times as many bytes."""

# --- the records, as files have them -------------------------------------------------------------------------


class ResponseRecord(Struct, kw_only=True):
    """A response under one of these names, with `score` or `rating` (higher is better) or `rank` (lower is better)."""

    response: Reply | None = None
    completion: Reply | None = None
    answer: Reply | None = None
    output: Reply | None = None
    content: Reply | None = None
    text: Reply | None = None
    score: float | None = None
    rating: float | None = None
    rank: float | None = None


class RankingRecord(Common, kw_only=True):
    """`{"prompt": "...", "responses": [{"response": "...", "score": 2}, ...]}`"""

    prompt: Prompt | None = None
    responses: list[ResponseRecord]


class ScoredListsRecord(Common, kw_only=True):
    """`{"prompt": "...", "responses": ["...", ...], "scores": [2, ...]}`, or `ranks`, where lower is better."""

    prompt: Prompt | None = None
    responses: list[str | None]
    scores: list[float | None] | None = None
    ranks: list[float | None] | None = None


class ReplyListsRecord(Common, kw_only=True):
    """`{"prompt": "...", "chosen": ["...", ...], "rejected": ["...", ...]}`: each chosen reply beats each rejected."""

    prompt: Prompt
    chosen: list[str | None] | str
    rejected: list[str | None] | str


class Response(NamedTuple):
    """A response of a row. Without a reply, or without both a score and a rank, it is not compared."""

    reply: Reply | None
    score: float | None
    rank: float | None = None


class Ranked(NamedTuple):
    """A response to compare: a higher standing is better. If `scored`, differences of standings are margins."""

    reply: Reply
    standing: float
    scored: bool


# --- from a record to preferences ----------------------------------------------------------------------------


def from_ranking(record: RankingRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The pairs of responses that each have a score or a rank of their own."""
    require_few(len(record.responses))
    responses = [Response(_reply(item), _own_score(item.score, item.rating), item.rank) for item in record.responses]
    return _ranked_pairs(record, format_name, record.prompt, responses, rules)


def from_scored_lists(record: ScoredListsRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The pairs of responses whose scores or ranks are in a list of their own."""
    num_responses = len(record.responses)
    require_few(num_responses)
    for name, values in (("scores", record.scores), ("ranks", record.ranks)):
        if values is not None and len(values) != num_responses:
            raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` and `responses` differ in length")
    unknown = [None] * num_responses
    columns = record.responses, record.scores or unknown, record.ranks or unknown
    responses = [Response(*fields) for fields in zip(*columns, strict=True)]
    return _ranked_pairs(record, format_name, record.prompt, responses, rules)


def from_reply_lists(record: ReplyListsRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The pairs of every chosen with every rejected reply.

    A chosen reply that equals a rejected one is a contradiction. In an evaluation set with as many replies on both
    sides, RM-Bench's form, it is a tie, which the rule of that benchmark counts.
    """
    chosen, rejected = (side if isinstance(side, list) else [side] for side in (record.chosen, record.rejected))
    require_few(len(chosen) + len(rejected))
    if any(all(map(_is_empty, side)) for side in (chosen, rejected)):
        raise PreferenceError(Reason.EMPTY_REPLY, "`chosen` or `rejected` has only empty replies")
    responses = [Response(reply, None, rank) for rank, side in enumerate((chosen, rejected)) for reply in side]
    margin = score_margin(record)
    equal_cells: tuple[tuple[int, int], ...] = ()
    if rules.is_evaluation and len(chosen) == len(rejected) > 1 and not any(map(_is_empty, chosen + rejected)):
        cells = itertools.product(range(len(chosen)), repeat=2)
        equal_cells = tuple((one, other) for one, other in cells if chosen[one] == rejected[other])
    parsed = _ranked_pairs(
        record, format_name, record.prompt, responses, rules, margin=margin, equals_tie=bool(equal_cells)
    )
    return msgspec.structs.replace(parsed, equal_cells=equal_cells)


def require_few(num_responses: int) -> None:
    """Raise PreferenceError for more than `MAX_RESPONSES`."""
    if num_responses > MAX_RESPONSES:
        raise PreferenceError(Reason.TOO_MANY_RESPONSES, f"{num_responses} responses, more than {MAX_RESPONSES}")


def _own_score(*values: float | None) -> float | None:
    """The score of a response that is given under one name, or equally under two; None without any."""
    given = {value for value in values if value is not None}
    if len(given) > 1:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "`score` and `rating` of a response differ")
    return next(iter(given), None)


def _reply(item: ResponseRecord) -> Reply | None:
    named = (item.response, item.completion, item.answer, item.output, item.content, item.text)
    given = [reply for reply in named if reply is not None]
    if len(given) > 1:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "a response is given under two names")
    return given[0] if given else None


def _ranked(responses: Sequence[Response]) -> list[Ranked]:
    """The responses to compare: those with a reply, and with a score or a rank.

    Raises PreferenceError if a row of several responses has fewer than two of these. A row of one response is no error
    here; its caller finds no pair and calls it a tie.
    """
    replied = [response for response in responses if not _is_empty(response.reply)]
    found = [response for response in replied if response.score is not None or response.rank is not None]
    if len(found) < 2 <= len(responses):
        if all(response.reply is None for response in responses):
            problem = "a response needs `response`, `completion`, `answer`, `output`, `content` or `text`"
            raise PreferenceError(Reason.MISSING_FIELD, problem)
        if len(replied) < 2:
            problem = f"{len(responses) - len(replied)} of {len(responses)} responses are empty"
            raise PreferenceError(Reason.EMPTY_REPLY, problem)
        problem = f"{len(replied) - len(found)} of {len(replied)} responses have neither a score nor a rank"
        problem += "; name the column of `scores` or `ranks` in the setting columns"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    standings = _standings([response.score for response in found], [response.rank for response in found])
    replies = [response.reply for response in found if response.reply is not None]
    return [Ranked(reply, *standing) for reply, standing in zip(replies, standings, strict=True)]


def _is_empty(reply: Reply | None) -> bool:
    """Whether a reply is missing or blank, or one of its messages is blank, other than system messages."""
    if reply is None or isinstance(reply, str):
        return not (reply or "").strip()
    messages = reply if isinstance(reply, list) else [reply]
    return not messages or any(message.role != "system" and _is_blank(message) for message in messages)


def _is_blank(message: MessageRecord) -> bool:
    content = content_of(message)
    if isinstance(content, list):
        content = "".join([part.text or part.value or part.type.removesuffix("text") for part in content])
    return not (content or "").strip() and not message.tool_calls


def _standings(scores: Sequence[float | None], ranks: Sequence[float | None]) -> list[tuple[float, bool]]:
    """The standing of each response, higher is better, and whether it is a score: scores as they are, ranks negated.

    Of responses that have both, the score counts, and no two may be in opposite orders.
    """
    num_responses = len(scores)
    both = zip(scores, ranks, strict=True)
    _require_agreement([(score, rank) for score, rank in both if score is not None and rank is not None and rank >= 0])
    by_score = [score for score in scores if score is not None]
    by_rank = [-rank for rank in ranks if rank is not None]
    if num_responses not in (len(by_score), len(by_rank)):
        raise PreferenceError(Reason.MISSING_FIELD, "some responses have only a score, and others only a rank")
    if len(by_score) < num_responses:
        if max(by_rank) > 0:
            problem = "a rank is below 0, which may mean that there is none: write null instead"
            raise PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
        return [(standing, False) for standing in by_rank]
    return [(standing, True) for standing in by_score]


def _require_agreement(scores_and_ranks: list[tuple[float, float]]) -> None:
    for (score, rank), (other_score, other_rank) in itertools.combinations(scores_and_ranks, 2):
        if (score - other_score) * (rank - other_rank) > 0:
            raise PreferenceError(Reason.SCORES_DISAGREE, "scores and ranks order two responses differently")


def _ranked_pairs(
    record: Common,
    format_name: Format,
    prompt: Prompt | None,
    responses: Sequence[Response],
    rules: ParsingRules,
    *,
    margin: float = 0.0,
    equals_tie: bool = False,
) -> ParsedLine:
    """The pairs of responses with different standings, at most `max_pairs_per_prompt`; the others are counted.

    `margin` is that of pairs whose standings are ranks. A reply that occurs twice with different standings is an error;
    with `equals_tie`, the two tie.
    """
    ranked = _ranked(responses)
    texts = [_text(response.reply) for response in ranked]
    if not equals_tie:
        _require_distinct(ranked, texts)
    pairs = [
        (one, other) if ranked[one].standing > ranked[other].standing else (other, one)
        for one, other in itertools.combinations(range(len(ranked)), 2)
        if ranked[one].standing != ranked[other].standing and texts[one] != texts[other]
    ]
    if not pairs:
        raise PreferenceError(Reason.TIE, "all responses have the same score or rank")
    drawn = draw_pairs(pairs, texts, _shared_size(record, responses), rules)
    preferences = [
        preference(
            record,
            format_name,
            split_sides(prompt, ranked[better].reply, ranked[worse].reply),
            ranked[better].standing - ranked[worse].standing if ranked[better].scored else margin,
        )
        for better, worse in drawn
    ]
    num_tied = len(ranked) * (len(ranked) - 1) // 2 - len(pairs)
    return ParsedLine(
        preferences=preferences,
        num_tied=num_tied,
        num_not_taken=len(pairs) - len(drawn),
        num_left_out=len(responses) - len(ranked),
    )


def _shared_size(record: Common, responses: Sequence[Response]) -> int:
    """The number of characters that all pairs of a row have in common: those of the row without its replies."""
    replies = sum(len(_text(response.reply)) for response in responses if response.reply is not None)
    return max(0, len(msgspec.json.encode(record)) - replies)


Pair = TypeVar("Pair", bound=tuple[Any, ...])


def draw_pairs(pairs: Sequence[Pair], texts: Sequence[str], shared_size: int, rules: ParsingRules) -> list[Pair]:
    """At most `max_pairs_per_prompt` pairs, drawn by the hashes of their texts: the order of responses does not matter.

    A pair begins with the indices of the better and the worse response in `texts`; `shared_size` is the number of
    characters that every pair holds besides its two texts. Raises PreferenceError for more than `MAX_CHARACTERS`.
    """
    drawn = sorted(pairs, key=lambda pair: short_hash(texts[pair[0]], texts[pair[1]]))[: rules.max_pairs_per_prompt]
    num_characters = sum(shared_size + len(texts[pair[0]]) + len(texts[pair[1]]) for pair in drawn)
    if num_characters > MAX_CHARACTERS:
        problem = f"{len(drawn)} pairs of {num_characters} characters, more than {MAX_CHARACTERS}"
        raise PreferenceError(Reason.TOO_MANY_RESPONSES, f"{problem}; lower max_pairs_per_prompt")
    return sorted(drawn)


def _text(reply: Reply) -> str:
    return reply if isinstance(reply, str) else msgspec.json.encode(reply, order="sorted").decode()


def _require_distinct(ranked: list[Ranked], texts: Iterable[str]) -> None:
    """Raise PreferenceError for a response that occurs twice with different ranks, even if its pairs are not drawn."""
    standings: dict[str, float] = {}
    for number, (response, text) in enumerate(zip(ranked, texts, strict=True), start=1):
        if standings.setdefault(text, response.standing) != response.standing:
            raise PreferenceError(Reason.IDENTICAL_REPLIES, f"response {number} is listed twice, with different ranks")
