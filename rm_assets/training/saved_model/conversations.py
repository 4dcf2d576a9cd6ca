"""Conversations as lines and requests state them: their messages, tools and token ids."""

from collections.abc import Mapping
from typing import Any

import msgspec

from rm_assets.data.formats.conversations.messages import MessageRecord, messages_of
from rm_assets.data.formats.conversations.tool_texts import Listed, tools_text
from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.training.saved_model.stock_scoring import ConversationError, SavedModel, conversation_text, text_ids


def read_conversation(row: Mapping[str, Any], name: str = "messages") -> tuple[tuple[Message, ...], str]:
    """The messages in the field `name` of a row, and its `tools` as JSON text; raises PreferenceError without them."""
    try:
        records = msgspec.convert(row.get(name), list[MessageRecord])
    except msgspec.ValidationError:
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is not a list of messages") from None
    try:
        tools = msgspec.convert(row.get("tools"), Listed)
    except msgspec.ValidationError:
        raise PreferenceError(Reason.WRONG_TYPE, "`tools` is neither a list nor its JSON text") from None
    return messages_of(records, "user"), tools_text(tools)


def conversation_ids(saved: SavedModel, messages: tuple[Message, ...], tools: str) -> list[int]:
    """The token ids of a conversation; raises ConversationError if it cannot be rendered, or is empty or too long."""
    text = conversation_text(saved.tokenizer, [msgspec.to_builtins(message) for message in messages], tools)
    return rendered_ids(saved, text)


def rendered_ids(saved: SavedModel, text: str) -> list[int]:
    """The token ids of a rendered conversation; raises ConversationError if the model cannot read it.

    That is an empty one, one that is too long, or one with a token that has no embedding.
    """
    ids = text_ids(saved.tokenizer, text)
    if not ids or len(ids) > (saved.max_length or len(ids)):
        raise ConversationError(f"it has {len(ids)} tokens, and the model {saved.max_length} positions")
    if (largest := max(ids)) >= saved.num_embeddings:
        token = saved.tokenizer.convert_ids_to_tokens(largest)
        raise ConversationError(
            f"its token {token!r} has id {largest}, but the model has only {saved.num_embeddings} embeddings"
        )
    return ids
