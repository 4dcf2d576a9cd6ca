"""Conversations to text to token ids, with transformers and the chat template: the reference for all fast paths.

Control tokens are those the tokenizer marks special, and any added token that the template writes around a user's
message. A text that contains one could fake the start or end of a turn, or padding.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jinja2 import TemplateSyntaxError, nodes

from rm_assets.data.chat.bounded_templates import BoundedTemplate, TemplateLimitError
from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.chat.pretrained import load_tokenizer, tokenizer_errors
from rm_assets.data.chat.template_refusals import refusal
from rm_assets.data.compute.interruptible import interruptible
from rm_assets.settings import SettingsError

MessageDict = dict[str, Any]
_LONGEST_TOKEN = 1_000
"""Maximum characters of an added token: the self-test encodes each added token thousands of times."""
_SAYS_PADDING = re.compile(r"^(?!.*(image|vision|video|audio)).*pad", re.IGNORECASE)
_SAYS_UNUSED = re.compile(r"reserved|unused|extra|placeholder|dummy|control_\d", re.IGNORECASE)
_PROBE: list[MessageDict] = [
    {"role": role, "content": f"\ue000{content}\ue001"}
    for role, content in zip(("user", "assistant") * 2, ("first", "reply", "second", "last"), strict=True)
]
_LARGE_SIZE = 50_000
"""A conversation with more characters that exceeds a bound is a reject; with fewer, the template is at fault."""


class TemplateError(ValueError):
    """The chat template refused a conversation."""


@dataclass(frozen=True, kw_only=True)
class ChatTokenizer:
    """A loaded tokenizer with its chat template; `reference` is transformers' own tokenizer."""

    reference: Any
    template: str
    control_tokens: tuple[str, ...]
    pad_token_id: int
    template_ids: frozenset[int] = frozenset()  # those that the template writes in every conversation
    template_file: str = ""  # for errors
    lost_by_shape: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)  # a cache of `lost_parts`

    @functools.cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token in a text; longer ones first."""
        return re.compile("|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True))) or r"(?!)")

    @functools.cached_property
    def bounded(self) -> BoundedTemplate:
        """The template, to be rendered within bounds; raises what Jinja raises, or TemplateLimitError."""
        return BoundedTemplate(self.template, chat_template_utils()._compile_jinja_template("").environment)


def chat_template_utils() -> Any:
    """The module of transformers that renders templates; the functions used here are private, and may move."""
    from transformers.utils import chat_template_utils

    return chat_template_utils


@functools.lru_cache(maxsize=4)
def load_chat_tokenizer(files: TokenizerFiles) -> ChatTokenizer:
    """The tokenizer of these files, loaded once per process."""
    reference = load_tokenizer(files.directory)
    with tokenizer_errors(files.directory):
        return _with_template(reference, files)


def _with_template(reference: Any, files: TokenizerFiles) -> ChatTokenizer:
    _check_added_tokens(reference, files)
    if files.chat_template is not None:
        reference.chat_template = files.chat_template
    template = with_frozen_date(reference.get_chat_template(), files.template_date)
    chat = ChatTokenizer(
        reference=reference,
        template=template,
        control_tokens=(),
        pad_token_id=-1,
        template_file=files.template_file,
    )
    borders, added = "".join(_borders(chat)), reference.added_tokens_decoder.values()
    control = {str(token) for token in added if token.special or str(token) in borders}
    control.update(reference.all_special_tokens)
    written = _rendered_ids(chat, _PROBE) | _rendered_ids(chat, _PROBE[:2])
    pad_token_id = _pad_token_id(reference, written | _other_ids(chat))
    return dataclasses.replace(
        chat, control_tokens=tuple(sorted(control)), pad_token_id=pad_token_id, template_ids=written
    )


def _check_added_tokens(reference: Any, files: TokenizerFiles) -> None:
    """Raise SettingsError if the tokenizer has added tokens beyond its files' vocabulary, or very long ones."""
    for number, token in reference.added_tokens_decoder.items():
        if len(str(token)) > _LONGEST_TOKEN:
            raise SettingsError(
                f"tokenizer (or RM_TOKENIZER) is {files.directory!r}: its token with id {number} has {len(str(token))} "
                f"characters, more than {_LONGEST_TOKEN}: use a tokenizer without such long tokens"
            )
        if number >= files.num_tokens:
            raise SettingsError(
                f"tokenizer (or RM_TOKENIZER) is {files.directory!r}: its configuration adds {str(token)!r} as id "
                f"{number}, but its vocabulary ends at {files.num_tokens - 1}: save both with one save_pretrained"
            )


def carried_template(files: TokenizerFiles) -> str | None:
    """The chat template to save with a model; None: the tokenizer's own, as neither a setting nor a date changes it.

    The date is frozen, so that the model sees the same prompts later as in training.
    """
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    own = [path for name in names if (path := Path(files.directory) / name).is_file()]
    texts = [files.chat_template] if files.chat_template else [path.read_text(encoding="utf-8") for path in own]
    if not any("strftime_now" in text for text in texts):
        return files.chat_template
    return load_chat_tokenizer(files).template


def with_frozen_date(template: str, date: str) -> str:
    """The template, preceded by a macro `strftime_now` that always returns this date (ISO 8601).

    transformers passes no custom functions to a template, so the macro lists the result for each format it uses.
    """
    formats = _date_formats(template) if "strftime_now" in template else set()
    if not formats:
        return template
    day = datetime.fromisoformat(date)
    answers = "".join(f"{{%- if format == {f!r} -%}}{day.strftime(f)}{{%- endif -%}}" for f in sorted(formats))
    # The empty expression keeps a line feed at the template's start: after a block, Jinja would trim it.
    return f"{{%- macro strftime_now(format) -%}}{answers}{{%- endmacro %}}{{{{ '' }}}}{template}"


def _date_formats(template: str) -> set[str]:
    """The formats that a template calls `strftime_now` with; raises SettingsError if it may use others.

    A template may also test it, as in `strftime_now is defined`.
    """
    try:
        tree = chat_template_utils()._compile_jinja_template("").environment.parse(template)
    except TemplateSyntaxError:
        return set()  # rendering raises the error
    known = {id(test.node) for test in tree.find_all(nodes.Test)}
    formats = set()
    for call in tree.find_all(nodes.Call):
        if len(call.args) == 1 and isinstance(call.args[0], nodes.Const) and not call.kwargs:
            known.add(id(call.node))
            if getattr(call.node, "name", "") == "strftime_now":
                formats.add(str(call.args[0].value))
    names = [name for name in tree.find_all(nodes.Name) if name.name == "strftime_now"]
    if not all(id(name) in known for name in names):
        raise SettingsError(
            "chat_template (or RM_CHAT_TEMPLATE): the template may call strftime_now only with a literal format, as in "
            "strftime_now('%d %B %Y'): otherwise its output would depend on the day"
        )
    return formats


def _borders(chat: ChatTokenizer) -> tuple[str, str]:
    """What the template writes before and after a user message that a reply follows.

    The message is not the last one, as templates write the last reply differently (Qwen3 puts its thinking there).
    """
    problem = ""
    for conversation in (_PROBE, _PROBE[:2]):  # a template may hold a single turn only
        try:
            text = render(chat, conversation, "")
        except TemplateError as error:
            problem = f": {error}"
            continue
        before, first, rest = text.partition(conversation[0]["content"])
        after = rest.partition(conversation[1]["content"])[0]
        if first:
            return before, after if conversation is _PROBE else ""
    raise SettingsError(
        f"chat_template (or RM_CHAT_TEMPLATE): the template of {chat.template_file!r} cannot render a conversation "
        f"of a user message and a reply{problem}"
    )


def _rendered_ids(chat: ChatTokenizer, messages: list[MessageDict], tools: str = "") -> frozenset[int]:
    """The ids of a conversation, and of its prompt; none if the template refuses it."""
    with contextlib.suppress(TemplateError, SettingsError):
        texts = [render(chat, messages, tools), render(chat, messages[:-1], tools, add_generation_prompt=True)]
        return frozenset(number for ids in encode(chat, texts) for number in ids.tolist())
    return frozenset()


def _other_ids(chat: ChatTokenizer) -> frozenset[int]:
    """The ids that the template writes where there is a system message or a tool, and all that its text names.

    It names tokens themselves, or variables such as `bos_token`.
    """
    system, call = {"role": "system", "content": "s"}, {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "c", "tool_calls": [call]}
    tool = msgspec.json.encode([{"type": "function", "function": {"name": "f", "parameters": {}}}]).decode()
    with_tool = [_PROBE[0], calling, {"role": "tool", "name": "f", "content": "r"}, _PROBE[3]]
    tokens = chat.reference.special_tokens_map.items()
    named = {token for name, token in tokens if isinstance(token, str) and re.search(rf"\b{name}\b", chat.template)}
    added = chat.reference.added_tokens_decoder.items()
    named_ids = {number for number, token in added if str(token) in chat.template or str(token) in named}
    return _rendered_ids(chat, [system, *_PROBE[:2]]) | _rendered_ids(chat, with_tool, tool) | named_ids


def _pad_token_id(reference: Any, written: frozenset[int]) -> int:
    """The id of a special token that no conversation has: the pad token's, or the best that is free.

    Stock transformers reads the score at the last token that is not padding; others read it before the first one, or
    mask every one. All agree if a conversation has none. Names that say padding are preferred, then unused ones, then
    those without a role: others may put the begin of text before a conversation.
    """
    special = {number: str(token) for number, token in reference.added_tokens_decoder.items() if token.special}
    own = reference.pad_token_id
    candidates = {*special, *([own] if own is not None else [])} - written - {_unknown_id(reference)}
    if not candidates:
        raise SettingsError(
            "tokenizer (or RM_TOKENIZER): no special token is free to serve as padding, as conversations may contain "
            "each of them; add one by add_special_tokens({'pad_token': '<|pad|>'}), resize_token_embeddings of the "
            "model to the tokenizer's length, and save both"
        )

    roles = [token for token in reference.special_tokens_map.values() if isinstance(token, str)]

    def rank(number: int) -> tuple[bool, bool, bool, bool, int]:
        name = special.get(number, "")
        return number != own, not _SAYS_PADDING.search(name), not _SAYS_UNUSED.search(name), name in roles, number

    return int(min(candidates, key=rank))


def _unknown_id(reference: Any) -> int | None:
    """The id that the tokenizer gives to text outside its vocabulary; None if every text has ids of its own."""
    model = getattr(getattr(reference, "backend_tokenizer", None), "model", None)
    knows_all = getattr(model, "byte_fallback", False) or getattr(model, "unk_token", "") is None
    return None if knows_all else reference.unk_token_id


def render(
    chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str, *, add_generation_prompt: bool = False
) -> str:
    """A conversation as text; raises TemplateError if the template refuses it.

    Raises SettingsError if the template exceeds its bounds on a conversation of ordinary size.
    """
    size = len(tools) + sum(map(_size, messages))
    try:
        return chat.bounded.render(
            size,
            messages=_with_aliases(messages),
            tools=_tools(tools),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **chat.reference.special_tokens_map,
        )
    except TemplateLimitError as error:
        if size > _LARGE_SIZE:
            raise TemplateError(f"the template exceeds a bound: {error}") from None
        raise SettingsError(
            f"chat_template (or RM_CHAT_TEMPLATE): the template of {chat.template_file!r} exceeds a bound on a "
            f"conversation of {len(messages)} messages: {error}; use a template that does not"
        ) from None
    except Exception as error:
        raise _template_error(chat, error) from None


def _size(message: MessageDict) -> int:
    """Characters of a message and of what a template writes around it, roughly."""
    return 100 + sum(len(value if isinstance(value, str) else repr(value)) for value in message.values())


def _with_aliases(messages: Sequence[MessageDict]) -> list[MessageDict]:
    """Messages as transformers passes them to a template: reasoning under each of its names."""
    if any("reasoning_content" in message for message in messages):
        aliased: list[MessageDict] = getattr(chat_template_utils(), "_alias_reasoning_fields", list)(messages)
        return aliased
    return list(messages)


def _tools(tools: str) -> list[Any] | None:
    listed = msgspec.json.decode(tools) if tools else None
    if listed is not None and not all(isinstance(tool, dict) for tool in listed):
        raise TemplateError("each tool must be an object")
    return listed


def reference_text(
    chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str, *, add_generation_prompt: bool = False
) -> str:
    """The text that transformers' `apply_chat_template` returns, which every fast path must reproduce."""
    return str(_apply(chat, messages, tools, tokenize=False, add_generation_prompt=add_generation_prompt))


def reference_ids(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> list[int]:
    """The ids that transformers' `apply_chat_template` returns, which every fast path must reproduce."""
    encoding = interruptible(lambda: _apply(chat, messages, tools, tokenize=True, return_dict=True))
    return [int(number) for number in encoding["input_ids"]]


def _apply(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str, **options: Any) -> Any:
    # transformers sets no bounds: it only gets conversations that were rendered within ours
    render(chat, messages, tools, add_generation_prompt=options.get("add_generation_prompt", False))
    try:
        return chat.reference.apply_chat_template(
            list(messages),
            tools=msgspec.json.decode(tools) if tools else None,
            chat_template=chat.template,
            **options,
        )
    except Exception as error:
        raise _template_error(chat, error) from None


def _template_error(chat: ChatTokenizer, error: Exception) -> TemplateError:
    """Any error while rendering, as a TemplateError: either the row or the template is at fault."""
    return error if isinstance(error, TemplateError) else TemplateError(refusal(chat.template, error))


def encode(chat: ChatTokenizer, texts: list[str]) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """Token ids of rendered texts, an int32 array each, without added tokens, truncation or padding."""
    return [np.asarray(ids, dtype=np.int32) for ids in id_rows(chat.reference, texts)] if texts else []


def id_rows(reference: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts by transformers' tokenizer, as lists, without added tokens, truncation or padding."""
    encoding = interruptible(
        lambda: reference(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    )
    rows: list[list[int]] = encoding["input_ids"]
    return rows


def sample_rows(num_texts: int, num_sampled: int) -> list[int]:
    """Evenly spaced row numbers, at most `num_sampled`; 4 of 10 texts are 0, 2, 5 and 7."""
    num_rows = min(num_texts, num_sampled)
    return [number * num_texts // num_rows for number in range(num_rows)]


def message_dict(message: dict[str, Any]) -> MessageDict:
    """A message as a template takes it: absent keys removed, tool calls as objects."""
    present = {name: value for name, value in message.items() if value is not None}
    if "tool_calls" in present:
        present["tool_calls"] = msgspec.json.decode(present["tool_calls"])
    return present
