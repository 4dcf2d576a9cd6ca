"""Removes the prompt from replies that repeat it."""

MIN_WORDS = 3
MIN_CHARACTERS = 8
"""Of a prompt without spaces, as Chinese has it: "Hi" and "Good morning" are how many replies begin by themselves."""
_MIN_OPEN = 4
_ASKS_TO_GO_ON = (":", "：", "=")
_FIRST_IDEOGRAPH = "\u2e80"


def without_prompt(prompt: str, *replies: str) -> tuple[str, ...] | None:
    """What follows the prompt in each reply, if all begin with it up to outer white space; else None."""
    beginning = prompt.strip()
    stripped = [reply.lstrip() for reply in replies]
    if not all(reply.startswith(beginning) for reply in stripped):
        return None
    return tuple(reply[len(beginning) :] for reply in stripped)


def without_repeated_prompt(prompt: str, chosen: str, rejected: str) -> tuple[str, str]:
    """Both replies without the prompt that both of them repeat.

    Where only one does, or the prompt is so short that replies begin so by themselves, or ends inside a word of theirs,
    they are kept as they are. "The sky is" and "The sky is blue." become "The sky is" and "blue.".
    """
    replies = chosen, rejected
    rests = without_prompt(prompt, *replies)
    beginning = prompt.strip()
    if not rests or not _is_distinctive(beginning):
        return replies
    if any(rest and _is_letter(beginning[-1]) and _is_letter(rest[0]) for rest in rests):
        return replies
    return _unspaced(rests[0]), _unspaced(rests[1])


def _is_distinctive(prompt: str) -> bool:
    if len(prompt.split(maxsplit=MIN_WORDS)) >= MIN_WORDS:
        return True
    if prompt.endswith(_ASKS_TO_GO_ON):
        return len(prompt) >= _MIN_OPEN
    return len(prompt) >= MIN_CHARACTERS and max(prompt) >= _FIRST_IDEOGRAPH


def _is_letter(character: str) -> bool:
    return character.isalnum() and character < _FIRST_IDEOGRAPH


def _unspaced(rest: str) -> str:
    """A rest without the white space before it; a first line keeps its indent, as code needs it."""
    text = rest.lstrip()
    space = rest[: len(rest) - len(text)]
    return space[space.rfind("\n") + 1 :] + text if "\n" in space else text
