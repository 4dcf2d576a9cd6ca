"""Damaged lines among sound ones: every line is a pair or a reject, and the sound ones come out as they went in."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import plain_row, rejects, rows, silent

from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

SOUND = [json.dumps(plain_row(number)).encode() for number in range(5)]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound line with a few bytes cut out, doubled, or replaced; never with another line's end."""
    line = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(line)))
        end = draw(st.integers(start, min(len(line), start + 12)))
        new = draw(st.one_of(st.just(bytes(line[start:end]) * 2), st.binary(max_size=6), st.sampled_from(TOKENS)))
        line[start:end] = new.replace(b"\n", b"")
    return bytes(line)


TOKENS = [
    b"",
    b'"',
    b"{",
    b"}",
    b"[",
    b"null",
    b"1e999",
    b"\\ud800",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\x00",
    b'"chosen":',
    b"\r",
]


def check(lines: list[bytes], directory: Path) -> None:
    (directory / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in [*SOUND, *lines]))
    given_settings = Settings(
        annotations=str(directory / "a.jsonl"), storage=str(directory / "s"), max_malformed_fraction=1, shard_bytes=400
    )
    raw = publish_raw(given_settings, silent)
    validated = publish_validated(given_settings, raw, silent)
    pairs = {row["line"]: row for row in rows(validated)}
    assert [pairs[line]["chosen"][0]["content"] for line in range(1, 6)] == [f"It is {n + 1}." for n in range(5)]
    told = [line for _, line, _ in (*rejects(raw), *rejects(validated))]
    blank = [number for number, line in enumerate([*SOUND, *lines], start=1) if not line.removeprefix(b"\r").strip()]
    assert sorted([*pairs, *told, *blank]) == list(range(1, 6 + len(lines)))
    for stage, snapshot, parent in ((Stage.RAW, raw, None), (Stage.VALIDATED, validated, raw.manifest)):
        assert {n for rule in INVARIANTS[stage] for n in rule.violations(snapshot.manifest, parent).values()} == {0}


QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}


@settings(max_examples=40, **QUIET)
@given(lines=st.lists(mutated(), min_size=1, max_size=8))
def test_mutated_lines_are_pairs_or_rejects(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    check(lines, tmp_path_factory.mktemp("mutated"))


@pytest.mark.soak
@settings(max_examples=1_250, **QUIET)
@given(lines=st.lists(mutated(), min_size=8, max_size=8))
def test_ten_thousand_mutated_lines_are_pairs_or_rejects(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(lines, tmp_path_factory.mktemp("mutated"))
