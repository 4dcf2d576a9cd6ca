"""Which settings made a snapshot: one hash per stage, of what it and the stages before it read.

A stage takes its parent's newest snapshot only if that was made with its own settings, so that two runs with different
settings on one storage, or a stage run alone after a change, give an error and never a mixture. Shards are found by
their keys, which do not depend on where the annotations lie; this does.
"""

from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

# The settings that each stage reads, by name.
STAGE_SETTINGS: dict[Stage, tuple[str, ...]] = {
    Stage.RAW: (
        "annotations_path",
        "evaluation_files",
        "shard_bytes",
        "max_line_bytes",
        "max_expansion",
        "two_line_files",
    ),
    Stage.VALIDATED: ("max_malformed_fraction", "columns", "labels", "max_pairs_per_prompt"),
    Stage.FLATTENED: ("control_tokens",),
    Stage.TOKENIZED: ("max_length", "over_long"),
    Stage.PADDED: ("conflicts", "split_seed", "validation_fraction", "test_fraction"),
}


def stage_identity(stage: Stage, settings: Settings, before: str, tokenizer: str = "") -> str:
    """The identity of a stage's snapshot, from that of its parent's and, for flattening, the tokenizer's."""
    return fingerprint(stage, before, {name: getattr(settings, name) for name in STAGE_SETTINGS[stage]}, tokenizer)


def stage_identities(settings: Settings, tokenizer: TokenizerFiles) -> dict[Stage, str]:
    """The identities that the snapshots of all stages have under these settings."""
    identities: dict[Stage, str] = {}
    before = ""
    for stage in Stage:
        before = stage_identity(stage, settings, before, tokenizer.identity if stage is Stage.FLATTENED else "")
        identities[stage] = before
    return identities
