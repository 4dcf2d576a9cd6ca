"""Lines of many megabytes: what they cost to tokenize, and that a run that is stopped does not wait for them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_runs import ROOT, SECONDS_TO_LEAVE, SECONDS_TO_START, wait_until
from support import plain_row, rejects, rows, run_stages, violations, write_lines
from transformers import AutoTokenizer

from rm_assets.data.chat import encoder
from rm_assets.data.chat.encoder import (
    Encoder,
    encode_shard,
    fastokens_tokenizer,
    tokenizer_definition,
)
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import SAMPLE, Settings

NO_CONTROL = np.zeros(10_000, dtype=np.bool_)
HUGE = 1_100_000  # characters, more than anything that is encoded to know its length


def tokenizer_with(directory: Path, **changes: object) -> Path:
    """The sample's tokenizer, otherwise defined."""
    shutil.copytree(SAMPLE / "tokenizer", directory)
    definition = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(definition | changes))
    return directory


@pytest.fixture(scope="module")
def reference() -> Any:
    """The sample's tokenizer, by transformers."""
    return AutoTokenizer.from_pretrained(SAMPLE / "tokenizer")


# --- rows that are too long for certain ----------------------------------------------------------------------


def test_a_huge_line_is_rejected_by_its_bytes_and_its_neighbours_are_not(settings: Settings) -> None:
    long_rows = [
        plain_row(n, **{field: "word " * (HUGE // 5)}) for n, field in enumerate(("prompt", "chosen", "rejected"))
    ]
    lines = [plain_row(7), *long_rows, plain_row(8), plain_row(9, chosen="word " * 2_000)]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    stages = run_stages(settings)
    assert rejects(stages[Stage.TOKENIZED]) == [("a.jsonl", line, "too_long") for line in (2, 3, 4, 6)]
    details = [row["detail"] for row in rows(stages[Stage.TOKENIZED], REJECTS)]
    assert all(
        detail.endswith(" bytes, more than 1000 per token of max_length 1024, so not encoded") for detail in details[:3]
    )
    assert details[3].endswith(" tokens, more than 1024")
    assert [row["line"] for row in rows(stages[Stage.TOKENIZED])] == [1, 5]
    assert set(violations(stages).values()) == {0}


def test_a_huge_line_may_still_lose_its_oldest_turns(settings: Settings) -> None:
    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    turns = [message("user", "word " * (HUGE // 5)), message("assistant", "Yes."), message("user", "One plus one?")]
    shortened = {"prompt": turns, "chosen": [message("assistant", "Two.")], "rejected": [message("assistant", "No.")]}
    lines = [shortened, plain_row(2, chosen="word " * (HUGE // 5))]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    stages = run_stages(settings.model_copy(update={"over_long": "drop_turns"}))
    assert [(row["line"], row["num_dropped_turns"]) for row in rows(stages[Stage.TOKENIZED])] == [(1, 1)]
    assert rejects(stages[Stage.TOKENIZED]) == [("a.jsonl", 2, "too_long")]
    assert set(violations(stages).values()) == {0}


# --- what the reference is given -----------------------------------------------------------------------------


class Counted:
    """A tokenizer of transformers that notes how many characters each call gives it."""

    def __init__(self, reference: Any) -> None:
        self.reference, self.num_characters = reference, list[int]()

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.num_characters.append(sum(map(len, texts)))
        return self.reference(texts, **options)


def test_the_reference_is_given_so_many_characters_at_a_time(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_CHUNK_CHARACTERS", 1_000)
    texts = ["ab " * length for length in (100, 100, 100, 100, 400, 1, 333, 0, 0)]
    counted = Counted(reference)
    ids, offsets = Encoder(counted, None, "", NO_CONTROL).reference_encode(texts)
    assert counted.num_characters == [900, 300, 1_200, 3, 999]
    expected = [reference(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert np.split(ids, offsets[1:-1])[4].tolist() == expected[4]
    assert ids.tolist() == [number for row in expected for number in row]


def test_no_text_of_a_million_characters_is_encoded_again_for_the_sample(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastokens")
    monkeypatch.setattr(encoder, "_CHUNK_CHARACTERS", 1_000)
    counted = Counted(reference)
    fast = fastokens_tokenizer(tokenizer_definition(reference))
    encoded = encode_shard(Encoder(counted, fast, "", NO_CONTROL), ["ab " * 400, "a b", "ab " * 333])
    assert sum(counted.num_characters) == 3 + 999
    assert encoded.ids.tolist()[: encoded.offsets[1]] == reference("ab " * 400)["input_ids"]


# --- runs that are stopped -----------------------------------------------------------------------------------

STAGES = """
import signal
import sys
from pathlib import Path
from support import *
from rm_assets.data.chat.encoder import load_encoder
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.stages.tokenization import SELF_TESTS
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    directory, stage, tokenizer = sys.argv[1:]
    storage = f"{directory}/storage"
    chosen = Settings(annotations=f"{directory}/a.jsonl", storage=storage, tokenizer=tokenizer, max_length=2**20)
    files = find_tokenizer(chosen)
    load_encoder(files, resolve_path(chosen.storage) / SELF_TESTS).turn_off("the fast one would be done too soon")
    raw = publish_raw(chosen, silent)
    if stage == "validated":
        print("ready", flush=True)
    validated = publish_validated(chosen, raw, silent)
    flattened = publish_flattened(chosen, files, validated, silent)
    print("ready", flush=True)
    publish_tokenized(chosen, files, validated, flattened, silent)
"""


def cpu_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("stage", [pytest.param("validated", marks=pytest.mark.soak), "tokenized"])
def test_a_stage_is_stopped_within_seconds_whatever_line_it_is_at(stage: str, tmp_path: Path) -> None:
    num_bytes = 16 * 2**20 - 1_000
    text = {
        "validated": "a" + "\u0301" * (num_bytes // 4) + "\u0316" * (num_bytes // 4),
        "tokenized": "word " * (num_bytes // 5),
    }
    write_lines(tmp_path / "a.jsonl", [plain_row(1, prompt=text[stage])])
    tokenizer = tokenizer_with(tmp_path / "tokenizer", normalizer={"type": "Lowercase"})
    (tmp_path / "stages.py").write_text(STAGES)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, str(tmp_path / "stages.py"), str(tmp_path), stage, str(tokenizer)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            start = cpu_seconds(running.pid)
            assert wait_until(lambda: cpu_seconds(running.pid) > start + 0.5, SECONDS_TO_START)  # at that line
            running.send_signal(signal.SIGINT)
            assert running.wait(SECONDS_TO_LEAVE) != 0
        finally:
            running.kill()
