import pytest

from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.packing.checks import check_pairs, read_splits

GOOD = ([7, 5, 1], [7, 6, 1])


def check(make_job, tmp_path, pair, vocab_size=40, pad_token_id=0, max_positions=5):
    splits = read_splits(make_job(splits={"train": [GOOD], "validation": [GOOD, pair]}), tmp_path / "scratch")
    check_pairs(splits, vocab_size, pad_token_id, max_positions)


def test_sound_pairs_pass(make_job, tmp_path):
    check(make_job, tmp_path, ([39, 0, 1, 1, 1], [1]))
    check(make_job, tmp_path, ([39] * 6, [1]), max_positions=None)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ([7, 40, 1], [6, 1]),
            "token id 40 in the chosen side of pair 'pair1' .a.jsonl, line 2., split 'validation'",
        ),
        (([7, 1], [6, -1, 1]), "token id -1 in the rejected side of pair 'pair1'"),
        (
            ([7, 1], [6, 6, 6, 6, 6, 1]),
            "rejected side of pair 'pair1' .* has 6 tokens but the model only 5 positions",
        ),
        (([7, 0], [6, 1]), "chosen side of pair 'pair1' .* ends in the pad token 0"),
    ],
)
def test_a_pair_that_the_model_cannot_score_is_an_error_with_its_place(make_job, tmp_path, pair, message):
    with pytest.raises(TrainingError, match=message):
        check(make_job, tmp_path, pair)


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_margin_that_is_not_finite_is_an_error_with_its_place(make_job, tmp_path, margin):
    with pytest.raises(TrainingError, match=rf"margin is {margin} in pair 'pair1' \(a.jsonl, line 2\)"):
        check(make_job, tmp_path, (*GOOD, margin))


@pytest.mark.parametrize("pad_token_id", [40, -1])
def test_a_pad_token_outside_the_vocabulary_is_an_error(make_job, tmp_path, pad_token_id):
    with pytest.raises(TrainingError, match=f"pad_token_id is {pad_token_id} but the model has 40 embeddings"):
        check(make_job, tmp_path, GOOD, pad_token_id=pad_token_id)


def test_an_unknown_split_is_an_error(make_job, tmp_path):
    with pytest.raises(TrainingError, match="unknown split 'dev'"):
        read_splits(make_job(splits={"train": [GOOD], "dev": [GOOD]}), tmp_path)
