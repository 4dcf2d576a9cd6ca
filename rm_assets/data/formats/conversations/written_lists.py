"""Conversations that a field holds as text: JSON is parsed, and the output of str() or repr() is a reject.

A CSV file or a careless `str()` turns a list of messages into a text. A text counts as such a list only if nobody would
write it as prose: `[1, 2, 3]`, a link, code, or one JSON reply beside another one in prose stay texts.
"""

import re
import string
from collections.abc import Sequence
from typing import Any

import msgspec

from rm_assets.data.formats.field_names import CONVERSATIONS, PROMPTS, SIDES, SPELLINGS, Row, is_blank
from rm_assets.data.formats.json_lines import require_bounded
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

# The second line has roles that are not supported: a list with one is recognised, and its reject names the role.
_ROLES = (
    *("system", "developer", "user", "human", "assistant", "gpt", "tool", "function_call", "observation"),
    *("model", "bot", "chatbot", "function", "ipython"),
)
_OPENINGS = ("[", "{")
_FIRST_CHARACTERS = frozenset("[{" + string.whitespace)
_LAST_CHARACTERS = frozenset(")" + string.whitespace)
# Quotes are doubled where CSV has quoted a field.
_ROLE = re.compile(rf"""['"]{{1,2}}(?:role|from)['"]{{1,2}}\s*+:\s*+['"]{{1,2}}(?:{"|".join(_ROLES)})['"]""")
_CONTENT = re.compile(r"""['"]{1,2}(?:content|value)['"]{1,2}\s*+:""")
# `[{'role': ...}]`, numpy's `[{...}\n {...}]`, `array([{...}], dtype=object)`; `[Message(role=...)]`;
# `[('user', ...)]`, `OrderedDict([('role', ...)])`
_DICTS = re.compile(r"""(?:array\()?\[{0,2}\s*\{\s*['"]{1,2}(?:role|content|from|value|name)['"]{1,2}\s*:""")
_LISTED_CALLS = re.compile(r"\[\s*[A-Z]\w{1,64}+\((?:role|content)=")
_ONE_CALL = re.compile(r"[A-Z]\w{1,64}+\((?=.*\brole=['\"])(?=.*\bcontent=['\"])", re.DOTALL)
_PAIRS = re.compile(
    r"\[?\s*(?:OrderedDict\()?\[?\s*[\[(]\s*['\"](?:role|content|system|user|human|assistant|gpt)['\"]\s*,"
)
_TEXTS = re.compile(r"""(?:array\()?\[\s*['"]""")
_WRITTEN_LIST = "a list written as text"


def opens_like_list(text: str) -> bool:
    """A cheap test that every text must pass to be such a list; the functions below decide."""
    return text.lstrip(string.whitespace)[:1] in _OPENINGS or text.rstrip(string.whitespace)[-1:] == ")"


def written_messages(text: str) -> list[dict[str, Any]] | None:
    """The messages of a text that is a JSON list of messages or a single one; None for any other text.

    Each must have `role` and `content` (or `tool_calls`), or `from` and `value`; at least one needs a known role.
    """
    if not text.lstrip().startswith(_OPENINGS):
        return None
    value = _decoded(text)
    messages = [value] if isinstance(value, dict) else value
    if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        return None
    if not any(message.get("role", message.get("from")) in _ROLES for message in messages):
        return None
    require_bounded(text, value, _WRITTEN_LIST)
    return messages


def written_texts(text: str) -> list[str] | None:
    """The strings of a text that is a JSON list of strings and nulls, null as ""; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    value = _decoded(text)
    if not (isinstance(value, list) and value and all(item is None or isinstance(item, str) for item in value)):
        return None
    return [item or "" for item in value]


def alternating(questions: Sequence[str], answers: Sequence[str]) -> list[dict[str, str]]:
    """The messages of a conversation in which each question of the user is followed by its answer."""
    return [
        {"role": role, "content": content}
        for turns in zip(questions, answers, strict=True)
        for role, content in zip(("user", "assistant"), turns, strict=True)
    ]


def is_printed_messages(text: str) -> bool:
    """Whether a text is what str() or repr() write for messages or a single one, or truncated JSON of them."""
    text = text.strip()
    if _LISTED_CALLS.match(text) or _PAIRS.match(text):
        return text.endswith((")]", "]]", "])"))
    if _ONE_CALL.match(text):
        return text.endswith(")")
    looks_like_messages = all((_DICTS.match(text), _ROLE.search(text), _CONTENT.search(text)))
    return looks_like_messages and _decoded(text) is None


def is_printed_texts(text: str) -> bool:
    """Whether a text is a list of texts, as JSON, str() or repr() write it."""
    return _TEXTS.match(text.strip()) is not None and text.rstrip().endswith(("]", ")"))


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        return None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("role"), str):
        return "content" in value or "tool_calls" in value
    return isinstance(value.get("from"), str) and "value" in value


# --- whole rows ----------------------------------------------------------------------------------------------

_RESPONSES = ("response", "completion", "answer", "output", "text")


def parse_written_lists(row: Row) -> Row:
    """The row with conversations that are JSON in texts as lists; raises PreferenceError for lists that are not JSON.

    A side that is such a list is parsed only if the other side or the prompt is a list, too, or if it repeats the
    prompt: a reply that is JSON may be what the prompt asks for. Lists of plain strings are turns, if the prompt and
    both sides are such lists.
    """
    if not _may_have_lists(row):
        return row
    row = _with_parsed_responses(row)
    prompts = [name for name in (*PROMPTS, *CONVERSATIONS) if _opens(row.get(name))]
    sides = next(((one, other) for one, other in SIDES if one in row and other in row), ())
    opening = [name for name in sides if _opens(row[name])]
    if not prompts and not opening:
        return _require_no_lists_in_lists(row)
    if len(opening) == 2 and (turns := _with_turns(row, prompts, opening)):
        return turns
    names = [name for name in prompts if _is_prompt(row, name)]
    lists = [name for name in opening if _is_list(row[name])]
    others = [name for name in sides if name not in lists]
    if not others or names or isinstance(row[others[0]], list | dict) or any(_repeats(row, name) for name in lists):
        names += lists
    return row | {name: _messages(row[name], name) for name in names}


def _with_parsed_responses(row: Row) -> Row:
    """A row of many responses, with these, their scores and ranks as lists where they are JSON in texts."""
    names = SPELLINGS["responses"]
    if row.keys().isdisjoint(names) or any(one in row and other in row for one, other in SIDES):
        return row
    given = {name: row.get(name) for name in (*names, *SPELLINGS["scores"], "ranks")}
    return row | {
        name: _parsed_list(value, name)
        for name, value in given.items()
        if isinstance(value, str) and value.lstrip().startswith(("[", "array(["))
    }


def _parsed_list(text: str, name: str) -> list[Any]:
    value = _decoded(text)
    if not isinstance(value, list):
        raise _printed(name)
    require_bounded(text, value, _WRITTEN_LIST)
    return value


def _may_have_lists(row: Row) -> bool:
    """Whether a field may be such a list, or a list of such lists: a cheap test, which most rows do not pass."""
    for value in row.values():
        text = value[0] if type(value) is list and value else value
        if text is None:
            return True
        if type(text) is dict and text.keys().isdisjoint(("role", "from")):
            text = next((text[name] for name in _RESPONSES if name in text), None)
        if (
            type(text) is str
            and (text[:1] in _FIRST_CHARACTERS or text[-1:] in _LAST_CHARACTERS)
            and opens_like_list(text)
        ):
            return True
    return False


def _opens(value: Any) -> bool:
    return isinstance(value, str) and opens_like_list(value)


def _is_list(text: str) -> bool:
    return written_messages(text) is not None or is_printed_messages(text)


def _is_prompt(row: Row, name: str) -> bool:
    """Whether a field of the prompt is a list of messages to its end; a conversation, only if the others are blank."""
    if name in CONVERSATIONS and not all(is_blank(row.get(other)) for other in PROMPTS):
        return False
    return _is_list(row[name]) and row[name].rstrip().endswith(("]", "}", ")"))


def _repeats(row: Row, side: str) -> bool:
    """Whether a side that is a list has the prompt as one of its messages."""
    prompts = {row[name].strip() for name in PROMPTS if isinstance(row.get(name), str) and not is_blank(row[name])}
    messages = written_messages(row[side])
    if messages is None:
        return any(f"{quote}{prompt}{quote}" in row[side] for prompt in prompts for quote in "'\"")
    contents = [message.get("content", message.get("value")) for message in messages]
    return any(isinstance(content, str) and content.strip() in prompts for content in contents)


def _messages(text: str, name: str) -> list[dict[str, Any]]:
    messages = written_messages(text)
    if messages is None:
        raise _printed(name)
    return messages


def _printed(name: str) -> PreferenceError:
    problem = f"`{name}` is a list written as text, but not as JSON: write it with json.dumps(), not str()"
    return PreferenceError(Reason.WRONG_TYPE, problem)


def _with_turns(row: Row, prompts: Sequence[str], sides: Sequence[str]) -> Row | None:
    """The row with both sides as conversations, if they and the prompt are lists of strings; else None."""
    names = [name for name in prompts if is_printed_texts(row[name])][:1] + list(sides)
    if len(names) < 3 or not all(is_printed_texts(row[name]) for name in names):
        return None
    questions, *answers = (written_texts(row[name]) or [] for name in names)
    if not questions or any(len(replies) != len(questions) for replies in answers):
        listed = ", ".join(f"`{name}`" for name in names)
        problem = f"{listed}: lists written as text, but not JSON lists with equal numbers of strings"
        raise PreferenceError(Reason.WRONG_TYPE, f"{problem}; write the turns as messages, with json.dumps()")
    others = {name: value for name, value in row.items() if name not in PROMPTS}
    return others | dict(zip(sides, (alternating(questions, replies) for replies in answers), strict=True))


def _require_no_lists_in_lists(row: Row) -> Row:
    """The row, unchanged; raises PreferenceError if all responses of a ranking are lists written as text."""
    for name in (*SPELLINGS["responses"], "chosen", "rejected"):
        replies = row.get(name)
        if isinstance(replies, list) and len(replies) > 1 and all(map(_is_reply_with_list, replies)):
            problem = f"each string in `{name}` is a list written as text: write the lists themselves"
            raise PreferenceError(Reason.WRONG_TYPE, problem)
    return row


def _is_reply_with_list(reply: Any) -> bool:
    if isinstance(reply, dict):
        reply = next((reply[key] for key in _RESPONSES if key in reply), None)
    return _opens(reply) and _is_list(reply)
