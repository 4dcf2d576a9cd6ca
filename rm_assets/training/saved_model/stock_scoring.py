"""Scores of conversations by a saved model directory, through stock transformers only, as a server computes them.

It uses the directory's own tokenizer and chat template, the model as `AutoModelForSequenceClassification` loads it, and
its pooling: of a decoder, the last token that is not padding.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification

from rm_assets.data.chat.model_checks import check_model_files
from rm_assets.data.chat.pretrained import keep_default_template, load_tokenizer, reraise_unless_of_a_library
from rm_assets.data.chat.tokenizer import ChatTokenizer, TemplateError, message_dict, reference_text
from rm_assets.training.devices import prepare
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.architecture import is_encoder, max_positions
from rm_assets.training.model.checkpoint_weights import check_weights, require_whole_weights
from rm_assets.training.model.offloading import move_to
from rm_assets.training.model.reward_model import num_embeddings

Padding = Literal["right", "left"]


class ConversationError(ValueError):
    """A conversation on which the template or the tokenizer fails, or that is too long for the model."""


@dataclass(frozen=True)
class SavedModel:
    """A loaded model with its tokenizer, in eval mode."""

    model: Any
    tokenizer: Any

    @property
    def max_length(self) -> int | None:
        """Longest conversation in tokens, or None if the configuration has no limit."""
        return max_positions(self.model)

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding matrix: ids must be smaller."""
        return num_embeddings(self.model)


def load_saved_model(directory: Path, dtype: torch.dtype = torch.float32) -> SavedModel:
    """The model and tokenizer of a directory, on CUDA if available; raises TrainingError if it cannot be loaded.

    Layers for which a GPU has not enough memory stay in that of the host. No code of the directory is run, and no
    pickle opened.
    """
    prepare()
    try:
        if not directory.is_dir():
            raise NotADirectoryError("no such directory")
        check_model_files(directory)
        tokenizer = load_tokenizer(str(directory))
        keep_default_template(tokenizer)
        check_weights(directory)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        require_whole_weights(model, info)
    except Exception as error:  # whatever transformers raises for the files
        reason = " ".join(str(error).split())[:500]
        raise TrainingError(f"no reward model can be loaded from {str(directory)!r}: {reason}") from error
    if model.config.num_labels != 1:
        labels = model.config.num_labels
        raise TrainingError(f"the model in {str(directory)!r} has {labels} labels, not 1: give a reward model")
    move_to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return SavedModel(model.eval(), tokenizer)


def conversation_text(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str = "") -> str:
    """A conversation as the directory's chat template writes it; `tools` is JSON text or empty.

    Raises ConversationError if the template raises, and SettingsError if it exceeds its limits.
    """
    try:
        template = tokenizer.get_chat_template(tools=tools or None)
    except ValueError:
        raise ConversationError("the tokenizer has no chat template for it") from None
    try:
        return reference_text(_chat(tokenizer, template), [message_dict(dict(message)) for message in messages], tools)
    except TemplateError as error:
        raise ConversationError(f"the chat template refuses it ({error})") from None


@functools.lru_cache(maxsize=2)
def _chat(tokenizer: Any, template: str) -> ChatTokenizer:
    """A directory's tokenizer, and its template with limits on rendering."""
    return ChatTokenizer(
        reference=tokenizer,
        template=template,
        control_tokens=(),
        pad_token_id=-1,
        template_file=str(tokenizer.name_or_path),
    )


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered conversation: the template has written every special token, so none is added.

    Raises ConversationError if the tokenizer itself fails, as some do on megabytes of spaces.
    """
    try:
        return [int(number) for number in tokenizer(text, add_special_tokens=False)["input_ids"]]
    except BaseException as error:
        reraise_unless_of_a_library(error)
        raise ConversationError(f"the tokenizer fails on it ({type(error).__name__})") from None


@torch.inference_mode()
def sequence_logits(
    saved: SavedModel,
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    padding: Padding = "right",
    min_width: int = 0,
    progress: Callable[[int], object] = lambda num_done: None,
) -> list[float]:
    """The score of each sequence of ids, in their order, whatever they are batched with.

    Longest first, so that memory peaks at the start. `min_width` pads every batch to at least as many tokens. With
    padding on the left, positions are passed explicitly: 0 at each sequence's first token. Raises TrainingError for
    such padding with an encoder, which reads the first token. `progress` is called with the number of sequences scored
    so far.
    """
    if padding == "left" and is_encoder(saved.model):
        raise TrainingError(f"{type(saved.model).__name__} is an encoder, whose scores need padding on the right")
    # nothing is generated, and a cache takes memory for each token
    saved.model.config.get_text_config().use_cache = False
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        progress(start)
        numbers = order[start : start + batch_size]
        batch = _batch(saved, [sequences[number] for number in numbers], padding, min_width)
        for number, score in zip(numbers, saved.model(**batch).logits[:, 0].float().tolist(), strict=True):
            scores[number] = score
    return scores


def _batch(saved: SavedModel, sequences: list[Sequence[int]], padding: Padding, min_width: int) -> dict[str, Any]:
    width = max(min_width, *map(len, sequences))
    ids = torch.full((len(sequences), width), saved.model.config.pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if padding == "right" else slice(width - len(sequence), width)
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if padding == "left":
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return {name: tensor.to(saved.model.device) for name, tensor in batch.items()}
