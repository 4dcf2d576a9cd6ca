"""Ids of a fast backend are those of transformers, or are not used: loading, the self-test, the sample of a shard."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rm_assets.data.chat.encoder import (
    Encoder,
    EncodingError,
    FastTokenizer,
    control_counts,
    encode_shard,
    fastokens_tokenizer,
    load_encoder,
    new_encoder,
    tokenizer_definition,
)
from rm_assets.data.chat.encoder_self_test import fuzzed_texts, self_test_texts, self_tested
from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.tokenizer import load_chat_tokenizer, reference_ids, render, sample_rows
from rm_assets.settings import SAMPLE, Settings

USER, REPLY = {"role": "user", "content": "two words"}, {"role": "assistant", "content": "three more words"}
NO_CONTROL = np.zeros(10_000, dtype=np.bool_)
Result = tuple[bytes, bytes]


class Double:
    """A fast backend made of the reference, whose results a test may spoil."""

    def __init__(self, reference: Any, spoil: Callable[[np.ndarray, np.ndarray], None] = lambda ids, offsets: None):
        self.encoder = Encoder(reference, None, "", NO_CONTROL)
        self.spoil = spoil

    def encode_batch_flat(
        self, inputs: list[str], add_special_tokens: bool = False, split_special_tokens: bool = False
    ) -> Result:
        ids, offsets = self.encoder.reference_encode(inputs)
        self.spoil(ids, offsets)
        return ids.tobytes(), offsets.tobytes()


@pytest.fixture
def reference() -> Any:
    return AutoTokenizer.from_pretrained(SAMPLE / "tokenizer")


def texts_of(count: int) -> list[str]:
    return [f"<|im_start|>user\nWhat is {n} plus {n}?<|im_end|>\n" + "and so on " * (n % 7) for n in range(count)]


# --- the backends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
def test_both_ways_give_the_ids_of_apply_chat_template(fast: bool, tmp_path: Path) -> None:
    if fast:
        pytest.importorskip("fastokens")
    files = find_tokenizer(Settings())
    chat, encoder = load_chat_tokenizer(files), load_encoder(files, tmp_path)
    assert encoder.backend == "fastokens" or not fast
    conversations = [
        [USER, REPLY],
        [{"role": "user", "content": " naïve 漢字\n\n "}, {"role": "assistant", "content": ""}],
    ]
    texts = ["", *(render(chat, conversation, "") for conversation in conversations)]
    ids, offsets = encoder.encode_batch(texts) if fast else encoder.reference_encode(texts)
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    rows = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    assert rows == [[], *(reference_ids(chat, conversation, "") for conversation in conversations)]
    empty_ids, empty_offsets = encoder.encode_batch([]) if fast else encoder.reference_encode([])
    assert (empty_ids.tolist(), empty_offsets.tolist()) == ([], [0])


def test_fuzzed_texts_are_encoded_alike() -> None:
    compare_fuzzed_texts(seed=1, count=3_000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_fuzzed_texts_are_encoded_alike_for_long(seed: int) -> None:
    compare_fuzzed_texts(seed=seed, count=50_000)


def compare_fuzzed_texts(seed: int, count: int) -> None:
    pytest.importorskip("fastokens")
    encoder = load_encoder(find_tokenizer(Settings()))
    added = sorted(str(token) for token in encoder.reference.added_tokens_decoder.values())
    texts = list(fuzzed_texts(added, count, seed))
    for own, theirs in zip(encoder.encode_batch(texts), encoder.reference_encode(texts), strict=True):
        assert np.array_equal(own, theirs)


@pytest.mark.parametrize("character", ["a", " ", "\n", "0", "é", "猫", "\u0301", "\U0001f642"])
def test_a_long_run_of_one_character_is_encoded_alike(character: str) -> None:
    pytest.importorskip("fastokens")
    encoder = load_encoder(find_tokenizer(Settings()))
    texts = [character * 2**15, f"<|im_start|>user\n{character * 2**13}<|im_end|>"]
    for own, theirs in zip(encoder.encode_batch(texts), encoder.reference_encode(texts), strict=True):
        assert np.array_equal(own, theirs)


@given(st.lists(st.text(), max_size=20))
def test_any_texts_are_encoded_alike(texts: list[str]) -> None:
    pytest.importorskip("fastokens")
    encoder = load_encoder(find_tokenizer(Settings()))
    for own, theirs in zip(encoder.encode_batch(texts), encoder.reference_encode(texts), strict=True):
        assert np.array_equal(own, theirs)


def test_a_tokenizer_of_another_kind_is_encoded_by_the_reference() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "two": 1, "##s": 2, "word": 3}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    reference = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    encoder = new_encoder(reference, NO_CONTROL, fastokens_tokenizer, None)
    assert encoder.backend == "tokenizers"
    assert encoder.reason.startswith("fastokens ")
    shard = encode_shard(encoder, ["Two words", "xyz"])
    assert (shard.ids.tolist(), shard.offsets.tolist()) == ([1, 3, 2, 0], [0, 3, 4])
    assert (shard.backend, shard.detail) == ("tokenizers", "")


def test_a_tokenizer_that_cuts_and_pads_does_neither_here(reference: Any) -> None:
    pytest.importorskip("fastokens")
    reference.backend_tokenizer.enable_truncation(3)
    reference.backend_tokenizer.enable_padding(length=5)
    definition = json.loads(tokenizer_definition(reference))
    assert (definition["truncation"], definition["padding"]) == (None, None)
    encoder = new_encoder(reference, NO_CONTROL, fastokens_tokenizer, None)
    assert encoder.backend == "fastokens"
    for ids, offsets in (encoder.encode_batch(["a b c d e f", "a"]), encoder.reference_encode(["a b c d e f", "a"])):
        assert offsets[1] > 5
        assert offsets[2] - offsets[1] == 1
        assert len(ids) == offsets[2]


def test_control_tokens_in_texts_are_treated_as_the_tokenizer_says(reference: Any) -> None:
    pytest.importorskip("fastokens")
    reference.split_special_tokens = True  # control tokens in texts are text then
    encoder = new_encoder(reference, NO_CONTROL, fastokens_tokenizer, None)
    assert encoder.backend == "fastokens"
    ids, _ = encoder.encode_batch(["<|im_start|>"])
    assert len(ids) > 1
    assert ids.tolist() == encoder.reference_encode(["<|im_start|>"])[0].tolist()


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("2", "2")])
def test_the_fast_backend_has_one_thread_unless_the_user_says_otherwise(
    given: str | None, expected: str, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastokens")
    monkeypatch.setenv("FASTOKENS_BPE_THREADS", "")
    monkeypatch.delenv("FASTOKENS_BPE_THREADS") if given is None else monkeypatch.setenv("FASTOKENS_BPE_THREADS", given)
    fastokens_tokenizer(tokenizer_definition(reference))
    assert os.environ["FASTOKENS_BPE_THREADS"] == expected


# --- what goes wrong -----------------------------------------------------------------------------------------


def one_id_in_a_thousand(ids: np.ndarray, offsets: np.ndarray) -> None:
    ids[500::1000] ^= 1


def test_one_wrong_id_in_a_thousand_is_caught_and_the_shard_encoded_anew(reference: Any) -> None:
    encoder = Encoder(reference, Double(reference, one_id_in_a_thousand), "", NO_CONTROL)
    texts = texts_of(2_000)
    expected, expected_offsets = encoder.reference_encode(texts)
    assert not np.array_equal(encoder.encode_batch(texts)[0], expected)
    shard = encode_shard(encoder, texts)
    assert np.array_equal(shard.ids, expected)
    assert np.array_equal(shard.offsets, expected_offsets)
    assert (shard.backend, encoder.backend) == ("tokenizers", "tokenizers")
    assert shard.detail == encoder.reason
    assert "fastokens differed from the reference: text " in encoder.reason
    again = encode_shard(encoder, texts)
    assert (again.backend, again.detail) == ("tokenizers", "")


def test_one_wrong_id_in_a_thousand_fails_the_self_test(reference: Any) -> None:
    encoder = new_encoder(reference, NO_CONTROL, lambda _: Double(reference, one_id_in_a_thousand), None)
    assert encoder.backend == "tokenizers"
    assert "failed the self-test: text " in encoder.reason
    assert new_encoder(reference, NO_CONTROL, lambda _: Double(reference), None).backend == "fastokens"


def test_ids_in_rows_of_other_texts_are_caught(reference: Any) -> None:
    def shifted(ids: np.ndarray, offsets: np.ndarray) -> None:
        offsets[1:-1] += 1

    encoder = Encoder(reference, Double(reference, shifted), "", NO_CONTROL)
    assert encode_shard(encoder, texts_of(50)).detail


def test_an_honest_backend_is_kept(reference: Any) -> None:
    encoder = Encoder(reference, Double(reference), "", NO_CONTROL)
    shard = encode_shard(encoder, texts_of(300))
    assert (shard.backend, shard.detail) == ("fastokens", "")


class PanicException(BaseException):
    """Like pyo3's: no Exception."""


class Raising:
    """A fast backend that fails on every batch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def encode_batch_flat(
        self, inputs: list[str], add_special_tokens: bool = False, split_special_tokens: bool = False
    ) -> Result:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), PanicException("retry limit")])
def test_a_backend_that_fails_costs_that_shard_and_is_used_again(reference: Any, error: BaseException) -> None:
    encoder = Encoder(reference, Raising(error), "", NO_CONTROL)
    shard = encode_shard(encoder, ["a b"])
    assert np.array_equal(shard.ids, encoder.reference_encode(["a b"])[0])
    assert shard.detail == f"fastokens failed on a shard: {type(error).__name__}"
    assert encoder.backend == "fastokens"
    assert new_encoder(reference, NO_CONTROL, lambda _: Raising(error), None).backend == "tokenizers"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(1)])
def test_what_stops_a_run_is_not_swallowed(reference: Any, error: BaseException) -> None:
    with pytest.raises(type(error)):
        encode_shard(Encoder(reference, Raising(error), "", NO_CONTROL), ["a b"])


@pytest.mark.parametrize("error", [ImportError("none here"), ValueError("unknown model"), PanicException()])
def test_a_backend_that_does_not_load_is_said_and_not_used(reference: Any, error: BaseException) -> None:
    def build(definition: str) -> FastTokenizer:
        raise error

    encoder = new_encoder(reference, NO_CONTROL, build, None)
    assert encoder.backend == "tokenizers"
    assert str(error) in encoder.reason


def test_a_text_that_the_reference_cannot_encode_is_named_by_its_row(reference: Any) -> None:
    texts = [*texts_of(700), "a \ud800 surrogate alone", "b"]
    for fast in (None, Double(reference)):
        with pytest.raises(EncodingError, match="text 700 of the shard") as error:
            encode_shard(Encoder(reference, fast, "", NO_CONTROL), texts)
        assert error.value.row == 700


def test_a_text_that_only_the_fast_backend_encodes_is_named_where_it_is_sampled(reference: Any) -> None:
    class Lenient(Double):
        def encode_batch_flat(self, inputs: list[str], *arguments: Any, **options: Any) -> Result:
            return super().encode_batch_flat([text.replace("\ud800", "?") for text in inputs], *arguments, **options)

    encoder = Encoder(reference, Lenient(reference), "", NO_CONTROL)
    with pytest.raises(EncodingError) as error:
        encode_shard(encoder, [*texts_of(20), "a \ud800 surrogate alone"])
    assert error.value.row == 20


# --- the outcome of the self-test, kept ----------------------------------------------------------------------


def test_the_self_test_runs_once_per_tokenizer_and_versions(tmp_path: Path) -> None:
    runs: list[str] = []

    def test(outcome: str) -> Callable[[], str]:
        return lambda: runs.append(outcome) or outcome

    directory = tmp_path / "new"
    assert self_tested("a" * 64, directory, test("")) == ""
    assert self_tested("a" * 64, directory, test("not run")) == ""
    assert self_tested("b" * 64, directory, test("text 3 differs")) == "text 3 differs"
    assert self_tested("b" * 64, directory, test("not run")) == "text 3 differs"
    assert self_tested("a" * 64, None, test("")) == ""
    assert runs == ["", "text 3 differs", ""]
    [kept] = directory.glob("*" + "a" * 32 + ".json")
    kept.write_bytes(b'{"key":')
    assert self_tested("a" * 64, directory, test("once more")) == "once more"
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]  # nothing half written is left


def test_the_self_test_goes_through_every_token_and_added_tokens_in_context(reference: Any) -> None:
    texts = list(self_test_texts(reference))
    assert texts == list(self_test_texts(reference))
    present = set(texts)
    assert {reference.decode([number]) for number in range(len(reference))} <= present
    assert {"a<|im_start|>b", "<|im_start|><|im_start|>", "<|im_start| >", "<|im_start| |im_start|>"} & present
    planes = {ord(character) >> 16 for text in texts for character in text}
    assert planes == set(range(17))


# --- rows ----------------------------------------------------------------------------------------------------


def test_sampled_rows_are_spread_evenly() -> None:
    assert sample_rows(10, 4) == [0, 2, 5, 7]
    assert sample_rows(3, 64) == [0, 1, 2]
    assert sample_rows(0, 64) == []


def test_control_tokens_are_counted_per_text() -> None:
    encoder = load_encoder(find_tokenizer(Settings()))
    texts = ["", "<|im_start|>user\nhi<|im_end|>\n", "no token <|im_start", "<|im_end|>a<|im_end|>", "<|im_end|>", ""]
    shard = encode_shard(encoder, texts)
    assert control_counts(encoder, shard.ids, shard.offsets).tolist() == [0, 2, 0, 2, 1, 0]
