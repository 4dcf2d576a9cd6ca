"""The reward model: building and loading it.

It is stock `AutoModelForSequenceClassification` with one label. It is trained in eval mode: dropout is off, and a
reward is deterministic. In the models used here the modes differ in nothing else.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_assets.addresses import mask_credentials
from rm_assets.data.chat import pretrained
from rm_assets.data.chat.model_checks import (
    ADAPTER,
    INDEX,
    VALUE_HEAD,
    WEIGHTS,
    check_model_files,
    check_trainable,
    weight_files,
)
from rm_assets.data.chat.pretrained import CONFIGURATION
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.training_job import TrainingError, TrainingJob
from rm_assets.training.model.architecture import (
    check_architecture,
    empty_model,
    head_modules,
    is_encoder,
    output_layer,
    require_head,
)
from rm_assets.training.model.checkpoint_head import NEW, CheckpointHead, find_encoder_head, find_head, unused_weights
from rm_assets.training.model.checkpoint_weights import check_weights, require_whole_weights
from rm_assets.training.model.probe import check_encoder


def check_base_model(directory: Path, max_length: int) -> None:
    """Raise SettingsError if a directory of checked files holds no model to begin with; its weights may be missing."""
    model = check_architecture(directory, max_length)
    try:
        check_encoder(model)
    except TrainingError as error:
        raise SettingsError(str(error)) from None
    configuration = pretrained.read_json(directory / CONFIGURATION)
    head = _find_head(directory, configuration, model)
    files = weight_files(directory, configuration)
    if files and all(file.is_file() for file in files):  # some or all may still be on the Hub
        check_weights(directory, _may_lack(model, head), num_labels=1)


def build_model(job: TrainingJob) -> Any:
    """The model before training, in float32 on the CPU; depends on the job only.

    Raises TrainingError, which names the setting `model`, for one that cannot be loaded or has no such head.
    """
    return build_with_origin(job)[0]


class Origin(NamedTuple):
    """Where the head of a model is from, and which weights of its checkpoint the model does not have."""

    head: str = NEW
    unused: tuple[str, ...] = ()


def build_with_origin(job: TrainingJob) -> tuple[Any, Origin]:
    """The model before training, as `build_model`, and what a log says about it."""
    torch.manual_seed(job.settings.seed)
    try:
        model, origin = _toy_model(job) if job.toy else _pretrained_model(job)
    except Exception as error:  # transformers raises many types for a configuration or its weights
        raise _unloadable(job.model, error) from error
    if origin.head == NEW:
        _initialise_head(output_layer(model)[1], job.settings.seed)
    for config in (model.config, model.config.get_text_config()):
        if not is_encoder(model) or config.pad_token_id is None:  # RoBERTa counts positions from its own one
            config.pad_token_id = job.pad_token_id
    return model.eval(), origin


def load_model(directory: Path) -> Any:
    """The saved model of a directory in float32, with nothing missing."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        directory,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    require_whole_weights(model, info)
    return model.eval()


def _toy_model(job: TrainingJob) -> tuple[Any, Origin]:
    config = AutoConfig.from_pretrained(job.model, trust_remote_code=False, num_labels=1)
    # the configuration's own special ids may be outside the new vocabulary
    config.vocab_size, config.pad_token_id = job.vocab_size, job.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    require_head(model)
    return model, Origin()


def _pretrained_model(job: TrainingJob) -> tuple[Any, Origin]:
    directory = _model_directory(job)
    configuration = check_model_files(directory)
    check_trainable(directory, configuration)
    empty = empty_model(directory)
    require_head(empty)
    head = _find_head(directory, configuration, empty)
    check_weights(directory, _may_lack(empty, head), num_labels=1)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        directory,
        num_labels=1,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if head is not None and not head.is_stock:
        with torch.no_grad():
            model.score.weight.copy_(head.weight())
    require_whole_weights(model, info, _may_lack(model, head))
    return model, Origin(NEW if head is None else str(head), unused_weights(info["unexpected_keys"]))


def _find_head(directory: Path, configuration: dict[str, Any], classifier: Any) -> CheckpointHead | None:
    if is_encoder(classifier):
        return find_encoder_head(directory, configuration, classifier)
    return find_head(directory, configuration, classifier.score.in_features)


def _may_lack(model: Any, head: CheckpointHead | None) -> tuple[str, ...]:
    """How the names of the weights begin that transformers need not find: of a head that is new, or of another name.

    A pooler serves the head alone.
    """
    if head is not None and head.is_stock:
        return ()
    return (*(f"{name}." for name in head_modules(model)), f"{model.base_model_prefix}.pooler.")


def _model_directory(job: TrainingJob) -> Path:
    """The model's directory; of a model on the Hub, that of its cache, with all files that are read."""
    if Path(job.model).is_dir():
        return Path(job.model)
    files = [CONFIGURATION, ADAPTER, f"*{INDEX}", f"model*{WEIGHTS}", f"{VALUE_HEAD}.*"]
    return Path(snapshot_download(job.model, revision=job.model_revision or "main", allow_patterns=files))


def _unloadable(model: str, error: Exception) -> TrainingError:
    reason = mask_credentials(" ".join(str(error).split()))[:500]
    detail = reason if isinstance(error, ValueError | OSError | RuntimeError) else f"{type(error).__name__}: {reason}"
    return TrainingError(f"model {model!r} cannot be loaded as a reward model: {detail}; change the setting model")


def _initialise_head(head: Any, seed: int) -> None:
    """Normal with standard deviation 1 / sqrt(H + 1) (2009.01325), with a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5, generator=generator)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def num_embeddings(model: Any) -> int:
    """Rows of the embedding matrix: ids must be smaller."""
    return int(model.get_input_embeddings().weight.shape[0])


def load_tokenizer(job: TrainingJob) -> Any:
    """The tokenizer to save with the model: it pads on the right with `pad_token_id` and has the job's template.

    Raises TrainingError if it cannot be loaded or has no special token of that id.
    """
    revision = job.model_revision if job.tokenizer == job.model else None
    try:
        tokenizer = pretrained.load_tokenizer(job.tokenizer, revision)
    except SettingsError as error:
        raise TrainingError(str(error)) from None
    token = tokenizer.convert_ids_to_tokens(job.pad_token_id) if job.pad_token_id >= 0 else None
    if token is None:
        raise TrainingError(f"tokenizer {job.tokenizer!r} has no token of id {job.pad_token_id!r} to pad with")
    if job.pad_token_id not in tokenizer.added_tokens_decoder:
        raise TrainingError(
            f"token {token!r} of tokenizer {job.tokenizer!r} is an ordinary one: as pad token it would be split off "
            "from text that contains it; pad with one of the tokenizer's special tokens"
        )
    tokenizer.pad_token = token
    assert tokenizer.pad_token_id == job.pad_token_id, (token, tokenizer.pad_token_id)
    tokenizer.padding_side = "right"
    if job.chat_template is not None:
        tokenizer.chat_template = job.chat_template
    pretrained.keep_default_template(tokenizer)
    return tokenizer
