"""Conversations to text to token ids, by the tokenizer's own chat template: transformers is the reference here.

Control tokens are those the tokenizer marks special, and any token it adds that the template writes around a user's
message; text that contains one could forge a turn, an end or padding.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from rm_assets.data.model_files import TokenizerFiles
from rm_assets.settings import SettingsError

MessageDict = dict[str, Any]


class TemplateError(ValueError):
    """The chat template refused a conversation."""


@dataclass(frozen=True, kw_only=True)
class ChatTokenizer:
    """A loaded tokenizer with its chat template; `reference` is transformers' own tokenizer."""

    reference: Any
    template: str
    date: str
    control_tokens: tuple[str, ...]
    pad_token_id: int

    @functools.cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token in a text; longer ones first."""
        return re.compile("|".join(map(re.escape, sorted(self.control_tokens, key=len, reverse=True))) or r"(?!)")


def load_chat_tokenizer(files: TokenizerFiles) -> ChatTokenizer:
    """The tokenizer of these files, loaded once per process."""
    return _load(files)


@functools.lru_cache(maxsize=4)
def _load(files: TokenizerFiles) -> ChatTokenizer:
    from transformers import AutoTokenizer

    try:
        reference = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise SettingsError(f"tokenizer (or RM_TOKENIZER) is {files.directory!r}: it does not load: {error}") from error
    if files.chat_template is not None:
        reference.chat_template = files.chat_template
    template = reference.get_chat_template()
    chat = ChatTokenizer(
        reference=reference, template=template, date=files.template_date, control_tokens=(), pad_token_id=-1
    )
    before, after, last = _borders(chat)
    control = tuple(sorted(_special_tokens(reference) | _added_tokens_in(reference, before + after)))
    return ChatTokenizer(
        reference=reference,
        template=template,
        date=files.template_date,
        control_tokens=control,
        pad_token_id=_pad_token_id(reference, last),
    )


def _borders(chat: ChatTokenizer) -> tuple[str, str, int]:
    """What the template writes before and after a user's message that a reply follows, and the last id of all.

    A reply in the middle is used, since templates write the last one differently (Qwen3 puts its thinking there).
    """
    contents = ("\ue000first\ue001", "\ue000reply\ue001", "\ue000second\ue001", "\ue000last\ue001")
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    for conversation in (messages, messages[:2]):  # a template may hold a single turn only
        try:
            text = render(chat, conversation, "")
        except TemplateError:
            continue
        before, first, rest = text.partition(conversation[0]["content"])
        after = rest.partition(conversation[1]["content"])[0]
        if first:
            return before, after if conversation is messages else "", int(encode(chat, [text])[0][-1])
    raise SettingsError(
        "chat_template (or RM_CHAT_TEMPLATE): the template renders no conversation of a user's message and a reply"
    )


def _special_tokens(reference: Any) -> set[str]:
    added = {str(token) for token in reference.added_tokens_decoder.values() if token.special}
    return added | set(reference.all_special_tokens)


def _added_tokens_in(reference: Any, text: str) -> set[str]:
    return {str(token) for token in reference.added_tokens_decoder.values() if str(token) in text}


def _pad_token_id(reference: Any, last_id: int) -> int:
    """The pad token's id, or that of another special token where the pad token is what ends a conversation.

    Stock transformers takes the score at the last token that is not padding, so a conversation must not end in it.
    """
    special = sorted(
        number for number, token in reference.added_tokens_decoder.items() if token.special and number != last_id
    )
    preferred = [reference.pad_token_id, reference.unk_token_id]
    candidates = [number for number in preferred if number is not None and number != last_id] + special
    if not candidates:
        raise SettingsError(
            "tokenizer (or RM_TOKENIZER): no special token is free to be the padding; add a pad token to the tokenizer"
        )
    return int(candidates[0])


def render(
    chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str, *, add_generation_prompt: bool = False
) -> str:
    """A conversation as the template writes it; raises TemplateError where the template does."""
    return str(_apply(chat, messages, tools, tokenize=False, add_generation_prompt=add_generation_prompt))


def reference_ids(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> list[int]:
    """The ids that `apply_chat_template` gives: what every other way to them must equal."""
    encoding = _apply(chat, messages, tools, tokenize=True, return_dict=True)
    return [int(number) for number in encoding["input_ids"]]


def _apply(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str, **options: Any) -> Any:
    def strftime_now(pattern: str) -> str:
        return datetime.fromisoformat(chat.date).strftime(pattern)

    try:
        return chat.reference.apply_chat_template(
            list(messages),
            tools=msgspec.json.decode(tools) if tools else None,
            strftime_now=strftime_now,
            **options,
        )
    except Exception as error:  # whatever a template's Jinja raises: the row's fault or the template's, never ours
        message = str(error)
        raise TemplateError(message if message and message in chat.template else type(error).__name__) from None


def encode(chat: ChatTokenizer, texts: list[str]) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """Token ids of rendered texts: an int32 array each, no token added, nothing cut, nothing padded."""
    if not texts:
        return []
    encoded = chat.reference(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def message_dict(message: dict[str, Any]) -> MessageDict:
    """A message as a template wants it: absent keys removed, tool calls as objects."""
    present = {name: value for name, value in message.items() if value is not None}
    if "tool_calls" in present:
        present["tool_calls"] = msgspec.json.decode(present["tool_calls"])
    return present
