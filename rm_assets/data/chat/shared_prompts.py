"""Both sides of pairs to ids, with the prompt that they share encoded once.

A text may be cut where that changes no id. Tokenizers take the added tokens out of a text first, and encode what lies
between them piece by piece (`AddedVocabulary.extract_and_normalize` of Hugging Face's tokenizers), so that a text may
be cut before an added token that is found there whatever stands before it. "Encode the prompt, then append" is another
matter, and wrong: the prompt's last piece may go on in the reply.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.chat.encoder import Encoder, Ids, Offsets
from rm_assets.data.tables.message_columns import single_chunk
from rm_assets.data.tables.ragged import prefix_mask
from rm_assets.data.tables.texts import offsets_of


@functools.lru_cache(maxsize=4)
def cut_tokens(reference: Any) -> tuple[str, ...]:
    """The added tokens before which a text may be cut, by transformers' tokenizer.

    Such a token is found in the text as it is given. Neither it nor a longer one that begins with it takes the white
    space before it, and it begins with none that an earlier one could take. No added token holds its first character
    further in, so that none reaches over the cut; and none is a `single_word`, which would look across it.
    """
    if not getattr(reference, "is_fast", False) or getattr(reference, "split_special_tokens", False):
        return ()
    added = list(reference.added_tokens_decoder.values())
    if any(token.single_word for token in added):
        return ()

    def is_sound(token: Any) -> bool:
        longer = [other for other in added if other.content.startswith(token.content)]
        return (
            not token.normalized
            and not token.content[0].isspace()
            and not any(other.lstrip for other in longer)
            and not any(token.content[0] in other.content[1:] for other in added)
        )

    return tuple(token.content for token in added if token.content and is_sound(token))


class CutPairs(NamedTuple):
    """What is before the cut of each pair's prompt, and both sides from there on: three columns of strings.

    Where a prompt is not cut, nothing is before, and all of it stands in both sides.
    """

    shared: pa.StringArray
    chosen: pa.StringArray
    rejected: pa.StringArray


def cut_pairs(rows: pa.Table, tokens: tuple[str, ...]) -> CutPairs | None:
    """Rendered pairs cut where the first one's prompt has its last such token; None if it has none.

    The prompts that end in the same way are cut: usually all, by what introduces a reply.
    """
    prompts = single_chunk(rows["prompt"])
    first = prompts[0].as_py() if len(prompts) else ""
    cut = max((first.rfind(token) for token in tokens), default=-1)
    if cut < 0:
        return None
    ending = first[cut:]
    are_cut = pc.ends_with(prompts, ending)
    num_bytes = len(ending.encode())
    heads = pc.binary_replace_slice(prompts.cast(pa.binary()), -num_bytes, np.iinfo(np.int64).max, b"")
    openings = pc.if_else(are_cut, ending, prompts)
    sides = (pc.binary_join_element_wise(openings, single_chunk(rows[side]), "") for side in ("chosen", "rejected"))
    return CutPairs(pc.if_else(are_cut, heads, b"").cast(pa.string()), *sides)


def encode_cut_pairs(encoder: Encoder, pairs: CutPairs) -> tuple[Ids, Offsets]:
    """Ids of all whole chosen sides, then of all rejected ones, as `Encoder.encode_batch` gives them."""
    ids, offsets = encoder.encode_batch([text for column in pairs for text in column.to_pylist()])
    num_pairs = len(pairs.shared)
    if len(offsets) != 3 * num_pairs + 1 or offsets[-1] != len(ids):
        return ids, offsets  # of a broken backend, which is found out by their number
    middle = offsets[num_pairs]
    lengths = np.diff(offsets).reshape(3, num_pairs)
    widths = (lengths[0] + lengths[1:]).ravel()
    is_shared = prefix_mask(np.tile(lengths[0], 2), widths).view(np.bool_)
    whole = np.empty(len(is_shared), np.int32)
    whole[is_shared] = np.tile(ids[:middle], 2)
    whole[~is_shared] = ids[middle:]
    return whole, offsets_of(widths)


class WholeSides(Sequence[str]):
    """The whole chosen sides of rendered pairs, then the rejected ones; strings are made of what is asked for."""

    def __init__(self, rows: pa.Table) -> None:
        self._prompts, *self._sides = (single_chunk(rows[name]) for name in ("prompt", "chosen", "rejected"))

    def __len__(self) -> int:
        return 2 * len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        side, row = divmod(index, len(self._prompts))
        return self._prompts[row].as_py() + self._sides[side][row].as_py()
