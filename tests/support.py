"""Small annotation files, and the data stages in one call."""

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rm_assets.data.chat.model_files import TokenizerFiles, find_tokenizer
from rm_assets.data.formats.conversations.turn_markers import marker_of_prompt
from rm_assets.data.formats.preferences import Preference
from rm_assets.data.pairs.conversations import Conversations
from rm_assets.data.pairs.keys import pair_keys
from rm_assets.data.stages.flattening import publish_flattened
from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.stages.padding import publish_padded
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.tokenization import publish_tokenized
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.parquet import open_parquet
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

# One epoch of two steps: what training does to the model is not what these tests are about.
QUICK = {
    "epochs": 1,
    "batch_pairs": 64,
    "learning_rate": 1e-3,
    "test_fraction": 0.3,
    "validation_fraction": 0.2,
    "promotion_requires": [],
}


class Keys(NamedTuple):
    """The hashes of one pair."""

    pair_id: str
    prompt: str
    chosen: str
    rejected: str


def keys_of(*preferences: Preference) -> list[Keys]:
    """The hashes of these preferences, computed as one batch."""
    sides = Conversations(), Conversations(), Conversations()
    for preference in preferences:
        for side, messages in zip(sides, (preference.prompt, preference.chosen, preference.rejected), strict=True):
            side.add(messages)
    columns = pair_keys(*sides, [preference.tools for preference in preferences])
    return [Keys(*row) for row in zip(*columns, strict=True)]


def pair_id(preference: Preference) -> str:
    """The identity of a pair."""
    return keys_of(preference)[0].pair_id


def silent(_: str) -> None:
    """Nobody listens to progress in a test."""


def run_stages(settings: Settings, tokenizer: TokenizerFiles | None = None) -> dict[Stage, Snapshot]:
    """All data stages, one after the other."""
    tokenizer = tokenizer or find_tokenizer(settings)
    raw = publish_raw(settings, silent)
    validated = publish_validated(settings, raw, silent)
    flattened = publish_flattened(settings, tokenizer, validated, silent)
    tokenized = publish_tokenized(settings, tokenizer, validated, flattened, silent)
    padded = publish_padded(settings, validated, tokenized, silent)
    return dict(zip(Stage, (raw, validated, flattened, tokenized, padded), strict=True))


def write_lines(path: Path, rows: list[object]) -> Path:
    """A file of JSON lines; a row that is bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def plain_row(number: int, **changes: object) -> dict[str, object]:
    """A sound row, different for every number."""
    row = {
        "prompt": f"What is {number} plus one?",
        "chosen": f"It is {number + 1}.",
        "rejected": f"I would rather not count to {number}.",
    }
    return row | changes


def polite_rows(num_pairs: int) -> list[object]:
    """Rows with a prompt each, the chosen reply polite."""
    return [
        {"prompt": f"Question {n}?", "chosen": f"Gladly: {n * n}.", "rejected": f"No, {n}."} for n in range(num_pairs)
    ]


def begins_with_marker(text: str) -> bool:
    """Whether a text begins with a turn marker, as property tests find some in the code."""
    return bool(re.match(r"\s*(Human|Assistant):", text) or marker_of_prompt(text))


def is_repeated(prompt: str, *replies: str) -> bool:
    """Whether all replies begin with the prompt, up to outer white space."""
    return all(reply.lstrip().startswith(prompt.strip()) for reply in replies)


def rows(snapshot: Snapshot, *folders: str) -> list[dict[str, Any]]:
    """The rows of a snapshot's data, or of these folders."""
    found = []
    for path in snapshot.paths(*folders):
        with open_parquet(path) as file:
            found += file.read().to_pylist()
    return found


def rejects(snapshot: Snapshot) -> list[tuple[str, int, str]]:
    """The rejects of a snapshot as (source, line, reason)."""
    return [(row["source"], row["line"], row["reason"]) for row in rows(snapshot, REJECTS)]


def violations(stages: dict[Stage, Snapshot]) -> dict[str, int]:
    """What every law of these stages (the first ones, in order) counts: all zero, if it holds."""
    parents = dict(zip(list(Stage)[1:], stages.values(), strict=False))
    return {
        f"{stage}: {name}": count
        for stage, laws in INVARIANTS.items()
        if stage in stages
        for law in laws
        for name, count in law.violations(
            stages[stage].manifest, parents[stage].manifest if stage in parents else None
        ).items()
    }


def age(directory: Path) -> None:
    """Let the files look old enough for their stamps to be trusted."""
    for path in directory.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Whether twice the size leads to twice as many calls: counted, not timed, so that no busy machine matters.

    Compared is what the second `size` and the third one add, with a tenth and a hundred calls to spare.
    """
    work(1)  # what is kept from one call to the next
    first, second, third = (_num_calls(work, size * number) for number in (1, 2, 3))
    return third - second <= 1.1 * (second - first) + 100


def _num_calls(function: Callable[..., object], *arguments: object) -> int:
    """How many calls of functions, of Python's and of C's, a call of this one leads to in this thread."""
    count = 0

    def note(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # what it calls comes when it likes
    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


@contextlib.contextmanager
def small_disk(directory: Path, *, kilobytes: int) -> Iterator[None]:
    """A file system of a few pages; skips where this user may not mount one."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no permission to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def trl_templates() -> list[Path]:
    """The chat templates of the field that TRL carries, if it is installed."""
    found = find_spec("trl")
    root = Path(found.origin or "").parent / "chat_templates" if found else Path()
    return sorted(root.glob("*.jinja")) if found else []
