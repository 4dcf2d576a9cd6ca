"""Files of pretrained models, which anyone may have written: checked before a library loads them, and before any work.

Weights are not loaded here: a configuration, an index and the headers of safetensors describe them. No code of a
model is run and no pickle is opened. Every problem is one SettingsError that names the file and what to do.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from rm_assets.data.chat.pretrained import (
    CONFIGURATION,
    check_content,
    check_counts,
    check_names_no_other,
    read_json,
    refuse,
    short,
    shown,
    values_in,
)
from rm_assets.settings import SettingsError

ADAPTER = "adapter_config.json"
WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"
VALUE_HEAD = "value_head"
"""The file, without its ending, in which LLaMA-Factory saves the head of a reward model."""
_SINGLE, _INDEX_FILE = f"model{WEIGHTS}", f"model{INDEX}"
_PICKLED = re.compile(r"(?!training_args|optimizer|scheduler|rng_state).*\.(bin|pt|pth|ckpt|pkl)", re.IGNORECASE)
_OTHER_KINDS = re.compile(r".*\.(gguf|h5|msgpack|onnx|npz)", re.IGNORECASE)
_SHARD = re.compile(r".*-of-\d+\.safetensors")
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_FLOATS = {"F16", "BF16", "F32", "F64"}


class Tensor(NamedTuple):
    """A tensor as the header of its file describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


# --- whole directories ---------------------------------------------------------------------------------------


def check_model_files(directory: Path, *, has_weights: bool = True) -> dict[str, Any]:
    """Check the files of a model and return its configuration; SettingsError names a file that must not be loaded.

    Pass `has_weights=False` for a model on the Hub: its weights may be missing, but those present must be valid.
    """
    path = directory / CONFIGURATION
    if not path.exists():
        raise_no_model(directory)
    require_no_adapter(directory)
    configuration = read_json(path)
    _check_configuration(path, configuration)
    for index in sorted(directory.glob(f"*{INDEX}")):
        _check_index(index, has_weights)
    for weights in sorted(directory.glob(f"*{WEIGHTS}")):
        _check_header(weights)
    if has_weights and not weight_files(directory, configuration):
        raise SettingsError(no_weights(directory.iterdir(), str(directory)))
    return configuration


def raise_no_model(directory: Path) -> NoReturn:
    """Raise SettingsError about a directory without a model: it names one below, as a trainer's or a snapshot's."""
    require_no_adapter(directory)
    found = [path for depth in ("*", "*/*") for path in directory.glob(f"{depth}/{CONFIGURATION}") if path.is_file()]
    visible = [path for path in found if not any(name.startswith(".") for name in path.relative_to(directory).parts)]
    newest = max(visible, key=lambda path: path.stat().st_mtime_ns, default=None)
    where = f", such as {str(newest.parent)!r}" if newest else ""
    raise SettingsError(
        f"no model there (no {CONFIGURATION}); give a directory that save_pretrained of transformers wrote{where}"
    )


def require_no_adapter(directory: Path) -> None:
    """Raise SettingsError if a directory holds an adapter, with or without a model; it would be ignored."""
    if (directory / ADAPTER).is_file():
        raise SettingsError(
            f"{ADAPTER!r} in {str(directory)!r}: a LoRA adapter, not a whole model; merge it into its base "
            "(merge_and_unload of peft), and give the merged directory"
        )


def check_trainable(directory: Path, configuration: dict[str, Any]) -> None:
    """Raise SettingsError if a valid model cannot be the base of a reward model: quantized, or with several outputs."""
    cure = "give the model that it was made from, in float32, bfloat16 or float16"
    parts = (configuration, configuration.get("text_config"))
    for name in ("quantization_config", "quantization"):  # MLX writes the second one
        if found := next((part[name] for part in parts if isinstance(part, dict) and part.get(name)), None):
            method = found.get("quant_method", "") if isinstance(found, dict) else ""
            raise SettingsError(
                f"{CONFIGURATION!r} in {str(directory)!r}: {name} says that its weights are quantized"
                f"{f' ({method})' if method else ''}, and those cannot be trained; {cure}"
            )
    tensors = weight_tensors(directory, configuration)
    for name, tensor in tensors.items():
        if name.endswith((".weight", ".qweight")) and tensor.dtype not in _FLOATS:
            raise SettingsError(
                f"{tensor.file.name!r} in {str(directory)!r}: {name!r} is quantized ({tensor.dtype}), and such weights "
                f"cannot be trained; {cure}"
            )
    num_outputs = _num_outputs(configuration, tensors)
    if num_outputs != 1:
        raise SettingsError(
            f"its head has {num_outputs} outputs, and that of a reward model has 1: give a reward model or a language "
            "model, not a classifier"
        )


def _num_outputs(configuration: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """Outputs of the head: by its weights, else by what a classifier's configuration states; 1 where there is none."""
    head = tensors.get("score.weight")
    if head is not None and len(head.shape) == 2:
        return head.shape[0]
    names = configuration.get("architectures") or [""]
    is_classifier = isinstance(names, list) and str(names[0]).endswith(_CLASSIFIERS)
    labels = configuration.get("id2label")
    if tensors or not is_classifier:
        return 1
    if isinstance(labels, dict):
        return len(labels)
    stated = configuration.get("num_labels")
    return stated if type(stated) is int else 2  # transformers' default, which it does not write


def no_weights(files: Iterable[Path | str], place: str) -> str:
    """Why a directory or repository with these files has no weights to load."""
    names = sorted(Path(file).name for file in files)
    if shard := next(filter(_SHARD.fullmatch, names), None):
        return f"{place!r} has shards such as {shard!r} without their index {_INDEX_FILE!r}; download the files again"
    if pickled := next(filter(_PICKLED.fullmatch, names), None):
        return (
            f"{place!r} has its weights only in {pickled!r}, and pickled weights are never opened; convert them to "
            "safetensors (load them with transformers where you trust them, then save_pretrained)"
        )
    other = next(filter(_OTHER_KINDS.fullmatch, names), None)
    found = f" ({other!r} cannot be trained)" if other else ""
    return f"{place!r} has neither {_SINGLE!r} nor {_INDEX_FILE!r}{found}; give a directory with a model's weights"


# --- weights -------------------------------------------------------------------------------------------------


def weight_files(directory: Path, configuration: dict[str, Any]) -> list[Path]:
    """The weight files that transformers loads, a single one or the shards of an index; empty if there are none."""
    for name in (configuration.get("transformers_weights") or _SINGLE, _INDEX_FILE):
        path = directory / name
        if path.is_file():
            shards = read_json(path)["weight_map"].values() if name.endswith(INDEX) else [name]
            return [directory / shard for shard in sorted(set(shards))]
    return []


def weight_tensors(directory: Path, configuration: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors in a model's checked files of weights by name; empty where the weights are on the Hub."""
    files = weight_files(directory, configuration)
    return {name: tensor for path in files if path.is_file() for name, tensor in file_tensors(path).items()}


def file_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a checked safetensors file by name: its first 8 bytes are the length of a JSON header."""
    with path.open("rb") as file:
        header = msgspec.json.decode(file.read(int.from_bytes(file.read(8), "little")), type=dict[str, Any])
    header.pop("__metadata__", None)
    return {name: Tensor(found["dtype"], tuple(found["shape"]), path) for name, found in header.items()}


def _is_weights_name(name: Any, endings: tuple[str, ...] = (WEIGHTS,)) -> bool:
    """Whether a value names a file of weights in the same directory: no path, which could lead elsewhere."""
    return isinstance(name, str) and name.endswith(endings) and Path(name).name == name and "\\" not in name


def _check_index(path: Path, has_weights: bool) -> None:
    index = read_json(path)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not isinstance(index.get("metadata"), dict) or not names:
        refuse(path, "an index needs weight_map, an object that is not empty, and metadata, an object")
    for name in names.values():
        if not _is_weights_name(name):
            refuse(path, f"weight_map names {short(name)}, not a safetensors file beside it")
    missing = sorted(name for name in set(names.values()) if not (path.parent / name).exists())
    if has_weights and missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        refuse(path, f"it names files that are missing: {missing[0]!r}{more}")


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        refuse(path, "not a regular file")
    check_content(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        refuse(path, f"not a safetensors file that can be read, perhaps cut short ({shown(error)})")


# --- configurations ------------------------------------------------------------------------------------------


def _check_configuration(path: Path, configuration: dict[str, Any]) -> None:
    model_type = configuration.get("model_type")
    if not _is_known(model_type):
        from transformers import __version__

        problem = f"model_type is {short(model_type)}, which transformers {__version__} does not know"
        if configuration.get("auto_map"):
            problem = "auto_map asks for code of its own, which is never run"
        where = f"{path.name!r} in {str(path.parent)!r}"
        raise SettingsError(f"{where}: {problem}; give a model of a type that transformers knows, such as Qwen3")
    check_counts(path, configuration)
    check_names_no_other(path, configuration)
    for name, value in values_in(configuration):
        if name.endswith("_implementation") and "/" in str(value):
            refuse(path, f"{name} is {short(value)}, code on the Hub that is never run")
    named = configuration.get("transformers_weights")
    if named is not None and not _is_weights_name(named, (WEIGHTS, INDEX)):
        refuse(path, f"transformers_weights is {short(named)}, not a safetensors file beside it")


def _is_known(model_type: Any) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES
