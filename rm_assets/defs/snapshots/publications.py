"""The promoted model on the Hugging Face Hub: what is pushed, and snapshots that record it.

`<storage>/published_reward_model/<snapshot>/` lists the pushed files with their commits. What was pushed before is not
pushed again. Files of the last push that the next one lacks are removed on the Hub, other files never.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rm_assets.data.sources.evaluation_sets import evaluation_name
from rm_assets.data.storage.files import read_file
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.project import Project
from rm_assets.defs.snapshots.hub import CARD, Pushed, Upload, push
from rm_assets.defs.snapshots.models import ASSET as REWARD_MODEL
from rm_assets.defs.snapshots.models import ModelSnapshot
from rm_assets.defs.snapshots.promotions import promoted_model
from rm_assets.defs.snapshots.rescoring import trained_on
from rm_assets.settings import Settings
from rm_assets.training.jobs.result import MODEL
from rm_assets.training.jobs.training_job import EVALUATION

VERSION = 1
ASSET = "published_reward_model"
_ACCURACY = "_accuracy"
_DATA_CARD = """---
{front_matter}
---

# Preferences

Pairs of replies to one prompt. `prompt`, `chosen` (the preferred reply) and `rejected` are lists of messages, in the
format that TRL's trainers take; `load_dataset({name!r}, split="train")` loads them. `source` and `line` say where a
pair came from; `pair_id` and `prompt_key` are hashes of the pair and of its prompt.

These {num_rows:,} pairs are `validated_preferences` {snapshot}, written by
[rm_assets](https://github.com/rm-assets/rm_assets).
"""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The snapshot, the model it is about, and what was pushed, by repository."""

    snapshot: Snapshot
    model: ModelSnapshot
    pushed: dict[str, Pushed]


def publish_model(project: Project, log: Callable[[str], object]) -> Publication:
    """Push the promoted model, and its annotations if publish_data_to is set; what is unchanged is not pushed again.

    Raises PublishingError if the Hub does not take them, SnapshotError if no model is promoted or its data are gone.
    """
    storage, settings = project.storage, project.settings
    model = promoted_model(storage)
    with open_publication(storage, ASSET, settings.keep_snapshots, log, settings.verify) as publication:
        uploads = list(_uploads(project, model))
        pushed = {upload.repository: _push(upload, publication.previous, settings, log) for upload in uploads}
        facts = {u.repository: {"content": u.content, "url": pushed[u.repository].url} for u in uploads}
        table = _table(uploads, pushed)
        key = fingerprint(ASSET, VERSION, table.to_pylist())
        inputs = {REWARD_MODEL: model.directory.name}
        snapshot = publication.publish_tables(key, lambda: ({DATA: table}, {}), inputs, facts)
    return Publication(snapshot=snapshot, model=model, pushed=pushed)


def _push(upload: Upload, before: Snapshot | None, settings: Settings, log: Callable[[str], object]) -> Pushed:
    rows = read_table(before.paths(DATA), schemas.PUBLISHED).to_pylist() if before else []
    earlier = {row["file"]: row["commit"] for row in rows if row["repository"] == upload.repository}
    stated = before.manifest.facts.get(upload.repository, {}) if before else {}
    same = None
    if stated.get("content") == upload.content and CARD in earlier:
        same = Pushed(commit=earlier[CARD], url=stated["url"], now=False)
    found = push(upload, private=settings.publish_private, earlier=earlier, pushed=same)
    what = f"{upload.asset} {upload.snapshot}"
    log(f"pushed {what}: {found.url}" if found.now else f"nothing to push, {what} is there: {found.url}")
    return found


def _table(uploads: list[Upload], pushed: dict[str, Pushed]) -> pa.Table:
    rows = [
        {"repository": upload.repository, "commit": pushed[upload.repository].commit, "file": path, "sha256": sha256}
        for upload in uploads
        for path, sha256 in [(CARD, _sha256(upload.card.encode())), *((p, s) for p, (_, s) in upload.files.items())]
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PUBLISHED)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _uploads(project: Project, model: ModelSnapshot) -> Iterator[Upload]:
    """What the settings have pushed; the data first, as the model's card links to them."""
    settings = project.settings
    if settings.publish_data_to:
        yield _data_upload(project.ancestor(trained_on(project, model), Stage.VALIDATED), settings)
    if settings.publish_model_to:
        yield _model_upload(model, settings)


# --- the model -----------------------------------------------------------------------------------------------


def _model_upload(model: ModelSnapshot, settings: Settings) -> Upload:
    files = {
        name.removeprefix(f"{MODEL}/"): (model.directory / name, sha256)
        for name, sha256 in model.manifest["files"].items()
        if name.startswith(f"{MODEL}/")
    }
    path, sha256 = files.pop(CARD)
    card = read_file(path)
    if _sha256(card) != sha256:
        raise SnapshotError(f"{str(path)!r} is damaged: materialize {REWARD_MODEL} again")
    return Upload(
        setting="publish_model_to",
        kind="model",
        name=str(settings.publish_model_to),
        asset=REWARD_MODEL,
        snapshot=model.directory.name,
        files=files,
        card=_model_card(card.decode(), model, settings),
    )


def _model_card(card: str, model: ModelSnapshot, settings: Settings) -> str:
    """The card of the saved model, whose front matter also has what only the Hub needs."""
    from huggingface_hub import ModelCardData

    added = ModelCardData(
        license=settings.publish_license,
        datasets=settings.publish_data_to,
        model_name=str(settings.publish_model_to).partition("/")[2],
        eval_results=list(_results(model, settings)) or None,
    )
    front_matter, end, body = card.partition("\n---\n")
    return f"{front_matter}\n{added.to_yaml()}{end}{body}"


def _results(model: ModelSnapshot, settings: Settings) -> Iterator[Any]:
    """The accuracy on each held-out set, as huggingface_hub's EvalResult (the `model-index` of a card)."""
    from huggingface_hub import EvalResult

    metrics = model.manifest["metrics"]
    for name in [name.removesuffix(_ACCURACY) for name in metrics if name.endswith(_ACCURACY)]:
        if name != "test" and not name.startswith(EVALUATION):
            continue
        low, high = (metrics.get(f"{name}{_ACCURACY}_{end}") for end in ("low", "high"))
        interval = "" if low is None else f", 95 %: {low:.3f} to {high:.3f}"
        yield EvalResult(
            task_type="text-classification",
            task_name="Preference ranking",
            dataset_type=settings.publish_data_to or "preferences",
            dataset_name=f"{metrics[f'{name}_pairs']:,} held-out pairs" if name == "test" else name,
            dataset_config=None if name == "test" else name,
            dataset_args={str(Stage.PADDED): model.manifest["data_snapshot"]},
            metric_type="accuracy",
            metric_value=round(metrics[f"{name}{_ACCURACY}"], 4),
            metric_name=f"Accuracy{interval}",
        )


# --- the annotations -----------------------------------------------------------------------------------------


def _data_upload(validated: Snapshot, settings: Settings) -> Upload:
    """The rows of the annotations; evaluation sets are not ours to publish, and must not be trained on."""
    shards = [shard for shard in validated.manifest.shards if not evaluation_name(shard.source)]
    files = [file for shard in shards for file in shard.files if file.folder == DATA]
    return Upload(
        setting="publish_data_to",
        kind="dataset",
        name=str(settings.publish_data_to),
        asset=Stage.VALIDATED,
        snapshot=validated.name,
        files={file.path: (validated.directory / file.path, file.sha256) for file in files},
        card=_data_card(validated.name, sum(file.num_rows for file in files), settings),
    )


def _data_card(snapshot: str, num_rows: int, settings: Settings) -> str:
    from huggingface_hub import DatasetCardData

    front_matter = DatasetCardData(
        license=settings.publish_license,
        tags=["preference", "reward-model", "trl"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": f"{DATA}/*.parquet"}]}],
    ).to_yaml()
    name = settings.publish_data_to
    return _DATA_CARD.format(front_matter=front_matter, name=name, snapshot=snapshot, num_rows=num_rows)
