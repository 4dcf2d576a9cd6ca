"""Evaluation files: pairs that are scored but never trained on, and training prompts that overlap them.

Their sources begin with `evaluation:<name>/`, which is how every stage tells them from annotations: no path gives a
source that begins so (`annotations.source_name`), and no name of a set has a slash. Two prompts overlap
if they share a run of 13 words (Brown et al. 2020, appendix C), or, where scripts write no spaces, of 13 characters; a
prompt shorter than that overlaps an equal one.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rm_assets.data import records
from rm_assets.data.annotations import EVALUATION_PREFIX, SETTING, AnnotationFile, Annotations, find_annotations
from rm_assets.data.fingerprint import fingerprint, short_hash
from rm_assets.data.normal_form import normalized
from rm_assets.data.parquet import read_table
from rm_assets.data.snapshots import Snapshot
from rm_assets.settings import SettingsError

GRAM_WORDS = 13
FOLDER = "evaluation"
# Thai, Lao, Burmese and Khmer; kana; ideographs: their words are not set apart by spaces, so each character counts.
_TOKEN = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]+"
)

Grams = np.ndarray[Any, np.dtype[np.uint64]]


# --- files ---------------------------------------------------------------------------------------------------


def find_evaluation_files(evaluation_files: dict[str, str], storage: Path | None = None) -> list[AnnotationFile]:
    """The files of every evaluation set, their sources marked by its name; raises SettingsError as annotations do."""
    return [
        dataclasses.replace(file, source=f"{EVALUATION_PREFIX}{name}/{file.source}")
        for name, setting in sorted(evaluation_files.items())
        for file in _found(name, setting, storage).files
    ]


def _found(name: str, path: str, storage: Path | None) -> Annotations:
    try:
        return find_annotations(path, storage)
    except SettingsError as error:
        setting = f"evaluation_files (or RM_EVALUATION_FILES), {name!r},"
        raise SettingsError(str(error).replace(SETTING, setting, 1)) from None


def evaluation_name(source: str) -> str:
    """The evaluation set that a source belongs to; empty for annotations."""
    is_marked = source.startswith(EVALUATION_PREFIX)
    return source.removeprefix(EVALUATION_PREFIX).split("/", 1)[0] if is_marked else ""


def evaluation_folder(source: str) -> str:
    """The folder of an evaluation set in padded_pairs; empty for annotations."""
    name = evaluation_name(source)
    return f"{FOLDER}/{name}" if name else ""


# --- overlap -------------------------------------------------------------------------------------------------


def prompt_grams(texts: Iterable[str]) -> set[int]:
    """Hashes of the runs of GRAM_WORDS words in a prompt's user turns, in NFKC and case-folded.

    A prompt of fewer words gives one hash, of all of them; one without words gives none.
    """
    words = [word for text in texts for word in _TOKEN.findall(normalized("NFKC", text).casefold())]
    if not words:
        return set()
    starts = range(max(1, len(words) - GRAM_WORDS + 1))
    return {int(short_hash(*words[start : start + GRAM_WORDS])[:16], 16) for start in starts}


def evaluation_grams(validated: Snapshot) -> tuple[dict[str, Grams], str]:
    """The sorted hashes of each evaluation set's prompts, by name, and an identity of all of them."""
    shards = [shard for shard in validated.manifest.shards if evaluation_name(shard.source)]
    grams: dict[str, set[int]] = {}
    for shard in shards:
        path = validated.data_path(shard)
        for texts in user_turns([path] if path else []):
            grams.setdefault(evaluation_name(shard.source), set()).update(prompt_grams(texts))
    identity = fingerprint([[evaluation_name(shard.source), shard.key] for shard in shards])
    return {name: np.array(sorted(hashes), dtype=np.uint64) for name, hashes in grams.items()}, identity


def overlapping_rows(paths: list[Path], grams: dict[str, Grams]) -> dict[tuple[int, str], str]:
    """The pairs of validated files whose prompt overlaps an evaluation set: (line, pair_id) -> name of the set."""
    if not grams:
        return {}
    keys = read_table(paths, records.VALIDATED, ["line", "pair_id"]).to_pylist()
    found = {}
    for key, texts in zip(keys, user_turns(paths), strict=True):
        own = np.array(list(prompt_grams(texts)), dtype=np.uint64)
        if name := next((name for name, known in grams.items() if _share_any(own, known)), None):
            found[key["line"], key["pair_id"]] = name
    return found


def _share_any(own: Grams, known: Grams) -> bool:
    """Whether two arrays share a value; `known` is sorted and may be long."""
    places = np.minimum(np.searchsorted(known, own), len(known) - 1)
    return bool(len(known)) and bool((known[places] == own).any())


def user_turns(paths: list[Path]) -> Iterator[list[str]]:
    """What the user says in each row's prompt, message by message; system messages are shared by many prompts."""
    for prompt in read_table(paths, records.VALIDATED, ["prompt"])["prompt"].to_pylist():
        yield [message["content"] or "" for message in prompt if message["role"] == "user"]
