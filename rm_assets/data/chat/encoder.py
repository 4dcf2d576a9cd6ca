"""Fast tokenization, verified token by token against transformers.

The fast backend is `fastokens` (https://github.com/crusoecloud/fastokens), built from the loaded tokenizer's own
definition. It is used if it loads and passes a self-test (`encoder_self_test`); a sample of every shard is then encoded
again by the reference, transformers' own tokenizer. After one difference it is off for the process, and the reference
encodes the shard again.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rm_assets.data.chat import encoder_self_test
from rm_assets.data.chat.encoder_self_test import self_test_texts, self_tested
from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.chat.pretrained import reraise_unless_of_a_library, tokenizer_errors
from rm_assets.data.chat.tokenizer import id_rows, load_chat_tokenizer, sample_rows
from rm_assets.data.compute.interruptible import interruptible
from rm_assets.data.storage.fingerprint import fingerprint

FAST, REFERENCE = "fastokens", "tokenizers"
NUM_SAMPLED_IDS = 8_192
"""Ids of a shard's first batch that the reference checks: one wrong in a thousand is missed once in 3,600 shards."""
NUM_SAMPLED_LATER = 1_024
"""The same for each later batch of the shard."""

_THREADS = "FASTOKENS_BPE_THREADS"
"""Environment variable with the fast backend's threads; 1 if unset, as each shard already has a core of its own."""
_CHUNK = 512
"""Texts that the reference holds as Python lists at a time."""
_CHUNK_CHARACTERS = 2**20
"""Characters of all these texts, unless a single one is longer: the reference needs some 200 bytes for each."""

Ids = np.ndarray[Any, np.dtype[np.int32]]
Offsets = np.ndarray[Any, np.dtype[np.int64]]


class EncodingError(ValueError):
    """The reference itself cannot encode a text; `row` is its index among the texts."""

    def __init__(self, row: int, detail: str) -> None:
        super().__init__(f"the tokenizer fails on text {row} of the shard: {detail}")
        self.row, self.detail = row, detail


class FastTokenizer(Protocol):
    """A fast backend: little-endian uint32 ids of all texts, and their uint64 offsets."""

    def encode_batch_flat(
        self, inputs: list[str], add_special_tokens: bool = False, split_special_tokens: bool = False
    ) -> tuple[bytes, bytes]:
        """Flat ids and offsets of a batch."""


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """Ids of all texts of a shard: text i has `ids[offsets[i]:offsets[i + 1]]`.

    `detail` says why the ids of the fast backend were discarded, or is empty.
    """

    ids: Ids
    offsets: Offsets
    backend: str
    detail: str = ""


class Encoder:
    """A tokenizer with a fast backend and the reference; `reason` says why the fast one is off, or is empty."""

    def __init__(self, reference: Any, fast: FastTokenizer | None, reason: str, is_control: Any) -> None:
        self.reference = reference
        self.is_control: np.ndarray[Any, np.dtype[np.bool_]] = is_control
        self.reason = reason
        self._fast = fast

    @property
    def backend(self) -> str:
        """The backend in force, `fastokens` or `tokenizers`."""
        return REFERENCE if self._fast is None else FAST

    def turn_off(self, reason: str) -> None:
        """Use the reference from now on, in this process."""
        self._fast, self.reason = None, reason

    def encode_batch(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """Ids of all texts, int32 [tokens], and their offsets, int64 [texts + 1]; nothing is added, cut or padded."""
        if self._fast is None:
            return self.reference_encode(texts)
        split = bool(getattr(self.reference, "split_special_tokens", False))
        encode = functools.partial(self._fast.encode_batch_flat, add_special_tokens=False, split_special_tokens=split)
        ids, offsets = interruptible(lambda: encode(texts))
        return np.frombuffer(ids, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64)

    def reference_encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """The same by transformers' own tokenizer; raises EncodingError where that fails."""
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        parts = [np.empty(0, dtype=np.int32)]
        start = 0
        for chunk in _chunks(texts):
            rows = self._reference_rows(chunk, start)
            lengths = [len(row) for row in rows]
            offsets[start + 1 : start + 1 + len(rows)] = lengths
            parts.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32, sum(lengths)))
            start += len(chunk)
        return np.concatenate(parts), np.cumsum(offsets)

    def _reference_rows(self, texts: list[str], first: int) -> list[list[int]]:
        try:
            return id_rows(self.reference, texts)
        except BaseException as error:
            reraise_unless_of_a_library(error)
        for number, text in enumerate(texts):
            try:
                id_rows(self.reference, [text])
            except BaseException as error:
                reraise_unless_of_a_library(error)
                raise EncodingError(first + number, type(error).__name__) from None
        raise EncodingError(first, "a batch fails, but each of its texts by itself does not")


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in order, in lists as long as `_CHUNK` and `_CHUNK_CHARACTERS` allow."""
    chunk: list[str] = []
    num_characters = 0
    for text in texts:
        if chunk and (len(chunk) == _CHUNK or num_characters + len(text) > _CHUNK_CHARACTERS):
            yield chunk
            chunk, num_characters = [], 0
        chunk.append(text)
        num_characters += len(text)
    if chunk:
        yield chunk


# --- loading -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def load_encoder(files: TokenizerFiles, cache_directory: Path | None = None) -> Encoder:
    """The encoder of these files, loaded once per process.

    The self-test takes a second or two. Its result is kept in `cache_directory`, by the hash of the tokenizer and the
    versions of the libraries; with None every process runs it.
    """
    chat = load_chat_tokenizer(files)
    with tokenizer_errors(files.directory):
        control = [chat.reference.convert_tokens_to_ids(token) for token in chat.control_tokens]
        is_control = np.zeros(max([files.num_tokens, *(number + 1 for number in control)]), dtype=np.bool_)
        is_control[control] = True
        return new_encoder(chat.reference, is_control, fastokens_tokenizer, cache_directory)


def new_encoder(
    reference: Any, is_control: Any, build: Callable[[str], FastTokenizer], cache_directory: Path | None
) -> Encoder:
    """An encoder whose fast backend is built from the tokenizer's definition and has passed the self-test."""
    if not getattr(reference, "is_fast", False):
        return Encoder(reference, None, "the tokenizer is written in Python and has no definition to load", is_control)
    definition = tokenizer_definition(reference)
    try:
        encoder = Encoder(reference, build(definition), "", is_control)
        versions = [version(name) for name in ("fastokens", "tokenizers", "transformers")]
    except ImportError as error:
        return Encoder(reference, None, f"fastokens is not installed ({error})", is_control)
    except BaseException as error:
        reraise_unless_of_a_library(error)
        return Encoder(reference, None, f"fastokens does not load this tokenizer: {error}", is_control)
    split = bool(getattr(reference, "split_special_tokens", False))
    key = fingerprint(encoder_self_test.VERSION, definition, split, versions)
    difference = self_tested(key, cache_directory, lambda: self_test_difference(encoder))
    if difference:
        encoder.turn_off(f"fastokens failed the self-test: {difference}")
    return encoder


def self_test_difference(encoder: Encoder) -> str:
    """The first text of the self-test that both backends encode differently, in words; empty if there is none."""
    try:
        texts = list(self_test_texts(encoder.reference))
        ids, offsets = encoder.encode_batch(texts)
    except BaseException as error:
        reraise_unless_of_a_library(error)
        return f"it fails with {type(error).__name__}"
    return sample_difference(encoder, texts, ids, offsets, range(len(texts)))


def tokenizer_definition(reference: Any) -> str:
    """The loaded tokenizer as `tokenizer.json` would hold it, neither cutting nor padding.

    transformers may have changed what the file says.
    """
    backend = reference.backend_tokenizer
    definition: str = backend.to_str()
    if backend.truncation is None and backend.padding is None:
        return definition
    return json.dumps(json.loads(definition) | {"truncation": None, "padding": None}, ensure_ascii=False)


def fastokens_tokenizer(definition: str) -> FastTokenizer:
    """The fast backend; raises ImportError or ValueError if it cannot load this tokenizer."""
    os.environ.setdefault(_THREADS, "1")  # read when the library is loaded
    import fastokens

    tokenizer: FastTokenizer = fastokens.Tokenizer.from_json_str(definition)
    return tokenizer


# --- one shard -----------------------------------------------------------------------------------------------


def encode_shard(encoder: Encoder, texts: Sequence[str], num_sampled_ids: int = NUM_SAMPLED_IDS) -> EncodedTexts:
    """Ids of a shard's texts: those of the fast backend if the reference agrees on a sample of the texts.

    So many texts are sampled as have about `num_sampled_ids` ids, but none of more than a million characters, which
    would take the reference seconds and hundreds of megabytes. After a difference the fast backend is off for the
    process; where it merely fails, only this shard is encoded by the reference. Raises EncodingError for a text that
    the reference cannot encode either.
    """
    if encoder.backend == REFERENCE:
        return _by_reference(encoder, texts, "")
    try:
        ids, offsets = encoder.encode_batch(list(texts))
    except BaseException as error:
        reraise_unless_of_a_library(error)
        return _by_reference(encoder, texts, f"fastokens failed on a shard: {type(error).__name__}")
    num_sampled = 1 + len(texts) * num_sampled_ids // max(len(ids), 1)
    sample = [row for row in sample_rows(len(texts), num_sampled) if len(texts[row]) <= _CHUNK_CHARACTERS]
    if difference := sample_difference(encoder, texts, ids, offsets, sample):
        encoder.turn_off(f"fastokens differed from the reference: {difference}")
        return _by_reference(encoder, texts, encoder.reason)
    return EncodedTexts(ids=ids, offsets=offsets, backend=FAST)


def _by_reference(encoder: Encoder, texts: Sequence[str], detail: str) -> EncodedTexts:
    ids, offsets = encoder.reference_encode(texts)
    return EncodedTexts(ids=ids, offsets=offsets, backend=REFERENCE, detail=detail)


def sample_difference(encoder: Encoder, texts: Sequence[str], ids: Ids, offsets: Offsets, rows: Iterable[int]) -> str:
    """The first sampled text whose ids are not the reference's, in words without the text; empty if all agree."""
    if len(offsets) != len(texts) + 1 or (len(offsets) and offsets[-1] != len(ids)):
        return f"{len(texts)} texts have {len(offsets) - 1} rows of ids"
    chosen = list(rows)
    try:
        expected, expected_offsets = encoder.reference_encode([texts[row] for row in chosen])
    except EncodingError as error:
        raise EncodingError(chosen[error.row], error.detail) from None
    for number, row in enumerate(chosen):
        own = ids[offsets[row] : offsets[row + 1]]
        theirs = expected[expected_offsets[number] : expected_offsets[number + 1]]
        if not np.array_equal(own, theirs):
            return f"text {row} of {len(texts)} has {len(own)} ids, the reference gives {len(theirs)} or other ones"
    return ""


def control_counts(encoder: Encoder, ids: Ids, offsets: Offsets) -> Offsets:
    """How many control tokens each text holds, int64 [texts].

    If there are more than the template itself writes, some content forged one.
    """
    places = np.flatnonzero(encoder.is_control[ids])
    return np.diff(np.searchsorted(places, offsets))
