"""Which files are held back, and which strengths are rejects: decided from all files before any row is used.

A file is held back if too many of its lines are malformed, if a number as its label may mean either response, or if a
two-line file has lost a line. All this follows from the figures of shards, so a second run reads no rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

from rm_assets.data.formats.comparisons import label_advice
from rm_assets.data.formats.labels.consistency import (
    EvidenceCounts,
    Refusal,
    evidence_by_source,
    refusals,
    unclear_labels,
)
from rm_assets.data.formats.labels.strengths import column_of, scale_advice
from rm_assets.data.storage.snapshots import Shard
from rm_assets.data.tables.reasons import MALFORMED, Reason

_NUM_CAUSES = 4


class HeldBack(Struct, frozen=True, kw_only=True):
    """A file that is held back: its numbers of malformed and of non-blank lines, the causes, and what to do."""

    num_malformed: int
    num_lines: int
    causes: str
    advice: str


class Verdict(NamedTuple):
    """The decisions on all files: which are held back, by source, and which strengths are rejects."""

    held_back: dict[str, HeldBack]
    refused: list[Refusal]


class _Damage:
    """The malformed lines of a file, by reason, with the first line of each."""

    def __init__(self) -> None:
        self.num_lines = self.num_broken_prompts = 0
        self.reasons: dict[str, tuple[int, int]] = {}
        self.refused_scales: list[str] = []  # shapes of strengths whose scale is unknown

    def add(self, reason: str, num: int, line: int) -> None:
        """Count malformed lines of one reason."""
        known, first = self.reasons.get(reason, (0, line))
        self.reasons[reason] = known + num, min(first, line)

    @property
    def num_malformed(self) -> int:
        """Malformed lines, for any reason."""
        return sum(num for num, _ in self.reasons.values())

    def describe(self) -> str:
        """`missing_field 3 (first: line 7), not_json 1 (first: line 9)`, the most frequent ones first."""
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1][0], item[0]))
        described = [f"{reason} {num:,} (first: line {line})" for reason, (num, line) in ordered[:_NUM_CAUSES]]
        return ", ".join(described + ["others"] * (len(ordered) > _NUM_CAUSES))


def verdict_of_files(raw: Iterable[Shard], validated: Iterable[Shard], limit: float) -> Verdict:
    """The verdict on all files, from the figures of their raw shards and of the validated ones, in the same order."""
    files = [
        (source, raw_figures, validated_shard.by_source[source])
        for raw_shard, validated_shard in zip(raw, validated, strict=True)
        for source, raw_figures in raw_shard.by_source.items()
    ]
    evidence = evidence_by_source((source, figures.get("signs", {})) for source, _, figures in files)
    refused, unclear = refusals(evidence), unclear_labels(evidence)
    damage: dict[str, _Damage] = {}
    for source, raw_figures, figures in files:
        found = damage.setdefault(source, _Damage())
        found.num_lines += raw_figures.get("num_lines", 0) - raw_figures.get("num_blank", 0)
        found.num_broken_prompts += figures.get("num_broken_prompts", 0)
        for reason, (num, line) in [*raw_figures.get("malformed", {}).items(), *figures.get("malformed", {}).items()]:
            if reason in MALFORMED:
                found.add(reason, num, line)
    for source, own in evidence.items():
        damage[source].refused_scales = [refusal.shape for refusal in refused if refusal.shape in own]
        for num, line in _refused_lines(own, refused):
            damage[source].add(Reason.AMBIGUOUS_LABEL, num, line)
    held_back = {
        source: held
        for source, found in sorted(damage.items())
        if (held := _held_back(found, unclear.get(source, []), limit)) is not None
    }
    return Verdict(held_back, refused)


def _refused_lines(evidence: EvidenceCounts, refused: list[Refusal]) -> Iterable[tuple[int, int]]:
    """How many lines are malformed for each refused kind of strength, and the first of them."""
    for refusal in refused:
        for kind, seen in evidence.get(refusal.shape, {}).items():
            if kind in refusal.kinds and refusal.reason in MALFORMED and seen.num_valid:
                yield seen.num_valid, seen.line


def _held_back(damage: _Damage, unclear: list[str], limit: float) -> HeldBack | None:
    is_damaged = damage.num_malformed > limit * damage.num_lines
    if not (is_damaged or unclear or damage.num_broken_prompts):
        return None
    causes = list(unclear[:_NUM_CAUSES])
    if damage.reasons:
        causes.append(f"{damage.num_malformed:,} of {damage.num_lines:,} lines malformed: {damage.describe()}")
    if damage.num_broken_prompts:
        causes.append(f"{damage.num_broken_prompts:,} prompts with several pairs lack a line")
    return HeldBack(
        num_malformed=damage.num_malformed,
        num_lines=damage.num_lines,
        causes="; ".join(causes),
        advice="; ".join(_advice(damage, unclear, is_damaged)),
    )


def _advice(damage: _Damage, unclear: list[str], is_damaged: bool) -> Iterable[str]:
    if unclear:
        yield label_advice(column_of(unclear[0]))
    elif is_damaged and damage.refused_scales:
        yield scale_advice(damage.refused_scales[0])
    if damage.num_broken_prompts:
        yield "restore the missing lines"
    if is_damaged and damage.reasons.keys() - {Reason.AMBIGUOUS_LABEL}:
        has_other_names = {Reason.UNKNOWN_FORMAT, Reason.MISSING_FIELD} & damage.reasons.keys()
        other_names = "map its columns in the setting columns, " if has_other_names else ""
        yield f"fix these lines, {other_names}or raise max_malformed_fraction"
