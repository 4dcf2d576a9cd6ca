"""Which models a reward model descends from: its first base, then the snapshots from which training continued.

A model card states it in its front matter, the card's own snapshot last, so that it goes wherever the model goes:
`lineage: ["Qwen/Qwen3-0.6B", "1f0c6a5f9d0b7c2e"]`. No torch here.
"""

import re
from pathlib import Path

import msgspec

CARD = "README.md"
_FIELD = re.compile(r"---\n(?:(?!---\n).*\n)*?lineage: (\[.*\])\n")
_MAX_BYTES = 2**16


def lineage_of(model: str) -> list[str]:
    """The lineage of a base model: a name on the Hub, or a directory, whose path it does not show."""
    directory = Path(model)
    if not directory.is_dir():
        return [model]
    return _stated(directory / CARD) or [_name(directory.resolve())]


def lineage_field(names: list[str]) -> str:
    """The line of a card's front matter that states a lineage."""
    return f"lineage: {msgspec.json.encode(names).decode()}"


def _stated(card: Path) -> list[str]:
    """The lineage that a card states; empty if there is none."""
    try:
        with card.open("rb") as file:
            found = _FIELD.match(file.read(_MAX_BYTES).decode("utf-8", "replace"))
        return msgspec.json.decode(found[1], type=list[str]) if found else []
    except (OSError, msgspec.MsgspecError):
        return []


def _name(directory: Path) -> str:
    """The last part of a path that says which model it is: of the Hub's cache and of our snapshots an earlier one."""
    if directory.parent.name == "snapshots" and directory.parent.parent.name.startswith("models--"):
        return directory.parent.parent.name.removeprefix("models--").replace("--", "/")
    return directory.parent.name if directory.name == "model" else directory.name
