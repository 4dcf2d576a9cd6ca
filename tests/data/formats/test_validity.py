"""Which conversations are in order, which replies say nothing, and which margins are numbers."""

import math

import msgspec
import pytest

from rm_assets.data.formats.preferences import Format, Message, Preference, PreferenceError
from rm_assets.data.formats.validity import are_in_order, require_valid
from rm_assets.data.tables.reasons import Reason

LARGEST = float.fromhex("0x1.fffffep127")  # of float32


def messages(roles: str, content: str | None = "text") -> tuple[Message, ...]:
    """One message a letter: s, u, a, t are roles, and c an assistant that calls a tool."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "c": "assistant", "x": "unknown"}
    return tuple(
        Message(role=names[letter], content=content, tool_calls="[{}]" if letter == "c" else None) for letter in roles
    )


def preference(prompt: str, chosen: str = "a", rejected: str = "a", margin: float = 0.0) -> Preference:
    return Preference(
        prompt=messages(prompt),
        chosen=messages(chosen, "good"),
        rejected=messages(rejected, "bad"),
        margin=margin,
        format=Format.MESSAGES,
    )


def found(preference: Preference) -> tuple[Reason, str] | None:
    try:
        require_valid(preference)
    except PreferenceError as error:
        return error.reason, str(error.detail)
    return None


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("u", "a"),
        ("su", "a"),
        ("uau", "a"),
        ("suauau", "a"),
        ("u", "cta"),
        ("u", "ctctta"),
        ("uctau", "a"),
        ("ucu", "a"),
    ],
)
def test_conversations_in_order_are_sound(prompt: str, reply: str) -> None:
    assert found(preference(prompt, reply, "a")) is None
    assert found(preference(prompt, "a", reply)) is None


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "detail"),
    [
        ("a", "a", "a", "message 1, chosen side: 'assistant' after 'the start'"),
        ("t", "a", "a", "message 1, chosen side: 'tool' after 'the start'"),
        ("uu", "a", "a", "message 2, chosen side: 'user' after 'user'"),
        ("us", "a", "a", "message 2, chosen side: 'system' after 'user'"),
        ("uaua", "a", "a", "message 5, chosen side: 'assistant' after 'assistant'"),
        ("s", "a", "a", "message 2, chosen side: 'assistant' after 'system'"),
        ("u", "a", "aa", "message 3, rejected side: 'assistant' after 'assistant'"),
        ("u", "a", "cc", "message 3, rejected side: 'assistant' after 'assistant'"),
        ("u", "at", "a", "message 3, chosen side: 'tool' after 'assistant'"),
        ("ux", "a", "a", "message 2, chosen side: 'unknown' after 'user'"),
        ("ua", "ua", "ua", "the chosen reply is not the assistant's"),
        ("u", "au", "a", "the chosen reply is not the assistant's"),
        ("u", "a", "ct", "the rejected reply is not the assistant's"),
    ],
)
def test_the_first_message_out_of_order_is_named(prompt: str, chosen: str, rejected: str, detail: str) -> None:
    assert found(preference(prompt, chosen, rejected)) == (Reason.ROLES_OUT_OF_ORDER, detail)


def test_only_an_assistant_calls_tools() -> None:
    question = Message(role="user", content="text", tool_calls="[{}]")
    asked = msgspec.structs.replace(preference("u"), prompt=(question,))
    assert found(asked) is None
    assert found(msgspec.structs.replace(asked, chosen=messages("ta"))) == (
        Reason.ROLES_OUT_OF_ORDER,
        "message 2, chosen side: 'tool' after 'user'",
    )


@pytest.mark.parametrize("number", [31, 32, 33])
def test_long_conversations_are_in_order_as_short_ones_are(number: int) -> None:
    # with the reply 63, 65 and 67 messages, of which those of up to 64 are cached
    prompt = ("user", "assistant") * (number - 1) + ("user",)
    assert are_in_order(prompt, ("assistant",))
    assert are_in_order(("system", *prompt), ("assistant",))
    assert not are_in_order((*prompt, "user"), ("assistant",))
    assert not are_in_order(("assistant", *prompt), ("assistant",))
    assert found(preference("ua" * (number - 1) + "u")) is None
    position = 2 * number
    assert found(preference("ua" * (number - 1) + "uu")) == (
        Reason.ROLES_OUT_OF_ORDER,
        f"message {position}, chosen side: 'user' after 'user'",
    )


@pytest.mark.parametrize(
    ("prompt", "reply", "expected"),
    [
        (("user",), ("assistant",), True),
        ((), ("assistant",), False),
        (("user",), (), False),
        (("user", "assistant"), ("user", "assistant"), False),
        (("user",), ("assistant", "user"), False),
        (("user",), ("assistant", "user", "assistant"), True),
        (("user",), ("assistant", "assistant"), False),
    ],
)
def test_a_reply_begins_and_ends_with_the_assistant(
    prompt: tuple[str, ...], reply: tuple[str, ...], expected: bool
) -> None:
    assert are_in_order(prompt, reply) is expected


def with_text(prompt: str | None, chosen: str | None = "good", call: bool = False) -> Preference:
    calls = "[{}]" if call else None
    end = (Message(role="tool", content="result"), Message(role="assistant", content="done")) if call else ()
    return Preference(
        prompt=(Message(role="system", content="text"), Message(role="user", content=prompt)),
        chosen=(Message(role="assistant", content=chosen, tool_calls=calls), *end),
        rejected=messages("a", "bad"),
        format=Format.MESSAGES,
    )


@pytest.mark.parametrize("blank", ["", " \n\t", "\u3000", None])
def test_a_message_says_something_or_calls_a_tool(blank: str | None) -> None:
    assert found(with_text("text", "good")) is None
    assert found(with_text(blank)) == (Reason.EMPTY_MESSAGE, "message 2 of the prompt is empty")
    assert found(with_text("text", blank)) == (Reason.EMPTY_REPLY, "the chosen reply is empty")
    assert found(with_text("text", blank, call=True)) is None


def test_a_preference_has_a_prompt_and_two_different_replies() -> None:
    assert found(preference("")) == (Reason.EMPTY_MESSAGE, "the prompt has no message")
    assert found(preference("u", "a", "")) == (Reason.EMPTY_REPLY, "the rejected reply has no message")
    assert found(with_text("text", "bad")) == (Reason.IDENTICAL_REPLIES, "both replies are identical")


@pytest.mark.parametrize(
    ("margin", "is_valid"),
    [
        (LARGEST, True),
        (-LARGEST, True),
        (math.nextafter(LARGEST, math.inf), False),
        (math.inf, False),
        (math.nan, False),
    ],
)
def test_a_margin_is_a_finite_float32(margin: float, is_valid: bool) -> None:
    error = found(preference("u", margin=margin))
    assert (error and error[0]) == (None if is_valid else Reason.MARGIN_NOT_FINITE)
