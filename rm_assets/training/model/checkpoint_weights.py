"""Whether a checkpoint has the weights that its configuration describes: transformers would fill in random ones."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from rm_assets.data.chat.pretrained import CONFIGURATION, shown
from rm_assets.settings import SettingsError
from rm_assets.training.model.checkpoint_head import unused_weights


def check_weights(directory: Path, may_lack: tuple[str, ...] = (), **options: Any) -> None:
    """Raise SettingsError unless a directory of checked files has each weight that `config.json` describes, as it does.

    Weights whose names begin with one of `may_lack` may be missing; `options` change the configuration. Only the
    headers of the files are read, and no memory is taken for weights.
    """
    try:
        with _without_messages():
            _, info = AutoModelForSequenceClassification.from_pretrained(
                directory,
                device_map="meta",
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers raises many types for weights
        raise SettingsError(f"its weights do not fit its {CONFIGURATION} ({shown(error)})") from None
    _require_every_weight(info, may_lack)
    for name, found, described in sorted(info["mismatched_keys"])[:1]:
        raise SettingsError(
            f"its weights {name!r} have the shape {list(found)}, and its {CONFIGURATION} describes {list(described)}: "
            "download all its files again, of the same version"
        )


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Keep transformers from reporting each weight that is missing: what matters is an error here."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def require_whole_weights(model: Any, info: Mapping[str, Any], may_lack: tuple[str, ...] = ()) -> None:
    """Raise SettingsError if weights are missing in the files, and so were initialized at random, or are not finite.

    `info` is the loading info of transformers. Weights whose names begin with one of `may_lack` may be missing.
    """
    _require_every_weight(info, may_lack)
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise SettingsError(f"its weights {name!r} are not all finite numbers: download the files again")


def _require_every_weight(info: Mapping[str, Any], may_lack: tuple[str, ...]) -> None:
    if lacking := sorted(name for name in info["missing_keys"] if not name.startswith(may_lack)):
        others = unused_weights(info["unexpected_keys"])
        instead = f", and has others, such as {others[0]!r}" if others else ""
        raise SettingsError(f"it lacks the weights {lacking[:3]!r}{instead}: give a complete checkpoint")
