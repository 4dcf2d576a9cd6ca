"""Regenerates the built-in annotations and their vocabulary: `python -m rm_assets.sample.generate [--directory DIR]`.

annotations/ holds about 2,000 preferences in five files and four formats, with a few lines that are wrong on purpose;
tokenizer/tokenizer.json a byte-level BPE trained on them. All other files of the sample are written by hand.

Every prompt has two pairs: in one the better reply is the longer one, in the other the shorter one. The worse reply is
no help whatever was asked; in every third pair it is a good reply to another question, so that only a model that reads
the prompt can tell the two apart.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 2026
NUM_PROMPTS = {  # prompts of each file, and the shares of them with earlier turns and with a system message
    "plain.jsonl": (300, 0.0, 0.0),
    "messages.jsonl": (200, 0.2, 0.3),
    "conversations.jsonl": (170, 0.4, 0.4),
    "transcripts.jsonl": (170, 0.4, 0.0),
    "more_plain.jsonl.gz": (160, 0.0, 0.0),
}
CHINESE_SHARE = 0.08
OTHER_QUESTION_SHARE = 1 / 3
LENGTH_RATIOS = (1.15, 1.7)  # of the longer reply to the shorter one, in characters
MARGINS = {40: 1.0, 90: 0.5, 140: 0.25, 190: 0.75, 240: 0.5, 290: 0.0}  # row of plain.jsonl -> margin

# Lines that are not pairs, so that a newcomer sees rejects. The one that is not valid UTF-8 is in the compressed file.
DAMAGED = [
    ("plain.jsonl", 61, b'{"prompt": "How do I sleep?", "chosen": "Dark'),
    ("plain.jsonl", 322, b'{"prompt": "What is 3 times 4?", "chosen": "12.", "rejected": 7}'),
    ("messages.jsonl", 120, b'{"prompt": [{"role": "user", "content": "How do I fold a map?"}], "chosen": "Flat."}'),
    ("conversations.jsonl", 200, b'{"chosen": [{"role": "user", "content": "Name a lake."}], "rejected": []}'),
    (
        "transcripts.jsonl",
        75,
        rb'{"chosen": "\n\nHuman: A\n\nAssistant: B", "rejected": "\n\nHuman: A\n\nAssistant: B"}',
    ),
    ("more_plain.jsonl.gz", 33, '{"prompt": "A café?", "chosen": "Here.", "rejected": "No."}'.encode("latin-1")),
]
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]


class Language(NamedTuple):
    """What people ask in one language, and how they are answered."""

    topics: dict[str, list[str]]  # what somebody wants to do -> sentences that help
    faults: list[str]  # sentences that help nobody
    questions: list[str]
    contexts: list[str]
    openers: list[str]
    closers: list[str]
    space: str


def _topics(text: str) -> dict[str, list[str]]:
    return {name.strip(): re.findall(r"\S[^.。]*[.。]", advice) for name, advice in re.findall(r"(.*):([^:]*\n)", text)}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


ENGLISH = Language(
    topics=_topics("""
sharpen a kitchen knife: Hold the blade at twenty degrees on a wet whetstone. Draw it from heel to tip. Rinse the stone.
    Turn the blade after every ten strokes. Try the edge on a sheet of paper.
bake a loaf of bread: Mix flour, water, yeast and salt and let the dough rest for an hour. Fold the dough twice.
    Heat the oven with a pan of water in it. Bake until the crust sounds hollow. Let the loaf cool before you cut it.
repair a bicycle tube: Take off the tyre with two levers and pull out the tube. Look for bubbles under water.
    Roughen the rubber around the hole before you glue the patch. Feel for the thorn. Pump it up slowly.
grow tomatoes on a balcony: Choose a pot of twenty litres and a place in full sun. Water the roots and not the leaves.
    Pinch out the side shoots. Tie the stem to a stick. Feed the plant once flowers open.
train a young dog: Reward the puppy within a second, with a treat and a word. Walk on a short leash past other dogs.
    Keep lessons below five minutes. Never call the puppy to scold it. Practise before meals.
plan a monthly budget: Write down your income and the rent first. Put a tenth aside on payday. Limit each kind of cost.
    Compare the receipts with the plan every Sunday. Pay the dearest debt off early.
learn to play the guitar: Tune all six strings before you start. Change between two chords slowly, with a metronome.
    Play for fifteen minutes a day. Press the string just behind the fret. Learn one song to its end.
prepare for a job interview: Read what the company sells and who will talk to you. Tell two stories of your work.
    Ask what the first month would look like. Print your certificates. Send a note of thanks in the evening.
take pictures at night: Put the camera on a tripod and use the timer. Open the lens wide and expose for ten seconds.
    Focus by hand on a lamp far away. Turn the flash off. Save raw files, to lift the shadows later.
run a half marathon: Add no more than a tenth of your kilometres a week. Run so slowly that you can talk.
    Drink at every second station. Wear the shoes from training. Sleep well two nights before the race.
pack for a week in the mountains: Roll the clothes and put heavy things near your back. Leave the route with a friend.
    Carry the rain jacket on top, even in July. Take a map that needs no battery. Bring two water bottles.
"""),
    faults=_parts("""
Everybody knows that, so why do you ask? | I really cannot be bothered today. | Stop wasting my time with that. |
It depends on this and that, and on other factors. | You would fail at it anyway, so give up now. |
Opinions differ, and nobody can say. | Just search for it yourself like all the others do. | It will never work. |
Only a fool would need to ask such a thing. | I am not able to comment on questions of this kind. |
Do whatever you feel like, it hardly matters. | There are many aspects, and each of them is complex.
"""),
    questions=_parts("""
How do I {}? | What is the best way to {}? | I want to {}. Where do I start? | Can you help me to {}? |
My sister asked me how to {}. What do I tell her? | Please explain how to {}. | Any advice on how to {}? |
What should I know before I {}? | Is it hard to {}? | Give me a few tips: how can I {}?
"""),
    contexts=_parts("""
 | I have an hour. | Good morning! | I am a beginner. | My neighbour could not tell me. | Please be brief. |
It is raining today. | I read two books and they disagree.
"""),
    openers=_parts("Sure. | Gladly. | Let us see. | Thanks for asking."),
    closers=_parts("Good luck. | Let me know how it goes. | Tell me if you need more. | Have fun."),
    space=" ",
)
CHINESE = Language(
    topics=_topics("""
煮一碗面: 水开以后再放面条。加一小勺盐，用筷子搅散。煮三分钟后尝一根。捞出来马上拌酱。
学会游泳: 先在浅水区练习吐气。抓住池边练习打腿。请教练纠正手的动作。每周去两次泳池。
养好一盆绿萝: 把花盆放在明亮但没有直射阳光的地方。土干了再浇透。每月施一次薄肥。剪掉发黄的叶子。
写一封求职信: 开头说明应聘的职位。用两个例子介绍自己的经验。全文不要超过一页。请朋友检查错别字。
"""),
    faults=_parts("""
这种问题还要问吗？ | 我今天不想回答。 | 看情况吧，谁也说不准。 | 你反正学不会，别试了。 | 各方面都很复杂。
"""),
    questions=_parts(
        "怎么{}？ | 请问如何{}？ | 我想{}，应该从哪里开始？ | 第一次{}要注意什么？ | 朋友问我怎么{}，怎么回答？"
    ),
    contexts=_parts(" | 我是新手。 | 我只有一小时。 | 你好！ | 今天有空。"),
    openers=_parts("好的。 | 没问题。 | 谢谢提问。"),
    closers=_parts("祝顺利。 | 有问题再告诉我。 | 希望对你有帮助。"),
    space="",
)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _reply(rng: Random, language: Language, sentences: list[str]) -> str:
    parts = rng.sample(sentences, rng.randint(1, min(5, len(sentences))))
    opener = [rng.choice(language.openers)] if rng.random() < 0.4 else []
    closer = [rng.choice(language.closers)] if rng.random() < 0.4 else []
    return language.space.join([*opener, *parts, *closer])


def _replies(rng: Random, language: Language, topic: str, other: str, *, better_is_longer: bool) -> tuple[str, str]:
    """The better and the worse reply to a question of this topic."""
    worse = language.topics[other] if rng.random() < OTHER_QUESTION_SHARE else language.faults
    while True:
        chosen, rejected = _reply(rng, language, language.topics[topic]), _reply(rng, language, worse)
        ratio = len(chosen) / len(rejected)
        if LENGTH_RATIOS[0] < (ratio if better_is_longer else 1 / ratio) < LENGTH_RATIOS[1]:
            return chosen, rejected


def _prompt(rng: Random, language: Language, topics: list[str], *, has_system: bool) -> list[dict[str, str]]:
    """The messages up to the question of the last topic; those before it were answered well."""
    messages = [_message("system", "You are a helpful assistant.")] * has_system
    for number, topic in enumerate(topics, start=1):
        question = [rng.choice(language.contexts), rng.choice(language.questions).format(topic)]
        messages.append(_message("user", language.space.join(question).strip()))
        if number < len(topics):
            messages.append(_message("assistant", _reply(rng, language, language.topics[topic])))
    return messages


def _record(file: str, topic: str, prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    """A pair in the format of a file."""
    if "plain" in file:
        return {"prompt": prompt[0]["content"], "chosen": chosen, "rejected": rejected, "subset": topic}
    sides = [[_message("assistant", text)] for text in (chosen, rejected)]
    if file == "messages.jsonl":
        return {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "subset": topic}
    if file == "conversations.jsonl":
        return {"chosen": prompt + sides[0], "rejected": prompt + sides[1], "subset": topic}
    speakers = {"user": "Human", "assistant": "Assistant"}
    texts = ["".join(f"\n\n{speakers[turn['role']]}: {turn['content']}" for turn in prompt + side) for side in sides]
    return {"chosen": texts[0], "rejected": texts[1]}


def _records(rng: Random, file: str) -> list[dict[str, Any]]:
    num_prompts, share_of_turns, share_of_systems = NUM_PROMPTS[file]
    records: dict[str, list[dict[str, Any]]] = {}
    while len(records) < num_prompts:
        language = CHINESE if len(records) < CHINESE_SHARE * num_prompts else ENGLISH
        num_questions = rng.randint(2, 3) if rng.random() < share_of_turns else 1
        *topics, other = rng.sample(list(language.topics), num_questions + 1)
        prompt = _prompt(rng, language, topics, has_system=rng.random() < share_of_systems)
        records[str(prompt)] = [
            _record(file, topics[-1], prompt, *_replies(rng, language, topics[-1], other, better_is_longer=is_longer))
            for is_longer in (True, False)
        ]
    pairs = [pair for two in records.values() for pair in two]
    rng.shuffle(pairs)
    return pairs


def _all_records(rng: Random) -> dict[str, list[dict[str, Any]]]:
    """The records of every file, with three repetitions and a contradiction."""
    records = {file: _records(rng, file) for file in NUM_PROMPTS}
    plain, _, _, transcripts, more_plain = records.values()
    for row, margin in MARGINS.items():
        plain[row]["margin"] = margin
    more_plain.insert(150, plain[203])
    more_plain.insert(70, plain[555] | {"chosen": plain[555]["rejected"], "rejected": plain[555]["chosen"]})
    transcripts.insert(250, transcripts[100])
    plain.insert(410, plain[17])
    return records


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _byte_level_bpe(texts: Iterator[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # so that any text goes through it, byte by byte
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def generate(directory: Path) -> None:
    """Writes the annotations and the vocabulary into a directory, over existing files: the same bytes each time."""
    for folder in ("annotations", "tokenizer"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    records = _all_records(Random(SEED))
    tokenizer = _byte_level_bpe(_strings(list(records.values())))
    (directory / "tokenizer" / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    for file, rows in records.items():
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        for _, row, line in (damaged for damaged in DAMAGED if damaged[0] == file):
            lines.insert(row, line)
        content = b"".join(line + b"\n" for line in lines)
        if file.endswith(".gz"):
            content = gzip.compress(content, mtime=0)  # without a time in its header, it never changes
        (directory / "annotations" / file).write_bytes(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Regenerate the built-in sample.")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent)
    generate(parser.parse_args().directory)
