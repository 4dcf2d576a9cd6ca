"""The tokenizer and the model of the settings, found and checked by their files, without loading them.

A name that is not a directory is looked up on the Hugging Face Hub. Only small files are fetched; the training job
fetches the weights. Every mistake is a SettingsError before any work.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rm_assets.data.chat.model_checks import (
    ADAPTER,
    INDEX,
    VALUE_HEAD,
    WEIGHTS,
    check_model_files,
    check_trainable,
    no_weights,
    raise_no_model,
)
from rm_assets.data.chat.pretrained import (
    CONFIGURATION,
    asks_for_code,
    check_content,
    check_tokenizer_files,
    load_tokenizer,
    read_json,
)
from rm_assets.data.storage.fingerprint import files_fingerprint, fingerprint
from rm_assets.settings import PLAIN_TEMPLATE, SAMPLE, Settings, SettingsError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "additional_chat_templates/default.jinja",
)
_MODEL = "model (or RM_MODEL)"

# One user message and one reply, separated by an empty line; no token is added.
PLAIN_TEMPLATE_TEXT = (
    "{%- if messages | length > 2 or messages[0].role != 'user' -%}"
    "{{ raise_exception('the plain template holds one user message and one reply') }}{%- endif -%}"
    "{{ messages[0].content + '\\n\\n' }}{%- if messages | length == 2 -%}{{ messages[1].content }}{%- endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """A tokenizer on disk. `chat_template` is a template's text that replaces the tokenizer's own, or None.

    `identity` hashes everything that decides the ids of a conversation: the files, the template, the date a template
    may ask for, and the versions of the libraries that read them. `template_file` names the template in errors.
    """

    directory: str
    chat_template: str | None
    template_date: str
    num_tokens: int
    identity: str
    template_file: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on disk or on the Hub. A toy is a configuration alone, built with random weights at `vocab_size`.

    `directory` has at least its small files.
    """

    name: str
    directory: str
    revision: str | None
    toy: bool
    vocab_size: int
    identity: str


def find_tokenizer(settings: Settings) -> TokenizerFiles:
    """The tokenizer and chat template of the settings; raises SettingsError if one is missing or invalid."""
    setting, name = _tokenizer_setting(settings)
    is_model = settings.tokenizer is None and settings.model is not None
    directory = _directory(name, setting, [CONFIGURATION, *_TOKENIZER_FILES], is_model=is_model)
    files = [directory / file for file in _TOKENIZER_FILES if (directory / file).is_file()]
    # AutoTokenizer reads the model's type in config.json, too, to choose the tokenizer's class.
    files += [directory / CONFIGURATION] if files and (directory / CONFIGURATION).is_file() else []
    if not files:
        raise SettingsError(f"{setting} is {name!r}: no tokenizer there; set tokenizer (or RM_TOKENIZER)")
    with _named(setting, name):
        for file in files:
            check_content(file)
        content, num_tokens = _content(_stamps(files))
    template = _chat_template(settings)
    if template is None and not _has_chat_template(directory):
        raise SettingsError(
            f"{setting} is {name!r}: this tokenizer has no chat template; set chat_template (or RM_CHAT_TEMPLATE) to "
            f"the path of a Jinja template, or to {PLAIN_TEMPLATE!r} for single-turn pairs"
        )
    date = settings.template_date.isoformat()
    libraries = [version("transformers"), version("tokenizers")]
    return TokenizerFiles(
        directory=str(directory),
        chat_template=template,
        template_date=date,
        num_tokens=num_tokens,
        identity=fingerprint(content, template, date, libraries),
        template_file=settings.chat_template or str(directory / _template_file(directory)),
    )


def find_base_model(settings: Settings) -> ModelFiles | None:
    """The model to train as the setting names it, or None; raises SettingsError if its files are not those of one."""
    if settings.model is None:
        return None
    small_files = [CONFIGURATION, ADAPTER, f"*{INDEX}", f"{VALUE_HEAD}.*"]
    directory = _directory(settings.model, _MODEL, small_files, is_model=True)
    is_local = Path(settings.model).expanduser().is_dir()
    files = [directory / CONFIGURATION, *(directory.glob(f"*{WEIGHTS}") if is_local else ())]
    others = [path for pattern in small_files for path in directory.glob(pattern)]
    with named_model(settings.model):
        configuration = _checked_model(directory, is_local, _stamps([*files, *others]))
        text_part = configuration.get("text_config")
        vocab_size = configuration.get("vocab_size") or (isinstance(text_part, dict) and text_part.get("vocab_size"))
        if type(vocab_size) is not int or vocab_size < 1:
            raise SettingsError(f"its {CONFIGURATION} has no vocab_size: give a language model such as Qwen3")
        on_hub = [] if is_local else _hub_files(settings.model, directory.name)
        if on_hub and not any(name.endswith(WEIGHTS) and "/" not in name for name in on_hub):
            raise SettingsError(no_weights(on_hub, settings.model))
    revision = None if is_local else directory.name  # the Hub's cache names a snapshot by its commit
    return ModelFiles(
        name=str(directory) if is_local else settings.model,
        directory=str(directory),
        revision=revision,
        toy=False,
        vocab_size=vocab_size,
        identity=fingerprint(_files_identity(_stamps(files)), revision),
    )


def toy_model(tokenizer: TokenizerFiles) -> ModelFiles:
    """The built-in tiny configuration, at the tokenizer's vocabulary size."""
    directory = SAMPLE / "model"
    vocab_size = tokenizer.num_tokens
    identity = fingerprint(files_fingerprint([directory / CONFIGURATION]), vocab_size)
    return ModelFiles(
        name=str(directory),
        directory=str(directory),
        revision=None,
        toy=True,
        vocab_size=vocab_size,
        identity=identity,
    )


def _tokenizer_setting(settings: Settings) -> tuple[str, str]:
    if settings.tokenizer is not None:
        return "tokenizer (or RM_TOKENIZER)", settings.tokenizer
    if settings.model is not None:
        return _MODEL, settings.model
    return "the built-in tokenizer", str(SAMPLE / "tokenizer")


def _directory(name: str, setting: str, patterns: list[str], *, is_model: bool) -> Path:
    """A local directory, or one of the Hub's cache with the files of these patterns."""
    path = Path(name).expanduser()
    if not (is_local := _holds(path.is_dir)):
        if name.startswith((".", "/", "~")) or name.count("/") != 1 or _holds(path.exists):
            raise SettingsError(f"{setting} is {name!r}: no such directory, and not a name on the Hub (owner/name)")
        path = _hub_snapshot(name, setting, patterns)
    if is_model and not (path / CONFIGURATION).is_file():
        with _named(setting, name):
            raise_no_model(path)
    return path.resolve() if is_local else path  # the name of a snapshot in the Hub's cache is its commit


def _hub_snapshot(name: str, setting: str, patterns: list[str]) -> Path:
    """The files of these patterns of a model on the Hub, in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        problem = "the Hub asks to accept its license; do so on its page there, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        problem = "no such directory, and the Hub has no such repository, or a private one; correct the name, or log in"
        problem += " with `hf auth login`"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        problem = f"no such directory, and the Hub did not give it ({type(error).__name__}); give a local path, or try "
        problem += "again when the Hub can be reached"
    raise SettingsError(f"{setting} is {name!r}: {problem}")


def _hub_files(name: str, revision: str) -> list[str]:
    """The files of a model on the Hub; empty if it does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(name, revision=revision)
    except Exception:  # of several libraries; the training job fails if it cannot get the weights
        return []


def _holds(question: Callable[[], bool]) -> bool:
    """The answer to a question about a path; False on an OSError, as of a name that is too long or a failing disk."""
    try:
        return question()
    except OSError:
        return False


def _chat_template(settings: Settings) -> str | None:
    if settings.chat_template is None:
        return None
    if settings.chat_template == PLAIN_TEMPLATE:
        return PLAIN_TEMPLATE_TEXT
    path = Path(settings.chat_template).expanduser()
    try:
        if path.is_file():  # a device such as /dev/zero has no end
            return path.read_text(encoding="utf-8")
        problem = "not a regular file" if path.exists() else "no such file"
    except (OSError, UnicodeDecodeError) as error:
        problem = type(error).__name__
    raise SettingsError(
        f"chat_template (or RM_CHAT_TEMPLATE) is {settings.chat_template!r}: neither {PLAIN_TEMPLATE!r} nor the "
        f"path of a template that can be read ({problem})"
    )


def _template_file(directory: Path) -> str:
    names = ("chat_template.jinja", "chat_template.json")
    return next((name for name in names if (directory / name).is_file()), "tokenizer_config.json")


def _has_chat_template(directory: Path) -> bool:
    if _template_file(directory) != "tokenizer_config.json":
        return True
    configuration = directory / "tokenizer_config.json"
    return configuration.is_file() and bool(read_json(configuration).get("chat_template"))


def named_model(name: str) -> contextlib.AbstractContextManager[None]:
    """Name the setting `model` and its value in errors about the model's files."""
    return _named(_MODEL, name)


@contextlib.contextmanager
def _named(setting: str, value: str) -> Iterator[None]:
    """Name the setting in errors about the files that it points to."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"{setting} is {value!r}: {error}") from None


def _stamps(files: list[Path]) -> tuple[tuple[str, int, int], ...]:
    found = [(file, file.stat()) for file in files if file.exists()]  # not a symbolic link whose target is gone
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in found)


@functools.lru_cache(maxsize=8)
def _files_identity(stamps: tuple[tuple[str, int, int], ...]) -> str:
    return files_fingerprint(Path(name) for name, *_ in stamps)


@functools.lru_cache(maxsize=8)
def _checked_model(directory: Path, has_weights: bool, stamps: tuple[tuple[str, int, int], ...]) -> dict[str, Any]:
    """The configuration of a model that can be trained by its files; the stamps only key this cache."""
    configuration = check_model_files(directory, has_weights=has_weights)
    check_trainable(directory, configuration)
    return configuration


@functools.lru_cache(maxsize=8)
def _content(stamps: tuple[tuple[str, int, int], ...]) -> tuple[str, int]:
    """Hash of the files, and one more than the largest id; the stamps only key this cache."""
    paths = [Path(name) for name, *_ in stamps]
    directory = paths[0].parent
    num_tokens = check_tokenizer_files(directory)
    if num_tokens is None or asks_for_code(directory):  # only loading it gives the number
        loaded = load_tokenizer(str(directory)).get_vocab().values()
        num_tokens = num_tokens or 1 + max(int(number) for number in loaded)
    return files_fingerprint(paths), num_tokens
