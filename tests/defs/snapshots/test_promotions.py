"""Which pairs decide a promotion: those that neither model was trained on and that both can score."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import polite_rows, run_stages, write_lines

from rm_assets.data.chat.model_files import find_tokenizer, toy_model
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.project import Project
from rm_assets.defs.snapshots import promotions
from rm_assets.defs.snapshots.models import ModelSnapshot, model_snapshot
from rm_assets.defs.snapshots.promotions import ASSET, Promotion, promote_model, promoted_model
from rm_assets.settings import Settings
from rm_assets.training.jobs.scoring_job import SCORED

CHAMPION, NEWEST = "c" * 16, "e" * 16
Row = dict[str, Any]
RIGHT, WRONG = {"chosen_score": 1.0, "rejected_score": 0.0}, {"chosen_score": 0.0, "rejected_score": 1.0}
UNSCORED = {"chosen_score": None, "rejected_score": None, "problem": "too_long"}


class Site:
    """A storage with the splits of two seeds, and a project whose scoring jobs give the scores in `answers`."""

    def __init__(self, directory: Path) -> None:
        annotations = write_lines(directory / "a.jsonl", polite_rows(100))
        paths = {"annotations": str(annotations), "storage": str(directory / "storage"), "num_workers": 1}
        self.settings = Settings(**paths, test_fraction=0.3, validation_fraction=0.1, promotion_requires=[])
        self.before, self.today = (
            run_stages(self.settings.model_copy(update={"split_seed": seed}))[Stage.PADDED] for seed in ("one", "two")
        )
        self.storage = directory / "storage"
        self.answers: Callable[[int], Row] = lambda _: WRONG
        self.num_jobs = 0

    def prompts(self, snapshot: Snapshot, split: str) -> set[str]:
        return {row["prompt_key"] for row in self.rows(snapshot, split)}

    def rows(self, snapshot: Snapshot, split: str) -> list[Row]:
        columns = ["source", "line", "pair_id", "prompt_key"]
        return read_table(snapshot.paths(split), schemas.PADDED, columns).to_pylist()

    def model(self, name: str, data_snapshot: str, rows: Sequence[Row] = (), **scores: float) -> ModelSnapshot:
        """A model trained on a snapshot, with these scores of these test pairs."""
        directory = self.storage / "reward_model" / name
        directory.mkdir(parents=True, exist_ok=True)
        usual = {"split": "test", "chosen_length": 9, "rejected_length": 9, "margin": 0.0}
        pq.write_table(
            pa.Table.from_pylist([row | usual | scores for row in rows], schemas.SCORES), directory / "scores.parquet"
        )
        files = {"scores.parquet": hashlib.sha256((directory / "scores.parquet").read_bytes()).hexdigest()}
        manifest = {"key": name * 4, "data_snapshot": data_snapshot, "files": files, "metrics": {}, "versions": {}}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return model_snapshot(self.storage, name)

    def promote(self, model: ModelSnapshot, checks: Sequence[dg.AssetCheckResult] = (), **settings: Any) -> Promotion:
        tokenizer = find_tokenizer(self.settings)
        project = Project(
            settings=self.settings.model_copy(update=settings), tokenizer=tokenizer, model=toy_model(tokenizer)
        )
        log = SimpleNamespace(info=lambda _: None, warning=lambda _: None)
        run: Any = SimpleNamespace(project=project, log=log, launch=self.launch)
        return promote_model(run, model, checks)

    def launch(self, job_path: Path) -> None:
        """Do what a scoring job does, with the scores of `answers`."""
        self.num_jobs += 1
        job = json.loads(job_path.read_text())
        pairs = pq.read_table(job["pairs"], columns=["source", "line", "pair_id", "prompt_key", "variant"]).to_pylist()
        scored = [pair | {"problem": ""} | self.answers(number) for number, pair in enumerate(pairs)]
        output = Path(job["output_directory"])
        pq.write_table(pa.Table.from_pylist(scored, SCORED), output / "scored.parquet")
        sha256 = hashlib.sha256((output / "scored.parquet").read_bytes()).hexdigest()
        (output / "manifest.json").write_text(json.dumps({"files": {"scored.parquet": sha256}}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("promotions"))


@pytest.fixture
def champion(site: Site) -> ModelSnapshot:
    """The promoted model, trained on the first splits; no jobs have run since."""
    model = site.model(CHAMPION, site.before.name)
    assert site.promote(model, promoted_model=CHAMPION).model.directory.name == CHAMPION
    site.num_jobs = 0
    return model


@pytest.mark.parametrize("is_better", [True, False])
def test_pairs_that_the_champion_was_trained_on_or_cannot_score_do_not_count(
    site: Site, champion: ModelSnapshot, is_better: bool
) -> None:
    test = site.rows(site.today, "test")
    known = [row for row in test if row["prompt_key"] in site.prompts(site.before, "train")]
    assert 0 < len(known) < len(test) - 8
    newest = site.model(NEWEST, site.today.name, test, **(RIGHT if is_better else WRONG))
    site.answers = lambda number: UNSCORED if number < 2 else WRONG if is_better else RIGHT
    found = site.promote(newest)
    assert found.verdict["known_to_champion"] == len(known)
    assert found.verdict["unscored_by_champion"] == 2
    assert found.verdict["num_pairs"] == len(test) - len(known) - 2
    assert (found.verdict["promoted"], found.model.directory.name) == (is_better, NEWEST if is_better else CHAMPION)
    assert found.verdict["difference"] == (1 if is_better else -1)
    assert site.num_jobs == 1
    again = site.promote(newest)  # the same question, which is not asked again
    assert (again.verdict["reason"], site.num_jobs) == (found.verdict["reason"], 1)


def test_splits_of_the_same_snapshot_have_no_prompt_that_the_champion_was_trained_on(
    site: Site, champion: ModelSnapshot
) -> None:
    test = site.rows(site.before, "test")
    site.answers = lambda _: WRONG
    found = site.promote(site.model(NEWEST, site.before.name, test, **RIGHT), max_rescored_pairs=9)
    assert (found.verdict["known_to_champion"], found.verdict["num_pairs"]) == (0, 9)


def test_of_a_champion_whose_pairs_are_gone_no_prompt_is_known(site: Site, champion: ModelSnapshot) -> None:
    site.model(CHAMPION, "f" * 16)
    test = site.rows(site.today, "test")
    site.answers = lambda _: WRONG
    found = site.promote(site.model(NEWEST, site.today.name, test, **RIGHT))
    assert (found.verdict["known_to_champion"], found.verdict["num_pairs"]) == (0, len(test))


def test_without_a_pair_to_compare_them_on_the_champion_stays(site: Site, champion: ModelSnapshot) -> None:
    test = site.rows(site.today, "test")
    known = [row for row in test if row["prompt_key"] in site.prompts(site.before, "train")]
    found = site.promote(site.model(NEWEST, site.today.name, known, **RIGHT))
    assert (found.verdict["promoted"], found.verdict["known_to_champion"]) == (False, len(known))
    assert found.verdict["reason"].endswith("every test pair's prompt was among the champion's training prompts")
    found = site.promote(site.model(NEWEST, site.today.name), promotion_level=0.01)
    assert found.verdict["reason"] == "the new model cannot be compared: no test pairs"
    assert site.num_jobs == 0
    problems = {0: "no_template", 1: "bad_template"}  # of the first two pairs; the others are too long
    site.answers = lambda number: UNSCORED | {"problem": problems.get(number, "too_long")}
    found = site.promote(site.model(NEWEST, site.today.name, test, **RIGHT), promotion_level=0.02)
    number = len(test) - len(known)
    unscored = f"the champion can score none of the {number} test pairs (the first: no_template)"
    assert found.verdict["reason"].endswith(unscored)
    assert found.verdict["unscored_by_champion"] == number
    assert found.model.directory.name == CHAMPION


def test_a_champion_that_was_deleted_is_an_error_until_another_is_promoted_by_hand(
    site: Site, champion: ModelSnapshot
) -> None:
    newest = site.model(NEWEST, site.today.name, site.rows(site.today, "test"), **RIGHT)
    shutil.rmtree(champion.directory)
    said = rf"reward_model '{CHAMPION}' is not in .*: restore it, or set promoted_model \(or RM_PROMOTED_MODEL\) to one"
    with pytest.raises(SnapshotError, match=said):
        site.promote(newest)
    assert site.promote(newest, promoted_model=NEWEST).model.directory.name == NEWEST
    assert site.promote(newest).verdict["reason"] == "the newest model is the promoted one"


def test_only_required_checks_that_failed_forbid_a_promotion(site: Site, champion: ModelSnapshot) -> None:
    newest = site.model(NEWEST, site.today.name)
    checks = [
        dg.AssetCheckResult(passed=False, check_name="is_above_chance", description="0.5"),
        dg.AssetCheckResult(passed=True, check_name="needs_the_prompt", description="0.9"),
        dg.AssetCheckResult(passed=False, check_name="is_calibrated", description="0.2"),
    ]
    found = site.promote(newest, checks, promotion_requires=["is_above_chance", "needs_the_prompt"])
    assert found.verdict["reason"] == "the newest model fails what promotion_requires: is_above_chance: 0.5"
    assert found.verdict["failed_checks"] == ["is_above_chance", "is_calibrated"]
    assert (found.verdict["promoted"], found.model.directory.name, site.num_jobs) == (False, CHAMPION, 0)


def test_the_verdict_on_a_model_promoted_by_hand_the_promoted_one_and_the_first(
    site: Site, champion: ModelSnapshot
) -> None:
    newest = site.model(NEWEST, site.today.name)
    older = site.model("a" * 16, site.before.name).directory.name  # neither the newest nor the promoted one
    for by_hand in (older, CHAMPION, NEWEST):
        found = site.promote(newest, promoted_model=by_hand)
        assert found.model.directory.name == by_hand
        assert found.verdict["promoted"] == (by_hand == NEWEST)
        assert found.verdict["reason"].endswith("by hand")
    again = site.promote(newest)
    assert (again.verdict["promoted"], again.verdict["champion"]) == (True, NEWEST)
    assert again.verdict["reason"] == "the newest model is the promoted one"
    shutil.rmtree(site.storage / ASSET)
    first = site.promote(newest)
    assert (first.verdict["promoted"], first.verdict["champion"], first.model.directory.name) == (True, "", NEWEST)
    assert first.verdict["reason"] == "the first model: there is none to compare it with"


def test_a_promotion_that_names_no_model_is_an_error_that_names_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SimpleNamespace(directory=tmp_path / "before", manifest=SimpleNamespace(inputs={}))
    monkeypatch.setattr(promotions, "latest_snapshot", lambda *_: before)
    with pytest.raises(SnapshotError, match=r"/manifest\.json' names None, which is not a snapshot"):
        promoted_model(tmp_path)
