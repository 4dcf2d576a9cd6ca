"""Files of pretrained tokenizers, which anyone may have written: checked before a library loads them.

Their code is never run and their pickles are never opened; no prompt at the terminal asks for either. Files whose JSON
would take too much memory, or abort the process of a library, are refused. Every other failure of a library becomes one
SettingsError. Models are checked in `model_checks`.
"""

import contextlib
import importlib
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from unittest import mock

import msgspec

from rm_assets.addresses import mask_credentials
from rm_assets.settings import SettingsError

Kind = TypeVar("Kind")
CONFIGURATION = "config.json"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_FAST = "tokenizer.json"
_OF_TOKENIZER = "tokenizer_config.json"
_GET_AGAIN = "download the files again, or have save_pretrained of transformers write them"
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


class _Model(msgspec.Struct):
    vocab: Any = None


class _FastTokenizer(msgspec.Struct):
    """What is checked of tokenizer.json, in half the time of reading all of it."""

    model: _Model = msgspec.field(default_factory=_Model)
    added_tokens: Any = None
    normalizer: Any = None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises SettingsError if it holds none."""
    return _read(path, dict[str, Any])


def _read(path: Path, kind: type[Kind]) -> Kind:
    check_content(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        refuse(path, f"not a JSON object that can be read ({shown(error)})")


def check_content(path: Path) -> None:
    """Raise SettingsError if a file is empty, or Git left a pointer to its content in its place."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
    except OSError as error:
        refuse(path, f"cannot be read ({shown(error)})")
    if begin == _LFS_POINTER:
        raise SettingsError(
            f"{path.name!r} in {str(path.parent)!r}: a Git LFS pointer, not the file itself; run `git lfs install` and "
            "`git lfs pull` there"
        )
    if not begin:
        refuse(path, "an empty file")


def refuse(path: Path, problem: str) -> NoReturn:
    """Raise SettingsError about a file; the cure is to get or write it again."""
    raise SettingsError(f"{path.name!r} in {str(path.parent)!r}: {problem}; {_GET_AGAIN}")


def shown(error: BaseException) -> str:
    """An error's class and message on one line of limited length, without credentials."""
    text = mask_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]}…"


def reraise_unless_of_a_library(error: BaseException) -> None:
    """Raise again what stops a run, but not a panic of Rust code, which is not an `Exception` either."""
    if isinstance(error, MemoryError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        raise error


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a directory or Hub name, loaded by transformers; raises SettingsError if that fails."""
    _list_models_once()
    _keep_torch_unloaded()
    from transformers import AutoTokenizer, dynamic_module_utils

    # Classes that load other tokenizers drop trust_remote_code and ask at the terminal, unless the time to answer is 0.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    if Path(name).is_dir():
        check_tokenizer_files(Path(name))
    with tokenizer_errors(name):
        return AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)


def _list_models_once() -> None:
    """Keep transformers from reading all its modules twice, for what they define: 0.4 s of a processor.

    It lists them for `transformers` and again for `transformers.models`, which gets the first list here. A transformers
    that keeps no such list is left as it is.
    """
    if "transformers.models" in sys.modules:
        return
    import transformers
    from transformers.utils import import_utils

    listed = getattr(transformers, "_import_structure", {})
    models = {name.removeprefix("models."): names for name, names in listed.items() if name.startswith("models.")}
    if models:
        with mock.patch.object(import_utils, "define_import_structure", lambda _: {frozenset(): models}):
            importlib.import_module("transformers.models")


class _TorchWhenUsed(types.ModuleType):
    """Replaces torch in a module that imports it and may never use it; imports torch for the first attribute."""

    def __init__(self, user: types.ModuleType) -> None:
        super().__init__("torch")
        self._user = user

    def __getattr__(self, name: str) -> Any:
        torch = importlib.import_module("torch")  # the import that transformers would have done; none of ours
        vars(self._user)["torch"] = torch
        return getattr(torch, name)


def _keep_torch_unloaded() -> None:
    """Keep transformers' configurations from loading torch, which no tokenizer needs: 1.8 s of a processor.

    Of all that AutoTokenizer imports, one module imports torch, for the rotary embeddings of models. It gets torch when
    it uses it. A process that has loaded torch, or a transformers without that module, is left as it is.
    """
    if "torch" in sys.modules or "transformers.modeling_rope_utils" in sys.modules:
        return
    import transformers.utils

    with mock.patch.object(transformers.utils, "is_torch_available", lambda: False), contextlib.suppress(ImportError):
        from transformers import modeling_rope_utils

        vars(modeling_rope_utils)["torch"] = _TorchWhenUsed(modeling_rope_utils)


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
        problem = f"its files do not load ({shown(error)}); {_GET_AGAIN}"
        if asks_for_code(Path(name)):
            problem = "auto_map asks for code of its own, which is never run: give a tokenizer that transformers knows"
        raise SettingsError(f"tokenizer (or RM_TOKENIZER) is {name!r}: {problem}") from None


def asks_for_code(directory: Path) -> bool:
    """Whether a tokenizer names a class of its own code; transformers may have a class that does as well."""
    path = directory / _OF_TOKENIZER
    return path.is_file() and "auto_map" in read_json(path)


def check_tokenizer_files(directory: Path) -> int | None:
    """Raise SettingsError, which names the file, if one of a tokenizer's files must not be loaded.

    Returns one more than the largest id in tokenizer.json; None where there is no such file.
    """
    for path in (directory / _OF_TOKENIZER, directory / CONFIGURATION):
        found = read_json(path) if path.is_file() else {}
        name = found.get("tokenizer_class")
        if name is not None and not (isinstance(name, str) and _TOKENIZER_CLASS.fullmatch(name)):
            refuse(path, f"tokenizer_class is {name!r}, not the name of a tokenizer's class")
        check_counts(path, found)
        check_names_no_other(path, found)
    ids_by_file = {directory / name: ids for name, ids in _ids(directory)}
    num_tokens = sum(len(ids) for ids in ids_by_file.values())
    num_tokens += sum((directory / name).stat().st_size for name in _NO_COUNT if (directory / name).is_file())
    for path, ids in ids_by_file.items():
        _check_ids(path, ids, 2 * num_tokens + _SPARE_IDS)
    return 1 + max(ids_by_file[fast], default=-1) if (fast := directory / _FAST) in ids_by_file else None


def check_names_no_other(path: Path, found: dict[str, Any]) -> None:
    """Refuse a file by which some versions of transformers would read other files than those checked here."""
    for name, checked in (("fast_tokenizer_files", _FAST), ("configuration_files", CONFIGURATION)):
        if name in found:
            refuse(path, f"{name} names other files than {checked}, which is the one to read")


def check_counts(path: Path, configuration: dict[str, Any]) -> None:
    """Refuse large counts: reading the file makes lists of such lengths, whatever the weights are."""
    for name, value in values_in(configuration):
        limit = next((most for pattern, most in _MOST.items() if re.search(pattern, name)), None)
        if limit is not None and isinstance(value, int | float) and not -limit <= value <= limit:
            refuse(path, f"{name} is {short(value)}, more than {limit}")


def values_in(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value below an object, with its name."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
        waiting += found.values() if isinstance(found, dict) else found if isinstance(found, list) else []


def _check_normalizer(path: Path, normalizer: Any) -> None:
    """Refuse a normalizer that makes texts many times longer: out of memory, the library aborts the process."""
    growth = 1.0
    waiting = [normalizer]
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
        refuse(path, f"its normalizer may make texts {growth:.0f} times as long, more than {_MAX_GROWTH} times")


def _check_ids(path: Path, ids: list[Any], limit: int) -> None:
    for number in ids:
        if type(number) is not int or not 0 <= number < limit:
            refuse(path, f"the id {short(number)} is not a whole number from 0 to {limit - 1}, for so many tokens")


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _ids(directory: Path) -> Iterator[tuple[str, list[Any]]]:
    """The ids in each file of a tokenizer; not yet checked to be numbers."""
    if (path := directory / _FAST).is_file():
        definition = _read(path, _FastTokenizer)
        _check_normalizer(path, definition.normalizer)
        yield _FAST, _fast_ids(path, definition)
    if (path := directory / _OF_TOKENIZER).is_file():
        added = read_json(path).get("added_tokens_decoder", {})
        if not isinstance(added, dict):
            refuse(path, f"added_tokens_decoder is {short(added)}, not an object from ids to tokens")
        yield _OF_TOKENIZER, [int(name) if re.fullmatch(r"[0-9]{1,20}", name) else name for name in added]
    for name in ("added_tokens.json", "vocab.json"):
        if (path := directory / name).is_file():
            yield name, list(read_json(path).values())


def _fast_ids(path: Path, definition: _FastTokenizer) -> list[Any]:
    vocabulary, added = definition.model.vocab, definition.added_tokens or []
    if not isinstance(vocabulary, dict | list):
        refuse(path, "model.vocab is neither an object from tokens to ids nor a list of tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) and "id" in token for token in added):
        refuse(path, "added_tokens is not a list of objects with an id")
    numbers: Iterable[Any] = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return [*numbers, *(token["id"] for token in added)]
