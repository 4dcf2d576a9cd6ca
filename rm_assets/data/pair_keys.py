"""The hashes that tell pairs apart, and those by which prompts and conversations count as equal."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from rm_assets.data.fingerprint import short_hash
from rm_assets.data.preferences import Message, Preference

_INDENTATION = re.compile(r"\s*")
# What str.split and str.splitlines take for white space, besides the space and the line feed.
_OTHER_ASCII_SPACE = ("\t", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f")
_OTHER_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


class EqualityKeys(NamedTuple):
    """Of a pair: what decides its split, and what counts as equal to either of its conversations."""

    prompt: str
    chosen: str
    rejected: str


def pair_id(preference: Preference) -> str:
    """The identity of a pair: a hash of its messages and tools, whatever file, format or margin it came with."""
    content = (preference.prompt, preference.chosen, preference.rejected, preference.tools)
    return short_hash(msgspec.json.encode(content))


def equality_keys(preference: Preference) -> EqualityKeys:
    """Hashes of texts in their normal form.

    The prompt's is of the system message and the first user turn; a conversation's of all its texts and the tools.
    """
    prompt, chosen, rejected = preference.prompt, preference.chosen, preference.rejected
    texts = _texts((*prompt, *chosen, *rejected))
    openings, replies = texts[: len(prompt)], texts[len(prompt) :]
    start = hashlib.blake2b(msgspec.json.encode((preference.tools, openings)), digest_size=16)
    system = next((parts[1] for parts in openings if parts[0] == "system"), "")
    first = next((parts[1] for parts in openings if parts[0] == "user"), "")
    return EqualityKeys(
        short_hash(system, first),
        _continued(start, replies[: len(chosen)]),
        _continued(start, replies[len(chosen) :]),
    )


def _continued(start: "hashlib.blake2b", texts: object) -> str:
    digest = start.copy()
    digest.update(msgspec.json.encode(texts))
    return digest.hexdigest()


def _texts(messages: Sequence[Message]) -> list[tuple[str, ...]]:
    """Each message's role, content and, where it has them, its other texts, in their normal form."""
    contents = normal_forms([message.content or "" for message in messages])
    texts = [(message.role, content) for message, content in zip(messages, contents, strict=True)]
    extras = [(m.name, m.reasoning_content, m.tool_calls, m.tool_call_id) for m in messages]
    if not any(map(any, extras)):
        return texts
    return [
        (*text, *normal_forms([value or "" for value in values])) if any(values) else text
        for text, values in zip(texts, extras, strict=True)
    ]


def normal_forms(texts: list[str]) -> list[str]:
    """The normal form of each text, by as few looks at them as will do."""
    stripped = [text.strip() for text in texts]
    joined = "\n".join(stripped)
    if not _is_plain(joined):
        return [normal_form(text) for text in texts]
    return stripped if "  " not in joined and " \n" not in joined else [_folded(text) for text in stripped]


def _is_plain(text: str) -> bool:
    """Whether a text is in NFC, has spaces and line feeds for its only white space, and no line that is indented."""
    if "\n " in text or any([space in text for space in _OTHER_ASCII_SPACE]):
        return False
    return text.isascii() or (unicodedata.is_normalized("NFC", text) and not _OTHER_SPACE.search(text))


def _folded(text: str) -> str:
    """The normal form of a plain text without white space at its ends."""
    while "  " in text:
        text = text.replace("  ", " ")
    return text.replace(" \n", "\n")


def normal_form(text: str) -> str:
    """A text in Unicode NFC, white space inside a line as one space, none at the ends of lines and of the text.

    Indentation stays: two programs that differ in it are two programs.
    """
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(_INDENTATION.match(line)[0] + " ".join(line.split()) for line in lines)  # type: ignore[index]
