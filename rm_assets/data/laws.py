"""The laws between stages, as figures that must be zero: counted from written shards, kept in their manifests."""

from collections.abc import Callable
from dataclasses import dataclass

from rm_assets.data.records import Stage
from rm_assets.data.snapshots import Manifest


@dataclass(frozen=True, kw_only=True)
class Law:
    """A rule of one stage; `violations` counts what breaks it, by kind, from the stage's manifest and its parent's."""

    name: str
    description: str
    violations: Callable[[Manifest, Manifest | None], dict[str, int]]


def _bytes(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    lines, rejects = manifest.total("num_lines") - manifest.total("num_blank"), manifest.total("num_rejects")
    return {
        "bytes unaccounted": manifest.total("num_bytes") - manifest.total("text_bytes") - manifest.total("other_bytes"),
        "lines unaccounted": lines - manifest.total("num_out") - (rejects - manifest.total("num_rejected_files")),
    }


def _lines(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    assert parent is not None
    with_pairs, rejects = manifest.total("num_lines_with_pairs"), manifest.total("num_rejects")
    return {
        "lines not read": parent.num_rows() - manifest.total("num_in"),
        "lines unaccounted": manifest.total("num_in") - manifest.total("num_second_lines") - with_pairs - rejects,
        "pairs unaccounted": manifest.total("num_stated") - manifest.total("num_out"),
    }


def _pairs(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    assert parent is not None
    return {
        "pairs not read": parent.num_rows() - manifest.total("num_in"),
        "pairs unaccounted": manifest.total("num_in") - manifest.total("num_out") - manifest.total("num_rejects"),
    }


def _zero(label: str, statistic: str) -> Callable[[Manifest, Manifest | None], dict[str, int]]:
    return lambda manifest, parent: {label: manifest.total(statistic)}


def _split(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    return {"prompts in two splits": manifest.facts["num_prompts_in_two_splits"]}


def _padding(manifest: Manifest, parent: Manifest | None) -> dict[str, int]:
    return {
        "pairs of unequal length": manifest.total("num_unequal"),
        "files with a wrong mask": manifest.total("num_wrong_masks"),
    }


_PAIRS_CONSERVED = Law(
    name="pairs_are_conserved",
    description="Every pair that came in went out or is a reject with a reason.",
    violations=_pairs,
)
_SIDES_DIFFER = Law(
    name="sides_differ",
    description="No pair has two equal sides.",
    violations=_zero("pairs with equal sides", "num_identical"),
)

LAWS: dict[Stage, tuple[Law, ...]] = {
    Stage.RAW: (
        Law(
            name="bytes_are_conserved",
            description="Bytes read = texts + line ends + byte order marks + blank lines + rejects.",
            violations=_bytes,
        ),
    ),
    Stage.VALIDATED: (
        Law(
            name="lines_are_conserved",
            description="Every line gave the pairs that it states, or is a reject with a reason.",
            violations=_lines,
        ),
        _SIDES_DIFFER,
    ),
    Stage.FLATTENED: (_PAIRS_CONSERVED, _SIDES_DIFFER),
    Stage.TOKENIZED: (
        _PAIRS_CONSERVED,
        _SIDES_DIFFER,
        Law(
            name="ids_are_exact",
            description="Sampled rows of every shard have the ids that transformers' apply_chat_template gives.",
            violations=_zero("sampled pairs with other ids", "num_inexact"),
        ),
    ),
    Stage.PADDED: (
        _PAIRS_CONSERVED,
        Law(
            name="sides_are_padded_equally",
            description="Both sides of a pair have one length, and masks follow from the lengths.",
            violations=_padding,
        ),
        Law(
            name="prompts_stay_in_one_split",
            description="No prompt stands in two splits.",
            violations=_split,
        ),
        Law(
            name="no_conversation_ends_in_padding",
            description="The last token of a conversation is never the padding token, so stock transformers scores it.",
            violations=_zero("sides that end in the padding token", "num_ending_in_padding"),
        ),
    ),
}
