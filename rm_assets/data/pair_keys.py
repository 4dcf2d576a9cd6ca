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

from rm_assets.data.fingerprint import short_hash
from rm_assets.data.preferences import Message, Preference

_INDENTATION = re.compile(r"\s*")
_BETWEEN = "\0"
_NUL = "\ufdd0\ufdd1"  # stands for a null character in a text: two code points that are no characters
_OTHER_SPACE = np.zeros(0x110000, np.bool_)
"""By code point: what str.split and str.splitlines take for white space, besides the space and the line feed."""
_OTHER_SPACE[[code for code in range(0x3001) if chr(code).isspace() and chr(code) not in " \n"]] = True


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
            keys.append(_keys(pair, _Joined.split(_BETWEEN.join([*alone, ""])), 0, *(end - begin for end in ends)))
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
    def split(cls, joined: str) -> "_Joined":
        """A text in which each text is followed by a null character."""
        content = joined.encode("utf-8", "surrogatepass")
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == 0) + 1
        return cls(memoryview(content), [0, *ends.tolist()])


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
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_space, is_line_feed = codes == ord(" "), codes == ord("\n")
    is_kept = np.ones(len(codes), np.bool_)
    is_kept[:-1] = ~(is_space[:-1] & (is_space[1:] | is_line_feed[1:]))
    places = [np.flatnonzero(_OTHER_SPACE[codes]), np.flatnonzero(is_line_feed[:-1] & is_space[1:])]
    ends = np.flatnonzero(codes == ord(_BETWEEN))
    odd = np.searchsorted(ends, np.concatenate(places)).tolist()
    if not unicodedata.is_normalized("NFC", joined):
        odd += [n for n, text in enumerate(texts) if not (text.isascii() or unicodedata.is_normalized("NFC", text))]
    return _Joined.split(codes[is_kept].tobytes().decode("utf-32-le", "surrogatepass")), odd
