"""The promoted model: which of all models is the best so far, as a snapshot that only a better one replaces.

`<storage>/promoted_reward_model/<snapshot>/` lists the model's files and their hashes, and names it among its
inputs, so that the model's own directory is never removed; the verdict on the newest model stands in the manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.ownership import is_snapshot_name
from rm_assets.data.storage.parquet import open_parquet, read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, MANIFEST, Snapshot, SnapshotError, read_snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import TrainingLauncher
from rm_assets.defs.snapshots.models import ASSET as MODEL
from rm_assets.defs.snapshots.models import ModelSnapshot, model_snapshot
from rm_assets.defs.snapshots.rescoring import drawn, pair_key, preferences_of, scored_anew, scored_preferences
from rm_assets.display_text import as_code
from rm_assets.settings import Settings

VERSION = 2
ASSET = "promoted_reward_model"


class NothingToPromoteError(ValueError):
    """The newest model may not be promoted, and there is no other. The message says what forbids it."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The published snapshot, the model it names, and the verdict on the newest model.

    `verdict` has `challenger`, `champion` (before), `failed_checks` of the challenger's report, `promoted`, `reason`,
    `question` (what was decided, as a hash), and the figures of the comparison where there was one.
    """

    snapshot: Snapshot
    model: ModelSnapshot
    verdict: dict[str, Any]


def promotion(
    settings: Settings,
    newest: ModelSnapshot,
    checks: Sequence[dg.AssetCheckResult],
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
) -> Promotion:
    """Compare the newest model, of whose report these are the checks, with the promoted one; publish the better one.

    Raises NothingToPromoteError where there is neither a model that may be promoted nor one that was, and SnapshotError
    where the setting promoted_model names none.
    """
    failed = {str(check.check_name): str(check.description) for check in checks if not check.passed}
    storage = resolve_path(settings.storage)
    with open_publication(storage, ASSET, settings.keep_snapshots, context.log.info, settings.verify) as turn:
        before = turn.previous
        champion = _champion(before) if before else ""
        question = _question(settings, newest, champion, failed)
        if before and before.manifest.facts.get("question") == question:
            verdict = before.manifest.facts
        else:
            verdict = _verdict(settings, newest, champion, failed, context, launcher)
        winner = settings.promoted_model or (newest.directory.name if verdict["promoted"] else champion)
        if not winner:
            raise NothingToPromoteError(f"no model is promoted, and none was before: {verdict['reason']}")
        model = model_snapshot(storage, winner)
        # The same question is asked again by the next run, whose champion is today's winner.
        facts = verdict | {"question": _question(settings, newest, winner, failed)}
        key = fingerprint(ASSET, VERSION, winner, model.manifest["files"])
        shard = turn.find(key) or write_shard(turn.directory, ASSET, "", key, tables_writer({DATA: _files(model)}, {}))
        snapshot = turn.publish([shard], {MODEL: winner}, facts)
    return Promotion(snapshot=snapshot, model=model, verdict=facts)


def _champion(before: Snapshot) -> str:
    name = before.manifest.inputs.get(MODEL)
    if not is_snapshot_name(name):
        raise SnapshotError(
            f"{str(before.directory / MANIFEST)!r} names no {MODEL} but {name!r}: restore it, or remove that "
            "directory, after which the newest model is promoted"
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


def _verdict(
    settings: Settings,
    newest: ModelSnapshot,
    champion: str,
    failed: Mapping[str, str],
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
) -> dict[str, Any]:
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
    return found | _comparison(settings, newest, champion, context, launcher)


def _comparison(
    settings: Settings,
    newest: ModelSnapshot,
    champion: str,
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
) -> dict[str, Any]:
    """The verdict of the paired test on today's test pairs whose prompts the champion was not trained on."""
    from rm_assets.training.jobs.result import SCORES_FILE
    from rm_assets.training.report.promotion import compare_models, verdict

    storage = resolve_path(settings.storage)
    scores_sha256 = newest.manifest["files"][SCORES_FILE]
    with open_parquet(newest.directory / SCORES_FILE, sha256=scores_sha256, asset=MODEL) as file:
        scores = file.read().to_pandas()
    test = scores[scores["split"] == "test"]
    seen = _trained_on(storage, model_snapshot(storage, champion), newest)
    fresh = test[~test["prompt_key"].isin(seen)]
    today = drawn(fresh, settings.max_rescored_pairs)
    counts = {"known_to_champion": len(test) - len(fresh)}
    if today.empty:
        why = "every test pair's prompt was among the champion's training prompts" if len(test) else "no test pairs"
        return counts | {"promoted": False, "reason": f"the new model cannot be compared: {why}"}
    validated = scored_preferences(storage, newest.manifest["data_snapshot"])
    rows = {pair_key(row): row for row in preferences_of(validated, set(today["pair_id"])).to_pylist()}
    pairs = [rows[pair_key(row)] for row in today.to_dict("records")]
    context.log.info(f"scoring {len(pairs)} of today's test pairs with the promoted model {champion}")
    again = scored_anew(context, launcher, settings, model_snapshot(storage, champion), pairs)
    kept = again[again["problem"] == ""].drop(columns=["prompt_key", "variant", "problem"])
    counts["unscored_by_champion"] = len(again) - len(kept)
    if kept.empty:
        why = f"the champion can score none of the {len(again)} test pairs ({again['problem'].max()})"
        return counts | {"promoted": False, "reason": f"the new model cannot be compared: {why}"}
    decided = verdict(compare_models(kept, today), settings.promotion_level)
    assert decided.comparison is not None
    return counts | {"promoted": decided.promoted, "reason": decided.reason, **decided.comparison.figures()}


def _trained_on(storage: Path, champion: ModelSnapshot, newest: ModelSnapshot) -> set[str]:
    """The prompts of the champion's training pairs, which it may know by heart.

    No prompt changes split as data arrives; but the settings of the split may have changed since.
    """
    if champion.manifest["data_snapshot"] == newest.manifest["data_snapshot"]:
        return set()
    try:
        data = read_snapshot(storage / Stage.PADDED / champion.manifest["data_snapshot"])
    except FileNotFoundError:
        return set()
    return set(read_table(data.paths("train"), schemas.PADDED, ["prompt_key"])["prompt_key"].to_pylist())
