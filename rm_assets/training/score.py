"""Scores a JSONL file with a saved model: `python -m rm_assets.training.score MODEL_DIRECTORY FILE.jsonl`.

With `--url URL` in place of a file it verifies that the server there gives the golden scores, and states the largest
difference; nothing is loaded here.

First the model must give its golden scores, which proves that it is the model of its report. A line holds a
preference in any accepted format, or one conversation (`messages`, with `tools` or without). Every line gives lines of
output, or one line with the reason why it has no score. RM_COLUMNS, RM_LABELS and RM_MAX_PAIRS_PER_PROMPT
count as they do for annotations, and lines are cut as they are there: at line feeds, and up to RM_MAX_LINE_BYTES.

Exit codes: 0 done, 1 no scores (the reason is on stderr), 2 wrong arguments.
"""

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import torch
import transformers

from rm_assets.data.formats.field_names import CONVERSATIONS, response_fields
from rm_assets.data.formats.file_rules import rules_of_file
from rm_assets.data.formats.json_lines import json_object
from rm_assets.data.formats.labels.consistency import EvidenceCounts, count_evidence, refusals, unclear_labels
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import Evidence, Message, ParsingRules, PreferenceError
from rm_assets.data.formats.unread_fields import require_only_read_fields
from rm_assets.data.sources.blocks import blocks_of_lines
from rm_assets.data.sources.lines import read_block
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import one_line
from rm_assets.settings import SettingsError
from rm_assets.settings_loading import load_settings
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.saved_model.conversations import conversation_ids, read_conversation
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.remote_scores import verify_server
from rm_assets.training.saved_model.stock_scoring import (
    ConversationError,
    SavedModel,
    load_saved_model,
    sequence_logits,
)

_LINES_PER_BATCH = 1000  # all of their sequences are sorted by length together
_BLOCK_BYTES = 2**20
NumberedLine = tuple[int, str | PreferenceError]
"""A line that is not blank, or why it cannot be read."""
_Sides = dict[str, tuple[tuple[Message, ...], str]]
"""What is scored of a line, under the name of its score: messages, and tools as JSON text."""
_Read = tuple[list[_Sides] | PreferenceError, tuple[Evidence, ...]]
"""What a line holds, or why it holds nothing to score; and what its verdict implies for those of other lines."""


def main(arguments: list[str]) -> int:
    """Score the file that the arguments name; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.file is None) == (given.url is None):
        parser.error("give either a FILE or --url URL")
    try:
        tolerance = math.inf if given.bfloat16 else given.tolerance
        if given.url:
            _log(verify_server(given.model, given.url, tolerance) + " in bfloat16" * given.bfloat16)
            return 0
        transformers.logging.disable_progress_bar()
        settings = load_settings({}, os.environ)
        rules = rules_of_file(settings, given.file)
        saved = load_saved_model(given.model, torch.bfloat16 if given.bfloat16 else torch.float32)
        difference = verify_golden_scores(given.model, saved, given.batch_size, given.padding, tolerance)
        _log(f"golden scores verified, largest difference {difference:.2g}" + " in bfloat16" * given.bfloat16)
        with _source(given.file) as source, _target(given.output, source) as target:
            lines = numbered_lines(source, settings.max_line_bytes)
            _log(_summary(_written(lines, target, saved, rules, given)))
    except (TrainingError, SettingsError, OSError) as error:
        _log(f"error: {one_line(error)}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rm_assets.training.score",
        description="Scores preferences or conversations with a saved reward model, after verifying its golden scores.",
    )
    parser.add_argument("model", type=Path, help="the model directory")
    parser.add_argument("file", nargs="?", help="a JSONL file, or - for standard input")
    parser.add_argument("--url", help="verify a server at this address, such as http://localhost:8000, instead")
    parser.add_argument("--output", default="-", help="a JSONL file for the scores; standard output if not given")
    parser.add_argument("--batch-size", type=positive, default=16, help="sequences per forward pass; changes no score")
    parser.add_argument("--padding", choices=["right", "left"], default="right", help="changes no score")
    parser.add_argument("--tolerance", type=_tolerance, help="allowed difference of a golden score; unset: the file's")
    parser.add_argument("--bfloat16", action="store_true", help="score in bfloat16; the difference is only reported")
    return parser


def positive(text: str) -> int:
    """A number of at least 1, as an argument of a command; raises ValueError."""
    if (size := int(text)) < 1:
        raise ValueError
    return size


def _tolerance(text: str) -> float:
    if not (tolerance := float(text)) >= 0:
        raise ValueError
    return tolerance


def _source(name: str) -> contextlib.AbstractContextManager[io.BufferedReader]:
    standard = cast(io.BufferedReader, sys.stdin.buffer)
    return contextlib.nullcontext(standard) if name == "-" else Path(name).open("rb")


def _target(name: str, source: io.BufferedReader) -> contextlib.AbstractContextManager[TextIO]:
    """Where the scores go; raises TrainingError where that is the file that is read, which opening would empty."""
    if name == "-":
        return contextlib.nullcontext(sys.stdout)
    path = Path(name)
    if path.is_file() and os.path.samestat(path.stat(), os.fstat(source.fileno())):
        raise TrainingError(f"--output is {name!r}, the file whose lines are to be scored: name another one")
    return path.open("w", encoding="utf-8")


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def numbered_lines(source: io.BufferedReader, max_line_bytes: int) -> Iterator[NumberedLine]:
    """The lines of a stream that are not blank, as raw_preferences reads them; a line that is not text is a problem."""
    for block in blocks_of_lines(source, block_bytes=_BLOCK_BYTES, max_line_bytes=max_line_bytes):
        for part in read_block(block, max_line_bytes=max_line_bytes, part_bytes=_BLOCK_BYTES):
            found: list[NumberedLine] = list(zip(part.numbers.tolist(), part.texts.to_pylist(), strict=True))
            found += [(number, PreferenceError(reason, detail)) for number, reason, detail, _ in part.rejects]
            yield from sorted(found, key=lambda line: line[0])


def _written(
    numbered: Iterator[NumberedLine], target: TextIO, saved: SavedModel, rules: ParsingRules, given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Every line of output, once it is written."""
    while lines := list(itertools.islice(numbered, _LINES_PER_BATCH)):
        for result in scored_lines(lines, saved, rules, given.batch_size, given.padding):
            target.write(json.dumps(result) + "\n")
            yield result


def _summary(results: Iterable[dict[str, Any]]) -> str:
    """Consumes the lines of output: how many there are of each kind, and how often the chosen reply scored higher."""
    num_conversations = num_pairs = num_problems = 0
    right = 0.0
    for result in results:
        num_problems += "problem" in result
        num_conversations += "score" in result
        if "chosen_score" in result:
            num_pairs += 1
            right += (1 + math.copysign(1, result["margin"])) / 2 if result["margin"] else 0.5
    accuracy = f", accuracy {right / num_pairs:.4f}" if num_pairs else ""
    return f"{num_pairs} pairs{accuracy}; {num_conversations} conversations; {num_problems} without a score"


def scored_lines(
    lines: Iterable[NumberedLine], saved: SavedModel, rules: ParsingRules, batch_size: int, padding: Any
) -> list[dict[str, Any]]:
    """For each (number, text) of a line its results: `line` and `score`, or `line`, both scores and their `margin`.

    A ranking has a result per pair, numbered by `pair`. What cannot be scored has `line` and `problem`; labels and
    strengths of these lines are judged together, as rm_assets.data.formats.labels.consistency says.
    """
    results: list[dict[str, Any]] = []
    places: list[tuple[dict[str, Any], str]] = []
    sequences: list[list[int]] = []
    for number, stated in _resolve_labels([(number, _read(line, rules)) for number, line in lines]):
        if isinstance(stated, PreferenceError):
            results.append({"line": number, "problem": str(stated)})
            continue
        for pair, sides in enumerate(stated, start=1):
            result: dict[str, Any] = {"line": number} | ({"pair": pair} if len(sides) > 1 else {})
            results.append(result)
            try:
                ids = [conversation_ids(saved, *side) for side in sides.values()]
            except ConversationError as error:
                result["problem"] = str(error)
                continue
            sequences += ids
            places += [(result, name) for name in sides]
    for (result, name), score in zip(places, sequence_logits(saved, sequences, batch_size, padding), strict=True):
        result[name] = score
    return [_finished(result) for result in results]


def _read(line: str | PreferenceError, rules: ParsingRules) -> _Read:
    if isinstance(line, PreferenceError):
        return line, ()
    try:
        return _parse(line, rules)
    except PreferenceError as error:
        return error, error.evidence


def _resolve_labels(found: Sequence[tuple[int, _Read]]) -> Iterator[tuple[int, list[_Sides] | PreferenceError]]:
    """Each line's conversations, or its problem, which may come from the labels of other lines."""
    counts: EvidenceCounts = {}
    for number, (_, evidence) in found:
        for each in evidence:
            count_evidence(counts, each, number, is_valid=True)
    refused = {
        (refusal.shape, kind): PreferenceError(refusal.reason, refusal.detail)
        for refusal in refusals({"": counts})
        for kind in refusal.kinds
    }
    for shape, kinds in counts.items():
        for why in unclear_labels({"": {shape: kinds}}).get("", []):
            refused |= {(shape, kind): PreferenceError(Reason.AMBIGUOUS_LABEL, why) for kind in kinds}
    for number, (stated, evidence) in found:
        problems = (refused[key] for each in evidence if (key := (each.shape, each.kind)) in refused)
        yield number, stated if isinstance(stated, PreferenceError) else next(problems, stated)


def _finished(result: dict[str, Any]) -> dict[str, Any]:
    """A result with its margin, or with a problem in place of scores that are not finite."""
    scores = {name: score for name, score in result.items() if name.endswith("score")}
    if not all(map(math.isfinite, scores.values())):
        place = {name: value for name, value in result.items() if name not in scores}
        return place | {
            "problem": f"the model gives scores that are not finite: {', '.join(map(str, scores.values()))}"
        }
    if "chosen_score" in scores:
        return result | {"margin": scores["chosen_score"] - scores["rejected_score"]}
    return result


def _parse(line: str, rules: ParsingRules) -> tuple[list[_Sides], tuple[Evidence, ...]]:
    """What a line holds, one conversation or a pair or more; raises PreferenceError where it holds nothing to score."""
    row = json_object(line, CONVERSATIONS)
    require_only_read_fields(row)
    name = next((name for name in CONVERSATIONS if isinstance(row.get(name), list)), None)
    if name and {"chosen", "rejected_response", "rejected_messages"}.isdisjoint(row) and not response_fields(row):
        return [{"score": read_conversation(row, name)}], ()
    parsed = parse_line(line, rules)
    pairs: list[_Sides] = [
        {
            "chosen_score": (pair.prompt + pair.chosen, pair.tools),
            "rejected_score": (pair.prompt + pair.rejected, pair.tools),
        }
        for pair in parsed.preferences
    ]
    return pairs, parsed.evidence


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
