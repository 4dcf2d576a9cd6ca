"""How many control tokens of a rendered conversation the template itself writes, in time linear in the text.

Contents hold no control token, but may be part of one: before a template's "m_end|>", the content "so <|i" makes one.
On the other hand "im" occurs in "<|im_start|>", though that token is the template's own. Most contents cannot overlap a
token, as their first and last characters show; only the others are searched for.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

Span = tuple[int, int]

_MAX_SHARING = 64
"""Different contents of one conversation that may overlap tokens: each is searched for in the whole text."""
_NOWHERE = "\ud800"  # a lone surrogate, which no text read as UTF-8 holds


def num_written(pattern: re.Pattern[str], text: str, contents: Sequence[str]) -> int:
    """How many control tokens of a rendering no content is part of.

    A content that also occurs outside of all tokens is part of none. Raises PreferenceError if too many contents may
    overlap tokens.
    """
    tokens = {match[0] for match in pattern.finditer(text)}
    near = [content for content in dict.fromkeys(contents) if content and _may_share(content, tokens)]
    spans = [match.span() for match in pattern.finditer(text)]
    if not near:
        return len(spans)
    sharing = _contents_in_tokens(near, text, tokens, spans)
    ends, starts = [0, *(last for _, last in spans)], [*(first for first, _ in spans), len(text)]
    between = _NOWHERE.join(text[end:start] for end, start in zip(ends, starts, strict=True))
    sharing = {content for content in sharing if content not in between}
    return len(spans) - _num_overlapped(spans, _places(text, contents, sharing))


def _may_share(content: str, tokens: set[str]) -> bool:
    return any(content in token or any(_overlaps(content, token)) or any(_overlaps(token, content)) for token in tokens)


def _overlaps(left: str, right: str) -> Iterator[int]:
    """How many characters at the end of one text may also be the beginning of another, though not all of either.

    For "so <|" and "<|im_end|>" it is 2.
    """
    place = left.find(right[0], max(1, len(left) - len(right) + 1))
    while place >= 0:
        if right.startswith(left[place:]):
            yield len(left) - place
        place = left.find(right[0], place + 1)


def _contents_in_tokens(contents: Sequence[str], text: str, tokens: set[str], spans: Sequence[Span]) -> set[str]:
    """The contents that may be part of some token of the text.

    A content ends before the next token, as it holds none. So it is searched for in the sorted texts before and after
    the tokens, by bisection.
    """
    starts, ends = [first for first, _ in spans], [last for _, last in spans]
    openings = zip([0, *(start + 1 for start in starts[:-1])], starts, strict=True)
    endings = zip(ends, [*(end - 1 for end in ends[1:]), len(text)], strict=True)
    before = sorted({text[first:last][::-1] for first, last in openings})
    after = sorted({text[first:last] for first, last in endings})
    inside = {content for content in contents if any(content in token for token in tokens)}
    reaching = {
        content
        for content in contents
        if any(_any_begins(before, content[:-size][::-1]) for token in tokens for size in _overlaps(content, token))
        or any(_any_begins(after, content[size:]) for token in tokens for size in _overlaps(token, content))
    } - inside
    if len(reaching) > _MAX_SHARING:
        raise PreferenceError(Reason.CONTROL_TOKEN, f"{len(reaching)} messages would each be part of a control token")
    return inside | reaching


def _any_begins(texts: Sequence[str], beginning: str) -> bool:
    place = bisect_left(texts, beginning)
    return place < len(texts) and texts[place].startswith(beginning)


def _places(text: str, contents: Sequence[str], sought: set[str]) -> Iterator[Span]:
    """Where the sought contents occur, each after the one before it."""
    place, left = 0, set(sought)
    for content in contents:
        if content not in left:
            continue
        start = text.find(content, place)
        if start < 0:
            left.remove(content)
        else:
            place = start + len(content)
            yield start, place


def _num_overlapped(tokens: Sequence[Span], spans: Iterator[Span]) -> int:
    """How many tokens some span overlaps; both are in order."""
    number = num_overlapped = 0
    for start, end in spans:
        while number < len(tokens) and tokens[number][1] <= start:
            number += 1
        while number < len(tokens) and tokens[number][0] < end:
            num_overlapped += 1
            number += 1
    return num_overlapped
