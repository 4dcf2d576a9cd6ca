"""The built-in annotations: what they hold, and that nothing but the texts tells the better reply."""

import gzip
import json
import math
import re
from collections import Counter, defaultdict
from functools import cache
from random import Random
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer

from rm_assets.sample.generate import CHINESE, DAMAGED, ENGLISH, generate
from rm_assets.settings import SAMPLE

ANNOTATIONS = SAMPLE / "annotations"
DAMAGED_LINES = {line for _, _, line in DAMAGED}
TOPIC_OF = {
    text: topic for language in (ENGLISH, CHINESE) for topic in language.topics for text in language.topics[topic]
}
NUM_ROWS = {
    "conversations.jsonl": 340,
    "messages.jsonl": 400,
    "more_plain.jsonl.gz": 322,
    "plain.jsonl": 601,
    "transcripts.jsonl": 341,
}


class Row(NamedTuple):
    file: str
    system: str
    question: str
    history: str
    chosen: str
    rejected: str


def content(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def lines(name):
    return content(ANNOTATIONS / name).splitlines()


def read(name, record):
    chosen, rejected = record["chosen"], record["rejected"]
    if "prompt" not in record and isinstance(chosen, str):
        chosen, rejected = (re.split(r"\n\n(?:Human|Assistant): ", text)[1:] for text in (chosen, rejected))
        return Row(name, "", chosen[0], "".join(chosen[1:-1]), chosen[-1], rejected[-1])
    if "prompt" not in record:
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    elif isinstance(chosen, str):
        return Row(name, "", record["prompt"], "", chosen, rejected)
    else:
        prompt = record["prompt"]
    texts = [message["content"] for message in prompt]
    system = texts.pop(0) if prompt[0]["role"] == "system" else ""
    return Row(name, system, texts[0], "".join(texts[1:]), chosen[0]["content"], rejected[0]["content"])


@cache
def rows():
    return [read(name, json.loads(line)) for name in NUM_ROWS for line in lines(name) if line not in DAMAGED_LINES]


def distinct():
    return list({row[1:]: row for row in rows()}.values())


def held_out(seed):
    """A tenth of the prompts, and the rest."""
    questions = sorted({row.question for row in rows()})
    drawn = set(Random(seed).sample(questions, len(questions) // 10))
    parts = defaultdict(list)
    for row in rows():
        parts[row.question in drawn].append(row)
    return parts[True], parts[False]


def share_longer(rows, length):
    """How often "the longer reply is better" is right; a tie is half right."""
    lengths = [(length(row.chosen), length(row.rejected)) for row in rows]
    return sum((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in lengths) / len(rows)


def words(text):
    return set(re.findall(r"[a-z']+|[\u4e00-\u9fff]{2}", text.lower()))


def test_generating_it_again_gives_the_same_files(tmp_path):
    generate(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = [*(SAMPLE / "annotations").iterdir(), SAMPLE / "tokenizer" / "tokenizer.json"]
    assert made == sorted(path.relative_to(SAMPLE) for path in kept)
    for path in made:
        if path.name != "tokenizer.json":  # its layout follows the version of the library
            assert content(tmp_path / path) == content(SAMPLE / path), path
    first, second = (json.loads((root / "tokenizer/tokenizer.json").read_text()) for root in (tmp_path, SAMPLE))
    assert first["model"]["vocab"] == second["model"]["vocab"]
    assert first["model"]["merges"] == second["model"]["merges"]


@pytest.mark.parametrize("name", NUM_ROWS)
def test_a_file_holds_its_pairs_and_far_fewer_than_a_tenth_of_its_lines_are_damaged(name):
    damaged = [line for line in lines(name) if line in DAMAGED_LINES]
    assert len(damaged) == sum(file == name for file, _, _ in DAMAGED)
    assert len(lines(name)) == NUM_ROWS[name] + len(damaged)
    assert len(damaged) < 0.01 * len(lines(name))


def test_a_few_rows_are_duplicates_and_one_contradicts_another():
    assert len(rows()) - len(distinct()) == 3
    seen = {row[1:] for row in rows()}
    flipped = [row for row in rows() if (*row[1:4], row.rejected, row.chosen) in seen]
    assert sorted(row.file for row in flipped) == ["more_plain.jsonl.gz", "plain.jsonl"]


def test_every_format_is_there_with_system_messages_and_several_turns():
    with_system = {row.file for row in rows() if row.system}
    multi_turn = {row.file for row in rows() if row.history}
    assert with_system == {"conversations.jsonl", "messages.jsonl"}
    assert multi_turn == {"conversations.jsonl", "messages.jsonl", "transcripts.jsonl"}


def test_some_rows_carry_a_margin_between_zero_and_one():
    records = [json.loads(line) for line in lines("plain.jsonl") if line not in DAMAGED_LINES]
    margins = [record["margin"] for record in records if "margin" in record]
    assert len(margins) == 6
    assert min(margins) == 0.0
    assert max(margins) == 1.0


def test_about_one_pair_in_twelve_is_chinese():
    chinese = [row for row in rows() if re.search(r"[\u4e00-\u9fff]", row.question)]
    assert 0.07 < len(chinese) / len(rows()) < 0.09


def test_both_orders_of_length_occur_for_every_question():
    orders = defaultdict(set)
    for row in distinct():
        orders[row.question].add(len(row.chosen) > len(row.rejected))
    assert all(order == {True, False} for order in orders.values())


@pytest.mark.parametrize("unit", ["characters", "bytes", "words", "tokens"])
def test_neither_longer_wins_nor_shorter_wins_on_any_split(unit):
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer/tokenizer.json"))
    length = {
        "characters": len,
        "bytes": lambda text: len(text.encode()),
        "words": lambda text: len(text.split()),
        "tokens": cache(lambda text: len(tokenizer.encode(text))),
    }[unit]
    shares = [share_longer(held_out(seed)[0], length) for seed in range(100)]
    assert min(shares) > 0.4
    assert max(shares) < 0.6
    assert 0.47 < sum(shares) / len(shares) < 0.53


def topics(reply):
    """Whose advice a reply gives."""
    return {topic for text, topic in TOPIC_OF.items() if text in reply}


def test_in_a_third_of_the_pairs_the_worse_reply_is_a_good_one_to_another_question():
    need_prompt = [row for row in rows() if topics(row.rejected)]
    assert 0.31 < len(need_prompt) / len(rows()) < 0.36
    contradiction = [row for row in need_prompt if not topics(row.chosen)]
    assert len(contradiction) <= 1
    assert all(topics(row.chosen).isdisjoint(topics(row.rejected)) for row in need_prompt)


@pytest.mark.parametrize("seed", range(3))
def test_the_wording_alone_tells_the_better_reply_where_the_worse_one_never_helps_and_nowhere_else(seed):
    test, train = held_out(seed)
    good, bad = (Counter(word for row in train for word in words(getattr(row, side))) for side in Row._fields[-2:])
    odds = {word: math.log((good[word] + 1) / (bad[word] + 1)) for word in good | bad}
    right = defaultdict(list)
    for row in test:
        chosen, rejected = (sum(odds.get(word, 0) for word in words(side)) for side in (row.chosen, row.rejected))
        right[bool(topics(row.rejected))].append(chosen > rejected)
    assert sum(right[False]) > 0.95 * len(right[False])
    assert 0.3 < sum(right[True]) / len(right[True]) < 0.7


def test_it_stays_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.suffix != ".pyc") < 1_500_000
