"""Files of pretrained tokenizers and models, which anyone may have written: checked before a library loads them.

Their code is never run and their pickles are never opened; no prompt at the terminal asks for either. Files whose JSON
would take too much memory, or abort the process of a library, are refused. Every other failure of a library becomes one
SettingsError.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from rm_assets.addresses import mask_credentials
from rm_assets.settings import SettingsError

ADAPTER = "adapter_config.json"
WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"
CONFIGURATION = "config.json"
_FAST = "tokenizer.json"
_OF_TOKENIZER = "tokenizer_config.json"
_GET_AGAIN = "get the files again, or have save_pretrained of transformers write them"
_SPARE_IDS = 2**16
"""How far ids may exceed twice the number of tokens: libraries take memory for every id up to the largest."""
_NO_COUNT = ("tokenizer.model", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
"""Vocabularies that are not read here; they have at most as many tokens as bytes."""
_MAX_GROWTH = 100
"""How many times longer a normalizer may make a text; a space that becomes `▁` takes three bytes."""
_MESSAGE_CHARACTERS = 300
_MOST = {"layer": 1_000, "^num_|^n_(?!ctx|positions)": 1_000_000}
"""The largest counts that a configuration may state, by patterns of their names."""
# transformers also accepts names of its classes that are not tokenizers, and those of models open pickles.
_TOKENIZER_CLASS = re.compile(r"(?!Auto)\w*(Tokenizer|TokenizerFast|Backend)")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises SettingsError if it holds none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        _refuse(path, f"not a JSON object that can be read ({_shown(error)})")


def _refuse(path: Path, problem: str) -> NoReturn:
    raise SettingsError(f"{path.name!r} in {str(path.parent)!r}: {problem}; {_GET_AGAIN}")


def _shown(error: BaseException) -> str:
    text = mask_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]}…"


def reraise_unless_of_a_library(error: BaseException) -> None:
    """Raise again what stops a run, but not a panic of Rust code, which is not an `Exception` either."""
    if isinstance(error, MemoryError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        raise error


# --- tokenizers ----------------------------------------------------------------------------------------------


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a directory or Hub name, loaded by transformers; raises SettingsError if that fails."""
    from transformers import AutoTokenizer, dynamic_module_utils

    # Classes that load other tokenizers drop trust_remote_code and ask at the terminal, unless the time to answer is 0.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    if Path(name).is_dir():
        check_tokenizer_files(Path(name))
    with tokenizer_errors(name):
        return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)


def keep_default_template(tokenizer: Any) -> None:
    """Of several chat templates keep the default one, which renders all conversations, with tools or without."""
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.get_chat_template()


@contextlib.contextmanager
def tokenizer_errors(name: str) -> Iterator[None]:
    """Turn any error of transformers or tokenizers about a tokenizer's files into one SettingsError."""
    try:
        yield
    except SettingsError:
        raise
    except BaseException as error:
        reraise_unless_of_a_library(error)
        problem = f"its files do not load ({_shown(error)}); {_GET_AGAIN}"
        if asks_for_code(Path(name)):
            problem = "auto_map asks for code of its own, which is never run: give a tokenizer that transformers knows"
        raise SettingsError(f"tokenizer (or RM_TOKENIZER) is {name!r}: {problem}") from None


def asks_for_code(directory: Path) -> bool:
    """Whether a tokenizer names a class of its own code; transformers may have a class that does as well."""
    path = directory / _OF_TOKENIZER
    return path.is_file() and "auto_map" in read_json(path)


def check_tokenizer_files(directory: Path) -> None:
    """Raise SettingsError, which names the file, if one of a tokenizer's files must not be loaded."""
    for path in (directory / _OF_TOKENIZER, directory / CONFIGURATION):
        found = read_json(path) if path.is_file() else {}
        name = found.get("tokenizer_class")
        if name is not None and not (isinstance(name, str) and _TOKENIZER_CLASS.fullmatch(name)):
            _refuse(path, f"tokenizer_class is {name!r}, not the name of a tokenizer's class")
        _check_counts(path, found)
        _check_names_no_other(path, found)
    ids_by_file = {directory / name: ids for name, ids in _ids(directory)}
    if (directory / _FAST).is_file():
        _check_normalizer(directory / _FAST)
    num_tokens = sum(len(ids) for ids in ids_by_file.values())
    num_tokens += sum((directory / name).stat().st_size for name in _NO_COUNT if (directory / name).is_file())
    for path, ids in ids_by_file.items():
        _check_ids(path, ids, 2 * num_tokens + _SPARE_IDS)


def _check_names_no_other(path: Path, found: dict[str, Any]) -> None:
    """Refuse a file by which some versions of transformers would read other files than those checked here."""
    for name, checked in (("fast_tokenizer_files", _FAST), ("configuration_files", CONFIGURATION)):
        if name in found:
            _refuse(path, f"{name} names other files than {checked}, which is the one to read")


def _check_normalizer(path: Path) -> None:
    """Refuse a normalizer that makes texts many times longer: out of memory, the library aborts the process."""
    growth = 1.0
    waiting = [read_json(path).get("normalizer")]
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        if isinstance(part, dict) and part.get("type") == "Replace":
            pattern, content = part.get("pattern"), str(part.get("content")).encode()
            replaced = str(pattern.get("String", "")).encode() if isinstance(pattern, dict) else b""
            growth *= (
                max(1, len(content) / len(replaced)) if replaced else 1 + len(content)
            )  # an expression may be empty
    if growth > _MAX_GROWTH:
        _refuse(path, f"its normalizer may make texts {growth:.0f} times as long, more than {_MAX_GROWTH} times")


def num_ids(directory: Path) -> int | None:
    """One more than the largest id in a checked tokenizer.json; None where there is no such file."""
    if not (directory / _FAST).is_file():
        return None
    return 1 + max(_fast_ids(directory / _FAST), default=-1)


def _check_ids(path: Path, ids: list[Any], limit: int) -> None:
    for number in ids:
        if type(number) is not int or not 0 <= number < limit:
            _refuse(path, f"the id {_short(number)} is not a whole number from 0 to {limit - 1}, for so many tokens")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _ids(directory: Path) -> Iterator[tuple[str, list[Any]]]:
    """The ids in each file of a tokenizer; not yet checked to be numbers."""
    if (path := directory / _FAST).is_file():
        yield _FAST, _fast_ids(path)
    if (path := directory / _OF_TOKENIZER).is_file():
        added = read_json(path).get("added_tokens_decoder", {})
        if not isinstance(added, dict):
            _refuse(path, f"added_tokens_decoder is {_short(added)}, not an object from ids to tokens")
        yield _OF_TOKENIZER, [int(name) if re.fullmatch(r"[0-9]{1,20}", name) else name for name in added]
    for name in ("added_tokens.json", "vocab.json"):
        if (path := directory / name).is_file():
            yield name, list(read_json(path).values())


def _fast_ids(path: Path) -> list[Any]:
    definition = read_json(path)
    model, added = definition.get("model"), definition.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list):
        _refuse(path, "model.vocab is neither an object from tokens to ids nor a list of tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) and "id" in token for token in added):
        _refuse(path, "added_tokens is not a list of objects with an id")
    numbers: Iterable[Any] = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return [*numbers, *(token["id"] for token in added)]


# --- models --------------------------------------------------------------------------------------------------


def check_model_files(directory: Path) -> dict[str, Any]:
    """The configuration of a model; raises SettingsError, which names the file, if one must not be loaded.

    Of a model on the Hub only the small files are here. Where safetensors are here too, their headers must be sound.
    """
    path = directory / CONFIGURATION
    configuration = read_json(path)
    if (directory / ADAPTER).is_file():
        raise SettingsError(
            f"{ADAPTER!r} in {str(directory)!r}: an adapter, not a whole model; merge it into its model "
            "(merge_and_unload of peft), and give the directory of that"
        )
    _check_configuration(path, configuration)
    for index in sorted(directory.glob(f"*{INDEX}")):
        _check_index(index)
    for weights in sorted(directory.glob(f"*{WEIGHTS}")):
        _check_header(weights)
    return configuration


def _check_configuration(path: Path, configuration: dict[str, Any]) -> None:
    if configuration.get("auto_map") and not _is_known(configuration.get("model_type")):
        raise SettingsError(
            f"{path.name!r} in {str(path.parent)!r}: auto_map asks for code of its own, which is never run; "
            "give a model of a type that transformers knows"
        )
    _check_counts(path, configuration)
    _check_names_no_other(path, configuration)
    for name, value in _values(configuration):
        if name.endswith("_implementation") and "/" in str(value):
            _refuse(path, f"{name} is {_short(value)}, code on the Hub that is never run")
    named = configuration.get("transformers_weights")
    if named is not None and not _is_weights_name(named, (WEIGHTS, INDEX)):
        _refuse(path, f"transformers_weights is {_short(named)}, not a safetensors file beside it")


def _check_counts(path: Path, configuration: dict[str, Any]) -> None:
    """Refuse large counts: reading the file makes lists of such lengths, whatever the weights are."""
    for name, value in _values(configuration):
        limit = next((most for pattern, most in _MOST.items() if re.search(pattern, name)), None)
        if limit is not None and isinstance(value, int | float) and not -limit <= value <= limit:
            _refuse(path, f"{name} is {_short(value)}, more than {limit}")


def _is_known(model_type: Any) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES


def _values(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value below an object, with its name."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
        waiting += found.values() if isinstance(found, dict) else found if isinstance(found, list) else []


def _is_weights_name(name: Any, endings: tuple[str, ...] = (WEIGHTS,)) -> bool:
    return isinstance(name, str) and name.endswith(endings) and Path(name).name == name and "\\" not in name


def _check_index(path: Path) -> None:
    index = read_json(path)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not isinstance(index.get("metadata"), dict) or not names:
        _refuse(path, "weight_map and metadata are not objects, as an index has them")
    for name in names.values():
        if not _is_weights_name(name):
            _refuse(path, f"weight_map names {_short(name)}, not a safetensors file beside it")
    present = {file.name for file in path.parent.glob(f"*{WEIGHTS}")}
    if present and (missing := sorted(set(names.values()) - present)):
        _refuse(path, f"{missing[0]!r}, which it names, is not there")


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        _refuse(path, "not a regular file")
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        _refuse(path, f"not a safetensors file that can be read ({_shown(error)})")
