"""User-written names and texts as they are displayed: on a terminal, in a log, a table, a picture or Markdown.

What is shown is on one line, of bounded length, and does nothing to the place that shows it. Data keep what they are.
"""

import hashlib
import re

MAX_CHARACTERS = 255
"""Of a name that is shown: as many as a file's may have."""
_DIGITS = 12
# Control characters, line separators, halves of surrogate pairs, and invisible signs, among them those that turn the
# direction of a line; not the joiners that Persian, Indic scripts and emoji need.
_UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""A text on one line whose control characters do nothing: an escape character is shown as `\x1b`."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(error: BaseException | str) -> str:
    """An error as one line, for a terminal."""
    return printable(" ".join(str(error).split()))


def shorten(text: str, limit: int = MAX_CHARACTERS) -> str:
    """At most `limit` printable characters: of a longer text its start, its end and a hash, so that two stay apart."""
    shown = printable(text) if len(text) <= limit else ""
    if len(text) <= limit and len(shown) <= limit:
        return shown
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    room = limit - _DIGITS - 3
    start, end = printable(text[:room])[: room - room // 3], printable(text[-room:])[-(room // 3) :]
    return f"{start}…{end} #{digest}"


def as_code(text: str, limit: int = MAX_CHARACTERS) -> str:
    """A name as code in Markdown, fenced by more backquotes than any run inside it, so that nothing in it is markup."""
    shown = shorten(text, limit) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.strip(" `") != shown and shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def as_code_cell(text: str) -> str:
    """A name in a cell of a Markdown table, whose columns are separated by `|` even between backquotes."""
    return as_code(text).replace("|", r"\|")
