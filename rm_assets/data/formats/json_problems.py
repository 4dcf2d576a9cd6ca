"""Why a line is not JSON, and what to do: named by the place, and by what usually stands there; never by its text."""

import re
import string

_PLACE = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?\Z", re.DOTALL)
_WORD = re.compile(rb"[-+]?[A-Za-z]{2,12}\b")
_WORDS = {
    **dict.fromkeys(("nan", "inf", "infinity", "undefined"), "is not JSON: write null"),
    **dict.fromkeys(("true", "false", "none"), "is Python's, not JSON: write the line by json.dumps(), not by str()"),
}
_SIGNS = {
    b"'": "single quotes are not JSON: write the line by json.dumps(), not by str()",
    "“".encode(): "typographic quotes are not JSON: write plain ones",
    "”".encode(): "typographic quotes are not JSON: write plain ones",
    b"\xef\xbb\xbf": "a byte order mark before the value",
}
_LETTERS = b"+-" + string.ascii_letters.encode()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def json_problem(content: bytes, error: Exception) -> str:
    """What msgspec's error means for a line, such as `not one JSON value: NaN is not JSON: write null (byte 12)`."""
    if isinstance(error, RecursionError):
        return "not one JSON value: nested too deep"
    problem, place = _PLACE.fullmatch(str(error)).groups()  # type: ignore[union-attr]
    if "out of range" in problem:
        return "not one JSON value: a number is out of range"
    if place is None:
        return f"not one JSON value: {_cut_off(content)}"
    return f"not one JSON value: {_problem_at(content, int(place), problem)} (byte {place})"


def _cut_off(content: bytes) -> str:
    if _SURROGATE.search(content):
        return "an escape is half of a surrogate pair"
    return "the line ends inside the value: write one object a line"


def _problem_at(content: bytes, place: int, problem: str) -> str:
    is_trailing = problem == "trailing characters"  # whose place is one byte on
    there = content[place - is_trailing : place + 4]
    if problem == "invalid character" and there and there[0] < 0x20:
        return "a control character in a string is not escaped"
    if is_trailing and there.startswith((b"{", b"[", b",", b'"')):
        return "a second value after the first: write one object a line"
    if problem in ("trailing characters", "invalid character", "object keys must be strings"):
        found = _word_at(content, place) or _word_at(content, place - 1)
        signs = [meaning for sign, meaning in _SIGNS.items() if there.startswith(sign)]
        return found or next(iter(signs), "text after the value" if is_trailing else problem)
    return problem


def _word_at(content: bytes, place: int) -> str:
    """What is said of a word such as `NaN`, in which or at the end of which a parser stopped."""
    end = max(0, min(place, len(content)))
    before = content[max(0, end - 12) : end]
    found = _WORD.match(content, end - len(before) + len(before.rstrip(_LETTERS)))
    word = found[0].decode() if found else ""
    meaning = _WORDS.get(word.lstrip("+-").lower())
    return f"{word} {meaning}" if meaning and word not in ("true", "false") else ""
