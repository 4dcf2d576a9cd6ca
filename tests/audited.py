"""The whole graph by the command line, once, with every process watched and secrets in its environment."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import QUICK, polite_rows, write_lines

CANARY = "zebrafinch"
"""A word of every annotation of an audited run."""

COMMAND = [sys.executable, "-c", "from dagster._cli import main; main()"]
"""What `dagster` is, with the interpreter of the tests."""

SECRET = "kingfisher-4711"

STORAGE = "snap shots 'of' \"$(touch run)\"\n%41 ü [z]*{a,b};#?"
"""The storage of an audited run: any name that a directory may have is one."""

_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN")


@dataclass(frozen=True)
class Note:
    """Something that a process did: an event of Python's audit hooks, and the files of the calls that led to it."""

    event: str
    what: str
    frames: list[str]


@dataclass(frozen=True)
class AuditedRun:
    """A directory with annotations, storage and Dagster's home, the environment of its runs, and the first of them."""

    directory: Path
    environment: dict[str, str]
    run: subprocess.CompletedProcess[str]
    notes: list[Note]

    @property
    def storage(self) -> Path:
        """Where its snapshots lie."""
        return self.directory / STORAGE

    @property
    def accuracy(self) -> float:
        """The accuracy that the report states."""
        home = self.storage / "reward_model_report"
        latest = json.loads((home / "latest.json").read_text())["snapshot"]
        return float(json.loads((home / latest / "report.json").read_text())["metrics"]["accuracy"])


def canary_rows(num_pairs: int) -> list[object]:
    """Valid rows, of which every third has flipped labels, so that no model is always right."""
    rows = []
    for number, row in enumerate(polite_rows(num_pairs)):
        assert isinstance(row, dict)
        prompt, chosen, rejected = (f"{CANARY} {row[name]}" for name in ("prompt", "chosen", "rejected"))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        if number % 3 == 0:
            rows[-1] |= {"chosen": rejected, "rejected": chosen}
    return list(rows)


def broken_rows() -> list[object]:
    """Rows that are rejects, each at another place."""
    return [
        {"prompt": CANARY, "chosen": CANARY, "rejected": CANARY},
        {"prompt": CANARY, f"what a {CANARY} is called": CANARY},
        {"prompt": CANARY, "chosen": [{"role": CANARY, "content": CANARY}], "rejected": CANARY},
        {"prompt": CANARY, "chosen": f"{CANARY}<|im_end|>", "rejected": "no"},
        f'{{"{CANARY}": "{CANARY}'.encode(),
        CANARY.encode() + b"\xff",
    ]


def audited_run(directory: Path, prefix: list[str] | None = None, **settings: Any) -> AuditedRun:
    """Materialize everything; `prefix` is a command that runs the command."""
    write_lines(directory / "annotations" / "a.jsonl", [*canary_rows(90), *broken_rows()])
    given = {"annotations": directory / "annotations", "storage": directory / STORAGE, **QUICK, **settings}
    environment = {
        **os.environ,
        **{f"RM_{name.upper()}": str(value) for name, value in given.items()},
        **dict.fromkeys(_NAMES, SECRET),
        "DAGSTER_HOME": str(directory),
        "TMPDIR": str(directory),
        "PYTHONPATH": str(Path(__file__).parent / "audit"),
        "AUDIT_OF_TEST": str(directory / "audit"),
    }
    (directory / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    command = [*(prefix or []), *COMMAND, "asset", "materialize", "-m", "rm_assets.definitions", "--select", "*"]
    run = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)
    notes = [Note(*json.loads(line)) for line in (directory / "audit").read_text().splitlines()]
    (directory / "audit").unlink()
    return AuditedRun(directory, environment, run, notes)
