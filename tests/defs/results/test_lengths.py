"""The lengths of a snapshot's pairs: measured once, kept beside its data, removed with it, and drawn as a picture."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from real_runs import ROOT
from support import plain_row, run_stages, write_lines

from rm_assets.data.storage.ownership import LENGTHS
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results import lengths
from rm_assets.defs.results.lengths import length_histogram
from rm_assets.defs.results.plots import BLUE, ORANGE
from rm_assets.settings import Settings

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    annotations = write_lines(tmp_path / "annotations.jsonl", [plain_row(number) for number in range(30)])
    return Settings(annotations=str(annotations), storage=str(tmp_path / "storage"), keep_snapshots=1)


def test_lengths_of_an_unchanged_snapshot_are_not_measured_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lengths.lengths_metadata(run_stages(settings)[Stage.PADDED])
    assert first["median_length"] > 0
    with monkeypatch.context() as patched:
        for name in ("read_table", "length_histogram"):
            patched.setattr(lengths, name, lambda *_: pytest.fail("the lengths were measured again"))
        snapshot = run_stages(settings)[Stage.PADDED]
        assert lengths.lengths_metadata(snapshot) == first
    directory = snapshot.directory
    del snapshot  # and its pin
    write_lines(Path(settings.annotations_path), [plain_row(number) for number in range(31)])
    assert lengths.lengths_metadata(run_stages(settings)[Stage.PADDED]) != first
    assert not directory.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"median": 1.0, "percentiles": {}, "png": "?"}'])
def test_damaged_lengths_are_measured_again(settings: Settings, content: bytes) -> None:
    snapshot = run_stages(settings)[Stage.PADDED]
    first = lengths.lengths_metadata(snapshot)
    (snapshot.directory / LENGTHS).write_bytes(content)
    assert lengths.lengths_metadata(snapshot) == first
    assert (snapshot.directory / LENGTHS).read_bytes() != content


def bars(svg: str, side: str) -> list[float]:
    """The heights of a side's bars as shares of the picture's area."""
    colors = {"rejected": ORANGE, "chosen": BLUE}
    path = next(part for part in ElementTree.fromstring(svg).iter(f"{SVG}path") if part.get("fill") == colors[side])
    tops = [float(top) for top in re.findall(r"V([0-9.]+)H", path.attrib["d"])]
    return [(210 - top) / 180 for top in tops]


def test_each_bar_is_as_high_as_its_pairs_are_many() -> None:
    svg = length_histogram(np.array([10] * 4 + [50] * 20), np.array([10] * 10 + [50] * 14))
    expected = np.zeros((2, 40))
    expected[0, [0, -1]], expected[1, [0, -1]] = [4, 20], [10, 14]
    for side, counts in zip(("chosen", "rejected"), expected, strict=True):
        np.testing.assert_allclose(bars(svg, side), counts / (20 * 1.05), atol=0.001)
    labels = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    pairs, tokens = ["0", "5", "10", "15", "20"], [str(tick) for tick in range(10, 51, 5)]
    assert labels[: len(pairs) + len(tokens)] == pairs + tokens
    assert {"rejected", "chosen", "pairs"} < set(labels)


def test_one_endless_side_does_not_squeeze_the_lengths_of_the_others() -> None:
    lengths, nothing = np.arange(1, 201), np.zeros(0, np.int32)
    filled = np.array(bars(length_histogram(np.append(lengths, 100_000), nothing), "chosen")) > 0
    assert filled.all()


def test_lengths_of_no_pairs_are_an_empty_picture() -> None:
    nothing = np.zeros(0, np.int32)
    assert bars(length_histogram(nothing, nothing), "chosen") == [0] * 40


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [(0, 1.05, 5, [0, 1]), (4.5, 5.5, 10, [5]), (12, 47, 5, [20, 30, 40]), (0, 2_100, 5, [0, 500, 1_000, 1_500, 2_000]),
     (0, 5, 5, [0, 1, 2, 3, 4, 5]), (0, 6, 5, [0, 2, 4, 6]), (7, 1_000_003, 10, range(100_000, 1_000_001, 100_000))],
)  # fmt: skip
def test_ticks_are_few_round_numbers(low: float, high: float, most: int, ticks: list[int]) -> None:
    assert list(lengths._ticks(low, high, most)) == list(ticks)


def test_lengths_are_drawn_without_matplotlib() -> None:
    code = (
        "import sys, numpy as np; from rm_assets.defs.results.lengths import length_histogram\n"
        "length_histogram(np.arange(9), np.arange(9)); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
