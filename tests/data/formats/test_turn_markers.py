"""Turn markers in texts become messages, or a reject that names them; a text that quotes one is a text."""

import json
from typing import Any

import pytest
from parsed_rows import parse_row

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import Format, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.tables.reasons import MALFORMED, Reason

SECRET = "zebra"


def read(**row: Any) -> Preference:
    [preference] = parse_row(json.dumps(row))
    require_valid(preference)
    return preference


def written(preference: Preference) -> str:
    """The three parts of a pair, `u` before what the user says, `a` and `s` before the others' words."""
    parts = (preference.prompt, preference.chosen, preference.rejected)
    return " / ".join("|".join(f"{message.role[0]}:{message.content}" for message in part) for part in parts)


def refused(**row: Any) -> PreferenceError:
    assert simple_pair(json.dumps(row).encode()) is None
    with pytest.raises(PreferenceError) as error:
        read(**row)
    assert SECRET not in error.value.detail
    return error.value


# --- transcripts ---------------------------------------------------------------------------------------------

TRANSCRIPTS = {
    "both markers on one line": ("Human: Name a tree. Assistant:", " Fir.", " Cup."),
    "a space before them": (" Human: Name a tree. Assistant:", " Fir.", " Cup."),
    "each on its line": ("Human: Name a tree.\nAssistant:", " Fir.", " Cup."),
    "a space at the end": ("Human: Name a tree.\n\nAssistant: ", "Fir.", "Cup."),
    "carriage returns": ("\r\n\r\nHuman: Name a tree.\r\n\r\nAssistant:", " Fir.", " Cup."),
    "some carriage returns": ("Human: Name a tree.\r\n\r\nAssistant:", " Fir.", " Cup."),
    "the answer's marker in the replies": ("Human: Name a tree.", "\n\nAssistant: Fir.", "\n\nAssistant: Cup."),
    "the same without an empty line": ("Human: Name a tree.", "Assistant: Fir.", "Assistant: Cup."),
    "replies that repeat the prompt": (
        "Human: Name a tree. Assistant:",
        "Human: Name a tree. Assistant: Fir.",
        "\n\nHuman: Name a tree. Assistant: Cup.",
    ),
    "replies that repeat it after other white space": (
        "Human: Name a tree.\n\nAssistant:\n",
        "\n\nHuman: Name a tree.\n\nAssistant: Fir.",
        "Human: Name a tree.\n\nAssistant: Cup.",
    ),
    "replies that are transcripts beside a plain prompt": (
        "Name a tree.",
        "\n\nHuman: Name a tree.\n\nAssistant: Fir.",
        "\n\nHuman: Name a tree.\n\nAssistant: Cup.",
    ),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_is_read_however_its_markers_are_spaced(name: str) -> None:
    prompt, chosen, rejected = TRANSCRIPTS[name]
    assert written(read(prompt=prompt, chosen=chosen, rejected=rejected)) == "u:Name a tree. / a:Fir. / a:Cup."
    compared = read(prompt=prompt, response_a=rejected, response_b=chosen, label="B")
    assert written(compared) == "u:Name a tree. / a:Fir. / a:Cup."


def test_whole_transcripts_may_have_carriage_returns_and_only_the_markers_lose_them() -> None:
    sides = (f"\r\n\r\nHuman: Two\r\nlines?\r\n\r\nAssistant: {answer}\r\n" for answer in ("Yes.", "No."))
    assert (
        written(read(**dict(zip(("chosen", "rejected"), sides, strict=True))))
        == "u:Two\r\nlines? / a:Yes.\r\n / a:No.\r\n"
    )


def test_only_the_last_turn_may_have_both_markers_on_a_line() -> None:
    earlier = "\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman: Name a tree."
    for prompt in (f"{earlier} Assistant:", f"{earlier}\n\nAssistant:"):
        assert written(read(prompt=prompt, chosen=" Fir.", rejected=" Cup.")) == (
            "u:Hi.|a:Ho.|u:Name a tree. / a:Fir. / a:Cup."
        )


def test_a_prompt_as_a_transcript_stands_beside_replies_as_messages() -> None:
    replies = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    for prompt in (
        "\n\nHuman: q\n\nAssistant:",
        "Human: q Assistant: ",
        "<extra_id_1>User\nq\n<extra_id_1>Assistant\n",
    ):
        assert written(read(prompt=prompt, **replies)) == "u:q / a:chosen / a:rejected"
    assert refused(prompt="Human: a Assistant: b Human: c", **replies).reason == Reason.TURN_MARKERS
    assert refused(prompt="[INST] q [/INST]", **replies).reason == Reason.TURN_MARKERS


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Human: a Assistant: b Human: c Assistant:", "chosen": SECRET, "rejected": "d"},
        {"prompt": "Human: a\nAssistant: b\nHuman: c\nAssistant:", "chosen": SECRET, "rejected": "d"},
        {"prompt": "\n\nHuman: q", "chosen": SECRET, "rejected": "d"},
        {"prompt": "Human: p\n\nAssistant: q\n\nHuman: r", "chosen": SECRET, "rejected": "d"},
        {"prompt": "q", "chosen": f"\n\nAssistant: {SECRET}", "rejected": "\n\nAssistant: d"},
        {"chosen": f"Human: q Assistant: {SECRET}", "rejected": "Human: q Assistant: d"},
        {"chosen": f"Human: q\nAssistant: {SECRET}", "rejected": "Human: q\nAssistant: d"},
    ],
)
def test_a_transcript_that_cannot_be_parted_is_a_reject_that_names_the_markers(row: dict[str, str]) -> None:
    error = refused(**row)
    assert error.reason == Reason.TURN_MARKERS
    assert "`Human:` or `Assistant:` after an empty line" in error.detail


# --- NeMo's chat ---------------------------------------------------------------------------------------------

HELPSTEER = "Hi.\n<extra_id_1>Assistant\nHo.\n<extra_id_1>User\nName a tree."


@pytest.mark.parametrize(
    "prompt",
    [
        HELPSTEER,
        f"{HELPSTEER}\n<extra_id_1>Assistant",
        f"{HELPSTEER}\n<extra_id_1>Assistant\n",
        f"<extra_id_1>User\n{HELPSTEER}",
        f"<extra_id_0>System\n\n<extra_id_1>User\n{HELPSTEER}\n<extra_id_1>Assistant\n",
    ],
)
def test_nemos_marks_in_a_prompt_are_turns(prompt: str) -> None:
    expected = "u:Hi.|a:Ho.|u:Name a tree. / a:Fir. / a:Cup."
    plain = read(prompt=prompt, chosen="Fir.", rejected="Cup.\n<extra_id_1>")
    assert (plain.format, written(plain)) == (Format.TRANSCRIPT, expected)
    compared = read(prompt=prompt, response_1="Fir.", response_2="Cup.", preference_strength=-2)
    assert (written(compared), compared.margin) == (expected, 2.0)
    repeated = read(
        prompt=HELPSTEER, **{side: f"{HELPSTEER}\n<extra_id_1>Assistant\n{side}" for side in ("chosen", "rejected")}
    )
    assert written(repeated) == "u:Hi.|a:Ho.|u:Name a tree. / a:chosen / a:rejected"


def test_whole_conversations_in_nemos_chat_need_no_prompt() -> None:
    sides = {
        side: f"<extra_id_0>System\nBe brief.\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n{side}\n<extra_id_1>"
        for side in ("chosen", "rejected")
    }
    assert written(read(**sides)) == "s:Be brief.|u:q / a:chosen / a:rejected"


# --- other templates -----------------------------------------------------------------------------------------

MARKED = {
    "[INST]": "[INST] zebra [/INST]",
    "<<SYS>>": "<s><<SYS>> zebra",
    "<|begin_of_text|>": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nzebra",
    "<|start_header_id|>": "\n<|start_header_id|>user<|end_header_id|>\n\nzebra",
    "<|im_start|>": "<|im_start|>user\nzebra<|im_end|>\n<|im_start|>assistant\n",
    "<start_of_turn>": "<start_of_turn>user\nzebra<end_of_turn>\n",
    "<|user|>": "<|user|>\nzebra</s>\n<|assistant|>\n",
    "<｜User｜>": "<｜User｜>zebra<｜Assistant｜>",
    "### Human:": "### Human: zebra### Assistant:",
    "Below is an instruction that describes a task": "Below is an instruction that describes a task. zebra",
    "A chat between a curious user and": "A chat between a curious user and an assistant. USER: zebra ASSISTANT:",
    "GPT4 Correct User:": "GPT4 Correct User: zebra<|end_of_turn|>GPT4 Correct Assistant:",
    "USER:": "USER: zebra ASSISTANT:",
    "User:": "User: zebra\n\nAssistant:",
    "user:": "user: zebra\nassistant: ",
    "HUMAN:": "HUMAN: zebra ASSISTANT: yes HUMAN: no",
    "human:": "human: zebra\nAI:",
    "<|turn>": "<|turn>user\nzebra<turn|>",
    "### Instruction:": "Be brief.\n\n### Instruction:\nzebra\n\n### Response:\n",
    "Human:": "Be brief.\n\nHuman: zebra\n\nAssistant:",
    "<extra_id_1>Assistant": "<extra_id_1>Assistant\nzebra",
    "user": "user\nzebra\nassistant\n",
    "system": "system\nBe brief.\nuser\nzebra\nassistant",
    "<Human>:": "<Human>: zebra\n<Assistant>:",
    "<|start_of_role|>": "<|start_of_role|>user<|end_of_role|>zebra<|end_of_text|>",
    "<reserved_106>": "<reserved_106>zebra<reserved_107>",
}
MARKED_ALIKE = {
    "USER:": "Be brief. USER: zebra ASSISTANT:",
    "Human:": "<s>Human: zebra\n</s><s>Assistant: ",
}


@pytest.mark.parametrize(("marker", "prompt"), [*MARKED.items(), *MARKED_ALIKE.items()])
def test_a_prompt_in_the_markers_of_a_template_is_a_reject_that_names_one(marker: str, prompt: str) -> None:
    error = refused(prompt=prompt, chosen="Fir.", rejected="Cup.")
    assert error.reason == Reason.TURN_MARKERS
    assert f"`{marker}`, a turn marker of a chat template: give messages with" in error.detail
    assert refused(prompt=prompt, responses=["Fir.", "Cup."], scores=[2, 1]).detail == error.detail
    assert simple_pair(json.dumps({"prompt": prompt, "chosen": "Fir.", "rejected": "Cup."}).encode()) is None


def test_replies_in_the_markers_of_a_template_are_a_reject_where_both_are() -> None:
    for row in ({}, {"prompt": "q"}):
        error = refused(chosen=f"<|im_start|>assistant\n{SECRET}", rejected="<|im_start|>assistant\nno", **row)
        assert (error.reason, "both replies begin with `<|im_start|>`" in error.detail) == (Reason.TURN_MARKERS, True)
    shown = read(prompt="Show a turn of ChatML.", chosen="<|im_start|>user\nHi<|im_end|>", rejected="No.")
    assert shown.chosen[0].content == "<|im_start|>user\nHi<|im_end|>"


def test_a_prompt_with_markers_does_not_count_as_damage_of_its_file() -> None:
    assert Reason.TURN_MARKERS not in MALFORMED


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: a featherless biped. Discuss.",
        "Assistant: principal or coach?",
        "Humanity: what is it?",
        "What does a Human: label mean, and an Assistant: one?",
        "What does <|im_start|> mean?",
        "Where does [INST] stand?",
        "Explain:\n<|im_start|>user\nHi<|im_end|>",
        "Explain:\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello",
        "The <extra_id_0> walks in <extra_id_1> park",
        "User: who is that?",
        "USER: who is that?",
        "User: Hi\nAssistant: Ho\nWho was kinder?",
        "### Instruction",
        "<s>old</s> is struck out. How do I write that in HTML?",
        "<b>Bold</b>?",
        "Question: What is it?\n\nAnswer:",
        "Who says so?\nUser: Hi\nBot:",
        "user: who is that?",
        "I need an Assistant:",
        "user\nis a word, as is\nassistant here",
        "system\nadministrator",
        "Who is USER: root?",
    ],
)
def test_a_text_that_quotes_a_marker_is_a_text(prompt: str) -> None:
    row = {"prompt": prompt, "chosen": "Fir.", "rejected": "Cup."}
    for more in ({}, {"margin": 0}):
        preference = read(**row, **more)
        assert (preference.format, written(preference)) == (Format.PLAIN, f"u:{prompt} / a:Fir. / a:Cup.")
    assert simple_pair(json.dumps(row).encode()) is not None


def test_replies_that_tell_a_dialogue_are_texts() -> None:
    for beginning in ("Human: Hi\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant:", "Assistant: Hi\nHuman:", "User:"):
        preference = read(prompt="Write a dialogue.", chosen=f"{beginning} Ho.", rejected=f"{beginning} Hum.")
        assert written(preference) == f"u:Write a dialogue. / a:{beginning} Ho. / a:{beginning} Hum."
