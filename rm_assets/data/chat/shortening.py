"""Shortens over-long pairs: both sides lose the same oldest turns, and a reply is never cut."""

import functools
from collections.abc import Callable, Sequence

import msgspec

from rm_assets.data.chat.pair_rendering import SIDES, flatten_pair
from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, encode
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.ragged import Ids

_BYTES_PER_TOKEN = 4
"""Of a message as JSON, roughly, in most languages."""


def without_oldest_turns(prompt: list[MessageDict], num_turns: int) -> list[MessageDict] | None:
    """A prompt without its oldest turns; a turn starts at a user's message. None if no turn would remain.

    For [system, u1, a1, u2] and 1 it is [system, u2].
    """
    starts = _turn_starts(prompt)
    if num_turns >= len(starts):
        return None
    return prompt[: starts[0]] + prompt[starts[num_turns] :]


def _turn_starts(prompt: list[MessageDict]) -> list[int]:
    return [index for index, message in enumerate(prompt) if message["role"] == "user"]


def shortened_pair(
    chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str, max_length: int
) -> tuple[Ids, Ids, int] | None:
    """The ids of both sides without the fewest oldest turns that make them fit, and the number of these turns.

    None where no number of turns does. Fewer turns have fewer tokens, so the number is found by bisection. It starts
    from a guess by the bytes of the messages, so that a very long conversation is never rendered as a whole.
    """
    starts = _turn_starts(sides["prompt"])
    if len(starts) < 2:
        return None

    @functools.cache
    def attempt(num_turns: int) -> tuple[Ids, Ids, int] | tuple[()] | None:
        """Both sides without these turns; () where the template refuses them, None where they are too long."""
        prompt = sides["prompt"][: starts[0]] + sides["prompt"][starts[num_turns] :]
        try:
            flat = flatten_pair(chat, sides | {"prompt": prompt}, tools, counts_tokens=False)
        except PreferenceError:  # a template may refuse a part of what it accepts whole; the pair stays over-long
            return ()
        chosen, rejected = encode(chat, [flat.prompt + flat.chosen, flat.prompt + flat.rejected])
        return (chosen, rejected, num_turns) if max(len(chosen), len(rejected)) <= max_length else None

    guess = _expected_drop(sides, starts, max_length)
    num_turns = _first_that_holds(len(starts) - 1, guess, lambda number: attempt(number) is not None)
    return (attempt(num_turns) or None) if num_turns else None


def _expected_drop(sides: dict[str, list[MessageDict]], starts: Sequence[int], max_length: int) -> int:
    """How many turns to drop until the rest should fit, by the bytes of its JSON."""
    sizes = {side: [len(msgspec.json.encode(message)) for message in sides[side]] for side in sides}
    fixed = sum(sizes["prompt"][: starts[0]]) + max(sum(sizes[side]) for side in SIDES)
    left, number = max_length * _BYTES_PER_TOKEN - fixed, len(starts)
    while number > 1 and left >= 0:
        number -= 1
        left -= sum(sizes["prompt"][starts[number] : starts[number + 1] if number + 1 < len(starts) else None])
    return min(number + (left < 0), len(starts) - 1)


def _first_that_holds(last: int, guess: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to `last` for which `holds` is true, or None; it must be true for all larger ones.

    The search starts at a guess, in steps that double, and ends by bisection.
    """
    low, high, number, step = 1, last + 1, guess, 1
    while low < high:
        if holds(number):
            high = number
        else:
            low = number + 1
        if low > 1 and high <= last:
            number = (low + high) // 2
        else:  # true for all so far, or for none
            number = max(high - step, 1) if low == 1 else min(low - 1 + step, last)
        step *= 2
    return high if high <= last else None
