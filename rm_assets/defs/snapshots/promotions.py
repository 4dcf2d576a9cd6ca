"""The promoted model: a snapshot that names the best model so far and changes only to a better one.

`<storage>/promoted_reward_model/<snapshot>/` lists the model's files and their hashes, and names the model among its
inputs, which keeps the model's own directory. The verdict on the newest model is in the manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.ownership import MANIFEST, is_snapshot_name
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError, latest_snapshot, read_snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import AssetRun
from rm_assets.defs.snapshots.models import ASSET as MODEL
from rm_assets.defs.snapshots.models import ModelSnapshot, model_snapshot
from rm_assets.defs.snapshots.rescoring import pair_key, preferences_of, rescore_pairs, sample_pairs, trained_on
from rm_assets.display_text import as_code
from rm_assets.settings import Settings
from rm_assets.training.jobs.result import judged_pairs, read_scores

VERSION = 2
ASSET = "promoted_reward_model"


class NothingToPromoteError(ValueError):
    """The newest model may not be promoted, and none was before. The message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The published snapshot, the model it names, and the verdict on the newest model.

    `verdict` has `challenger`, `champion` (before), `failed_checks` of the challenger's report, `promoted`, `reason`,
    `question` (a hash of what was decided), and the figures of the comparison, if there was one.
    """

    snapshot: Snapshot
    model: ModelSnapshot
    verdict: dict[str, Any]


def promote_model(run: AssetRun, newest: ModelSnapshot, checks: Sequence[dg.AssetCheckResult]) -> Promotion:
    """Compare the newest model with the promoted one, and publish the better; `checks` are those of its report.

    Raises NothingToPromoteError if no model may be promoted and none was before, and SnapshotError if the setting
    promoted_model names a model that does not exist.
    """
    failed = {str(check.check_name): str(check.description) for check in checks if not check.passed}
    storage, settings = run.project.storage, run.project.settings
    with open_publication(storage, ASSET, settings.keep_snapshots, run.log.info, settings.verify) as publication:
        before = publication.previous
        champion = _champion(before) if before else ""
        question = _question(settings, newest, champion, failed)
        if before and before.manifest.facts.get("question") == question:
            verdict = before.manifest.facts
        else:
            verdict = _verdict(run, newest, champion, failed)
        winner = settings.promoted_model or (newest.directory.name if verdict["promoted"] else champion)
        if not winner:
            raise NothingToPromoteError(f"no model is promoted, and none was before: {verdict['reason']}")
        model = model_snapshot(storage, winner)
        # stored as the next run will ask it, with today's winner as the champion
        facts = verdict | {"question": _question(settings, newest, winner, failed)}
        key = fingerprint(ASSET, VERSION, winner, model.manifest["files"])
        snapshot = publication.publish_tables(key, lambda: ({DATA: _files(model)}, {}), {MODEL: winner}, facts)
    return Promotion(snapshot=snapshot, model=model, verdict=facts)


def promoted_model(storage: Path) -> ModelSnapshot:
    """The promoted model; raises SnapshotError if there is none."""
    if promoted := latest_snapshot(storage, ASSET):
        return model_snapshot(storage, _champion(promoted))
    raise SnapshotError(f"{ASSET} has no snapshot in {str(storage)!r}: materialize {ASSET} first")


def _champion(before: Snapshot) -> str:
    name = before.manifest.inputs.get(MODEL)
    if not is_snapshot_name(name):
        raise SnapshotError(
            f"{str(before.directory / MANIFEST)!r} names {name!r}, which is not a snapshot of {MODEL}: restore "
            "it, or remove that directory, after which the newest model is promoted"
        )
    return str(name)


def _question(settings: Settings, newest: ModelSnapshot, champion: str, failed: Mapping[str, str]) -> str:
    limits = [settings.promotion_level, settings.max_rescored_pairs, settings.max_length]
    checks = [sorted(settings.promotion_requires), dict(failed)]
    return fingerprint(VERSION, newest.directory.name, champion, settings.promoted_model, limits, checks)


def _files(model: ModelSnapshot) -> pa.Table:
    rows = [
        {"model": model.directory.name, "file": name, "sha256": sha256}
        for name, sha256 in sorted(model.manifest["files"].items())
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMOTED)


def _verdict(run: AssetRun, newest: ModelSnapshot, champion: str, failed: Mapping[str, str]) -> dict[str, Any]:
    settings = run.project.settings
    challenger = newest.directory.name
    found: dict[str, Any] = {"challenger": challenger, "champion": champion, "failed_checks": sorted(failed)}
    if settings.promoted_model:
        by_hand, named = settings.promoted_model == challenger, as_code(settings.promoted_model)
        return found | {"promoted": by_hand, "reason": f"promoted_model is set: {named} by hand"}
    if champion == challenger:
        return found | {"promoted": True, "reason": "the newest model is the promoted one"}
    if forbidding := [name for name in settings.promotion_requires if name in failed]:
        reason = "; ".join(f"{name}: {failed[name]}" for name in forbidding)
        return found | {"promoted": False, "reason": f"the newest model fails what promotion_requires: {reason}"}
    if not champion:
        return found | {"promoted": True, "reason": "the first model: there is none to compare it with"}
    return found | _comparison(run, newest, champion)


def _comparison(run: AssetRun, newest: ModelSnapshot, champion: str) -> dict[str, Any]:
    """The verdict of the paired test on today's test pairs whose prompts the champion was not trained on.

    Without test pairs, it is on those of the evaluation sets.
    """
    from rm_assets.training.report.promotion import compare_models, verdict

    storage, settings = run.project.storage, run.project.settings
    scores = read_scores(newest.directory)
    test = judged_pairs(scores)
    seen = _training_prompts(storage, model_snapshot(storage, champion), newest)
    fresh = test[~test["prompt_key"].isin(seen)]
    today = sample_pairs(fresh, settings.max_rescored_pairs)
    counts = {"known_to_champion": len(test) - len(fresh)}
    if today.empty:
        why = "every test pair's prompt was among the champion's training prompts" if len(test) else "no test pairs"
        return counts | {"promoted": False, "reason": f"the new model cannot be compared: {why}"}
    validated = run.project.ancestor(trained_on(run.project, newest), Stage.VALIDATED)
    rows = {pair_key(row): row for row in preferences_of(validated, set(today["pair_id"])).to_pylist()}
    pairs = [rows[pair_key(row)] for row in today.to_dict("records")]
    run.log.info(f"scoring {len(pairs)} of today's test pairs with the promoted model {champion}")
    again = rescore_pairs(run, model_snapshot(storage, champion), pairs)
    kept = again[again["problem"] == ""].drop(columns=["prompt_key", "variant", "problem"])
    counts["unscored_by_champion"] = len(again) - len(kept)
    if kept.empty:
        why = f"the champion can score none of the {len(again)} test pairs (the first: {again['problem'].iloc[0]})"
        return counts | {"promoted": False, "reason": f"the new model cannot be compared: {why}"}
    compared = compare_models(kept, today)
    return counts | verdict(compared, settings.promotion_level)._asdict() | compared.figures()


def _training_prompts(storage: Path, champion: ModelSnapshot, newest: ModelSnapshot) -> set[str]:
    """The prompts of the champion's training pairs.

    Arriving data moves no prompt to another split, but the settings of the split may have changed since.
    """
    if champion.manifest["data_snapshot"] == newest.manifest["data_snapshot"]:
        return set()
    try:
        data = read_snapshot(storage / Stage.PADDED / champion.manifest["data_snapshot"])
    except FileNotFoundError:
        return set()
    return set(read_table(data.paths("train"), schemas.PADDED, ["prompt_key"])["prompt_key"].to_pylist())
