"""Prompts that are encoded once for both sides: a cut changes no id, whatever tokens a tokenizer has added."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rm_assets.data.chat.encoder import Encoder, encode_shard, fastokens_tokenizer, load_encoder, tokenizer_definition
from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.shared_prompts import WholeSides, cut_pairs, cut_tokens, encode_cut_pairs
from rm_assets.settings import SAMPLE, Settings

LETTERS = "<>ab \n"
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def tokenizer_with(added: list[AddedToken], kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of few letters, which merges all pairs of them, so that most cuts show."""
    letters = [*pre_tokenizers.ByteLevel.alphabet(), "▁"]
    merges = [(left, right) for left in "<>abĠĊ▁" for right in "<>abĠĊ▁"]
    vocabulary = {token: number for number, token in enumerate([*letters, *(left + right for left, right in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.decoder = decoders.ByteLevel()
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix space")
    if kind == "normalizers":
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    backend.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


tokens = st.builds(
    lambda content, flags: AddedToken(content, **{flag: flag in flags for flag in FLAGS}),
    st.text(LETTERS, min_size=1, max_size=4).filter(lambda text: text.strip()),
    st.sets(st.sampled_from(FLAGS), max_size=2),
)


@given(
    st.lists(tokens, min_size=1, max_size=4, unique_by=lambda token: token.content),
    st.lists(st.text(LETTERS, max_size=4), min_size=2, max_size=6),
    st.sampled_from(["bytes", "prefix space", "metaspace", "normalizers"]),
)
def test_a_text_may_be_cut_before_the_tokens_that_are_named(
    added: list[AddedToken], parts: list[str], kind: str
) -> None:
    tokenizer = tokenizer_with(added, kind)
    named = cut_tokens(tokenizer)
    assert set(named) <= {token.content for token in added}
    for token in named:
        head, tail = "".join(parts[::2]), token + "".join(parts[1::2])
        assert ids_of(tokenizer, head) + ids_of(tokenizer, tail) == ids_of(tokenizer, head + tail)


@pytest.mark.parametrize(
    "added",
    [
        [AddedToken("<a>", normalized=True)],
        [AddedToken("<a>", normalized=False, lstrip=True)],
        [AddedToken("<a>", normalized=False, single_word=True)],
        [AddedToken("<a>", normalized=False), AddedToken("<a>b", normalized=False, lstrip=True)],
        [AddedToken("<a>", normalized=False), AddedToken("b<", normalized=False)],
        [AddedToken("<a>", normalized=False), AddedToken("b", normalized=False, single_word=True)],
        [AddedToken(" <a>", normalized=False), AddedToken("b", normalized=False, rstrip=True)],
    ],
)
def test_a_token_that_depends_on_what_stands_before_it_is_none_to_cut_at(added: list[AddedToken]) -> None:
    assert added[0].content not in cut_tokens(tokenizer_with(added, "bytes"))


def test_most_control_tokens_are_tokens_to_cut_at() -> None:
    plain = [AddedToken("<a>", normalized=False, special=True), AddedToken("<a>b", normalized=False)]
    assert cut_tokens(tokenizer_with(plain, "bytes")) == ("<a>", "<a>b")
    split = tokenizer_with(plain, "bytes")
    split.split_special_tokens = True
    assert cut_tokens(split) == ()
    assert "<|im_start|>" in cut_tokens(load_encoder(find_tokenizer(Settings())).reference)


OPENING = "<|im_start|>assistant\n"


def rendered(prompts: list[str]) -> pa.Table:
    return pa.table(
        {
            "prompt": prompts,
            "chosen": [f" {number} is right<|im_end|>" for number in range(len(prompts))],
            "rejected": [f"漢{number} is wrong<|im_end|>\n" for number in range(len(prompts))],
        }
    )


@pytest.mark.parametrize(
    "prompts",
    [
        [f"<|im_start|>user\nWhat is {number}?<|im_end|>\n{OPENING}" for number in range(9)],
        [OPENING, f"é{OPENING}", "no turn at all", "", f"漢 漢{OPENING}", "ends otherwise<|im_start|>"],
        [f"{OPENING}a prompt that goes on\n", f"{OPENING}and another one"],
    ],
)
def test_both_sides_of_cut_pairs_have_the_ids_of_whole_ones(prompts: list[str]) -> None:
    pytest.importorskip("fastokens")
    encoder, rows = load_encoder(find_tokenizer(Settings())), rendered(prompts)
    cut = cut_pairs(rows, cut_tokens(encoder.reference))
    assert cut is not None and cut.chosen[0].as_py().startswith("<|im_start|>")
    texts = [
        p + side for name in ("chosen", "rejected") for p, side in zip(prompts, rows[name].to_pylist(), strict=True)
    ]
    assert list(WholeSides(rows)) == texts == WholeSides(rows)[:] and len(WholeSides(rows)) == len(texts)
    for own, whole in zip(encode_cut_pairs(encoder, cut), encoder.encode_batch(texts), strict=True):
        assert np.array_equal(own, whole)


def test_what_stands_before_the_cut_is_encoded_once() -> None:
    rows = rendered(["a b<|im_end|>\n" + OPENING, "another ending"])
    cut = cut_pairs(rows, ("<|im_start|>", "<|im_end|>"))
    assert cut is not None
    assert cut.shared.to_pylist() == ["a b<|im_end|>\n", ""]
    assert cut.chosen.to_pylist() == [OPENING + " 0 is right<|im_end|>", "another ending 1 is right<|im_end|>"]
    assert cut_pairs(rows, ()) is None and cut_pairs(rows, ("[INST]",)) is None
    assert cut_pairs(rows.slice(0, 0), ("<|im_start|>",)) is None


def test_a_cut_that_changes_ids_is_found_out() -> None:
    pytest.importorskip("fastokens")
    reference = AutoTokenizer.from_pretrained(SAMPLE / "tokenizer")
    encoder = Encoder(reference, fastokens_tokenizer(tokenizer_definition(reference)), "", np.zeros(10_000, np.bool_))
    rows = rendered([f"What is the question{number} then" for number in range(50)])
    cut = cut_pairs(rows, ("est",))
    assert cut is not None
    shard = encode_shard(encoder, WholeSides(rows), encode=lambda: encode_cut_pairs(encoder, cut))
    assert shard.fell_back and encoder.backend == "tokenizers"
    expected, offsets = encoder.reference_encode(list(WholeSides(rows)))
    assert np.array_equal(shard.ids, expected) and np.array_equal(shard.offsets, offsets)
