"""Chat templates on small tokenizers: exact ids, control tokens, the padding token, and what a template leaves out."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rm_assets.data.chat.model_files import TokenizerFiles, find_tokenizer
from rm_assets.data.chat.pair_rendering import flatten_pair, lost_parts, require_no_control_tokens
from rm_assets.data.chat.tokenizer import (
    ChatTokenizer,
    TemplateError,
    encode,
    load_chat_tokenizer,
    reference_ids,
    render,
    with_frozen_date,
)
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.settings import Settings, SettingsError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, REPLY = {"role": "user", "content": "two words"}, {"role": "assistant", "content": "three more words"}
NO = {"role": "assistant", "content": "no"}
SYSTEM = {"role": "system", "content": "be brief"}


def chat_tokenizer(directory: Path, template: str, **options: Any) -> ChatTokenizer:
    """A tokenizer of bytes with ChatML's tokens, and this template; `options` go to the tokenizer."""
    characters = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=characters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = options.pop("special", ["<|pad|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(["<turn>", "<think>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return load_chat_tokenizer(find_tokenizer(Settings(tokenizer=str(directory))))


def test_a_batch_of_texts_has_the_ids_of_apply_chat_template(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path, CHATML, pad_token="<|pad|>")
    conversations = [[USER, REPLY], [SYSTEM, USER, REPLY, {"role": "user", "content": " naïve 漢字\n\n "}, REPLY]]
    texts = [render(chat, conversation, "") for conversation in conversations]
    for conversation, ids in zip(conversations, encode(chat, texts), strict=True):
        assert ids.tolist() == reference_ids(chat, conversation, "")
    assert encode(chat, []) == []


def test_control_tokens_are_the_special_ones_and_those_written_around_a_users_message(tmp_path: Path) -> None:
    template = "{% for m in messages %}<turn>{{ m.role }}{{ m.content }}{% endfor %}<think>"
    chat = chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    assert set(chat.control_tokens) == {"<|pad|>", "<|im_start|>", "<|im_end|>", "<turn>"}
    require_no_control_tokens(chat, {"chosen": [{"role": "assistant", "content": "<think>hm</think> <| turn"}]}, "")
    with pytest.raises(PreferenceError) as error:
        require_no_control_tokens(chat, {"prompt": [], "chosen": [USER, {"role": "tool", "content": "a<turn>b"}]}, "")
    assert error.value.detail == "'<turn>' in message 2 of chosen"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pad_token": "<|pad|>"}, "<|pad|>"),
        ({"pad_token": "<|im_end|>"}, "<|im_start|>"),  # it ends every conversation
        ({}, "<|im_start|>"),
    ],
)
def test_the_padding_token_never_ends_a_conversation(tmp_path: Path, options: dict[str, str], expected: str) -> None:
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    special = ["<|im_start|>", "<|im_end|>"]
    chat = chat_tokenizer(tmp_path, template, special=special, **options)
    assert chat.reference.convert_ids_to_tokens(chat.pad_token_id) == expected


LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|image_pad|>", "<|reserved_special_token_0|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]
COMPOSED = "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}{{ eos_token }}{% endfor %}"
WITH_TOOLS = CHATML + "{% if tools %}<|call|>{{ tools[0].function.name }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "special", "options", "expected"),
    [
        (
            LLAMA,
            [*LLAMA_TOKENS, "<|finetune_right_pad_id|>"],
            {"bos_token": "<|begin_of_text|>"},
            "<|finetune_right_pad_id|>",
        ),
        (LLAMA, LLAMA_TOKENS, {"bos_token": "<|begin_of_text|>"}, "<|reserved_special_token_0|>"),
        (
            LLAMA,
            LLAMA_TOKENS,
            {"bos_token": "<|begin_of_text|>", "pad_token": "<|eot_id|>"},
            "<|reserved_special_token_0|>",
        ),
        (LLAMA, LLAMA_TOKENS, {"bos_token": "<|begin_of_text|>", "pad_token": "<|end_of_text|>"}, "<|end_of_text|>"),
        (LLAMA, LLAMA_TOKENS[:3] + LLAMA_TOKENS[4:], {"bos_token": "<|begin_of_text|>"}, "<|end_of_text|>"),
        (CHATML, ["<s>", "<|im_start|>", "<|im_end|>", "<x>"], {"bos_token": "<s>"}, "<x>"),
        (CHATML, ["<|im_start|>", "<|im_end|>"], {"bos_token": "<s>"}, "<s>"),
        (COMPOSED, ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|x|>"], {"eos_token": "<|end|>"}, "<|x|>"),
        (WITH_TOOLS, ["<|call|>", "<|im_start|>", "<|im_end|>", "<|x|>"], {"pad_token": "<|call|>"}, "<|x|>"),
    ],
)
def test_the_padding_token_is_one_that_the_template_never_writes(
    tmp_path: Path, template: str, special: list[str], options: dict[str, str], expected: str
) -> None:
    chat = chat_tokenizer(tmp_path, template, special=special, **options)
    assert chat.reference.convert_ids_to_tokens(chat.pad_token_id) == expected
    for conversation in ([USER, REPLY], [SYSTEM, USER, REPLY, USER, REPLY]):
        assert chat.pad_token_id not in reference_ids(chat, conversation, "")


@pytest.mark.parametrize(
    ("template", "special"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", ["<|im_end|>"]),
        (CHATML, ["<|im_start|>", "<|im_end|>"]),
        (LLAMA, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    ],
)
def test_a_tokenizer_whose_special_tokens_are_all_written_has_no_padding_token(
    tmp_path: Path, template: str, special: list[str]
) -> None:
    with pytest.raises(SettingsError, match=r"no special token is free to serve as padding.*; add one by add_special"):
        chat_tokenizer(tmp_path, template, special=special)


def test_the_token_of_unknown_text_pads_only_where_no_text_is_unknown(tmp_path: Path) -> None:
    def files(name: str, **options: Any) -> TokenizerFiles:
        vocabulary = {
            token: number
            for number, token in enumerate(["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))])
        }
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", **options))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>")
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
        tokenizer.save_pretrained(tmp_path / name)
        return find_tokenizer(Settings(tokenizer=str(tmp_path / name)))

    assert load_chat_tokenizer(files("bytes", byte_fallback=True)).pad_token_id == 0
    with pytest.raises(SettingsError, match="no special token is free to serve as padding"):
        load_chat_tokenizer(files("letters"))


def test_a_template_that_asks_for_the_day_gets_the_one_in_the_settings(tmp_path: Path) -> None:
    template = "\n{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
    chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    files = find_tokenizer(Settings(tokenizer=str(tmp_path), template_date="2024-02-29"))
    assert render(load_chat_tokenizer(files), [USER, REPLY], "").startswith("\n29 Feb 2024<|im_start|>")
    assert with_frozen_date("\n" + CHATML, "2024-02-29") == "\n" + CHATML
    assert files.identity != find_tokenizer(Settings(tokenizer=str(tmp_path))).identity


@pytest.mark.parametrize(
    "call", ["strftime_now ('%Y')", "strftime_now(\n'%Y')", "strftime_now('%' '')[:0] ~ strftime_now('%Y')"]
)
def test_no_spelling_of_the_call_tells_today(tmp_path: Path, call: str) -> None:
    chat_tokenizer(tmp_path, "{{ " + call + " }}" + CHATML, pad_token="<|pad|>")
    files = find_tokenizer(Settings(tokenizer=str(tmp_path), template_date="1999-02-03"))
    assert render(load_chat_tokenizer(files), [USER, REPLY], "").startswith("1999<|im_start|>")


@pytest.mark.parametrize(
    "use",
    [
        "{% set now = strftime_now %}{{ now('%Y') }}",
        "{{ strftime_now('%' ~ 'Y') }}",
        "{{ strftime_now(format='%Y') }}",
        "{{ strftime_now(*['%Y']) }}",
        "{{ [strftime_now][0]('%Y') }}",
        "{{ messages[0].role | default(strftime_now('%Y') ~ strftime_now) }}",
    ],
)
def test_a_template_that_may_tell_today_is_refused(use: str) -> None:
    with pytest.raises(SettingsError, match="its output would depend on the day"):
        with_frozen_date(use + CHATML, "2024-02-29")


def test_prompt_and_reply_make_the_whole_conversation_where_the_template_rewrites_earlier_turns(tmp_path: Path) -> None:
    # Like Qwen3: the last reply is written with an empty thought, so the prompt alone renders differently.
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think>\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    other = {"role": "assistant", "content": "three other words"}
    flat = flatten_pair(chat, {"prompt": [USER], "chosen": [REPLY], "rejected": [other]}, "")
    assert flat.prompt == "<|im_start|>user\ntwo words<|im_end|>\n<|im_start|>assistant\n"
    assert flat.prompt + flat.chosen == render(chat, [USER, REPLY], "")
    assert flat.prompt + flat.rejected == render(chat, [USER, other], "")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = '[{"type":"function","function":{"name":"add","parameters":{"type":"object","properties":{}}}}]'


def test_a_message_tool_list_or_call_that_leaves_no_trace_is_told(tmp_path: Path) -> None:
    template = CHATML.replace("messages %}", "messages if m.role != 'system' %}", 1)
    chat = chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    assert lost_parts(chat, [USER, REPLY], "") == ()
    assert lost_parts(chat, [SYSTEM, USER, REPLY], "") == ("message 1",)
    assert lost_parts(chat, [USER, REPLY], TOOLS) == ("the tools",)
    called = {"role": "assistant", "content": "let me see", "tool_calls": [CALL]}
    assert lost_parts(chat, [USER, called], "") == ("tool call 1 of message 2",)
    with pytest.raises(PreferenceError) as error:
        flatten_pair(chat, {"prompt": [SYSTEM, USER], "chosen": [REPLY], "rejected": [NO]}, "")
    assert error.value.reason == Reason.MESSAGE_LOST


def test_a_template_that_refuses_says_why_only_in_its_own_words(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}" + CHATML
    )
    chat = chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    with pytest.raises(PreferenceError) as error:
        flatten_pair(chat, {"prompt": [SYSTEM, USER], "chosen": [REPLY], "rejected": [NO]}, "")
    assert (error.value.reason, error.value.detail) == (Reason.TEMPLATE_ERROR, "no system message, please")
    spying = chat_tokenizer(
        tmp_path / "b", "{{ raise_exception(messages[0].content) if messages | length > 4 }}" + CHATML
    )
    with pytest.raises(PreferenceError) as error:
        flatten_pair(spying, {"prompt": [USER, REPLY] * 2 + [USER], "chosen": [REPLY], "rejected": [NO]}, "")
    assert error.value.detail == "the template fails with TemplateError"


@pytest.mark.parametrize(
    ("written", "detail"),
    [
        ("raise_exception('Unknown role: ' ~ messages[0].role ~ ' here')", "Unknown role: …"),
        ("raise_exception('It\\'s not\\nallowed')", "It's not allowed"),
        ("raise_exception('x' * 9000)", "the template fails with TemplateError"),
        ("messages[0].content + none", 'the template fails: can only concatenate str (not "NoneType") to str'),
        ("messages[0].gone.further", "the template fails: 'dict object' has no attribute 'gone'"),
        ("{}[messages[0].content].further", "the template fails with UndefinedError"),
        ("messages[0].content | abs", "the template fails: bad operand type for abs(): 'str'"),
    ],
)
def test_what_a_template_fails_with_is_told_without_the_text_of_the_row(
    tmp_path: Path, written: str, detail: str
) -> None:
    template = f"{{{{ {written} if messages | length > 4 }}}}{CHATML}"
    chat = chat_tokenizer(tmp_path, template, pad_token="<|pad|>")
    with pytest.raises(PreferenceError) as error:
        flatten_pair(chat, {"prompt": [USER, REPLY] * 2 + [USER], "chosen": [REPLY], "rejected": [NO]}, "")
    assert (error.value.reason, error.value.detail) == (Reason.TEMPLATE_ERROR, detail)


def test_a_tool_that_is_no_object_is_told(tmp_path: Path) -> None:
    chat = chat_tokenizer(tmp_path, CHATML, pad_token="<|pad|>")
    with pytest.raises(TemplateError, match="each tool must be an object"):
        render(chat, [USER, REPLY], '["add"]')


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{{ ''.__class__.__mro__ }}", "the template fails with SecurityError"),
        ("{{ (''|attr('__class__')).__mro__ }}", "the template fails with SecurityError"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "the template fails with SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('touch run') }}", "the template fails with SecurityError"),
        ("{{ lipsum.__globals__['os'].system('touch run') }}", "the template fails: 'lipsum' is undefined"),
        ("{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}", "the template fails with SecurityError"),
        ("{{ messages.append(messages[0]) }}", "the template fails with SecurityError"),
        ("{{ messages[0].update({'content': 'x'}) }}", "the template fails with SecurityError"),
        ("{% include '/etc/passwd' %}", "the template fails: no loader for this environment specified"),
        ("{% import '/etc/passwd' as x %}", "the template fails: no loader for this environment specified"),
        ("{% for i in range(10**9) %}x{% endfor %}", "the template fails with OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the template fails with RecursionError"),
    ],
)
def test_a_template_that_reaches_for_more_than_a_conversation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        chat_tokenizer(tmp_path / "t", written + CHATML, pad_token="<|pad|>")
    file = tmp_path / "t" / "chat_template.jinja"
    told = f"the template of {str(file)!r} cannot render a conversation of a user message and a reply"
    assert str(error.value) == f"chat_template (or RM_CHAT_TEMPLATE): {told}: {problem}"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
