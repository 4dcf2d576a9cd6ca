"""The invariants of each stage, as figures that must be zero: measured on written shards, kept in their manifests.

Figures are added up file by file, so that a surplus of rows from one file never hides the loss of another's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rm_assets.data.storage.snapshots import Manifest
from rm_assets.data.tables.schemas import Stage


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """A rule of one stage; `violations` counts what breaks it, by kind, from the stage's manifest and its parent's."""

    name: str
    description: str
    violations: Callable[[Manifest, Manifest | None], dict[str, int]]


def _bytes(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    lines = _difference(manifest, ["num_lines", "num_rejected_files"], ["num_blank", "num_out", "num_rejects"])
    return {
        "bytes unaccounted": _difference(manifest, ["num_bytes"], ["text_bytes", "other_bytes"]),
        "lines unaccounted": lines + _miscounted(manifest),
    }


def _lines(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    ends = ["num_second_lines", "num_lines_with_pairs", "num_rejects"]
    return {
        "lines not read": _not_read(manifest, parent),
        "lines unaccounted": _difference(manifest, ["num_in"], ends),
        "pairs unaccounted": _difference(manifest, ["num_stated"], ["num_out"]) + _miscounted(manifest),
    }


def _pairs(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    return {
        "pairs not read": _not_read(manifest, parent),
        "pairs unaccounted": _difference(manifest, ["num_in"], ["num_out", "num_rejects"]) + _miscounted(manifest),
    }


def _difference(manifest: Manifest, whole: list[str], parts: list[str]) -> int:
    """By how much the figures in `whole` differ from those in `parts` that they should be the sum of."""
    signs = dict.fromkeys(whole, 1) | dict.fromkeys(parts, -1)
    figures = signs.items()
    return _sum_by_source(
        (source, sum([sign * stats.get(figure, 0) for figure, sign in figures])) for source, stats in _files(manifest)
    )


def _files(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each file in each shard, by source."""
    return (entry for shard in manifest.shards for entry in shard.by_source.items())


def _not_read(manifest: Manifest, parent: Manifest | None) -> int:
    """Rows of the parent that were not read, or read twice."""
    assert parent is not None
    rows_of_parent = [entry for shard in parent.shards for entry in shard.rows_by_source().items()]
    return _sum_by_source(rows_of_parent + [(source, -stats.get("num_in", 0)) for source, stats in _files(manifest)])


def _miscounted(manifest: Manifest) -> int:
    """How many rows and rejects more or fewer the manifest states than the files hold."""
    counts = [
        (shard.num_rows(rejects=rejects), sum(stats.get(figure, 0) for stats in shard.by_source.values()))
        for shard in manifest.shards
        for rejects, figure in ((False, "num_out"), (True, "num_rejects"))
    ]
    return sum(abs(stated - counted) for stated, counted in counts)


def _sum_by_source(figures: Iterable[tuple[str, int]]) -> int:
    sums: dict[str, int] = {}
    for source, figure in figures:
        sums[source] = sums.get(source, 0) + figure
    return sum(map(abs, sums.values()))


def _zero(label: str, statistic: str) -> Callable[[Manifest, Manifest | None], dict[str, int]]:
    return lambda manifest, parent: {label: manifest.total(statistic)}


def _split(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    return {"prompts in two splits": manifest.facts["num_prompts_in_two_splits"]}


def _padding(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    return {
        "pairs of unequal length": manifest.total("num_unequal"),
        "files with a wrong mask": manifest.total("num_wrong_masks"),
    }


_PAIRS_CONSERVED = Invariant(
    name="pairs_are_conserved",
    description="Every pair of the parent is a pair here or a reject with a reason.",
    violations=_pairs,
)
_SIDES_DIFFER = Invariant(
    name="sides_differ",
    description="The two sides of every pair differ.",
    violations=_zero("pairs with equal sides", "num_identical"),
)

INVARIANTS: dict[Stage, tuple[Invariant, ...]] = {
    Stage.RAW: (
        Invariant(
            name="bytes_are_conserved",
            description="Bytes read = texts + line ends + byte order marks + blank lines + rejects.",
            violations=_bytes,
        ),
    ),
    Stage.VALIDATED: (
        Invariant(
            name="lines_are_conserved",
            description="Every line gave the pairs that it states, or is a reject with a reason.",
            violations=_lines,
        ),
        _SIDES_DIFFER,
        Invariant(
            name="tools_are_as_written",
            description="Every tool and tool call occurs in its line, with its members in the same order.",
            violations=_zero("lines with other tools or calls", "num_other_tools"),
        ),
    ),
    Stage.FLATTENED: (_PAIRS_CONSERVED, _SIDES_DIFFER),
    Stage.TOKENIZED: (
        _PAIRS_CONSERVED,
        _SIDES_DIFFER,
        Invariant(
            name="ids_are_exact",
            description="Sampled rows of every shard have the ids that transformers' apply_chat_template gives.",
            violations=_zero("sampled pairs with other ids", "num_inexact"),
        ),
    ),
    Stage.PADDED: (
        _PAIRS_CONSERVED,
        Invariant(
            name="sides_are_padded_equally",
            description="Both sides of a pair have the same length, and masks follow from the lengths.",
            violations=_padding,
        ),
        Invariant(
            name="prompts_stay_in_one_split",
            description="No prompt is in two splits.",
            violations=_split,
        ),
        Invariant(
            name="no_conversation_contains_padding",
            description="The padding token is in no conversation, so all ways to find a conversation's end agree.",
            violations=_zero("sides that contain the padding token", "num_containing_padding"),
        ),
    ),
}
