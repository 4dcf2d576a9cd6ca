"""Evaluation sets: kept apart from training, and what overlaps them kept out of it."""

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pyarrow.parquet as pq
import pytest
from support import plain_row, rejects, rows, run_stages, violations, write_lines

from rm_assets.data.pairs.contamination import _gram, overlapping_rows, prompt_grams
from rm_assets.data.pairs.lookalikes import latin_lookalike, may_have_lookalikes, visible
from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.sources.discovery import source_name
from rm_assets.data.sources.evaluation_sets import evaluation_folder, evaluation_name
from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings, SettingsError
from rm_assets.settings_loading import load_settings

WORDS = [f"word{number}" for number in range(14)]


def overlap(one: str, other: str) -> bool:
    return bool(prompt_grams([one]) & prompt_grams([other]))


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    thirteen, twelve = " ".join(WORDS[:13]), " ".join(WORDS[:12])
    assert len(prompt_grams([" ".join(WORDS)])) == 2
    assert overlap(f"Some words before: {thirteen}, and after.", f"{thirteen.upper()}!")
    assert not overlap(f"Some words before: {twelve}, and after.", f"Other words stand here: {twelve} too")


def test_a_short_prompt_overlaps_an_equal_one_only() -> None:
    assert overlap("What is love?", "what is  LOVE")
    assert not overlap("What is love?", "What is love, really?")


def test_a_prompt_without_words_overlaps_an_equal_one_too() -> None:
    assert overlap("?!", " ? !\u200b")
    assert overlap("\U0001f600\ufe0f\U0001f680", "\U0001f600\U0001f680\n")
    assert overlap("\u200b", "\u2060")  # both look like nothing
    assert not overlap("?!", "!!")
    assert not overlap("?!", "Really?!")
    assert overlap(f"{'()[]{}<>+-*/='}!", f"?{'()[]{}<>+-*/='}")


def test_characters_count_where_a_script_has_no_spaces() -> None:
    thirteen = "一二三四五六七八九十百千万"
    assert overlap(f"请问{thirteen}是什么", f"关于{thirteen}的问题")
    assert not overlap(f"请问{thirteen[:12]}是什么意思呢", f"关于{thirteen[:12]}的许多问题啊")


def test_the_words_of_all_user_turns_count_as_one_text() -> None:
    assert prompt_grams(["one two", "three"]) == prompt_grams(["one two three"])


# --- what only looks the same --------------------------------------------------------------------------------

LONG = "Please explain to my younger sister how a quick brown fox jumps over lazy dogs every Monday morning"
SHORT = "Can you help me?"
CYRILLIC = str.maketrans("aceiopsxyjABCEHIKMOPTX", "асеіорѕхујАВСЕНІКМОРТХ")
GREEK = str.maketrans("aiopuvABEHIKMNOPTXYZ", "αιορυνΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
INVISIBLE = (
    "\x01\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u202e\u2060\u2066\u3164\ufe00\ufe0f\ufeff"
    "\U000e0041\U000e0100"
)


@pytest.mark.parametrize("prompt", [LONG, SHORT])
@pytest.mark.parametrize(
    "copied",
    [
        *(lambda text, mark=mark: mark.join(text) for mark in INVISIBLE),
        lambda text: text.translate(CYRILLIC),
        lambda text: text.translate(GREEK),
        lambda text: text.replace("o", "\u043e"),
        lambda text: text.upper().translate(GREEK),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in text),  # full width
        lambda text: "".join(chr(ord(c) - 97 + 0x1D41A) if c.islower() else c for c in text),  # mathematical
        lambda text: text.translate(CYRILLIC).replace("\u0430", "\u0430\u200b").replace(" ", "\u00a0"),
        lambda text: text.replace("h", "\u0570").replace("n", "\u0578").replace("g", "\u0261"),  # Armenian, phonetic
        lambda text: text.upper().replace("A", "\u13aa").replace("E", "\ua4f0").replace("M", "\u2c98"),
    ],
)
def test_a_copy_that_looks_the_same_overlaps(copied: Callable[[str], str], prompt: str) -> None:
    assert copied(prompt) != prompt
    assert overlap(copied(prompt), prompt)
    assert overlap(prompt, copied(prompt))
    assert overlap(f"Be so kind: {copied(prompt)} Thanks.", prompt) == (prompt == LONG)


def test_a_letter_with_an_accent_looks_like_one() -> None:
    assert overlap("T\u0451ll m\u0435 of N\u043e\u0451l", "T\u00ebll me of No\u00ebl")


REAL = (
    ("Нос", "Hoc"),
    ("Вор и сова", "Bop u coba"),
    ("Как это сделать?", "Как это сдепать?"),
    (
        "Рассказ о том, как росла роза в саду у старого мастера",
        "Рассказ о том, как росла роза в лесу у старого мастера",
    ),
    ("Ποια είναι η ώρα;", "Ποιο είναι η ώρα;"),
    ("ΤΟ ΝΕΟ ΑΥΤΟ", "TO NEO AYTO"),
    ("今天天气怎么样？", "今天天氣怎麼樣？"),
    ("日本", "曰本"),
    ("Isıtma nasıl çalışır?", "Isitma nasil çalisir?"),
    ("می‌خواهم بدانم", "می خواهم بدانم"),
)


@pytest.mark.parametrize(("one", "other"), REAL)
def test_other_languages_are_not_taken_for_what_they_look_like(one: str, other: str) -> None:
    assert overlap(one, f"{one}!")
    assert not overlap(one, other)


RUSSIAN = "однажды весной в час небывало жаркого заката в москве на патриарших прудах появились два гражданина"


def test_another_language_has_the_hashes_of_its_own_words_alone() -> None:
    words = RUSSIAN.split()
    assert len(words) == 15
    assert prompt_grams([RUSSIAN]) == {_gram(words[start : start + 13]) for start in range(3)}
    assert overlap(RUSSIAN.title(), RUSSIAN.upper())
    assert not overlap(RUSSIAN, RUSSIAN.replace("час", "раз"))


def test_nobody_is_told_apart_by_invisible_characters_at_the_ends_of_words() -> None:
    assert prompt_grams(["\u200bone\ufe0f two\u2060 three\u200d"]) == prompt_grams(["one two three"])


def test_the_letters_of_the_table_are_of_one_kind() -> None:
    looks = {"раypаl": "paypal", "ΑΒΕ": "ABE", "ԝһо": "who", "ѕоrrу": "sorry", "\u0451l": "\u00ebl"}
    assert {word: latin_lookalike(word) for word in looks} == looks
    assert [latin_lookalike(word) for word in ("日本", "naïve", "word", "жаr")] == ["日本", "naïve", "word", None]
    letters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and chr(code).isalpha()]
    found = [letter for letter in letters if latin_lookalike(letter) not in (letter, None)]
    assert len(found) > 200
    assert [letter for letter in found if not may_have_lookalikes(letter) and visible(letter) == letter] == []
    assert visible("a\u200bb\tc\n \u3000d") == "ab\tc\n  d"


# --- sets ----------------------------------------------------------------------------------------------------


def test_no_sets_overlap_nothing(tmp_path: Path) -> None:
    assert overlapping_rows([tmp_path / "is never read"], [], {}) == {}


def test_the_name_of_a_set_is_in_the_source() -> None:
    assert evaluation_name("evaluation:held/a/b.jsonl") == "held"
    assert evaluation_folder("evaluation:held/a/b.jsonl") == "evaluation/held"
    assert evaluation_folder("evaluation/held/b.jsonl") == ""


NAMES_LIKE_SETS = [
    "evaluation:bench",
    "evaluation:..",
    "evaluation:",
    "Evaluation:bench",
    "evaluation:a%3Ab",
    "evaluation",
]


@pytest.mark.parametrize("directory", NAMES_LIKE_SETS)
def test_no_path_gives_the_source_of_an_evaluation_set(directory: str) -> None:
    for path in (Path("/in") / directory / "b.jsonl", Path("/in") / f"{directory}.jsonl"):
        source = source_name(path, Path("/in"))
        assert (evaluation_name(source), evaluation_folder(source)) == ("", "")
        assert unquote_to_bytes(source) == str(path.relative_to("/in")).encode()


def test_annotations_that_are_named_like_a_set_are_annotations(settings: Settings, tmp_path: Path) -> None:
    """Each path has rows of its own, and one of them the very name that the file of a set has in its source."""
    annotations = Path(settings.annotations_path)
    for number, directory in enumerate(NAMES_LIKE_SETS):
        write_lines(annotations / directory / "bench.jsonl", [plain_row(100 * number + n) for n in range(5)])
    write_lines(annotations / "evaluation:.jsonl", [plain_row(700)])
    write_lines(annotations / "a.jsonl", [plain_row(n) for n in range(5)])  # the prompts of "evaluation:bench"
    write_lines(tmp_path / "bench.jsonl", [plain_row(900, chosen="Yes.")])
    sets = {"bench": str(tmp_path / "bench.jsonl")}
    stages = run_stages(settings.model_copy(update={"evaluation_files": sets}))
    padded = stages[Stage.PADDED]
    assert [(row["source"], row["line"]) for row in rows(padded, "evaluation/bench")] == [
        ("evaluation:bench/bench.jsonl", 1)
    ]
    assert {file.folder for shard in padded.manifest.shards for file in shard.files} - set(SPLITS) == {
        "evaluation/bench",
        REJECTS,
    }
    assert len(rows(padded, *SPLITS)) == 31
    assert rejects(padded) == [("evaluation%3Abench/bench.jsonl", n, "duplicate") for n in range(1, 6)]
    assert set(violations(stages).values()) == {0}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "held.", "held out", "held:out", "-held", "h" * 300, "héld", "a\n"]
)
def test_a_set_whose_name_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(
        SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\).*the name .* must be at most 100"
    ):
        load_settings({"evaluation_files": {name: "held.jsonl"}}, {})


def test_sets_whose_names_one_folder_could_have_are_refused() -> None:
    with pytest.raises(SettingsError, match="'Held' and 'held' differ only in case: rename one"):
        load_settings({"evaluation_files": {"Held": "a.jsonl", "held": "b.jsonl"}}, {})
    with pytest.raises(SettingsError, match="'held' is given twice, with different values: keep one"):
        load_settings({}, {"RM_EVALUATION_FILES": '{"held": "a.jsonl", "held": "b.jsonl"}'})
    for name in ("h" * 100, "0", "a.b-c_d", "rejects", "evaluation"):
        assert list(load_settings({"evaluation_files": {name: "a.jsonl"}}, {}).evaluation_files) == [name]


@pytest.fixture
def with_sets(settings: Settings, tmp_path: Path) -> Settings:
    """Ten annotations, of which rows 3 and 4 have the prompts of the two rows of a set."""
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(n) for n in range(1, 11)])
    held = [plain_row(3, chosen="Four."), plain_row(4, chosen="Five."), plain_row(4, chosen="Five.")]
    write_lines(tmp_path / "held.jsonl", held)
    return settings.model_copy(update={"evaluation_files": {"held": str(tmp_path / "held.jsonl")}})


def test_a_set_is_never_split_or_thinned_and_overlapping_annotations_are_rejects(with_sets: Settings) -> None:
    stages = run_stages(with_sets)
    padded = stages[Stage.PADDED]
    [held] = [pq.read_table(path, partitioning=None) for path in padded.paths("evaluation/held")]
    assert held["line"].to_pylist() == [1, 2, 3]
    assert [(row["line"], row["reason"], row["detail"]) for row in rows(padded, REJECTS)] == [
        (3, "overlaps_evaluation", "evaluation set 'held'"),
        (4, "overlaps_evaluation", "evaluation set 'held'"),
    ]
    assert padded.manifest.total("num_evaluation") == 3
    parents = dict(zip(list(Stage)[1:], stages.values(), strict=False))
    for stage, rules in INVARIANTS.items():
        parent = parents[stage].manifest if stage in parents else None
        assert {n for rule in rules for n in rule.violations(stages[stage].manifest, parent).values()} == {0}


def test_with_unchanged_sets_a_second_run_computes_nothing_and_a_changed_set_only_the_padding(
    with_sets: Settings, tmp_path: Path
) -> None:
    run_stages(with_sets)
    assert [snapshot.num_new_shards for snapshot in run_stages(with_sets).values()] == [0] * 5
    write_lines(tmp_path / "held.jsonl", [plain_row(5, chosen="Six.")])
    changed = run_stages(with_sets)
    assert [snapshot.num_new_shards for snapshot in changed.values()] == [1, 1, 1, 1, 2]
    without = run_stages(with_sets.model_copy(update={"evaluation_files": {}}))
    assert without[Stage.PADDED].manifest.num_rows() == 10


def test_sets_come_as_json_from_the_environment() -> None:
    given = json.dumps({"held": "held.jsonl"})
    assert load_settings({}, {"RM_EVALUATION_FILES": given}).evaluation_files == {"held": "held.jsonl"}
    with pytest.raises(SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\)"):
        load_settings({}, {"RM_EVALUATION_FILES": "held.jsonl"})
    with pytest.raises(SettingsError, match=r"the name '\.\./x'"):
        load_settings({"evaluation_files": {"../x": "held.jsonl"}}, {})


def test_a_set_that_is_not_there_is_named(with_sets: Settings, tmp_path: Path) -> None:
    missing = with_sets.model_copy(update={"evaluation_files": {"held": str(tmp_path / "gone.jsonl")}})
    with pytest.raises(SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\), 'held', is .* no such file"):
        run_stages(missing)
