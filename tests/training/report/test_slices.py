import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from rm_assets.data.tables import schemas
from rm_assets.training.report.slices import agreement_name, dominant_script, margin_bucket, slice_facts


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("What is 2+2?", "Latin"),
        ("你好，请介绍一下你自己。OK", "Han"),
        ("東京は日本の首都です", "Kana"),
        ("漢字" * 9 + "かな", "Kana"),  # a tenth
        ("漢字" * 9 + "漢かな", "Han"),
        ("ｶﾅ", "Kana"),
        ("abcде", "Latin"),
        ("abде", "Cyrillic"),  # of equal numbers the first by name
        ("Как дела?", "Cyrillic"),
        ("كيف حالك", "Arabic"),
        ("안녕하세요", "Hangul"),
        ("Γειά σου", "Greek"),
        ("שלום", "Hebrew"),
        ("नमस्ते", "Devanagari"),
        ("Ｗｉｄｅ", "Latin"),
        ("1 + 1 = 2 👍", "none"),
        ("", "none"),
    ],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert dominant_script([text]) == script


def test_a_few_foreign_words_do_not_make_a_script():
    assert (
        dominant_script(["The word for tree is 木.", "Ki (き) is its reading in Japanese, as a word of its own."])
        == "Latin"
    )


@pytest.mark.parametrize(
    ("margin", "bucket"),
    [
        (-2, "below 0"),
        (-0.001, "below 0"),
        (0, "0, or none given"),
        (0.001, "up to 1"),
        (1, "up to 1"),
        (2, "over 1, up to 2"),
        (2.5, "over 2, up to 3"),
        (3.001, "over 3"),
    ],
)
def test_margins_fall_into_the_bucket_that_names_them(margin, bucket):
    assert margin_bucket(pd.Series(np.float32([margin]))).tolist() == [bucket]


def test_facts_are_those_of_the_whole_pair():
    row = dict.fromkeys(schemas.VALIDATED.names, "") | {"line": 3, "margin": 0.0, "num_turns": 2, "source": "a"}
    row |= {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": None}]}
    row |= {"rejected": [{"role": "assistant", "content": "Привет, как дела?"}], "num_annotators": 3, "num_agreeing": 2}
    [facts] = slice_facts(pa.Table.from_pylist([row], schema=schemas.VALIDATED)).to_dict("records")
    assert (facts["source"], facts["line"], facts["num_turns"], facts["script"]) == ("a", 3, 2, "Cyrillic")
    assert facts["agreement"] == "2 of 3"


@pytest.mark.parametrize(
    ("num_annotators", "num_agreeing", "name"),
    [(0, 0, ""), (1, 1, "one annotator"), (2, 2, "unanimous"), (3, 3, "unanimous"), (3, 1, "1 of 3")],
)
def test_agreement_is_named_by_how_many_annotators_agree(num_annotators, num_agreeing, name):
    assert agreement_name(num_annotators, num_agreeing) == name
