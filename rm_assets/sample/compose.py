"""Composes prompts and pairs of replies: the better one helps, the worse one fails, and length says nothing.

Every prompt gets two pairs. In one the better reply is longer, in the other one it is shorter, so that
"longer wins" is a coin toss on every split by prompt. Both sides draw on the same openers, closers and
advice: what a reward model has to learn is the tone and the substance of the rest. A few pairs are hard (the
worse reply is a good answer to another question), and in a few the annotator erred.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from rm_assets.sample import (
    arithmetic,
    chinese,
    english,
    english_faults,
    topics_home,
    topics_life,
    topics_mind,
)

Grammar = Mapping[str, Sequence[str]]
Message = dict[str, str]

HARD_FRACTION = 0.02
ERROR_FRACTION = 0.01
LENGTH_RATIO = (1.2, 1.6)  # longer to shorter: clear enough to hold in characters and in tokens
FAIR_LENGTH = 1.06  # characters of a bad reply for one of a good reply: halfway to the same number of tokens


@dataclass(frozen=True, kw_only=True)
class Language:
    """All that is needed to ask and to answer in one language."""

    topics: Mapping[str, Mapping[str, tuple[str, str, str]]]
    asking: Grammar
    shared: Grammar
    good: Grammar
    faults: Sequence[Grammar]
    space: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something a user wants to do, and true advice about it."""

    topic: str
    task: str
    advice: tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One preference: the messages up to the reply, the better and the worse reply."""

    topic: str
    prompt: list[Message]
    chosen: str
    rejected: str


ENGLISH = Language(
    topics={**topics_home.TOPICS, **topics_life.TOPICS, **topics_mind.TOPICS, "maths": {}},
    asking=english.ASKING,
    shared=english.SHARED,
    good=english.GOOD,
    faults=english_faults.FAULTS,
    space=" ",
)
CHINESE = Language(
    topics=chinese.TOPICS,
    asking=chinese.ASKING,
    shared=chinese.SHARED,
    good=chinese.GOOD,
    faults=chinese.FAULTS,
    space="",
)


def phrase(rng: Random, grammar: Grammar, symbol: str, **slots: str) -> str:
    """One expansion of a symbol.

    With {"reply": ["{yes}, {name}."], "yes": ["Sure", "Fine"]} and name="Ada", "reply" may give "Sure, Ada."
    """
    return re.sub(
        r"\{(\w+)\}",
        lambda match: slots.get(match[1]) or phrase(rng, grammar, match[1], **slots),
        rng.choice(grammar[symbol]),
    )


def draw_task(rng: Random, language: Language, topic: str | None = None) -> Task:
    """A task of the topic, or of any; the tasks of maths are made up on the spot."""
    topic = topic or rng.choice(list(language.topics))
    tasks = language.topics[topic]
    if not tasks:
        task, advice = rng.choice(arithmetic.SUMS)(rng)
        return Task(topic=topic, task=task, advice=advice)
    task = rng.choice(list(tasks))
    return Task(topic=topic, task=task, advice=tasks[task])


def good_reply(rng: Random, language: Language, task: Task) -> str:
    """Advice to the point, mostly with a friendly frame."""
    advice = [text for text in task.advice if rng.random() < 0.6] or [rng.choice(task.advice)]
    parts = [_connected(rng, language, text, place) for place, text in enumerate(advice)]
    if rng.random() < 0.5:
        parts.append(phrase(rng, language.good, "closing"))
    return _framed(rng, language, parts)


def bad_reply(rng: Random, language: Language, task: Task) -> str:
    """Sentences with one fault, sometimes with two, and at times a piece of good advice among them."""
    faults = rng.sample(language.faults, 2 if rng.random() < 0.2 else 1)
    sentences = [
        _capitalized(phrase(rng, {**fault, "sentence": [template]}, "sentence", task=task.task, topic=task.topic))
        for fault in faults
        for template in rng.sample(fault["sentence"], rng.randint(1, 5 if len(faults) == 1 else 2))
    ]
    rng.shuffle(sentences)
    if rng.random() < 0.4:
        advice = _connected(rng, language, rng.choice(task.advice), 0)
        sentences.insert(rng.randint(0, len(sentences)), advice)
    return _framed(rng, language, sentences)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _connected(rng: Random, language: Language, advice: str, place: int) -> str:
    if rng.random() < (0.7 if place == 0 else 0.4):
        return advice
    word = phrase(rng, language.good, "next" if place else "connector")
    return word + advice[:1].lower() + advice[1:]


def _framed(rng: Random, language: Language, parts: list[str]) -> str:
    if rng.random() < 0.4:
        parts = [phrase(rng, language.shared, "opener"), *parts]
    if rng.random() < 0.25:
        parts = [*parts, phrase(rng, language.shared, "closer")]
    return ("\n" if rng.random() < 0.1 else language.space).join(parts)


def draw_replies(rng: Random, language: Language, task: Task, good_is_longer: bool) -> tuple[str, str]:
    """A good and a bad reply whose lengths differ clearly, in the given direction."""
    worse = partial(bad_reply, rng, language, task)
    if rng.random() < HARD_FRACTION:
        worse = partial(good_reply, rng, language, _another(rng, language, task))
    while True:
        good = good_reply(rng, language, task)
        ratio = rng.uniform(*LENGTH_RATIO)
        aim = FAIR_LENGTH * (len(good) / ratio if good_is_longer else len(good) * ratio)
        bad = min((worse() for _ in range(12)), key=lambda text: abs(len(text) - aim))
        if abs(len(bad) - aim) < 0.04 * aim:
            return good, bad


def draw_prompt(rng: Random, language: Language, num_questions: int, with_system: bool) -> tuple[Task, list[Message]]:
    """A conversation up to the reply, and the task of its last question; those before were answered well."""
    task = draw_task(rng, language)
    messages = []
    if with_system:
        messages.append(message("system", phrase(rng, language.asking, "system", topic=task.topic)))
    messages.append(message("user", phrase(rng, language.asking, "question", task=task.task)))
    for _ in range(num_questions - 1):
        messages.append(message("assistant", good_reply(rng, language, task)))
        task = _another(rng, language, task, task.topic)
        messages.append(message("user", phrase(rng, language.asking, "follow_up", task=task.task)))
    return task, messages


def _another(rng: Random, language: Language, task: Task, topic: str | None = None) -> Task:
    while (other := draw_task(rng, language, topic)).task == task.task:
        pass
    return other


def message(role: str, content: str) -> Message:
    """One message in the form that the field shares."""
    return {"role": role, "content": content}


def draw_pairs(rng: Random, language: Language, task: Task, prompt: list[Message]) -> Iterator[Pair]:
    """Two pairs for one prompt, of opposite order of length."""
    for chosen_is_longer in (True, False):
        erred = rng.random() < ERROR_FRACTION
        replies = draw_replies(rng, language, task, good_is_longer=chosen_is_longer != erred)
        chosen, rejected = reversed(replies) if erred else replies
        yield Pair(topic=task.topic, prompt=prompt, chosen=chosen, rejected=rejected)
