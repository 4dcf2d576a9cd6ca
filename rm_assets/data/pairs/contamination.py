"""Training prompts that overlap evaluation files: their pairs are rejected.

Two prompts overlap if they share a run of 13 words (Brown et al. 2020, appendix C), or, where scripts write no spaces,
of 13 characters; a prompt shorter than that overlaps an equal one. Words are compared by appearance, see
`rm_assets.data.pairs.lookalikes`.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.pairs.lookalikes import latin_lookalike, may_have_lookalikes, visible
from rm_assets.data.sources.evaluation_sets import evaluation_name
from rm_assets.data.storage.fingerprint import fingerprint, short_hash
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables import schemas

GRAM_WORDS = 13
# Thai, Lao, Burmese and Khmer; kana; ideographs: their words are not set apart by spaces, so each character counts.
_TOKEN = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]+"
)
_LATIN_LETTER = re.compile("[A-Za-z]")
_GRAMS_VERSION = 3

Grams = np.ndarray[Any, np.dtype[np.uint64]]


def prompt_grams(texts: Iterable[str]) -> set[int]:
    """Hashes of the runs of GRAM_WORDS words in a prompt's user turns, in NFKC and case-folded.

    A prompt of fewer words gives one hash, of all of them. In one without words, such as "?!", each visible character
    counts as a word. Invisible characters do not count. Where letters of other alphabets replace Latin ones, the
    runs also count in their Latin form.
    """
    seen = [visible(text) for text in texts]
    words = [word for text in seen for word in _TOKEN.findall(text.casefold())]
    words = words or [sign for text in seen for sign in text if not sign.isspace()] or [""]
    grams = {_gram(words[run]) for run in _runs(words)}
    return grams | _lookalike_grams(seen) if any(map(may_have_lookalikes, seen)) else grams


def _runs(words: list[str]) -> Iterator[slice]:
    num_runs = max(1, len(words) - GRAM_WORDS + 1) if words else 0
    return (slice(start, start + GRAM_WORDS) for start in range(num_runs))


def _gram(words: list[str]) -> int:
    return int(short_hash(*words)[:16], 16)


def _lookalike_grams(texts: list[str]) -> set[int]:
    """The hashes of runs with words that resemble Latin ones, in their Latin form.

    Text in another language is not converted: such a run has Latin letters, too, or it is long and every word of it
    resembles Latin, which no 13 words of Russian or Greek do.
    """
    words = [word for text in texts for word in _TOKEN.findall(text)]
    latin = [latin_lookalike(word) for word in words]
    is_like = [look not in (word, None) for look, word in zip(latin, words, strict=True)]
    has_latin = [_LATIN_LETTER.search(word) is not None for word in words]
    if not any(is_like) or (len(words) < GRAM_WORDS and not any(has_latin)):
        return set()
    looks = [(look or word).casefold() for look, word in zip(latin, words, strict=True)]
    return {
        _gram(looks[run])
        for run in _runs(words)
        if True in is_like[run] and (True in has_latin[run] or None not in latin[run])
    }


def evaluation_grams(validated: Snapshot, tokenized: Snapshot) -> tuple[dict[str, Grams], str]:
    """The sorted hashes of each evaluation set's prompts, by name, and an identity of all of them."""
    shards = [shard for shard in validated.manifest.shards if evaluation_name(shard.source)]
    tokens = {shard.name: shard for shard in tokenized.manifest.shards}
    grams: dict[str, set[int]] = {}
    decisive = []
    for shard in shards:
        path, name = validated.data_path(shard), evaluation_name(shard.source)
        rows = read_table([path] if path else [], schemas.VALIDATED, ["pair_id", "prompt"])
        ids = tokenized.data_path(tokens[shard.name])
        dropped = _dropped_turns(read_table([ids] if ids else [], schemas.TOKENIZED, ["pair_id", "num_dropped_turns"]))
        for texts, num_dropped in _prompts(rows, dropped):
            grams.setdefault(name, set()).update(_grams_of_prompt(texts, num_dropped))
        decisive.append([_GRAMS_VERSION, name, shard.key, *sorted(dropped.items())])
    arrays = {name: np.array(sorted(hashes), dtype=np.uint64) for name, hashes in grams.items()}
    return arrays, fingerprint(decisive)


def _dropped_turns(tokenized: pa.Table) -> dict[str, int]:
    """How many turns the shortened ones among tokenized pairs lost, by pair_id."""
    shortened = tokenized.filter(pc.greater(tokenized["num_dropped_turns"], 0))
    return dict(zip(shortened["pair_id"].to_pylist(), shortened["num_dropped_turns"].to_pylist(), strict=True))


def _prompts(rows: pa.Table, dropped: Mapping[str, int]) -> Iterator[tuple[list[str], int]]:
    """The user's messages in each row's prompt, and how many of them were dropped.

    System messages are left out: many prompts share them.
    """
    numbers = (dropped.get(pair_id, 0) for pair_id in rows["pair_id"].to_pylist()) if dropped else itertools.repeat(0)
    for prompt, number in zip(rows["prompt"].to_pylist(), numbers, strict=False):
        yield [message["content"] or "" for message in prompt if message["role"] == "user"], number


def _grams_of_prompt(texts: list[str], num_dropped: int) -> set[int]:
    """The hashes of a prompt, and of what is left of it without its oldest turns."""
    grams = prompt_grams(texts)
    return grams | prompt_grams(texts[num_dropped:]) if num_dropped else grams


def overlapping_rows(paths: list[Path], tokenized: list[Path], grams: dict[str, Grams]) -> dict[tuple[int, str], str]:
    """The pairs of validated files whose prompt overlaps an evaluation set: (line, pair_id) -> name of the set.

    Only pairs that were tokenized count: the prompts of all others are of any length.
    """
    if not grams:
        return {}
    rows = read_table(paths, schemas.VALIDATED, ["line", "pair_id", "prompt"])
    kept = read_table(tokenized, schemas.TOKENIZED, ["pair_id", "num_dropped_turns"])
    rows = rows.filter(pc.is_in(rows["pair_id"], kept["pair_id"].combine_chunks()))
    prompts = _prompts(rows, _dropped_turns(kept))
    found = {}
    for line, pair_id, prompt in zip(rows["line"].to_pylist(), rows["pair_id"].to_pylist(), prompts, strict=True):
        own = np.array(list(_grams_of_prompt(*prompt)), dtype=np.uint64)
        if name := next((name for name, known in grams.items() if _share_any(own, known)), None):
            found[line, pair_id] = name
    return found


def _share_any(own: Grams, known: Grams) -> bool:
    """Whether two arrays share a value; `known` is sorted and may be long."""
    places = np.minimum(np.searchsorted(known, own), len(known) - 1)
    return bool(len(known)) and bool((known[places] == own).any())
