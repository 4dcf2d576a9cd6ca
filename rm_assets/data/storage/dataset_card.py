"""The README.md of a snapshot: which of its files are which part of a data set, for `datasets` and the Hub's viewer.

Without it, `load_dataset` takes the rejects, which have other columns, for rows of the data. Format:
https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from collections import Counter

from rm_assets.data.storage.snapshots import DATA, REJECTS, Manifest

CARD = "README.md"
_SPLITS = ("train", "validation", "test")
_EVALUATION = "evaluation/"

_TEXT = """---
configs:
{configs}
---

# {asset}

Snapshot `{snapshot}` of [rm_assets](https://github.com/rm-assets/rm_assets). `load_dataset(DIRECTORY)` loads the first
configuration, `load_dataset(DIRECTORY, NAME)` any other. `manifest.json` has the hash of every file.

| configuration | split | rows |
|---|---|---|
{rows}
"""


def dataset_card(manifest: Manifest) -> str:
    """The text of the file. A folder without files is left out: `datasets` would find nothing to load there."""
    num_rows: Counter[str] = Counter()
    for file in (file for shard in manifest.shards for file in shard.files):
        num_rows[file.folder] += file.num_rows
    parts = {folder: _part(folder) for folder in sorted(num_rows, key=_order)}
    splits: dict[str, list[str]] = {}
    for folder, (name, split) in parts.items():
        splits.setdefault(name, []).append(f"  - split: {split}\n    path: {folder}/*.parquet")
    return _TEXT.format(
        asset=manifest.asset,
        snapshot=manifest.snapshot,
        configs="\n".join(
            "\n".join([f"- config_name: {name}\n  data_files:", *found]) for name, found in splits.items()
        )
        or "[]",
        rows="\n".join(f"| {name} | {split} | {num_rows[folder]:,} |" for folder, (name, split) in parts.items()),
    )


def _part(folder: str) -> tuple[str, str]:
    """The configuration and the split of a folder's rows: `evaluation/llmbar` is ("evaluation-llmbar", "test")."""
    if folder in _SPLITS:
        return "default", folder
    if folder.startswith(_EVALUATION):
        return folder.replace("/", "-"), "test"
    return "default" if folder == DATA else folder, "train"


def _order(folder: str) -> tuple[bool, int, str]:
    """The data first, its splits as they are usually listed, the rejects last."""
    place = _SPLITS.index(folder) if folder in _SPLITS else -1 if folder == DATA else len(_SPLITS)
    return folder == REJECTS, place, folder
