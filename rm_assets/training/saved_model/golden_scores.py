"""golden_scores.json: fixed conversations with their text, ids and scores, to verify a server.

A server that reproduces them uses the same template, tokenizer, special tokens, weights and pooling. The scores
are those of the saved directory in float32.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from rm_assets.data.chat.pretrained import load_tokenizer
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.result import GOLDEN
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.saved_model.conversations import rendered_ids
from rm_assets.training.saved_model.stock_scoring import (
    ConversationError,
    Padding,
    SavedModel,
    conversation_text,
    sequence_logits,
    text_ids,
)

NUM_CONVERSATIONS = 20
MIN_TOLERANCE = 1e-5
TOLERANCE_PER_BFLOAT16 = 0.01
"""Tolerance as a fraction of the change that bfloat16 makes to these scores. Another device or batch size adds in
another order, which changes the last bits of float32 and passes; bfloat16 rounds 65536 times as coarsely and fails."""
_BATCH_SIZE = 4


class GoldenScoresError(TrainingError):
    """A model directory does not reproduce its golden scores. The message is one line, with the first difference."""


def write_golden_scores(directory: Path, model: Any) -> None:
    """Score the conversations with the model, as loaded from its directory, and write golden_scores.json there.

    The model cannot be used afterwards: its weights are left in bfloat16. Raises TrainingError for scores that are not
    finite.
    """
    saved = SavedModel(model, load_tokenizer(str(directory)))
    rendered = list(_rendered(saved))[:NUM_CONVERSATIONS]
    ids = [text_ids(saved.tokenizer, text) for _, text in rendered]
    scores = sequence_logits(saved, ids, _BATCH_SIZE)
    device = saved.model.device.type
    for weight in saved.model.parameters():  # buffers stay float32, as when transformers loads in bfloat16
        weight.data = weight.data.to(torch.bfloat16)
    in_bfloat16 = sequence_logits(saved, ids, _BATCH_SIZE)
    if not all(map(math.isfinite, [*scores, *in_bfloat16])):
        raise TrainingError(
            "scores of the trained model are not finite: its weights have diverged (lower learning_rate)"
        )
    bfloat16_difference = largest_difference(scores, in_bfloat16)
    content = {
        "dtype": "float32",
        "device": device,
        "tolerance": max(MIN_TOLERANCE, TOLERANCE_PER_BFLOAT16 * bfloat16_difference),
        "largest_bfloat16_difference": bfloat16_difference,
        **_policy(saved.tokenizer, ids),
        "conversations": [
            {"messages": messages, "text": text, "ids": numbers, "score": score, "bfloat16_score": half}
            for (messages, text), numbers, score, half in zip(rendered, ids, scores, in_bfloat16, strict=True)
        ],
    }
    (directory / GOLDEN).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def verify_golden_scores(
    directory: Path,
    saved: SavedModel,
    batch_size: int = _BATCH_SIZE,
    padding: Padding = "right",
    tolerance: float | None = None,
) -> float:
    """The largest difference from a golden score; raises GoldenScoresError for the first mismatch.

    Compares the template, the tokens at both ends, each text, its ids, and its score. `tolerance` is by default the
    file's own; infinity only reports the difference.
    """
    golden = read_golden_scores(directory)
    for name, value in _policy(saved.tokenizer, [item["ids"] for item in golden["conversations"]]).items():
        if golden.get(name) != value:
            raise _differs(directory, name, golden.get(name), value)
    for number, item in enumerate(golden["conversations"], start=1):
        try:
            text = conversation_text(saved.tokenizer, item["messages"])
        except ConversationError as error:
            raise GoldenScoresError(
                f"{str(directory)!r} does not reproduce its golden scores: conversation {number}: {error}"
            ) from None
        if text != item["text"]:
            raise _differs(directory, f"the text of conversation {number}", item["text"], text)
        ids = text_ids(saved.tokenizer, text)
        if ids != item["ids"]:
            raise _differs(directory, f"the ids of conversation {number}", item["ids"], ids)
    expected = [item["score"] for item in golden["conversations"]]
    found = sequence_logits(saved, [item["ids"] for item in golden["conversations"]], batch_size, padding)
    allowed = golden["tolerance"] if tolerance is None else tolerance
    for number, (score, other) in enumerate(zip(expected, found, strict=True), start=1):
        if not abs(score - other) <= allowed:
            raise _differs(directory, f"the score of conversation {number}", score, other)
    return largest_difference(expected, found)


def read_golden_scores(directory: Path) -> dict[str, Any]:
    """The file's content; raises GoldenScoresError if it is missing or damaged."""
    try:
        written = (directory / GOLDEN).read_bytes()
        msgspec.json.decode(written, type=_Golden)
    except FileNotFoundError:
        raise GoldenScoresError(f"no {GOLDEN} in {str(directory)!r}: its scores cannot be verified") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GoldenScoresError(f"{GOLDEN} in {str(directory)!r} is damaged: {error}") from None
    return dict(json.loads(written))


class _Conversation(msgspec.Struct):
    messages: list[dict[str, Any]]
    text: str
    ids: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]], msgspec.Meta(min_length=1)]
    score: float


class _Golden(msgspec.Struct):
    """The fields that are compared, and their types."""

    tolerance: float
    conversations: list[_Conversation]


def largest_difference(scores: list[float], others: list[float]) -> float:
    """The largest absolute difference between the two scores of any conversation."""
    return max((abs(score - other) for score, other in zip(scores, others, strict=True)), default=0.0)


def _rendered(saved: SavedModel) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """The conversations that the template can render and that the model can read."""
    for messages in CONVERSATIONS:
        with contextlib.suppress(ConversationError, SettingsError):  # the template refuses it or exceeds its bounds
            text = conversation_text(saved.tokenizer, messages)
            rendered_ids(saved, text)
            yield messages, text


def _policy(tokenizer: Any, ids: list[list[int]]) -> dict[str, Any]:
    """What must be equal before scores can be: the template, and the first and last tokens of conversations."""
    template = tokenizer.chat_template or ""
    return {
        "chat_template_sha256": hashlib.sha256(template.encode("utf-8")).hexdigest(),
        "add_special_tokens": False,
        "bos_token": tokenizer.bos_token,
        "begins_with_bos": _all_have(ids, 0, tokenizer.bos_token_id),
        "eos_token": tokenizer.eos_token,
        "ends_with_eos": _all_have(ids, -1, tokenizer.eos_token_id),
        "last_tokens": sorted(set(tokenizer.convert_ids_to_tokens([numbers[-1] for numbers in ids]))),
        "pad_token": tokenizer.pad_token,
    }


def _all_have(ids: list[list[int]], place: int, token_id: int | None) -> bool:
    return token_id is not None and all(numbers[place] == token_id for numbers in ids)


def _differs(directory: Path, what: str, expected: Any, found: Any) -> GoldenScoresError:
    return GoldenScoresError(
        f"{str(directory)!r} does not reproduce its golden scores: {what} is {_short(found)}, not {_short(expected)}; "
        "use the tokenizer, chat template and weights that were saved together"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


# --- conversations -------------------------------------------------------------------------------------------


def _turns(*texts: str, system: str = "") -> list[dict[str, Any]]:
    opening = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant") * len(texts)
    return opening + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    _turns("What is 2+2?", "4.", "And twice that?", "8."),
    _turns("Name a river.", "The Danube.", "Where does it end?", "In the Black Sea.", "Thanks!", "You are welcome."),
    _turns("What time is it?", "I have no clock.", system="You are a helpful assistant."),
    _turns("Tell me more.", "About what?", "About owls.", "Owls hunt at night.", system="Be brief."),
    _turns("What is 2+2?", "4."),
    _turns("What is 2+2?", "I would rather not say."),
    _turns("Write a function that adds.", "```python\ndef add(a, b):\n    return a + b\n```"),
    _turns("Show a table.", "| a | b |\n|---|---|\n| 1 | 2 |"),
    _turns("你好，请介绍一下你自己。", "你好！我是一个助手。"),
    _turns("こんにちは", "こんにちは。お元気ですか？"),
    _turns("Как дела?", "Хорошо, спасибо."),
    _turns("كيف حالك؟", "بخير، شكرا."),
    _turns("Say it with emoji.", "👍🏽 👩‍👩‍👧 🇪🇺"),
    _turns("  Spaces   everywhere  ", "Yes,   indeed.\n\n\nThree line breaks."),
    _turns("Größe? Façade? naïve?", "Diacritics: é (one character) and e\u0301 (two)."),
    _turns("A", "B"),
    _turns("Count.", " ".join(map(str, range(1, 41)))),
    _turns("What is 12345 * 6789?", "12345 * 6789 = 83,810,205; roughly 8.38e7."),
    _turns("Is <b>this</b> markup, {{ or }} this?", "It's text: <br/> & {% raw %}."),
    _turns("Tell me a long story.", "Once upon a time there was a fox who counted stars. " * 12),
    _turns("How do I boil an egg?", "Put it in boiling water for seven minutes, then cool it."),
    _turns("Which is heavier?", "A kilogram of lead and one of feathers weigh the same."),
    _turns("Translate 'tree'.", "Baum, arbre, 木."),
    _turns("Give me a haiku.", "An old silent pond\nA frog jumps into the pond\nSplash! Silence again."),
)
"""Fixed conversations, so that a published model contains no user data. They cover what trips up tokenizers
and templates: several turns, system messages, indentation, spaces, other scripts, emoji, single letters, long text."""
