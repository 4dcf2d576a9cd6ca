"""One line of JSON as one object: of bounded depth, and without a known field that is given twice."""

import json
import re
import string
import unicodedata
from collections.abc import Iterable
from typing import Any

import msgspec

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

MAX_DEPTH = 64
_JSON_NAMES = {list: "list", str: "string", bool: "boolean", type(None): "null"}
_WHOLE = ("tools", "tool_calls")
"""Fields that are kept whole: everything inside them is read."""
# Possessive, and the end quote optional: linear in the length of any text, also one whose strings never end.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def json_object(text: str | bytes, *known_fields: Iterable[str]) -> dict[str, Any]:
    """The object that a line (text, or its UTF-8) holds; raises PreferenceError where it holds none.

    Of a field given twice a parser keeps the last one, silently; here a known field given twice is a reject. A JSON
    text has one colon per field, besides those inside strings, and one count shows whether any field of any object
    was lost: `{"a": "b:", "a": [{"c": ":"}]}` has five colons, and what is parsed of it accounts for three.
    """
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        row = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PreferenceError(Reason.NOT_JSON, _json_problem(content, error)) from None
    num_colons = _num_colons(row, 1)
    if not isinstance(row, dict):
        found = _JSON_NAMES.get(type(row), "number")
        way_on = f"; {_LIST_FILE}" if found == "list" else ""
        raise PreferenceError(Reason.NOT_AN_OBJECT, f"the line is a JSON {found}, not an object{way_on}")
    is_plain = content.count(b":") == num_colons and b"\\u003" not in content  # which is how to escape a colon
    if not is_plain and _STRING.sub(b"", content).count(b":") != _num_fields(row):
        _require_single(content, set().union(*known_fields))
    return row


def _num_colons(value: Any, depth: int) -> int:
    """The colons that a text of this object or list has, if none is escaped: one a field, and those in its strings.

    It is called for every line: types are compared, as the parser makes no others, and calls are spared.
    """
    if depth > MAX_DEPTH:
        raise PreferenceError(Reason.NOT_JSON, f"nested more than {MAX_DEPTH} levels deep")
    total = 0
    items: Iterable[Any] = ()
    if type(value) is dict:
        items, total = value.values(), len(value)
        for name in value:
            if ":" in name:
                total += name.count(":")
    elif type(value) is list:
        items = value
    for item in items:
        kind = type(item)
        if kind is str:
            total += item.count(":")
        elif kind is dict or kind is list:
            total += _num_colons(item, depth + 1)
    return total


def parse_text(text: str, what: str) -> Any:
    """Parse JSON text inside a line, with the same limit on depth and no repeated fields; `what` begins the errors."""
    value = msgspec.json.decode(text)
    require_bounded(text, value, what)
    return value


def require_bounded(text: str, value: Any, what: str) -> None:
    """Raise PreferenceError if the parsed JSON text nests too deep or has lost a repeated field."""
    if _nests_deeper(value, MAX_DEPTH):
        raise PreferenceError(Reason.WRONG_TYPE, f"{what} nests more than {MAX_DEPTH} levels deep")
    if _STRING.sub(b"", text.encode("utf-8", "surrogatepass")).count(b":") != _num_fields(value):
        raise PreferenceError(Reason.REPEATED_FIELD, f"{what} repeats a field of an object")


def _nests_deeper(value: Any, depth: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return items is not None and (depth == 0 or any(_nests_deeper(item, depth - 1) for item in items))


def _num_fields(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_num_fields, value.values()))
    return sum(map(_num_fields, value)) if isinstance(value, list) else 0


class _Repeating(dict[str, Any]):
    """An object that gives some field more than once."""


def _require_single(content: bytes, known_fields: set[str]) -> None:
    def require(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(fields)
        if len(found) < len(fields):
            names = [name for name, _ in fields]
            for name in known_fields.intersection(names):
                if names.count(name) > 1:
                    raise PreferenceError(Reason.REPEATED_FIELD, f"an object has `{name}` {names.count(name)} times")
            found = _Repeating(found)
        for name in _WHOLE:
            if name in found and _holds_repeating(found[name]):
                raise PreferenceError(Reason.REPEATED_FIELD, f"an object in `{name}` repeats a field")
        return found

    # Numbers do not matter here, and Python's own refuses very long ones.
    json.loads(content, object_pairs_hook=require, parse_int=len, parse_float=len)


def _holds_repeating(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value, _Repeating) or any(map(_holds_repeating, value.values()))
    return isinstance(value, list) and any(map(_holds_repeating, value))


# --- why a line is not JSON: by place and usual cause, never by the line's own text ----------------------------

_LIST_FILE = "a file that is a single list of rows must end in .json"
_ONE_PER_LINE = "write one object per line"
_ERROR = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?\Z", re.DOTALL)
_WORD = re.compile(rb"[-+]?[A-Za-z]{2,12}\b")
_WORDS = {
    **dict.fromkeys(("nan", "inf", "infinity", "undefined"), "is not JSON: write null"),
    **dict.fromkeys(("true", "false", "none"), "is Python, not JSON: write the line with json.dumps(), not str()"),
}
_SIGNS = {
    b"'": "single quotes are not JSON: write the line with json.dumps(), not str()",
    "“".encode(): "typographic quotes are not JSON: use straight ones",
    "”".encode(): "typographic quotes are not JSON: use straight ones",
    b"\xef\xbb\xbf": "a byte order mark before the value",
}
_LETTERS = b"+-" + string.ascii_letters.encode()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _json_problem(content: bytes, error: Exception) -> str:
    """What msgspec's error means, such as `not a single JSON value: NaN is not JSON: write null (byte 12)`."""
    if isinstance(error, RecursionError):
        return "not a single JSON value: nested too deeply"
    problem, place = _ERROR.fullmatch(str(error)).groups()  # type: ignore[union-attr]
    if "out of range" in problem:
        return "not a single JSON value: a number is out of range"
    if place is None:
        return f"not a single JSON value: {_cut_off(content)}"
    return f"not a single JSON value: {_problem_at(content, int(place), problem)} (byte {place})"


def _cut_off(content: bytes) -> str:
    if _SURROGATE.search(content):
        return "an escape is half of a surrogate pair"
    if content.lstrip().startswith(b"["):
        return f"the line ends inside a list: {_LIST_FILE}"
    return f"the line ends inside the value: {_ONE_PER_LINE}"


def _problem_at(content: bytes, place: int, problem: str) -> str:
    is_trailing = problem == "trailing characters"  # whose place is one byte on
    there = content[place - is_trailing :]
    if there.startswith(b"\0"):
        return "NUL bytes, as an interrupted write or copy leaves them: deliver the file again"
    if problem == "invalid character" and there and there[0] < 0x20:
        return "a control character in a string is not escaped"
    if found := _part_of_document(content, there, is_trailing=is_trailing):
        return found
    if problem in ("trailing characters", "invalid character", "object keys must be strings"):
        found = _word_at(content, place) or _word_at(content, place - 1)
        signs = [meaning for sign, meaning in _SIGNS.items() if there.startswith(sign)]
        return found or next(iter(signs), "") or _odd_space(there) or _other_text(content, there, problem)
    return problem


def _part_of_document(content: bytes, there: bytes, *, is_trailing: bool) -> str:
    """What a line is where an object or a list of rows spans several lines; empty for any other line."""
    if is_trailing and there.startswith(b":"):
        return f"a field of an object that spans lines: {_ONE_PER_LINE}"
    if is_trailing and there.strip() == b",":
        return f"a comma after the value: {_ONE_PER_LINE}; {_LIST_FILE}"
    if is_trailing and there.startswith((b"{", b"[", b",", b'"')):
        return f"a second value after the first: {_ONE_PER_LINE}"
    if content.strip().rstrip(b",") in (b"}", b"]"):
        return f"the end of an object or a list that spans lines: {_ONE_PER_LINE}; {_LIST_FILE}"
    return ""


def _odd_space(there: bytes) -> str:
    """A space or an invisible character that JSON does not allow, such as U+00A0; empty for any other character."""
    character = there[:4].decode(errors="ignore")[:1]
    is_odd = not character.isascii() and unicodedata.category(character)[0] in "ZC"
    return f"U+{ord(character):04X} is not white space in JSON: remove it" if is_odd else ""


def _other_text(content: bytes, there: bytes, problem: str) -> str:
    if problem == "trailing characters":
        return "text after the value"
    return "the line does not begin with an object" if content.lstrip() == there else problem


def _word_at(content: bytes, place: int) -> str:
    """The advice for a word such as `NaN`, inside or at the end of which the parser stopped."""
    end = max(0, min(place, len(content)))
    before = content[max(0, end - 12) : end]
    found = _WORD.match(content, end - len(before) + len(before.rstrip(_LETTERS)))
    word = found[0].decode() if found else ""
    meaning = _WORDS.get(word.lstrip("+-").lower())
    return f"{word} {meaning}" if meaning and word not in ("true", "false") else ""
