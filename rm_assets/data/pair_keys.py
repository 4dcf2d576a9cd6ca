"""The hashes that tell pairs apart, and those by which prompts and conversations count as equal.

The latter are of texts in their normal form: Unicode NFC, white space inside a line as one space, none at the ends of
lines and of the text; indentation stays. It is computed for all texts of a batch in one piece, but for the few that
have more than runs of spaces to fold.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from rm_assets.data.fingerprint import short_hash
from rm_assets.data.preferences import Message, Preference

_INDENTATION = re.compile(r"\s*")
_BETWEEN = "\0"
_NUL = "\ufdd0\ufdd1"  # stands for a null character in a text: two code points that are no characters
# What str.split and str.splitlines take for white space, besides the space and the line feed, as UTF-8.
_OTHER_SPACE = [chr(code).encode() for code in range(0x3001) if chr(code).isspace() and chr(code) not in " \n"]


def _byte_table(place: int) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[[space[place] for space in _OTHER_SPACE if len(space) > place]] = True
    return table


_FIRST_BYTES, _SECOND_BYTES, _THIRD_BYTES = map(_byte_table, range(3))


def pair_id(preference: Preference) -> str:
    """The identity of a pair: a hash of its messages and tools, whatever file, format or margin it came with."""
    content = (preference.prompt, preference.chosen, preference.rejected, preference.tools)
    return short_hash(msgspec.json.encode(content))


class EqualityKeys(NamedTuple):
    """Of a pair: hashes of its prompt and of its two conversations.

    The prompt's is of the system message and the first user turn, and decides the split; a conversation's is of all
    its texts and the tools.
    """

    prompt: str
    chosen: str
    rejected: str


def equality_keys(preferences: Sequence[Preference]) -> list[EqualityKeys]:
    """The keys of each pair; all are sound, see `rm_assets.data.validation.require_sound`."""
    fields: list[str] = []
    parts = [0]  # where the fields of each prompt, chosen and rejected side begin
    for pair in preferences:
        for messages in (pair.prompt, pair.chosen, pair.rejected):
            for message in messages:
                fields += _fields(message)
            parts.append(len(fields))
    if not fields:
        return []
    together, odd = _in_normal_form(fields)
    odd_pairs = set(np.searchsorted(parts[::3], odd, side="right") - 1)
    keys = []
    for number, pair in enumerate(preferences):
        begin, *ends = parts[3 * number : 3 * number + 4]
        if number in odd_pairs:
            alone = [normal_form(field).replace(_BETWEEN, _NUL) for field in fields[begin : ends[-1]]]
            content = np.frombuffer(_BETWEEN.join([*alone, ""]).encode("utf-8", "surrogatepass"), np.uint8)
            keys.append(_keys(pair, _Joined.of(content), 0, *(end - begin for end in ends)))
        else:
            keys.append(_keys(pair, together, begin, *ends))
    return keys


def _fields(message: Message) -> tuple[str, ...]:
    """What of a message counts; one with more than a role and a content is marked, so that it equals no two others."""
    extras = (message.name, message.reasoning_content, message.tool_calls, message.tool_call_id)
    if any(extras):
        return (f"{message.role}+", message.content or "", *(text or "" for text in extras))
    return message.role, message.content or ""


class _Joined(NamedTuple):
    """Texts as UTF-8, one after the other: text i is content[places[i] : places[i + 1] - 1]."""

    content: memoryview
    places: list[int]

    @classmethod
    def of(cls, content: NDArray[np.uint8]) -> "_Joined":
        """Texts as UTF-8, each followed by a null character."""
        return cls(memoryview(content.tobytes()), [0, *(np.flatnonzero(content == 0) + 1).tolist()])


def _keys(pair: Preference, joined: _Joined, begin: int, chosen: int, rejected: int, end: int) -> EqualityKeys:
    """The keys of a pair whose prompt, chosen and rejected fields begin at these numbers of the joined ones."""
    content, places = joined
    start = hashlib.blake2b(content[places[begin] : places[chosen]], digest_size=16)
    start.update(pair.tools.encode())
    sides = []
    for first, last in ((chosen, rejected), (rejected, end)):
        digest = start.copy()
        digest.update(content[places[first] : places[last]])
        sides.append(digest.hexdigest())
    system = memoryview(b"")
    if pair.prompt[0].role == "system":  # which can stand there alone, and a user's turn follows
        system = content[places[begin + 1] : places[begin + 2] - 1]
        begin += len(_fields(pair.prompt[0]))
    user = content[places[begin + 1] : places[begin + 2] - 1]
    return EqualityKeys(short_hash(system, user), *sides)


# --- the normal form -----------------------------------------------------------------------------------------


def normal_form(text: str) -> str:
    """A text in its normal form.

    Indentation stays: two programs that differ in it are two programs.
    """
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(_INDENTATION.match(line)[0] + " ".join(line.split()) for line in lines)  # type: ignore[index]


def _in_normal_form(texts: list[str]) -> tuple[_Joined, list[int]]:
    """The texts joined in their normal form, and the numbers of those for which that is wrong.

    Those have indented lines, white space other than spaces and line feeds, or are not in Unicode NFC.
    """
    stripped = [text.strip() for text in texts]
    joined = _BETWEEN.join([*stripped, ""])
    if joined.count(_BETWEEN) > len(texts):
        joined = _BETWEEN.join([*(text.replace(_BETWEEN, _NUL) for text in stripped), ""])
    content = np.frombuffer(joined.encode("utf-8", "surrogatepass"), np.uint8)
    is_space, is_line_feed = content == ord(" "), content == ord("\n")
    is_kept = np.ones(len(content), np.bool_)
    is_kept[:-1] = ~(is_space[:-1] & (is_space[1:] | is_line_feed[1:]))
    places = [_other_space(content), np.flatnonzero(is_line_feed[:-1] & is_space[1:])]
    ends = np.flatnonzero(content == 0)
    odd = np.searchsorted(ends, np.concatenate(places)).tolist()
    if not unicodedata.is_normalized("NFC", joined):
        odd += [n for n, text in enumerate(texts) if not (text.isascii() or unicodedata.is_normalized("NFC", text))]
    return _Joined.of(content[is_kept]), odd


def _other_space(content: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where UTF-8 may hold white space other than spaces and line feeds: all such places, and hardly any others."""
    places = np.flatnonzero(_FIRST_BYTES[content])
    longer = np.append(content, [0, 0])
    lead = content[places]
    second, third = _SECOND_BYTES[longer[places + 1]], _THIRD_BYTES[longer[places + 2]]
    # one byte below 0x80, two from 0xC2 on, three from 0xE0 on
    return np.asarray(places[(lead < 0x80) | (second & ((lead < 0xE0) | third))])
