"""The benchmarks run, and their pairs are what they say."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import varlen_kernel

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_every_copy_of_a_pair_has_a_number_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pairs = importlib.import_module("pairs")
    base = [
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "chosen": [{"role": "assistant", "content": "c"}],
            "rejected": [{"role": "assistant", "content": "r"}],
        }
    ]
    pairs.write_copies(base, 2, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    contents = [[message["content"] for side in row.values() for message in side] for row in rows]
    assert contents == [["s (0)", "u", "c (0)", "r (0)"], ["s (1)", "u", "c (1)", "r (1)"]]


@pytest.fixture
def gpu_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script of benchmarks/gpu, on a machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    return importlib.import_module


@pytest.mark.parametrize("fault", ["", varlen_kernel.SEES_BEHIND_THE_WINDOW])
def test_the_scripts_for_a_gpu_find_a_kernel_that_is_wrong_by_a_token(
    gpu_benchmark: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    fault: str,
) -> None:
    monkeypatch.setattr(varlen_kernel, "FAULTS", {fault})
    assert gpu_benchmark("correctness").main(["kernel"]) == bool(fault)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("[FAIL] AssertionError" if fault else "[PASS] kernel in ")


def test_the_scripts_for_a_gpu_measure_steps(
    gpu_benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture
) -> None:
    arguments = ["tiny", "eager", "--pairs", "2", "--steps", "1", "--warm-up", "1"]
    assert gpu_benchmark("speed").main(arguments) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("RESULT ")
    found = json.loads(last.removeprefix("RESULT "))
    assert (found["case"], found["steps"]) == ("eager", 1)
    assert 0 < found["saved_by_sharing"] < 0.5


@pytest.mark.soak
def test_all_stages_for_a_gpu_pass_as_a_dry_run(tmp_path: Path) -> None:
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(BENCHMARKS / "gpu" / "run_all.sh"), "A"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("== 0 failed; ")


@pytest.mark.soak
def test_the_benchmark_of_the_data_stages_compares_equal_ids() -> None:
    pytest.importorskip("trl")
    command = [sys.executable, str(BENCHMARKS / "data.py"), "--repeat-to", "60", "--trl-pairs", "40", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "All ids of 40 pairs are equal to TRL's." in done.stdout
    assert "| padded_pairs |" in done.stdout


@pytest.mark.soak
def test_the_benchmark_of_a_refresh_writes_what_changed_alone() -> None:
    command = [sys.executable, str(BENCHMARKS / "refresh.py"), "--megabytes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    cold, unchanged, appended = rows
    assert cold[0] == "1 MB, cold"
    assert unchanged[1] == cold[1]
    assert unchanged[-1] == "0"
    assert int(appended[1].replace(",", "")) == int(cold[1].replace(",", "")) + 1
    assert int(appended[-1]) >= 5  # the one shard, at each of five stages


@pytest.mark.soak
def test_what_was_prepared_elsewhere_is_measured_without_the_libraries_of_the_data(tmp_path: Path) -> None:
    benchmark = str(BENCHMARKS / "training.py")
    subprocess.run([sys.executable, benchmark, "--prepare", str(tmp_path)], check=True)
    command = [sys.executable, benchmark, "--apart", "--steps", "4", "--warm-up", "1", "--case", str(tmp_path)]
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in ("trl", "datasets", "fastokens"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(f"import sys; {absent}")
    bare = os.environ | {"PYTHONPATH": f"{tmp_path / 'bare'}:{BENCHMARKS.parent}"}
    alone = subprocess.run([*command, "--arms", "ours"], capture_output=True, text=True, check=True, env=bare)
    both = subprocess.run([*command, "--trl-pairs", "4"], capture_output=True, text=True, check=True)
    found, compared = json.loads(alone.stdout), json.loads(both.stdout)
    assert found["steps"] == compared["steps"] == 3
    assert found["losses_every_tenth"]["ours"] == compared["losses_every_tenth"]["ours"]
    assert compared["largest_loss_difference"] < 2e-5
    assert compared["pairs_per_second"].keys() == compared["peak_memory_mib"].keys() == {"ours", "trl"}


@pytest.mark.soak
def test_both_trainers_have_the_same_losses_on_the_sample() -> None:
    command = [sys.executable, str(BENCHMARKS / "training.py"), "--steps", "3", "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 3
    assert found["packing"] == "shared"
    assert found["largest_loss_difference"] < 2e-5
    assert found["losses_every_tenth"]["ours"] != []
    assert 0 < found["ratio_per_step"]["least"] <= found["ratio_per_step"]["median"] <= found["ratio_per_step"]["most"]
    assert found["saved_by_sharing"] > 0
    assert found["peak_memory_mib"].keys() == {"ours", "trl"}
