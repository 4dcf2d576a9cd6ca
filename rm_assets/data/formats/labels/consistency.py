"""Checks verdicts across rows: what rows with the same columns, in any file, imply for each other.

Rows have one shape if their verdict and their two responses are in the same columns. If `"label": 1` beside
`response_1` and `response_2` names the first response, no row of that shape can have the label 0; if one does, 1 may
mean the second response. Strengths are on HelpSteer's scale if all of a shape are between -3 and 3 and at least one is
negative; otherwise their scale is unknown. A strength beside a label is taken as a magnitude, unless one of its shape
is negative: then its sign must agree with the label.

Each shard counts its evidence by shape and kind; all shards together decide, so no verdict depends on how rows are
distributed over files and shards.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from rm_assets.data.formats.labels.strengths import scale_advice
from rm_assets.data.formats.preferences import Evidence, EvidenceKind
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import as_code

_STRENGTHS = (EvidenceKind.NEGATIVE, EvidenceKind.POSITIVE)
_AGAINST_NAMES = (EvidenceKind.UNCLEAR, EvidenceKind.OTHER, EvidenceKind.OWN)


class Seen(Struct, kw_only=True):
    """How many rows of a file give such evidence, how many of them are valid, and the line and value of the first."""

    num: int
    num_valid: int
    line: int
    value: str


EvidenceCounts = dict[str, dict[EvidenceKind, Seen]]
"""The evidence of a shard or a file, by shape and kind."""


class Refusal(Struct, frozen=True, kw_only=True):
    """Rows of this shape whose evidence is of these kinds are rejects, for this reason."""

    shape: str
    kinds: tuple[EvidenceKind, ...]
    reason: Reason
    detail: str


def count_evidence(counts: EvidenceCounts, evidence: Evidence, line: int, *, is_valid: bool) -> None:
    seen = counts.setdefault(evidence.shape, {}).get(evidence.kind)
    if seen is None:
        counts[evidence.shape][evidence.kind] = Seen(num=1, num_valid=int(is_valid), line=line, value=evidence.value)
        return
    seen.num += 1
    seen.num_valid += is_valid
    if line < seen.line:
        seen.line, seen.value = line, evidence.value


def evidence_by_source(shards: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, EvidenceCounts]:
    """The evidence of each file, added up from the figures of its shards."""
    found: dict[str, EvidenceCounts] = {}
    for source, figures in shards:
        counts = found.setdefault(source, {})
        for shape, kinds in msgspec.convert(figures, EvidenceCounts).items():
            for kind, seen in kinds.items():
                known = counts.setdefault(shape, {}).setdefault(kind, seen)
                if known is not seen:
                    first = min(known, seen, key=lambda each: each.line)
                    num, num_valid = known.num + seen.num, known.num_valid + seen.num_valid
                    counts[shape][kind] = Seen(num=num, num_valid=num_valid, line=first.line, value=first.value)
    return found


def refusals(by_source: Mapping[str, EvidenceCounts]) -> list[Refusal]:
    """Which strengths are rejects, shape by shape, judged by the evidence of all files."""
    found = []
    refused: tuple[EvidenceKind, ...]
    for shape, kinds in _kinds(by_source).items():
        if EvidenceKind.SIGNED in kinds and EvidenceKind.SIZE in kinds:
            example = _example(by_source, shape, EvidenceKind.SIGNED)
            detail = f"{shape} is {example}, so its values have a sign, which here contradicts the label"
            reason, refused = Reason.AMBIGUOUS_FIELD, (EvidenceKind.SIZE,)
        elif EvidenceKind.BEYOND in kinds:
            detail = (
                f"{shape} is {_example(by_source, shape, EvidenceKind.BEYOND)}, outside -3 to 3; {scale_advice(shape)}"
            )
            reason, refused = Reason.AMBIGUOUS_LABEL, _STRENGTHS
        elif EvidenceKind.POSITIVE in kinds and EvidenceKind.NEGATIVE not in kinds:
            detail = f"{shape} is negative in no line, unlike strengths from -3 to 3; {scale_advice(shape)}"
            reason, refused = Reason.AMBIGUOUS_LABEL, _STRENGTHS
        else:
            continue
        found.append(Refusal(shape=shape, kinds=refused, reason=reason, detail=detail))
    return found


def unclear_labels(by_source: Mapping[str, EvidenceCounts]) -> dict[str, list[str]]:
    """The files with numeric labels that may mean either response, and why, shape by shape."""
    found: dict[str, list[str]] = {}
    kinds = _kinds(by_source)
    for source, counts in by_source.items():
        for shape in sorted(counts):
            if why := _why_unclear(by_source, source, shape, kinds[shape]):
                found.setdefault(source, []).append(why)
    return found


def _why_unclear(by_source: Mapping[str, EvidenceCounts], source: str, shape: str, all_kinds: set[EvidenceKind]) -> str:
    """Why the numbers of a shape in one file are unclear; empty if clear. `all_kinds` are those of all files."""
    own = by_source[source][shape]
    against = [kind for kind in _AGAINST_NAMES if kind in all_kinds]
    if EvidenceKind.UNCLEAR in own:
        kind, other = EvidenceKind.UNCLEAR, None
    elif EvidenceKind.NAMED in own and against:
        kind, other = EvidenceKind.NAMED, against[0]
    elif EvidenceKind.OTHER in own and EvidenceKind.NAMED in all_kinds:
        kind, other = EvidenceKind.OTHER, EvidenceKind.NAMED
    else:
        return ""
    problem = f"{shape} is {own[kind].value} (first: line {own[kind].line})"
    if other is None:
        return f"{problem}, which could mean either response"
    return f"{problem}, but {_example(by_source, shape, other, source)}: these numbers may not name the responses"


def _example(by_source: Mapping[str, EvidenceCounts], shape: str, kind: EvidenceKind, source: str = "") -> str:
    """A value of this kind and its line, from `source` if it has one, else from another file."""
    places = [name for name, counts in by_source.items() if kind in counts.get(shape, {})]
    place = source if source in places else min(places)
    seen = by_source[place][shape][kind]
    return f"{seen.value} in line {seen.line}" + ("" if place == source else f" of {as_code(place)}")


def _kinds(by_source: Mapping[str, EvidenceCounts]) -> dict[str, set[EvidenceKind]]:
    found: dict[str, set[EvidenceKind]] = {}
    for counts in by_source.values():
        for shape, kinds in counts.items():
            found.setdefault(shape, set()).update(kinds)
    return found
