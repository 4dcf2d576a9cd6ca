"""Fast paths within their stages: whatever they get wrong is found out, and the shard made anew."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import plain_row, rejects, rows, run_stages, write_lines

from rm_assets.data.chat.encoder import Encoder, load_encoder
from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.template_renderer import Pieces, TemplateRenderer
from rm_assets.data.chat.tokenizer import load_chat_tokenizer
from rm_assets.data.stages import flattening, tokenization
from rm_assets.data.stages.flattening import publish_flattened
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.tokenization import publish_tokenized
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Ids = np.ndarray[Any, np.dtype[np.int32]]


@pytest.fixture
def many_rows(settings: Settings) -> Settings:
    """Enough rows for several row groups in a shard, one of them with a system message and tools."""
    tools = [{"type": "function", "function": {"name": "add", "description": "sum", "parameters": {}}}]
    extra = plain_row(5, tools=tools, system="Be brief.")
    write_lines(Path(settings.annotations_path) / "a.jsonl", [*map(plain_row, range(2_000)), extra])
    return settings


def prepared(settings: Settings, storage: str, said: list[str]) -> dict[Stage, Any]:
    """The first four stages on a storage of their own."""
    own = settings.model_copy(update={"storage": str(Path(settings.storage).with_name(storage))})
    files = find_tokenizer(own)
    raw = publish_raw(own, said.append)
    validated = publish_validated(own, raw, said.append)
    flattened = publish_flattened(own, files, validated, said.append)
    tokenized = publish_tokenized(own, files, validated, flattened, said.append)
    return dict(zip(Stage, (raw, validated, flattened, tokenized), strict=False))


class Spoilt:
    """A fast backend that is the reference, but for what a test does to its ids."""

    def __init__(self, reference: Any, spoil: Callable[[Ids], None]) -> None:
        self._reference = Encoder(reference, None, "", np.zeros(1, np.bool_))
        self._spoil = spoil

    def encode_batch_flat(
        self, inputs: list[str], add_special_tokens: bool = False, split_special_tokens: bool = False
    ) -> tuple[bytes, bytes]:
        ids, offsets = self._reference.reference_encode(inputs)
        self._spoil(ids)
        return ids.tobytes(), offsets.tobytes()


def one_in_a_thousand(ids: Ids) -> None:
    ids[500::1000] ^= 1


def test_a_backend_with_one_wrong_id_in_a_thousand_is_found_out_and_its_shard_encoded_anew(
    many_rows: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepared(many_rows, "expected", [])
    honest = load_encoder(find_tokenizer(many_rows))
    wrong = Encoder(honest.reference, Spoilt(honest.reference, one_in_a_thousand), "", honest.is_control)
    monkeypatch.setattr(tokenization, "load_encoder", lambda *_: wrong)
    said: list[str] = []
    found = prepared(many_rows, "found", said)
    assert found[Stage.TOKENIZED].name == expected[Stage.TOKENIZED].name
    [shard] = found[Stage.TOKENIZED].manifest.shards
    assert shard.stats["encoder"] == "tokenizers"
    assert "fastokens differed from the reference" in shard.stats["encoder_reason"]
    assert any("several times slower: fastokens differed" in line for line in said)


def test_a_wrong_rendering_is_found_out_and_its_shard_rendered_anew(
    many_rows: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(TemplateRenderer):
        """Writes a space too many in one of ten conversations."""

        def pieces_for(self, *arguments: Any, **options: Any) -> list[tuple[Pieces, Any]]:
            found = []
            for pieces, places in super().pieces_for(*arguments, **options):
                is_tenth = places % 10 == 0
                spoilt = dataclasses.replace(pieces, parts=(*pieces.parts, " "))
                found += [(pieces, places[~is_tenth]), (spoilt, places[is_tenth])]
            return found

    expected = prepared(many_rows, "expected", [])
    renderer = Wrong(load_chat_tokenizer(find_tokenizer(many_rows)))
    monkeypatch.setattr(flattening, "template_renderer", lambda _: renderer)
    said: list[str] = []
    found = prepared(many_rows, "found", said)
    assert found[Stage.FLATTENED].name == expected[Stage.FLATTENED].name
    [shard] = found[Stage.FLATTENED].manifest.shards
    assert (shard.stats["renderer"], shard.stats["num_one_by_one"]) == ("jinja", 2_001)
    assert any("many times slower" in line for line in said)


def test_fast_paths_are_taken_where_they_can_be(many_rows: Settings) -> None:
    stages = prepared(many_rows, "storage", [])
    [flattened] = stages[Stage.FLATTENED].manifest.shards
    [tokenized] = stages[Stage.TOKENIZED].manifest.shards
    assert (flattened.stats["renderer"], flattened.stats["num_one_by_one"]) == ("pieces", 1)
    assert (tokenized.stats["encoder"], tokenized.stats["encoder_reason"]) == ("fastokens", "")


def test_a_control_token_that_arises_where_message_and_template_meet_is_a_reject(settings: Settings) -> None:
    template = Path(settings.storage).parent / "open.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.content }}m_end|>{% endfor %}<|im_end|>")
    lines = [plain_row(1), plain_row(2, chosen="Three.<|i"), plain_row(3)]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    settings = settings.model_copy(update={"chat_template": str(template)})
    stages = run_stages(settings)
    assert rejects(stages[Stage.TOKENIZED]) == [("a.jsonl", 2, "control_token")]
    assert len(rows(stages[Stage.TOKENIZED])) == 2


class FailsOn42:
    """A tokenizer that breaks off on one word."""

    def __init__(self, reference: Any, error: type[BaseException]) -> None:
        self._reference, self._error = reference, error

    def __call__(self, texts: list[str], **options: Any) -> Any:
        if any("42" in text for text in texts):
            raise self._error
        return self._reference(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reference, name)


def test_a_conversation_that_the_tokenizer_fails_on_is_a_reject(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """What Rust code raises; no `Exception`."""

    honest = load_encoder(find_tokenizer(settings))
    encoder = Encoder(FailsOn42(honest.reference, PanicException), None, "", honest.is_control)
    monkeypatch.setattr(tokenization, "load_encoder", lambda *_: encoder)
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1), plain_row(42), plain_row(3)])
    stages = run_stages(settings)
    assert rejects(stages[Stage.TOKENIZED]) == [("a.jsonl", 2, "tokenizer_error")]
    assert len(rows(stages[Stage.TOKENIZED])) == 2


def test_a_backend_that_is_found_out_while_the_tokenizer_fails_on_a_row_is_told_of(settings: Settings) -> None:
    class Wrong:
        """A fast backend whose every text is one id."""

        def encode_batch_flat(self, inputs: list[str], **_: Any) -> tuple[bytes, bytes]:
            return np.zeros(len(inputs), np.uint32).tobytes(), np.arange(len(inputs) + 1, dtype=np.uint64).tobytes()

    honest = load_encoder(find_tokenizer(settings))
    prompts = ["Say it.<|im_end|>\n<|im_start|>assistant\n"] * 40
    pairs = pa.table({"prompt": prompts, "chosen": ["yes"] * 40, "rejected": ["no"] * 39 + ["42"]})
    encoder = Encoder(FailsOn42(honest.reference, ValueError), Wrong(), "", honest.is_control)
    encoded, failed = tokenization._encoded(encoder, pairs, 1)
    assert (encoded.backend, encoder.backend, list(failed)) == ("tokenizers", "tokenizers", [39])
    assert "fastokens differed from the reference" in encoder.reason
