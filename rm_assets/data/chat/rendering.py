"""Batches of pairs as text, by the model's chat template.

Most pairs consist of messages with only a role and content. The fast path (`template_renderer`) groups them by shape,
their sequence of roles, and renders each group column by column; a sample is compared with transformers. All other
pairs, and those that the fast path cannot render, are rendered one by one (`pair_rendering`).
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.chat.pair_rendering import (
    SIDES,
    Flattened,
    all_occur,
    flatten_pair,
    loses_reasoning,
    lost_parts,
    pair_messages,
    require_no_control_tokens,
    split_texts,
)
from rm_assets.data.chat.template_renderer import Columns, Pieces, TemplateRenderer, plain_messages
from rm_assets.data.chat.template_tracing import Applied, Content
from rm_assets.data.chat.tokenizer import ChatTokenizer, sample_rows
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.message_columns import ROLES, MessageColumn

NUM_VERIFIED = 16
"""Number of evenly spaced pairs of each batch that transformers renders, too, for comparison."""
_MAX_COLUMNS = 500
"""Pairs with more messages are rendered one by one: they are few, and hardly any two have the same shape."""


class RenderedPairs(NamedTuple):
    """Pairs as text, column by column: their rows, then the fields of `Flattened`."""

    rows: NDArray[np.int64]
    prompt: pa.StringArray
    chosen: pa.StringArray
    rejected: pa.StringArray
    chosen_control_tokens: NDArray[np.int32]
    rejected_control_tokens: NDArray[np.int32]
    is_rewritten: NDArray[np.bool_]

    @classmethod
    def of(cls, found: Mapping[int, Flattened]) -> "RenderedPairs":
        """From pairs that were rendered one by one, keyed by row."""
        pairs = list(found.values())
        prompt, chosen, rejected = (pa.array([pair[side] for pair in pairs], pa.string()) for side in range(3))
        one, other = (np.array([pair.control_tokens[side] for pair in pairs], np.int32) for side in range(2))
        is_rewritten = np.array([pair.is_rewritten for pair in pairs], np.bool_)
        return cls(np.array(list(found), np.int64), prompt, chosen, rejected, one, other, is_rewritten)

    @classmethod
    def joined(cls, parts: Sequence["RenderedPairs"]) -> "RenderedPairs":
        """All pairs of these parts, in the order of their rows."""
        joined = [
            np.concatenate(columns) if isinstance(columns[0], np.ndarray) else pa.concat_arrays(columns)
            for columns in zip(*parts, strict=True)
        ]
        return cls(*joined).take(np.argsort(joined[0]))

    def without_counts(self) -> "RenderedPairs":
        """The same pairs, with all counts of control tokens 0."""
        none = np.zeros(len(self.rows), np.int32)
        return self._replace(chosen_control_tokens=none, rejected_control_tokens=none)

    def take(self, numbers: NDArray[Any]) -> "RenderedPairs":
        """The pairs with these numbers, or those that a mask keeps."""
        places = pa.array(np.flatnonzero(numbers) if numbers.dtype == np.bool_ else numbers)
        return RenderedPairs(*(c[places] if isinstance(c, np.ndarray) else c.take(places) for c in self))


Refused = dict[int, PreferenceError]
"""Why pairs are refused, by row."""


def flatten_pairs(
    renderer: TemplateRenderer, rows: pa.Table, *, allow_control_tokens: bool
) -> tuple[RenderedPairs, Refused, int]:
    """The rendered pairs, the refused ones, and the number of pairs that the fast path did not render.

    If the fast path fails its check, `renderer.reason` says so, and everything that it rendered must be rendered again.
    """
    sides = [MessageColumn(rows[side]) for side in ("prompt", *SIDES)]
    is_plain = np.logical_and.reduce([side.is_plain() for side in sides])
    is_plain &= rows["tools"].is_null().to_numpy()
    if not allow_control_tokens:
        is_plain[rows_with_control_tokens(renderer.chat, sides)] = False
    pairs = RenderedPairs.joined([RenderedPairs.of({}), *flatten_plain(renderer, sides, np.flatnonzero(is_plain))])
    _verify(renderer, rows, pairs)
    others = np.setdiff1d(np.arange(rows.num_rows), pairs.rows)
    refused, found = Refused(), dict[int, Flattened]()
    for row, values in zip(others.tolist(), rows.take(pa.array(others)).to_pylist(), strict=True):
        messages, tools = pair_messages(values), values["tools"] or ""
        try:
            if not allow_control_tokens:
                require_no_control_tokens(renderer.chat, messages, tools)
            found[row] = flatten_pair(renderer.chat, messages, tools, counts_tokens=not allow_control_tokens)
        except PreferenceError as error:
            refused[row] = error
    pairs = RenderedPairs.joined([pairs, RenderedPairs.of(found)]) if found else pairs
    # the counts would include control tokens that contents contain
    return pairs.without_counts() if allow_control_tokens else pairs, refused, len(others)


def rows_with_control_tokens(chat: ChatTokenizer, sides: Sequence[MessageColumn]) -> list[int]:
    """The rows with a control token in any content; for speed, only contents with a token's first byte are searched."""
    first_bytes = {token.encode()[0] for token in chat.control_tokens}
    found: set[int] = set()
    for side in sides:
        messages = side.messages_with(first_bytes)
        texts = side.contents.take(pa.array(messages)).to_pylist()
        forged = [text is not None and chat.control_pattern.search(text) is not None for text in texts]
        found.update(side.rows_of(messages[np.array(forged, np.bool_)]).tolist())
    return sorted(found)


def flatten_plain(
    renderer: TemplateRenderer, sides: Sequence[MessageColumn], rows: NDArray[np.int64]
) -> list[RenderedPairs]:
    """Render rows by the fast path; rows missing from the results must be rendered, or refused, one by one.

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
    """Those pairs of one shape that known pieces render completely, and that need not be refused."""
    prompt_roles, *reply_roles = (tuple(ROLES[number] for number in roles) for roles in shape)
    prompt = Columns(sides[0].arrays(rows))
    wholes = [Columns(side.arrays(rows), prompt) for side in sides[1:]]
    roles = [prompt_roles + reply for reply in reply_roles]
    if any(
        lost_parts(renderer.chat, plain_messages(*conversation), "")
        for conversation in zip(roles, (whole.row(0) for whole in wholes), strict=True)
    ):
        return
    found = [renderer.pieces_for(prompt_roles, prompt, add_generation_prompt=True)]
    found += [renderer.pieces_for(*side) for side in zip(roles, wholes, strict=True)]
    for (opening, rows_0), (one, rows_1), (other, rows_2) in itertools.product(*found):
        some = [numbers for numbers in (rows_0, rows_1, rows_2) if len(numbers) < len(rows)]  # usually empty
        places = functools.reduce(np.intersect1d, some) if some else rows_0
        if not len(places):
            continue
        own_prompt, own = prompt, wholes
        if len(places) < len(rows):
            own_prompt, own = prompt.take(places), [whole.take(places) for whole in wholes]
        pairs = _join_pieces(opening, (one, other), own_prompt, own)
        kept = pc.not_equal(pairs.chosen, pairs.rejected).to_numpy(zero_copy_only=False) & _keep_reasoning(pairs, own)
        pairs = pairs._replace(rows=rows[places])
        yield pairs if kept.all() else pairs.take(kept)  # the others are refused one by one


def _keep_reasoning(pairs: RenderedPairs, columns: Sequence[Columns]) -> NDArray[np.bool_]:
    """Which pairs keep the reasoning inside their replies."""
    kept = np.ones(len(pairs.rows), np.bool_)
    if not pairs.is_rewritten.any():
        return kept
    for own, replies in zip(columns, (pairs.chosen, pairs.rejected), strict=True):
        has_reasoning = pc.match_substring(own.arrays[-1], "</think>").to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(has_reasoning & pairs.is_rewritten).tolist():
            text = pairs.prompt[row].as_py() + replies[row].as_py()
            kept[row] &= not loses_reasoning(text, own.arrays[-1][row].as_py())
    return kept


def _join_pieces(
    opening: Pieces, wholes: tuple[Pieces, Pieces], prompt: Columns, columns: Sequence[Columns]
) -> RenderedPairs:
    """Render pairs of one shape that all have the same pieces; their rows are numbered from 0."""
    num_pairs = prompt.num_rows
    texts = _split_columns(opening, wholes, prompt, columns)
    is_rewritten = np.zeros(num_pairs, np.bool_)
    for pieces, own, reply in zip(wholes, columns, texts[1:], strict=True):
        is_rewritten |= _is_rewritten(pieces, own, texts[0], reply)
    one, other = (np.full(num_pairs, pieces.num_control, np.int32) for pieces in wholes)
    return RenderedPairs(np.arange(num_pairs), *texts, one, other, is_rewritten)


def _split_columns(
    opening: Pieces, wholes: tuple[Pieces, Pieces], prompt: Columns, columns: Sequence[Columns]
) -> tuple[pa.StringArray, pa.StringArray, pa.StringArray]:
    """The prompt and both continuations: cut where the pieces of the opening end, or where the texts differ."""
    one, other = (whole.after(opening) for whole in wholes)
    if one is not None and other is not None:
        return prompt.join(opening.parts), columns[0].join(one), columns[1].join(other)
    texts = [own.join(pieces.parts).to_pylist() for own, pieces in zip(columns, wholes, strict=True)]
    cut = [split_texts(*three) for three in zip(prompt.join(opening.parts).to_pylist(), *texts, strict=True)]
    prompts, ones, others = (pa.array(column, pa.string()) for column in zip(*cut, strict=True))
    return prompts, ones, others


def _is_rewritten(pieces: Pieces, columns: Columns, prompt: pa.StringArray, reply: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each row has a content that does not occur verbatim in its rendering."""
    applied: dict[int, list[Applied]] = {}
    for part in pieces.parts:
        if isinstance(part, Applied) and isinstance(part.of, Content):
            applied.setdefault(part.of.index, []).append(part)
    unsure: dict[int, list[str]] = {}
    for number, contents in enumerate(columns.arrays):
        if pieces.num_verbatim[number] == 1:
            continue  # written once, as it is
        is_verbatim = np.zeros(columns.num_rows, np.bool_)
        for part in applied.get(number, ()):
            is_verbatim |= pc.equal(columns.text(part), contents).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(~is_verbatim).tolist():
            unsure.setdefault(row, []).append(contents[row].as_py())
    is_rewritten = np.zeros(columns.num_rows, np.bool_)
    for row, texts in unsure.items():
        is_rewritten[row] = not all_occur(prompt[row].as_py() + reply[row].as_py(), texts)
    return is_rewritten


def _verify(renderer: TemplateRenderer, rows: pa.Table, pairs: RenderedPairs) -> None:
    """Turn the fast path off if transformers renders a sampled pair differently."""
    sample = pairs.take(np.array(sample_rows(len(pairs.rows), NUM_VERIFIED), np.int64))
    texts = zip(sample.prompt.to_pylist(), sample.chosen.to_pylist(), sample.rejected.to_pylist(), strict=True)
    messages = rows.select(["prompt", *SIDES]).take(pa.array(sample.rows)).to_pylist()
    for row, (prompt, *replies) in zip(messages, texts, strict=True):
        sides = pair_messages(row)
        for side, reply in zip(SIDES, replies, strict=True):
            renderer.verify(sides["prompt"] + sides[side], prompt + reply)
