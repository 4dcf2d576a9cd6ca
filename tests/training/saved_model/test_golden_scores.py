import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy_pairs import PAD, VOCAB_SIZE
from transformers import AutoTokenizer, BloomConfig, BloomForSequenceClassification

from rm_assets.training.jobs.result import GOLDEN, clear_output
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.reward_model import load_model
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model.golden_scores import (
    CONVERSATIONS,
    NUM_CONVERSATIONS,
    GoldenScoresError,
    read_golden_scores,
    verify_golden_scores,
    write_golden_scores,
)
from rm_assets.training.saved_model.stock_scoring import load_saved_model, sequence_logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory, job_in):
    """The model directory of a finished job."""
    job = job_in(tmp_path_factory.mktemp("golden"))
    clear_output(Path(job.output_directory))
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    return Path(job.output_directory) / "model"


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def verified(directory, **options):
    return verify_golden_scores(directory, load_saved_model(directory), **options)


def verified_in(dtype, directory):
    return verify_golden_scores(directory, load_saved_model(directory, dtype))


def test_twenty_conversations_stand_in_the_file_with_text_ids_and_score(trained):
    golden = read_golden_scores(trained)
    assert len(golden["conversations"]) == 20
    assert len({item["score"] for item in golden["conversations"]}) > 5
    for item in golden["conversations"]:
        assert item["text"] == "".join(f"{message['content']} <end>" for message in item["messages"])
        assert item["ids"][-1] == 1
    assert (golden["eos_token"], golden["ends_with_eos"], golden["begins_with_bos"]) == ("<end>", True, False)
    assert (golden["pad_token"], golden["add_special_tokens"], golden["last_tokens"]) == ("<pad>", False, ["<end>"])
    assert len(golden["chat_template_sha256"]) == 64


def test_without_a_limit_of_positions_texts_of_more_tokens_than_characters_are_kept(copy):
    """BLOOM's configuration has no limit, and with a token per byte, a character of another script takes several."""
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    every_byte = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
    ]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": every_byte}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=PAD)
    write_golden_scores(copy, BloomForSequenceClassification(config).eval())
    written = read_golden_scores(copy)["conversations"]
    assert [item["messages"] for item in written] == list(CONVERSATIONS[:NUM_CONVERSATIONS])
    assert any(len(item["ids"]) > len(item["text"]) for item in written)


def test_a_conversation_with_a_token_that_has_no_embedding_is_left_out(copy):
    """As where tokens were added to the tokenizer, and the embeddings not resized."""
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["owls", "river"])
    tokenizer.save_pretrained(copy)
    write_golden_scores(copy, load_model(copy))
    texts = [item["text"] for item in read_golden_scores(copy)["conversations"]]
    assert len(texts) == 20
    assert not [text for text in texts if "owls" in text or "river" in text]
    verified(copy)


def test_the_difference_in_bfloat16_is_that_of_its_scores(trained):
    golden = read_golden_scores(trained)
    differences = [abs(item["score"] - item["bfloat16_score"]) for item in golden["conversations"]]
    assert golden["largest_bfloat16_difference"] == max(differences) > 0
    saved = load_saved_model(trained, torch.bfloat16)
    found = verify_golden_scores(trained, saved, tolerance=float("inf"))
    assert found == max(differences)


def test_what_rotary_positions_are_computed_from_is_not_rounded_where_a_server_would_not(copy):
    in_bfloat16 = {name: buffer.dtype for name, buffer in load_saved_model(copy, torch.bfloat16).model.named_buffers()}
    model = load_model(copy)
    write_golden_scores(copy, model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == in_bfloat16
    assert torch.float32 in in_bfloat16.values()


def test_the_tolerance_has_room_for_another_order_of_adding_and_none_for_bfloat16(trained):
    golden = read_golden_scores(trained)
    assert golden["tolerance"] == max(1e-5, 0.01 * golden["largest_bfloat16_difference"])
    exact = load_saved_model(trained, torch.float64)
    assert verify_golden_scores(trained, exact, tolerance=golden["tolerance"] / 10) > 0
    with pytest.raises(GoldenScoresError, match="the score of conversation"):
        verified_in(torch.bfloat16, trained)


def test_a_model_whose_scores_are_large_has_a_tolerance_to_match(copy):
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] *= 1000
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    write_golden_scores(copy, load_model(copy))
    assert read_golden_scores(copy)["tolerance"] > 1e-3
    assert verified(copy, batch_size=20, padding="left") > 1e-5


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_another_batch_size_and_padding_side_verify_as_well(trained, batch_size, padding):
    assert verified(trained, batch_size=batch_size, padding=padding) <= 1e-5


# Any ids, the pad token's 0 among them, and the end token, which is no padding.
SEQUENCES = st.lists(st.integers(0, 39), min_size=1, max_size=30).map(lambda ids: [*ids, 1])


@settings(max_examples=20, deadline=None)
@given(
    sequences=st.lists(
        st.lists(st.integers(0, 39), min_size=1, max_size=30).map(lambda ids: [*ids, 1]), min_size=1, max_size=6
    ),
    batch_size=st.integers(1, 7),
    padding=st.sampled_from(["right", "left"]),
    min_width=st.integers(0, 60),
)
def test_no_batch_padding_or_length_changes_a_score(trained, sequences, batch_size, padding, min_width):
    saved = load_saved_model(trained)
    alone = [sequence_logits(saved, [ids], 1)[0] for ids in sequences]
    assert sequence_logits(saved, sequences, batch_size, padding, min_width) == pytest.approx(alone, abs=1e-5)


def test_a_changed_template_is_detected(copy):
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(GoldenScoresError, match="does not reproduce its golden scores: chat_template_sha256 is"):
        verified(copy)


def test_a_template_that_writes_another_text_is_detected_though_its_hash_was_changed_too(copy):
    saved = load_saved_model(copy)
    saved.tokenizer.chat_template = saved.tokenizer.chat_template.replace(" <end>", "<end>")
    golden = json.loads((copy / GOLDEN).read_text())
    with pytest.raises(GoldenScoresError, match="chat_template_sha256 is") as raised:
        verify_golden_scores(copy, saved)
    golden["chat_template_sha256"] = str(raised.value).split("'")[3]
    (copy / GOLDEN).write_text(json.dumps(golden))
    with pytest.raises(GoldenScoresError, match="the text of conversation 1 is"):
        verify_golden_scores(copy, saved)


def test_another_vocabulary_is_detected(copy):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["What"] = vocabulary.pop("w7")
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(GoldenScoresError, match=r"the ids of conversation 1 is .* not"):
        verified(copy)


def test_another_pad_token_is_detected(copy):
    saved = load_saved_model(copy)
    saved.tokenizer.pad_token = "<end>"
    with pytest.raises(GoldenScoresError, match="pad_token is '<end>', not '<pad>'"):
        verify_golden_scores(copy, saved)


def test_changed_weights_are_detected(copy):
    weights = load_file(copy / "model.safetensors")
    weights["score.weight"] += 0.001
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(GoldenScoresError, match="the score of conversation 1 is"):
        verified(copy)


DAMAGES = {
    "ids as text": {"ids": ["1"]},
    "negative ids": {"ids": [-1]},
    "huge ids": {"ids": [10**30]},
    "no ids": {"ids": []},
    "a score as text": {"score": "1"},
    "messages that are none": {"messages": 5},
    "messages that are numbers": {"messages": [5]},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_conversation_of_other_types_is_a_damage_of_the_file(copy, name):
    golden = json.loads((copy / GOLDEN).read_text())
    golden["conversations"][1] |= DAMAGES[name]
    (copy / GOLDEN).write_text(json.dumps(golden))
    with pytest.raises(GoldenScoresError, match=r"golden_scores.json in .* is damaged: .*conversations\[1\]"):
        verified(copy)


def test_a_conversation_that_the_template_refuses_is_told(copy):
    template = "{{ raise_exception('no user') }}"
    (copy / "chat_template.jinja").write_text(template)
    golden = json.loads((copy / GOLDEN).read_text())
    golden["chat_template_sha256"] = hashlib.sha256(template.encode()).hexdigest()
    (copy / GOLDEN).write_text(json.dumps(golden))
    with pytest.raises(GoldenScoresError, match=r"conversation 1: the chat template refuses it \(no user\)"):
        verified(copy)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"tolerance": "1", "conversations": []}',
        "\x00",
        None,
        "{",
        "[]",
        "{}",
        '{"tolerance": 1, "conversations": [{}]}',
    ],
)
def test_a_missing_or_damaged_file_is_a_clear_error(copy, content):
    (copy / GOLDEN).unlink()
    if content is not None:
        (copy / GOLDEN).write_text(content)
    with pytest.raises(GoldenScoresError, match=r"no golden_scores|is damaged"):
        verified(copy)


def test_a_directory_without_a_reward_model_is_a_clear_error(tmp_path):
    with pytest.raises(TrainingError, match="no reward model can be loaded from"):
        load_saved_model(tmp_path)


def test_the_card_tells_how_to_load_the_model_and_what_it_was_made_of(trained):
    card = (trained / "README.md").read_text()
    for word in ("snapshot-1", "learning_rate", "test_accuracy", "golden_scores.json` holds 20", "bfloat16"):
        assert word in card
    for library in ("from transformers import", "from trl import", "from vllm import"):
        assert library in card


@pytest.mark.parametrize("tools", [None, [{"name": "tool"}]])
def test_a_model_of_a_tokenizer_with_several_templates_has_the_one_it_was_trained_on(job_in, tmp_path, tools):
    job = job_in(tmp_path)
    tokenizer = Path(shutil.copytree(job.tokenizer, tmp_path / "tokenizer"))
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates" / "tool_use.jinja").write_text("w9")
    directory = Path(job.output_directory) / "model"
    train_and_publish(job.model_copy(update={"tokenizer": str(tokenizer)}), SINGLE_PROCESS, TrainingLog())
    assert verified(directory) == 0
    stock = AutoTokenizer.from_pretrained(directory)
    assert stock.apply_chat_template([{"role": "user", "content": "w7"}], tools=tools, tokenize=False) == "w7 <end>"
