"""The annotation files: which pairs go where, and the few lines that are wrong on purpose.

The damaged lines show a newcomer what a reject looks like. The line that is not UTF-8 stands in the
compressed file, so that the others open in any editor.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rm_assets.sample import formats
from rm_assets.sample.compose import CHINESE, ENGLISH, Pair, draw_pairs, draw_prompt

CHINESE_FRACTION = 0.08


@dataclass(frozen=True, kw_only=True)
class File:
    """One annotation file: its format, and how many prompts of which kind it holds."""

    name: str
    record: Callable[[Pair], formats.Record]
    num_prompts: int
    multi_turn_fraction: float = 0.0
    system_fraction: float = 0.0


FILES = (
    File(name="plain.jsonl", record=formats.plain, num_prompts=300),
    File(
        name="messages.jsonl",
        record=formats.messages,
        num_prompts=200,
        multi_turn_fraction=0.2,
        system_fraction=0.3,
    ),
    File(
        name="conversations.jsonl",
        record=formats.conversations,
        num_prompts=170,
        multi_turn_fraction=0.4,
        system_fraction=0.4,
    ),
    File(name="transcripts.jsonl", record=formats.transcripts, num_prompts=170, multi_turn_fraction=0.4),
    File(name="more_plain.jsonl.gz", record=formats.plain, num_prompts=160),
)

MARGINS = {40: 1.0, 90: 0.5, 140: 0.25, 190: 0.75, 240: 0.5, 290: 0.0}  # row of plain.jsonl -> margin

DAMAGED = {
    "plain.jsonl": {
        61: b'{"prompt": "How do I sharpen a kitchen knife?", "chosen": "Use a whetstone at a constant an',
        322: b'{"prompt": "What is 3 times 4?", "chosen": "3 times 4 is 12.", "rejected": 7}',
    },
    "messages.jsonl": {
        120: b'{"prompt": [{"role": "user", "content": "How do I fold a map?"}], '
        b'"chosen": [{"role": "assistant", "content": "Follow the old creases, one panel at a time."}]}',
    },
    "conversations.jsonl": {
        200: b'{"chosen": [{"role": "user", "content": "Name a large lake."}, '
        b'{"role": "assistant", "content": "Lake Victoria is one of the largest."}], '
        b'"rejected": [{"role": "user", "content": "Name a large lake."}, '
        b'{"role": "assistant", "content": ""}]}',
    },
    "transcripts.jsonl": {
        75: b'{"chosen": "\\n\\nHuman: Is a tomato a fruit?\\n\\nAssistant: Yes, it is a berry.", '
        b'"rejected": "\\n\\nHuman: Is a tomato a fruit?\\n\\nAssistant: Yes, it is a berry."}',
    },
    "more_plain.jsonl.gz": {
        33: '{"prompt": "Where can I find a café?", "chosen": "In the square.", "rejected": "No."}'.encode("latin-1"),
    },
}
"""file -> position -> a line that cannot become a pair"""


def draw_annotations(rng: Random) -> dict[str, list[bytes]]:
    """The lines of every file, damage and repetitions included."""
    asked: set[str] = set()
    pairs = {file.name: _draw_file(rng, file, asked) for file in FILES}
    lines = {file.name: [_line(file.record(pair)) for pair in pairs[file.name]] for file in FILES}
    _add_margins(lines["plain.jsonl"])
    repeat = [
        ("plain.jsonl", 410, lines["plain.jsonl"][17]),
        ("transcripts.jsonl", 250, lines["transcripts.jsonl"][100]),
        ("more_plain.jsonl.gz", 150, lines["plain.jsonl"][203]),
        # the same two replies in the other order, by another annotator and in another format: a conflict
        ("messages.jsonl", 300, _line(formats.messages(_flipped(pairs["plain.jsonl"][555])))),
    ]
    for name, damaged in DAMAGED.items():
        repeat += [(name, position, line) for position, line in damaged.items()]
    for name, position, line in sorted(repeat):
        lines[name].insert(position, line)
    return lines


def _draw_file(rng: Random, file: File, asked: set[str]) -> list[Pair]:
    pairs: list[Pair] = []
    for number in range(file.num_prompts):
        language = CHINESE if number < CHINESE_FRACTION * file.num_prompts else ENGLISH
        num_questions = rng.randint(2, 3) if rng.random() < file.multi_turn_fraction else 1
        with_system = rng.random() < file.system_fraction
        while True:
            task, prompt = draw_prompt(rng, language, num_questions, with_system)
            question = prompt[with_system]["content"]
            if question not in asked:
                break
        asked.add(question)
        pairs += draw_pairs(rng, language, task, prompt)
    rng.shuffle(pairs)
    return pairs


def _line(record: formats.Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode()


def _add_margins(lines: list[bytes]) -> None:
    for row, margin in MARGINS.items():
        lines[row] = _line(json.loads(lines[row]) | {"margin": margin})


def _flipped(pair: Pair) -> Pair:
    return Pair(topic=pair.topic, prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen)


def write_annotations(directory: Path, lines: dict[str, list[bytes]]) -> None:
    """One file per name; the compressed one without a time in its header, so that its bytes never change."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        content = b"".join(row + b"\n" for row in rows)
        if name.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
        (directory / name).write_bytes(content)
