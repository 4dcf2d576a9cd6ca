"""Real pairs under real tokenizers: every id by the fast ways is the one that `apply_chat_template` gives."""

import itertools
from pathlib import Path

import pytest
from support import rows, silent

from rm_assets.data.chat.encoder import encode_shard, load_encoder
from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import SIDES
from rm_assets.data.chat.tokenizer import TemplateError, load_chat_tokenizer, message_dict, reference_ids, render
from rm_assets.data.stages.flattening import publish_flattened
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.tokenization import publish_tokenized
from rm_assets.data.stages.validation import publish_validated
from rm_assets.settings import Settings

SHARED = Path(__file__).parents[3].parent / "shared"
FILES = sorted((SHARED / "data").glob("*.jsonl"))
TOKENIZERS = {"qwen3": "fastokens", "gpt2-chatml": "fastokens", "tekken": "fastokens", "minilm-wordpiece": "tokenizers"}


@pytest.mark.soak
@pytest.mark.skipif(not FILES, reason="no real pairs beside the checkout")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_id_of_real_pairs_is_that_of_apply_chat_template(name: str, settings: Settings, tmp_path: Path) -> None:
    template = "plain" if name == "minilm-wordpiece" else None  # it has none of its own, and holds single turns only
    files = find_tokenizer(Settings(tokenizer=str(SHARED / "tokenizers" / name), chat_template=template))
    chat, encoder = load_chat_tokenizer(files), load_encoder(files)
    assert encoder.backend == TOKENIZERS[name], encoder.reason
    num_texts = num_written = num_pairs = num_one_by_one = 0
    for path in FILES:
        given = {"annotations": str(path), "storage": str(tmp_path / path.stem), "max_length": 2**20}
        own = settings.model_copy(update=given)
        validated = publish_validated(own, publish_raw(own, silent), silent)
        texts, expected, ids = [], [], {}
        for row in rows(validated):
            for side in SIDES:
                messages = [message_dict(message) for message in row["prompt"] + row[side]]
                tools = row["tools"] or ""
                try:
                    expected.append(reference_ids(chat, messages, tools))
                except TemplateError:
                    with pytest.raises(TemplateError):
                        render(chat, messages, tools)
                    continue
                texts.append(render(chat, messages, tools))
                ids[row["pair_id"], side] = expected[-1]
        shard = encode_shard(encoder, texts)
        assert [shard.ids[start:end].tolist() for start, end in itertools.pairwise(shard.offsets)] == expected
        assert (shard.backend, shard.detail) == (TOKENIZERS[name], "")
        num_texts += len(texts)
        flattened = publish_flattened(own, files, validated, silent)
        num_pairs += flattened.manifest.total("num_in")
        num_one_by_one += flattened.manifest.total("num_one_by_one") - flattened.manifest.num_rows(rejects=True)
        for row in rows(publish_tokenized(own, files, validated, flattened, silent)):
            assert [row[f"{side}_ids"] for side in SIDES] == [ids[row["pair_id"], side] for side in SIDES]
            num_written += len(SIDES)
    assert num_texts >= num_written > 2_000
    assert num_one_by_one < num_pairs * 0.1  # beside those that the template refuses
