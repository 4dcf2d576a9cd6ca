"""The normal form of texts: Unicode NFC, white space inside a line as one space, none at the ends of lines and texts.

Indentation stays: two programs that differ in it are two programs. All texts of a batch are normalized in one pass,
except the few that need more than folding runs of spaces.
"""

import functools
import re
import sys
import unicodedata
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rm_assets.data.tables.ragged import Texts, offsets_of

_INDENTATION = re.compile(r"\s*")
_SPACE, _LINE_FEED = ord(" "), ord("\n")
_MAX_TRIMMED = 64
"""Characters that are taken off the ends of texts one by one; texts with longer runs go to `normal_form`."""
# What str.split and str.splitlines treat as white space, except the space and the line feed, as UTF-8.
_OTHER_SPACE = [chr(code).encode() for code in range(0x3001) if chr(code).isspace() and chr(code) not in " \n"]


def _byte_table(place: int) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[[space[place] for space in _OTHER_SPACE if len(space) > place]] = True
    return table


_FIRST_BYTES, _SECOND_BYTES, _THIRD_BYTES = map(_byte_table, range(3))
_LOW_END, _HIGH_START, _HIGH_END = 0x20, 0xC2, 0xE3  # where _FIRST_BYTES are True: below, and from one to the other


# --- Unicode -------------------------------------------------------------------------------------------------

_MAX_MARKS = 30
"""Combining marks in a row that are left for Python to sort: natural text has no more (UAX #15, section 13)."""
_PLANES_WITH_MARKS = 0x20000
"""The end of the code points with combining marks, all of which are in the first two planes."""
_HIDDEN_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters without a combining class that decompose into combining marks."""
_FEW_CHARACTERS = 256
"""Texts up to this length are normalized by Python alone."""
Form = Literal["NFC", "NFKC"]
_DECOMPOSITION: dict[Form, Literal["NFD", "NFKD"]] = {"NFC": "NFD", "NFKC": "NFKD"}


def normalize(form: Form, text: str) -> str:
    """As `unicodedata.normalize`, but in linear time.

    Python sorts combining marks by insertion: a run of a million unordered ones would take hours. Long runs are sorted
    here first, which does not change the result: equivalent texts have one normal form.
    """
    if text.isascii() or len(text) <= _FEW_CHARACTERS:
        return unicodedata.normalize(form, text)
    is_mark = (_combining_classes()[_codes(text)] > 0).view(np.int8)
    starts, ends = (np.flatnonzero(np.diff(is_mark, prepend=0, append=0) == step) for step in (1, -1))
    pieces, end = [], 0
    for run in np.flatnonzero(ends - starts > _MAX_MARKS).tolist():
        pieces += [text[end : starts[run]], _ordered(form, text[starts[run] : ends[run]])]
        end = int(ends[run])
    return unicodedata.normalize(form, "".join([*pieces, text[end:]]))


@functools.cache
def _combining_classes() -> NDArray[np.uint8]:
    """The canonical combining class of each code point, and 1 for the hidden marks."""
    classes = np.zeros(sys.maxunicode + 1, np.uint8)
    classes[:_PLANES_WITH_MARKS] = [unicodedata.combining(chr(code)) for code in range(_PLANES_WITH_MARKS)]
    classes[_codes(_HIDDEN_MARKS)] = 1
    return classes


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _ordered(form: Form, run: str) -> str:
    """A run of combining marks, decomposed and sorted by class; none moves across a character without one."""
    run = run.translate({ord(mark): unicodedata.normalize(_DECOMPOSITION[form], mark) for mark in set(run)})
    classes = run.translate({ord(mark): unicodedata.combining(mark) for mark in set(run)}).encode("latin-1")
    numbers = np.frombuffer(classes, np.uint8)
    order = np.lexsort((numbers, np.cumsum(numbers == 0)))
    return _codes(run)[order].tobytes().decode("utf-32-le")


# --- white space ---------------------------------------------------------------------------------------------


def normal_form(text: str) -> str:
    """A text in its normal form."""
    lines = normalize("NFC", text).strip().splitlines()
    return "\n".join(_INDENTATION.match(line)[0] + " ".join(line.split()) for line in lines)  # type: ignore[index]


def normal_texts(texts: Texts) -> Texts:
    """The normal form of many texts, equal to `normal_form` of each."""
    content = np.frombuffer(texts.content, np.uint8)
    if not len(content):
        return texts
    is_space, is_line_feed = content == _SPACE, content == _LINE_FEED
    is_kept = np.ones(len(content), np.bool_)
    is_kept[:-1] = ~(is_space[:-1] & (is_space[1:] | is_line_feed[1:]))
    is_odd = np.zeros(len(texts.offsets) - 1, np.bool_)
    _trim(texts.offsets, is_space | is_line_feed, is_kept, is_odd)
    places = np.concatenate([_other_space(content), np.flatnonzero(is_line_feed[:-1] & is_space[1:])])
    is_odd[np.searchsorted(texts.offsets, places, side="right") - 1] = True
    is_odd[_not_composed(texts, content)] = True
    dropped = np.flatnonzero(~is_kept)
    folded = Texts(
        content[is_kept].tobytes() if len(dropped) else texts.content,
        texts.offsets - np.searchsorted(dropped, texts.offsets),
    )
    return _with_odd(folded, texts, np.flatnonzero(is_odd)) if is_odd.any() else folded


def _trim(
    offsets: NDArray[np.int64],
    is_white: NDArray[np.bool_],
    is_kept: NDArray[np.bool_],
    is_odd: NDArray[np.bool_],
) -> None:
    """Mark white space at both ends of the texts as not kept, and texts with too much of it as odd."""
    starts, ends = offsets[:-1].copy(), offsets[1:].copy()
    for places, step, shift in ((starts, 1, 0), (ends, -1, -1)):
        moving = np.arange(len(starts))
        for _ in range(_MAX_TRIMMED):
            moving = moving[starts[moving] < ends[moving]]
            moving = moving[is_white[places[moving] + shift]]
            if not len(moving):
                break
            is_kept[places[moving] + shift] = False
            places[moving] += step
        is_odd[moving] = True


def _with_odd(folded: Texts, texts: Texts, odd: NDArray[np.int64]) -> Texts:
    """The folded texts, but each text whose number is in `odd` as the `normal_form` of the original."""
    lengths = np.diff(folded.offsets)
    pieces, end = [], 0
    last, encoded = b"", b""
    for number in odd.tolist():
        original = texts.content[texts.offsets[number] : texts.offsets[number + 1]]
        if original != last:  # the pairs of a ranking have one prompt
            encoded = normal_form(original.decode("utf-8", "surrogatepass")).encode("utf-8", "surrogatepass")
            last = original
        pieces += [folded.content[end : folded.offsets[number]], encoded]
        end = folded.offsets[number + 1]
        lengths[number] = len(encoded)
    return Texts(b"".join([*pieces, folded.content[end:]]), offsets_of(lengths))


def _other_space(content: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where UTF-8 may hold white space other than spaces and line feeds: all such places, and hardly any others."""
    is_candidate = (content < _LOW_END) & (content != _LINE_FEED)
    is_candidate |= (content >= _HIGH_START) & (content <= _HIGH_END)
    places = np.flatnonzero(is_candidate)
    lead = content[places]
    places, lead = places[is_first := _FIRST_BYTES[lead]], lead[is_first]
    second, third = (np.take(content, places + step, mode="clip") for step in (1, 2))
    # one byte below 0x80, two from 0xC2 on, three from 0xE0 on
    return np.asarray(places[(lead < 0x80) | (_SECOND_BYTES[second] & ((lead < 0xE0) | _THIRD_BYTES[third]))])


def _not_composed(texts: Texts, content: NDArray[np.uint8]) -> list[int]:
    """The texts that are not in Unicode NFC.

    Candidates are texts with a character from U+0300 (0xCC in UTF-8) on: all below are in NFC, and so is the general
    punctuation (0xE2 0x80) except spaces. `is_normalized` stops at the first marks out of order, and sorts none.
    """
    places = np.flatnonzero(content >= 0xCC)
    places = places[(content[places] != 0xE2) | (np.take(content, places + 1, mode="clip") != 0x80)]
    numbers = np.unique(np.searchsorted(texts.offsets, places, side="right") - 1).tolist()
    at = texts.offsets.tolist() if numbers else []
    return [
        number
        for number in numbers
        if not unicodedata.is_normalized("NFC", texts.content[at[number] : at[number + 1]].decode("utf-8", "replace"))
    ]
