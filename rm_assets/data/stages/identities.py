"""Which settings determine a snapshot, and the hashes of them that identify snapshots and shards.

A shard is found by its key: the hash of its input's key, the stage's version and the settings that change its rows.
A snapshot has an identity: the hash of all settings that its stage and the stages before it read. A stage takes its
parent's newest snapshot only if that has the identity of its own settings; so two runs with different settings on one
storage, or a stage run alone after a change of settings, fail with an error and never mix.
"""

from typing import Any, NamedTuple

from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


class StageSettings(NamedTuple):
    """The settings that a stage reads, by name.

    Those in `keys` are part of every shard's key. The `others` change which files are read, how each file is read, or
    which rows are dropped: the stage puts these decisions into the keys of the shards that they concern.
    """

    keys: tuple[str, ...]
    others: tuple[str, ...]


STAGE_SETTINGS: dict[Stage, StageSettings] = {
    Stage.RAW: StageSettings(
        keys=("shard_bytes", "max_line_bytes", "two_line_files"),
        others=("annotations_path", "evaluation_files", "max_expansion"),
    ),
    Stage.VALIDATED: StageSettings(
        keys=(), others=("max_malformed_fraction", "columns", "labels", "max_pairs_per_prompt")
    ),
    Stage.FLATTENED: StageSettings(keys=("control_tokens",), others=()),
    Stage.TOKENIZED: StageSettings(keys=("max_length", "over_long"), others=()),
    Stage.PADDED: StageSettings(keys=("split_seed", "validation_fraction", "test_fraction"), others=("conflicts",)),
}


def settings_key(stage: Stage, version: int, settings: Settings, *more: Any) -> str:
    """The part that the keys of all shards of a stage share: its version, `more`, and the settings in `keys`."""
    return fingerprint(stage, version, *more, *(getattr(settings, name) for name in STAGE_SETTINGS[stage].keys))


def stage_identity(stage: Stage, settings: Settings, before: str, tokenizer: str = "") -> str:
    """The identity of a stage's snapshot, from that of its parent's and, for flattening, the tokenizer's."""
    names = (*STAGE_SETTINGS[stage].keys, *STAGE_SETTINGS[stage].others)
    return fingerprint(stage, before, {name: getattr(settings, name) for name in names}, tokenizer)


def stage_identities(settings: Settings, tokenizer: TokenizerFiles) -> dict[Stage, str]:
    """The identities that the snapshots of all stages have under these settings."""
    identities: dict[Stage, str] = {}
    before = ""
    for stage in Stage:
        before = stage_identity(stage, settings, before, tokenizer.identity if stage is Stage.FLATTENED else "")
        identities[stage] = before
    return identities
