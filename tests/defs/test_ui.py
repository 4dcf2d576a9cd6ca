"""What people see: the UI of a real `dagster dev` in a headless Chromium, over the built-in sample and a bad delivery.

It needs `pip install -e '.[test,ui-test]'` and a Chromium called `chromium`, `chromium-browser` or `google-chrome`.
`UI_SCREENSHOTS=DIRECTORY pytest -m soak tests/defs/test_ui.py` saves each page there as a PNG, to be looked at: a test
can tell that a text is there, not whether people want to read the page.

After the first run a sound file whose labels are of no use, a broken file, a damaged archive and a spreadsheet arrive,
and a file goes; the sensor refreshes the data, and a training and a run with a wrong setting follow.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_instances import LOCATION, RunningDagster, running_dagster, sqlite_yaml
from support import write_lines

from rm_assets.definitions import definitions
from rm_assets.settings import SAMPLE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.soak, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PAGE_PIXELS, GRAPH_PIXELS = (1440, 1800), (3600, 2100)  # a smaller graph leaves out what stands in the nodes
SECONDS_TO_RUN, MILLISECONDS_TO_SHOW = 900.0, 60_000.0
SECRET = "aubergine"  # a word of the second run's annotations, which no page may show
GROUPS = ("annotations", "preparation", "training")
FLOW = (
    *("annotation_files", "raw_preferences", "validated_preferences", "flattened_conversations", "tokenized_pairs"),
    *("padded_pairs", "reward_model", "reward_model_report", "promoted_reward_model"),
)
_LAUNCH = """mutation ($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}"""


def run_job(dagster: RunningDagster, name: str, **settings: object) -> dg.DagsterRun:
    """A finished run of a job, launched as the launchpad does."""
    selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": name}
    config = {"resources": {"project": {"config": settings}}}
    parameters = {"selector": selector, "runConfigData": config, "mode": "default"}
    launched = dagster.graphql(_LAUNCH, parameters=parameters)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return finished_run(dagster, name)


def finished_run(dagster: RunningDagster, job: str) -> dg.DagsterRun:
    """The newest run of a job, when it has ended."""

    def newest() -> dg.DagsterRun | None:
        runs = dagster.instance.get_runs(dg.RunsFilter(job_name=job), limit=1)
        return runs[0] if runs and runs[0].is_finished else None

    run = dagster.wait_for(newest, SECONDS_TO_RUN, f"end of {job}")
    assert isinstance(run, dg.DagsterRun)
    return run


def useless_rows(num_pairs: int) -> list[object]:
    """Rows whose chosen reply is the polite one as often as not, with the secret in each text."""
    replies = f"Gladly, an {SECRET}.", f"No {SECRET}."
    sides = [replies[:: 1 if number % 2 else -1] for number in range(num_pairs)]
    return [
        {"prompt": f"Number {number}, {SECRET}?", "chosen": f"{first} {number}", "rejected": f"{second} {number}"}
        for number, (first, second) in enumerate(sides)
    ]


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDagster]:
    """A Dagster after four runs: everything, a refresh by the sensor (which stays on), a training, and a failed one."""
    directory = tmp_path_factory.mktemp("ui")
    annotations, home = directory / "annotations", directory / "home"
    shutil.copytree(SAMPLE / "annotations", annotations)
    settings = {"annotations": annotations, "storage": directory / "storage", "arrival_seconds": 1}
    with running_dagster(home, sqlite_yaml(home), settings) as dagster:
        assert run_job(dagster, "everything").is_success, dagster.log.read_text()[-5000:]
        write_lines(annotations / "late.jsonl", useless_rows(300))
        write_lines(annotations / "broken.jsonl", [f"no {SECRET}".encode()] * 5)
        (annotations / "archive.jsonl.gz").write_bytes(b"no archive")
        (annotations / "sheet.xlsx").write_bytes(b"no annotations")
        (annotations / "transcripts.jsonl").unlink()
        dagster.switch_on("new_annotations")
        assert finished_run(dagster, "refresh_data").is_success, dagster.log.read_text()[-5000:]
        assert run_job(dagster, "train_model").is_success, dagster.log.read_text()[-5000:]
        assert not run_job(dagster, "suspect_labels", suspect_folds=1).is_success
        yield dagster


Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    profile = tmp_path_factory.mktemp("chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(dagster: RunningDagster, browser: Any) -> Iterator[Opened]:
    """Opens a page of the UI, waits for texts on it, and keeps a picture: `opened(path, name, *texts)`."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_page(path: str, name: str, *texts: str, size: tuple[int, int] = PAGE_PIXELS) -> Any:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.goto(dagster.url + path)
        shows(page, name, *texts)
        return page

    yield open_page
    page.close()
    assert errors == []


def shows(page: Any, name: str, *texts: str) -> None:
    """Wait for each of the texts to be visible, look for what must not be there, and take a picture."""
    for text in texts:
        page.get_by_text(text, exact=False).locator("visible=true").first.wait_for(timeout=MILLISECONDS_TO_SHOW)
    said = page.inner_text("body")
    assert SECRET not in said
    assert not re.search("unexpected error|something went wrong|failed to load|pythonerror", said, re.IGNORECASE)
    if directory := os.environ.get("UI_SCREENSHOTS"):
        page.wait_for_timeout(1000)  # for what still moves
        page.screenshot(path=Path(directory) / f"{name}.png")


def value_of(page: Any, key: str) -> Any:
    """The cell beside a key, in the table of an asset's metadata."""
    row = page.locator("tr", has=page.locator("td:first-child", has_text=re.compile(f"^{re.escape(key)}$")))
    return row.last.locator("> td").last


def num_pictures(page: Any, key: str) -> int:
    """How many pictures the Markdown of a key shows, each wide enough to be read."""
    value_of(page, key).get_by_text("Show Markdown").click()
    pictures = page.locator(", ".join(f"img[src^='data:image/{kind};base64']" for kind in ("png", "svg+xml")))
    pictures.first.wait_for(timeout=MILLISECONDS_TO_SHOW)
    widths = pictures.evaluate_all("all => all.map(one => one.naturalWidth)")
    assert min(widths) >= 600
    return len(widths)


def test_the_lineage_reads_from_left_to_right(opened: Opened) -> None:
    expanded = "%2C".join(f"global%40global%3A{group}" for group in GROUPS)
    page = opened(f"/asset-groups?expanded={expanded}", "lineage", *FLOW, "jsonl", "Parquet", size=GRAPH_PIXELS)

    def left(name: str) -> float:
        box = page.locator("foreignObject").get_by_text(name, exact=True).first.bounding_box()
        assert box is not None, name
        return float(box["x"])

    assert [left(name) for name in FLOW] == sorted(left(name) for name in FLOW)
    assert [left(group) for group in GROUPS] == sorted(left(group) for group in GROUPS)


PAGES = {
    "raw_preferences": {"storage": "storage", "lines": "1973", "files": "broken.jsonl"},  # 2,010 - 342 + 300 + 5
    "validated_preferences": {"held_back_lines": "5", "files": "late.jsonl", "rejects_by_reason": "not_json"},
    "padded_pairs": {
        "train_pairs": r"\d+",
        "rejects": r"\d+",
        "rejects_by_reason": "duplicate",
        "files": "plain.jsonl",
    },
    "rejected_annotations": {
        "rejects_by_stage": "padded_pairs",
        "rejects_by_file": "broken.jsonl",
        "rejects": "not_json",
    },
    "reward_model": {
        "test_accuracy": r"0\.\d+",
        "figures": r"num_parameters\s+487,808 weights",
        "base_model": "a toy",
        "settings": r'"arrival_seconds": 1,',
        "trained_now": "true",
    },
    "reward_model_report": {"verdict": r"Ranks 0\.\d+ of", "slices": "format: plain", "accuracy": r"0\.\d+"},
    "promoted_reward_model": {"storage": "storage", "verdict": "promoted", "reason": r"pairs|fails"},
}


@pytest.mark.parametrize("asset", PAGES)
def test_an_asset_shows_its_figures_and_tables(opened: Opened, asset: str) -> None:
    [spec] = [spec for spec in definitions().resolve_all_asset_specs() if spec.key.path[-1] == asset]
    page = opened(f"/assets/{asset}", asset, str(spec.description).splitlines()[0], *PAGES[asset])
    for key, said in PAGES[asset].items():
        assert re.search(said, value_of(page, key).inner_text()), key


def test_the_annotation_files_are_listed_with_their_changes(opened: Opened) -> None:
    page = opened("/assets/annotation_files", "annotation_files", "changes")
    assert value_of(page, "changes").inner_text() == "3 new, 1 gone since the previous refresh"
    listed = value_of(page, "files").inner_text()
    assert re.search(r"late\.jsonl\s+[\d,]+\s+new", listed) and re.search(r"transcripts\.jsonl\s+[\d,]+\s+gone", listed)


@pytest.mark.parametrize(
    ("asset", "key", "number"),
    [("padded_pairs", "lengths", 1), ("reward_model", "training_curves", 1), ("reward_model_report", "report", 6)],
)
def test_an_asset_shows_its_pictures(opened: Opened, asset: str, key: str, number: int) -> None:
    page = opened(f"/assets/{asset}", asset, key)
    assert num_pictures(page, key) == number
    shows(page, f"{asset}-{key}")


@pytest.mark.parametrize(
    ("asset", "figures"),
    [
        ("padded_pairs", ["dagster/row_count", "train_pairs", "rejects"]),
        ("rejected_annotations", ["dagster/row_count"]),
        ("reward_model", ["test_accuracy", "pairs_per_second", "test_loss", "train_pairs"]),
        ("reward_model_report", ["accuracy"]),
    ],
)
def test_figures_are_plotted_over_time(opened: Opened, asset: str, figures: list[str]) -> None:
    page = opened(f"/assets/{asset}", asset, "Metadata")
    page.get_by_role("button", name="Plots").click()
    page.locator("canvas").nth(len(figures) - 1).wait_for()  # the names of figures stand on the page before, too
    shows(page, f"{asset}-plots", *figures)
    if asset == "reward_model":
        assert page.locator("canvas").count() <= 13  # what people follow: no constants


CHECKS = {
    ("validated_preferences", "lines_are_conserved"): ["Passed", "0 lines not read, 0 lines unaccounted"],
    ("validated_preferences", "no_file_is_held_back"): [
        "Failed",
        "5 of 5 lines malformed: not_json 5 (first: line 1)",
        "python -m rm_assets.trace broken.jsonl 1",
    ],
    ("raw_preferences", "every_file_is_read"): ["Failed", "archive.jsonl.gz", "the other files are used"],
    ("raw_preferences", "no_file_disappeared"): ["Failed", "342 of 2,009 rows", "transcripts.jsonl"],
    ("raw_preferences", "no_file_is_ignored"): ["Failed", "sheet.xlsx", "save it as CSV"],
    ("padded_pairs", "prompts_stay_in_one_split"): ["Passed", "0 prompts in two splits"],
    ("rejected_annotations", "rejects_are_complete"): ["Passed", "all stages together have"],
    ("reward_model", "files_match_their_hashes"): ["Passed", "files match the manifest"],
    ("reward_model_report", "accuracy_is_above_chance"): ["Passed", "95 % interval"],
    ("reward_model_report", "model_needs_the_prompt"): ["without the prompt"],
    ("promoted_reward_model", "storage_is_unchanged"): ["Passed", "the same as at the previous materialization"],
}


@pytest.mark.parametrize(("asset", "check"), CHECKS)
def test_a_check_says_what_it_means_and_what_it_found(opened: Opened, asset: str, check: str) -> None:
    key = dg.AssetCheckKey(dg.AssetKey(asset), check)
    description = str(definitions().resolve_asset_graph().get_check_spec(key).description)
    opened(f"/assets/{asset}?view=checks&checkDetail={check}", f"{asset}-{check}", description, *CHECKS[asset, check])


def test_what_runs_by_itself_is_listed_and_says_why_it_does_nothing(opened: Opened) -> None:
    opened("/automation", "automation", "new_annotations", "nightly_training", "dead_runs", "02:00 AM UTC")
    told = "Launches refresh_data once per new content", "0 runs requested"
    page = opened(f"/locations/{LOCATION}/sensors/new_annotations", "sensor", *told)
    page.get_by_role("button", name="0 runs requested").nth(1).click()  # the newest tick; the first button does nothing
    shows(page, "tick", "nothing new: the data was made from these 7 files")


def test_every_job_says_what_it_does(opened: Opened) -> None:
    jobs = {job.name: job.description for job in definitions().resolve_all_job_defs() if not job.name.startswith("__")}
    assert sorted(jobs) == ["everything", "refresh_data", "suspect_labels", "train_model"]
    opened("/jobs", "jobs", *jobs)
    for name, description in jobs.items():
        opened(f"/locations/{LOCATION}/jobs/{name}", f"job-{name}", str(description))


def test_runs_tell_what_arrived_and_whether_they_trained(opened: Opened) -> None:
    opened("/runs", "runs", "everything", "rm_assets/trains: true", "rm_assets/files: +3 -1", "Success", "Failure")


def test_the_page_of_a_failed_run_begins_with_its_reason(opened: Opened, dagster: RunningDagster) -> None:
    [run] = dagster.instance.get_runs(dg.RunsFilter(job_name="suspect_labels"))
    opened(
        f"/runs/{run.run_id}", "failed-run", "one fold would leave nothing to train on: set at least 2, or 0 for none"
    )


def test_the_launchpad_lists_settings_with_their_groups_and_choices(opened: Opened) -> None:
    page = opened(f"/locations/{LOCATION}/jobs/everything/playground", "launchpad", "learning_rate", "No errors")
    page.locator(".CodeMirror-code").first.click()
    for keys in ("Control+End", "ArrowUp", "End", "Enter", "Control+Space"):
        page.keyboard.press(keys)
    shows(page, "launchpad-settings", "batch_pairs", "[Training] Pairs per optimizer step")
    page.keyboard.type("loss: ")
    page.keyboard.press("Control+Space")
    shows(page, "launchpad-choices", "scaled")


def test_the_resource_shows_the_values_in_force_by_group(opened: Opened, dagster: RunningDagster) -> None:
    page = opened(f"/locations/{LOCATION}/resources/project", "resource", "Annotations: which files are read, and how.")
    shown = page.inner_text("body")
    assert re.search(r"arrival_seconds\s+1\s+30\n", shown) and re.search(r"max_length\s+1024\s+1024\n", shown)


def test_the_console_of_dagster_is_quiet(dagster: RunningDagster) -> None:
    console = dagster.log.read_text()
    assert "loading torch" in console
    assert not re.search("BetaWarning|PreviewWarning", console)
    assert SECRET not in console
