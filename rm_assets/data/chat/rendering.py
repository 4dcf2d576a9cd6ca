"""Pairs of conversations as text, by the model's chat template.

Most pairs are of messages with a role and a content alone: those are rendered many at a time, by shape, through the
fast path of `template_renderer`. All others, and all that the fast path gives back, are rendered one by one.
"""

import functools
import itertools
import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.chat.control_counts import num_written
from rm_assets.data.chat.template_columns import Columns
from rm_assets.data.chat.template_renderer import Pieces, Rendered, TemplateRenderer
from rm_assets.data.chat.template_symbols import Applied, Content
from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, TemplateError, lost_parts, message_dict, render
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.message_columns import ROLES, MessageColumn
from rm_assets.data.tables.reasons import Reason

SIDES = ("chosen", "rejected")
_MAX_COLUMNS = 500
"""Messages of a pair up to which it is rendered column by column; longer ones are few, and their shapes are rare."""
_MAX_LISTED = 8
"""Lost parts that a reject names."""
_MAX_EARLIER = 64
"""Contents of a conversation that may stand before the one that they follow."""


class Flattened(NamedTuple):
    """One pair as text: `prompt + chosen` and `prompt + rejected` are the two rendered conversations.

    `control_tokens` are how many of them the template writes in each of the two; `is_rewritten` says that it wrote
    some content other than verbatim: stripped, or without its earlier thinking.
    """

    prompt: str
    chosen: str
    rejected: str
    control_tokens: tuple[int, int]
    is_rewritten: bool


# --- one pair ------------------------------------------------------------------------------------------------


def pair_messages(row: dict[str, Any]) -> dict[str, list[MessageDict]]:
    """The messages of a validated row by side, as a template wants them."""
    return {side: [message_dict(message) for message in row[side]] for side in ("prompt", *SIDES)}


def flatten_pair(
    chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str, *, counts_tokens: bool = True
) -> Flattened:
    """Render a pair; raises PreferenceError where the template raises, leaves a part out or makes both sides equal.

    Without `counts_tokens` no control token is counted; contents may then hold some themselves.
    """
    prompt = sides["prompt"]
    for side in SIDES:
        if lost := lost_parts(chat, prompt + sides[side], tools):
            raise PreferenceError(Reason.MESSAGE_LOST, f"{_listed(lost)}, {side} side")
    try:
        opening = render(chat, prompt, tools, add_generation_prompt=True)
        one, other = (render(chat, prompt + sides[side], tools) for side in SIDES)
    except TemplateError as error:
        raise PreferenceError(Reason.TEMPLATE_ERROR, str(error)) from None
    for text, side in zip((one, other), SIDES, strict=True):
        if _loses_thought(text, (prompt + sides[side])[-1].get("content") or ""):
            number = len(prompt) + len(sides[side])
            raise PreferenceError(Reason.MESSAGE_LOST, f"the reasoning of message {number}, {side} side")
    if one == other:
        raise PreferenceError(Reason.IDENTICAL_AFTER_TEMPLATE, "the chat template writes both sides alike")
    written = [(text, _contents(prompt + sides[side])) for text, side in zip((one, other), SIDES, strict=True)]
    counts = [num_written(chat.control_pattern, *text) if counts_tokens else 0 for text in written]
    rewritten = any(not _all_stand(*text) for text in written)
    return Flattened(*_cut(opening, one, other), (counts[0], counts[1]), rewritten)


def _loses_thought(text: str, reply: str) -> bool:
    """Whether a rendering leaves out the reasoning inside a reply, as in `<think>Two and two.</think>4`."""
    thought, end, _ = reply.partition("</think>")
    thought = thought.rpartition("<think>")[2].strip()
    return bool(end and thought) and thought not in text


def _contents(messages: Sequence[MessageDict]) -> list[str]:
    return [message.get("content") or "" for message in messages]


def _listed(parts: Sequence[str]) -> str:
    """Parts in words; of very many, the first ones and their number."""
    if len(parts) <= _MAX_LISTED:
        return " and ".join(parts)
    return f"{' and '.join(parts[:_MAX_LISTED])} and {len(parts) - _MAX_LISTED} more"


def _all_stand(text: str, contents: Iterable[str]) -> bool:
    """Whether all contents stand verbatim in a rendering; each is looked for after the one before it, then before it.

    Templates write contents in order, but for a system message perhaps. Where very many are out of order, they are
    taken for rewritten.
    """
    place = num_earlier = 0
    for content in contents:
        start = text.find(content, place)
        if start < 0:
            num_earlier += 1
            start = text.find(content, 0, place + len(content))
            if start < 0 or num_earlier > _MAX_EARLIER:
                return False
        place = start + len(content)
    return True


def _cut(opening: str, one: str, other: str) -> tuple[str, str, str]:
    """The prompt and two continuations of it: cut at the end of the opening, or earlier, where the texts part."""
    if one.startswith(opening) and other.startswith(opening):
        shared = len(opening)
    else:
        shared = len(os.path.commonprefix([opening, one, other]))  # noqa: RUF071 - characters are what is meant
    return one[:shared], one[shared:], other[shared:]


def require_no_control_tokens(chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str) -> None:
    """Raise PreferenceError if text of the pair contains a control token: it could forge a turn or an end."""
    for side, messages in sides.items():
        for number, message in enumerate(messages, start=1):
            if found := chat.control_pattern.search("\n".join(_strings(message))):
                where = f"{found[0]!r} in message {number} of {side}"
                raise PreferenceError(Reason.CONTROL_TOKEN, where)
    if found := chat.control_pattern.search(tools):
        raise PreferenceError(Reason.CONTROL_TOKEN, f"{found[0]!r} in the tools")


def rows_with_control_tokens(chat: ChatTokenizer, sides: Sequence[MessageColumn]) -> list[int]:
    """The rows of which some content contains a control token; it looks where the first byte of one stands."""
    first_bytes = {token.encode()[0] for token in chat.control_tokens}
    found: set[int] = set()
    for side in sides:
        messages = side.messages_with(first_bytes)
        texts = side.contents.take(pa.array(messages)).to_pylist()
        forged = [text is not None and chat.control_pattern.search(text) is not None for text in texts]
        found.update(side.rows_of(messages[np.array(forged, np.bool_)]).tolist())
    return sorted(found)


def _strings(value: Any) -> list[str]:
    """All strings inside a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return []


# --- many pairs ----------------------------------------------------------------------------------------------


class RenderedPairs(NamedTuple):
    """Pairs as text, column by column: the fields of `Flattened`, after the rows that they are of."""

    rows: NDArray[np.int64]
    prompt: pa.StringArray
    chosen: pa.StringArray
    rejected: pa.StringArray
    chosen_control_tokens: NDArray[np.int32]
    rejected_control_tokens: NDArray[np.int32]
    is_rewritten: NDArray[np.bool_]

    @classmethod
    def of(cls, found: Mapping[int, Flattened]) -> "RenderedPairs":
        """Pairs that were rendered one by one, by row."""
        pairs = list(found.values())
        prompt, chosen, rejected = (pa.array([pair[side] for pair in pairs], pa.string()) for side in range(3))
        one, other = (np.array([pair.control_tokens[side] for pair in pairs], np.int32) for side in range(2))
        is_rewritten = np.array([pair.is_rewritten for pair in pairs], np.bool_)
        return cls(np.array(list(found), np.int64), prompt, chosen, rejected, one, other, is_rewritten)

    @classmethod
    def joined(cls, parts: Sequence["RenderedPairs"]) -> "RenderedPairs":
        """All of these, in the order of their rows."""
        joined = [
            np.concatenate(columns) if isinstance(columns[0], np.ndarray) else pa.concat_arrays(columns)
            for columns in zip(*parts, strict=True)
        ]
        return cls(*joined).take(np.argsort(joined[0]))

    def without_counts(self) -> "RenderedPairs":
        """The same with no control tokens counted."""
        none = np.zeros(len(self.rows), np.int32)
        return self._replace(chosen_control_tokens=none, rejected_control_tokens=none)

    def take(self, numbers: NDArray[Any]) -> "RenderedPairs":
        """The pairs of these numbers, or those that a mask keeps."""
        places = pa.array(np.flatnonzero(numbers) if numbers.dtype == np.bool_ else numbers)
        return RenderedPairs(*(c[places] if isinstance(c, np.ndarray) else c.take(places) for c in self))


def flatten_plain(
    renderer: TemplateRenderer, sides: Sequence[MessageColumn], rows: NDArray[np.int64]
) -> list[RenderedPairs]:
    """Render rows by the fast path; those that are in no result are to be rendered, or refused, one by one.

    `sides` are the columns of the prompt and both replies; in these rows all messages are plain.
    """
    rows_by_shape: dict[tuple[bytes, ...], list[int]] = {}
    shapes = list(zip(*(side.shapes() for side in sides), strict=True))
    for row in rows.tolist():
        rows_by_shape.setdefault(shapes[row], []).append(row)
    return [
        pairs
        for shape, found in rows_by_shape.items()
        if sum(map(len, shape)) <= _MAX_COLUMNS
        for pairs in _pairs_of_shape(renderer, sides, shape, np.array(found, np.int64))
    ]


def _pairs_of_shape(
    renderer: TemplateRenderer, sides: Sequence[MessageColumn], shape: tuple[bytes, ...], rows: NDArray[np.int64]
) -> Iterator[RenderedPairs]:
    prompt_roles, *reply_roles = (tuple(ROLES[number] for number in roles) for roles in shape)
    prompt = Columns(sides[0].arrays(rows))
    wholes = [Columns(side.arrays(rows), prompt) for side in sides[1:]]
    roles = [prompt_roles + reply for reply in reply_roles]
    if any(renderer.lost_parts(own, whole.row(0)) for own, whole in zip(roles, wholes, strict=True)):
        return
    ways = [renderer.ways(prompt_roles, prompt, add_generation_prompt=True)]
    ways += [renderer.ways(own, whole) for own, whole in zip(roles, wholes, strict=True)]
    for (opening, rows_0), (one, rows_1), (other, rows_2) in itertools.product(*ways):
        some = [found for found in (rows_0, rows_1, rows_2) if len(found) < len(rows)]  # mostly none
        places = functools.reduce(np.intersect1d, some) if some else rows_0
        if not len(places):
            continue
        own_prompt, own = prompt, wholes
        if len(places) < len(rows):
            own_prompt, own = prompt.take(places), [whole.take(places) for whole in wholes]
        pairs = _pairs_of_way(opening, (one, other), own_prompt, own)
        kept = pc.not_equal(pairs.chosen, pairs.rejected).to_numpy(zero_copy_only=False) & _keep_thoughts(pairs, own)
        pairs = pairs._replace(rows=rows[places])
        yield pairs if kept.all() else pairs.take(kept)  # the others are refused one by one


def _keep_thoughts(pairs: RenderedPairs, columns: Sequence[Columns]) -> NDArray[np.bool_]:
    """Which pairs have the reasoning that stands inside their replies."""
    kept = np.ones(len(pairs.rows), np.bool_)
    if not pairs.is_rewritten.any():
        return kept
    for own, replies in zip(columns, (pairs.chosen, pairs.rejected), strict=True):
        thinks = pc.match_substring(own.arrays[-1], "</think>").to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(thinks & pairs.is_rewritten).tolist():
            text = pairs.prompt[row].as_py() + replies[row].as_py()
            kept[row] &= not _loses_thought(text, own.arrays[-1][row].as_py())
    return kept


def _pairs_of_way(
    opening: Pieces, wholes: tuple[Pieces, Pieces], prompt: Columns, columns: Sequence[Columns]
) -> RenderedPairs:
    """Pairs of one shape that are all written in one way, numbered from 0."""
    num_pairs = prompt.num_rows
    texts = _parted(opening, wholes, prompt, columns)
    is_rewritten = np.zeros(num_pairs, np.bool_)
    for pieces, own, reply in zip(wholes, columns, texts[1:], strict=True):
        is_rewritten |= _is_rewritten(pieces, own, texts[0], reply)
    one, other = (np.full(num_pairs, pieces.num_control, np.int32) for pieces in wholes)
    return RenderedPairs(np.arange(num_pairs), *texts, one, other, is_rewritten)


def _parted(
    opening: Pieces, wholes: tuple[Pieces, Pieces], prompt: Columns, columns: Sequence[Columns]
) -> tuple[pa.StringArray, pa.StringArray, pa.StringArray]:
    """The prompt and both continuations: cut where the pieces of the opening end, else where the texts part."""
    one, other = (whole.after(opening) for whole in wholes)
    if one is not None and other is not None:
        return prompt.joined(opening.parts), columns[0].joined(one), columns[1].joined(other)
    texts = [own.joined(pieces.parts).to_pylist() for own, pieces in zip(columns, wholes, strict=True)]
    cut = [_cut(*three) for three in zip(prompt.joined(opening.parts).to_pylist(), *texts, strict=True)]
    prompts, ones, others = (pa.array(column, pa.string()) for column in zip(*cut, strict=True))
    return prompts, ones, others


def _is_rewritten(pieces: Pieces, columns: Columns, prompt: pa.StringArray, reply: pa.StringArray) -> NDArray[np.bool_]:
    """In which rows a content does not stand verbatim in the rendering."""
    applied: dict[int, list[Applied]] = {}
    for part in pieces.parts:
        if isinstance(part, Applied) and isinstance(part.of, Content):
            applied.setdefault(part.of.index, []).append(part)
    unsure: dict[int, list[str]] = {}
    for number, contents in enumerate(columns.arrays):
        if pieces.num_verbatim[number] == 1:
            continue
        stands = np.zeros(columns.num_rows, np.bool_)
        for part in applied.get(number, ()):
            stands |= pc.equal(columns.text(part), contents).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(~stands).tolist():
            unsure.setdefault(row, []).append(contents[row].as_py())
    is_rewritten = np.zeros(columns.num_rows, np.bool_)
    for row, texts in unsure.items():
        is_rewritten[row] = not _all_stand(prompt[row].as_py() + reply[row].as_py(), texts)
    return is_rewritten


def verify_plain(
    renderer: TemplateRenderer, sample: Sequence[Mapping[str, Any]], texts: Sequence[tuple[str, str, str]]
) -> str:
    """Render pairs again by transformers: the first difference in words, or empty; see `TemplateRenderer.verify`.

    `sample` are validated rows, `texts` what the fast path made of them.
    """
    rendered = []
    for row, (prompt, *replies) in zip(sample, texts, strict=True):
        for side, reply in zip(SIDES, replies, strict=True):
            messages = [*row["prompt"], *row[side]]
            roles, contents = (tuple(message[name] for message in messages) for name in ("role", "content"))
            rendered.append(Rendered(roles=roles, contents=contents, text=prompt + reply))
    return renderer.verify(rendered)
