"""The built-in tokenizer, model configuration and training settings, as Hugging Face and we read them."""

import json

import jinja2
import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rm_assets.settings import SAMPLE
from rm_assets.settings_loading import load_settings

QUESTION = [{"role": "user", "content": "How do I poach an egg?"}]
REPLY = [{"role": "assistant", "content": "Keep the water just below the boil."}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE / "tokenizer")


def test_the_tokenizer_has_its_control_tokens(tokenizer):
    assert len(tokenizer) == 1500
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["Rinse the rice.", "  two\n\nlines\t", "怎么煮面？", "naïve 🙂 \x00"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_conversation_reads_as_chatml_and_ends_with_the_end_token(tokenizer):
    system = [{"role": "system", "content": "Be brief."}]
    assert tokenizer.apply_chat_template(system + QUESTION + REPLY, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow do I poach an egg?<|im_end|>\n"
        "<|im_start|>assistant\nKeep the water just below the boil.<|im_end|>"
    )


def test_a_prompt_is_the_beginning_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(QUESTION + REPLY, tokenize=False)
    assert whole == prompt + REPLY[0]["content"] + "<|im_end|>"


def test_white_space_of_a_message_is_kept(tokenizer):
    message = {"role": "user", "content": "\n  def f():\n    pass\n\n"}
    rendered = tokenizer.apply_chat_template([message], tokenize=False)
    assert rendered == "<|im_start|>user\n\n  def f():\n    pass\n\n<|im_end|>"


def test_tools_calls_and_their_results_are_shown(tokenizer):
    function = {"name": "clock", "description": "The time.", "parameters": {"type": "object"}}
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "12:00"},
    ]
    tools = [{"type": "function", "function": function}]
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == (
        "<|im_start|>system\nTools that may be called:\n" + json.dumps(tools[0]) + "<|im_end|>\n"
        "<|im_start|>user\nHow do I poach an egg?<|im_end|>\n"
        '<|im_start|>assistant\n\n<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>'
        "<|im_end|>\n<|im_start|>tool\n12:00<|im_end|>"
    )


def test_reasoning_is_shown_before_its_answer(tokenizer):
    thought = [{"role": "assistant", "reasoning_content": "Eggs like calm water.", "content": "Keep it calm."}]
    assert tokenizer.apply_chat_template(QUESTION + thought, tokenize=False) == (
        "<|im_start|>user\nHow do I poach an egg?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nEggs like calm water.\n</think>\n\nKeep it calm.<|im_end|>"
    )


def test_an_unknown_role_is_an_error(tokenizer):
    with pytest.raises(jinja2.TemplateError, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Once upon a time"}], tokenize=False)


@pytest.mark.parametrize("vocab_size", [1500, 151_936])
def test_the_configuration_builds_a_tiny_model_at_any_vocabulary_size(vocab_size):
    config = AutoConfig.from_pretrained(SAMPLE / "model", num_labels=1)
    config.vocab_size = vocab_size
    model = AutoModelForSequenceClassification.from_config(config)
    assert model.num_parameters() - vocab_size * config.hidden_size < 500_000
    assert config.pad_token_id == 0
    assert config.max_position_embeddings >= 32_768


def test_the_tokenizer_beside_a_saved_model_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(SAMPLE / "model").save_pretrained(tmp_path)
    text = "It's 12345 o'clock, 怎么 煮?\n\n\tHere we go  again"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.get_chat_template() == tokenizer.get_chat_template()


def test_without_other_data_or_model_the_training_settings_of_the_sample_hold():
    given = json.loads((SAMPLE / "training.json").read_text())
    assert given.items() <= load_settings({}, {}).training.model_dump().items()
    assert load_settings({"annotations": "mine.jsonl"}, {}).training.learning_rate is None
