"""What the UI shows of promoted_reward_model: the promoted model, and the verdict on the newest with its figures."""

from typing import Any

import dagster as dg

from rm_assets.defs.results.metadata import figures_table, location_metadata, numbers
from rm_assets.defs.results.moved_storage import storage_metadata
from rm_assets.defs.snapshots.promotions import ASSET, Promotion
from rm_assets.training.jobs.result import MODEL

_FOLLOWED = ("challenger_accuracy", "champion_accuracy", "difference", "p_value")
"""The figures that decide, and are plotted over time."""

PROMOTION_CHECKS = [
    dg.AssetCheckSpec(
        "newest_model_is_promoted",
        asset=ASSET,
        description="The newest model is the promoted one; if not, the check gives the reason.",
    ),
    dg.AssetCheckSpec(
        "storage_is_unchanged",
        asset=ASSET,
        description="The catalog shows the model of the same storage as before, not that of an experiment.",
    ),
]


def promotion_result(promotion: Promotion, moved: str) -> dg.MaterializeResult:
    """The materialization of the promoted model; its data version changes only with the model.

    `moved` says that the storage is another one than before, or is empty: see `results/moved_storage.py`.
    """
    model, verdict = promotion.model, promotion.verdict
    directory = model.directory / MODEL
    figures = numbers({name: value for name, value in verdict.items() if not isinstance(value, bool)})
    followed = {name: figures.pop(name) for name in _FOLLOWED if name in figures}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(promotion.snapshot.name),
        metadata={
            **storage_metadata(model.directory.parent.parent),
            "verdict": "promoted" if verdict["promoted"] else "not promoted",
            "reason": _reason(verdict),
            "failed_checks_of_the_report": ", ".join(verdict["failed_checks"]) or "none",
            **followed,
            "promoted_model": model.directory.name,
            "newest_model": verdict["challenger"],
            "champion_before": verdict["champion"] or "none",
            **({"comparison": figures_table(figures)} if figures else {}),
            **location_metadata(directory),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="newest_model_is_promoted",
                passed=model.directory.name == verdict["challenger"],
                severity=dg.AssetCheckSeverity.WARN,
                description=_reason(verdict),
                metadata={"newest_model": verdict["challenger"], "promoted_model": model.directory.name},
            ),
            dg.AssetCheckResult(
                check_name="storage_is_unchanged",
                passed=not moved,
                severity=dg.AssetCheckSeverity.WARN,
                description=moved or "The storage is the same as at the previous materialization.",
            ),
        ],
    )


def _reason(verdict: dict[str, Any]) -> str:
    """The reason of the verdict, with the checks of its report that a promoted model fails."""
    failed = verdict["failed_checks"] if verdict["promoted"] else []
    return f"{verdict['reason']}, although its report fails {' and '.join(failed)}" if failed else verdict["reason"]
