import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from architectures import VOCAB_SIZE, alone, build, edge_cases

from rm_assets.data.tables import schemas
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.held_out import Evaluation, Rounding, evaluate, pair_scores, write_scores
from rm_assets.training.model.probe import use_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.scoring import Scorer, round_weights
from rm_assets.training.packing.pair_store import open_store
from rm_assets.training.packing.planning import Packing, plan_rows

PAIRS = pairs_of(edge_cases())


@pytest.mark.parametrize("row_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("packing", list(Packing))
def test_a_score_is_that_of_the_sequence_alone_whatever_it_is_batched_with(packing, row_tokens):
    model = build("gemma3_text")
    expected = alone(model, edge_cases()).detach().numpy()
    use_packing(model, packing)
    scores = pair_scores(Scorer(model), PAIRS, np.arange(len(PAIRS)), SINGLE_PROCESS, packing, row_tokens)
    assert scores.shape == (len(PAIRS), 2)
    assert scores[:, 0] == pytest.approx(expected[PAIRS.chosen], abs=1e-5)
    assert scores[:, 1] == pytest.approx(expected[PAIRS.rejected], abs=1e-5)
    assert np.unique(scores.round(4)).size == len(PAIRS.sequences)


def test_the_rows_that_are_asked_for_come_in_their_order():
    model = build("llama")
    use_packing(model, Packing.SHARED)
    every = pair_scores(Scorer(model), PAIRS, np.arange(len(PAIRS)), SINGLE_PROCESS, Packing.SHARED, 100)
    some = pair_scores(Scorer(model), PAIRS, np.array([9, 0, 4]), SINGLE_PROCESS, Packing.SHARED, 100)
    assert some == pytest.approx(every[[9, 0, 4]], abs=1e-6)


def test_scoring_shows_how_many_pairs_of_a_split_are_scored():
    model, said = build("llama"), []
    use_packing(model, Packing.SHARED)
    splits = {"test": PAIRS, "evaluation/empty": random_pairs(0, 2)}
    evaluate(Scorer(model), splits, SINGLE_PROCESS, Packing.SHARED, 100, progress=said.append)
    counts = [int(text.removesuffix(f" of {len(PAIRS)} test pairs scored")) for text in said]
    assert counts[0] == 0
    assert len(counts) == len(plan_rows(PAIRS, np.arange(len(PAIRS)), Packing.SHARED, 100)[0])
    assert counts == sorted(set(counts))
    assert counts[-1] < len(PAIRS)


def test_a_look_makes_no_tensors_that_training_could_not_write_afterwards():
    scorer = Scorer(build("llama"))
    seen = []
    scorer.register_forward_pre_hook(
        lambda *_: seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    )
    pair_scores(scorer, PAIRS, np.arange(len(PAIRS)), SINGLE_PROCESS, Packing.PADDED, 10_000)
    assert set(seen) == {(False, False)}


def test_every_pair_has_its_row_of_the_scores_file(tmp_path, write_pairs):
    path = write_pairs(tmp_path / "a.parquet", [([4, 5, 6], [4, 7]), ([8], [9, 9], 0.5)])
    splits = open_store(tmp_path / "scratch", "s", {"test": [path], "evaluation/other": []})
    scores = evaluate(Scorer(build("bert")), splits, SINGLE_PROCESS, Packing.PADDED, 100).scores
    write_scores(tmp_path / "scores.parquet", splits, scores)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.equals(schemas.SCORES)
    assert table.column("split").to_pylist() == ["test", "test"]
    assert table.column("pair_id").to_pylist() == ["pair0", "pair1"]
    assert table.column("chosen_length").to_pylist() == [3, 1]
    assert table.column("rejected_length").to_pylist() == [2, 2]
    assert table.column("margin").to_pylist() == [0, 0.5]
    found = pa.compute.subtract(table.column("chosen_score"), table.column("rejected_score")).to_pylist()
    assert found == pytest.approx((scores["test"][:, 0] - scores["test"][:, 1]).tolist())


# --- precision -----------------------------------------------------------------------------------------------


def random_pairs(count, seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 20, (count, 2))
    return pairs_of([[generator.integers(1, VOCAB_SIZE, size, dtype=np.int32) for size in both] for both in sizes])


SPLITS = {"validation": random_pairs(30, 0), "test": random_pairs(40, 1), "evaluation/other": random_pairs(0, 2)}


def evaluated(splits, **options):
    model = build("llama")
    use_packing(model, Packing.SHARED)
    return evaluate(Scorer(model), splits, SINGLE_PROCESS, Packing.SHARED, 100, **options)


def test_in_float32_an_evaluation_is_the_scores_of_each_split_and_nothing_else():
    evaluation = evaluated(SPLITS)
    model = build("llama")
    use_packing(model, Packing.SHARED)
    for name, pairs in SPLITS.items():
        expected = pair_scores(Scorer(model), pairs, np.arange(len(pairs)), SINGLE_PROCESS, Packing.SHARED, 100)
        assert (evaluation.scores[name] == expected).all()
    assert evaluation.figures() == {
        "scores_dtype": "float32",
        "scores_precision": "scores of 70 held-out pairs computed in float32",
    }


def test_in_bfloat16_a_sample_of_all_splits_says_what_it_changed():
    evaluation, exact = evaluated(SPLITS, bfloat16=True), evaluated(SPLITS)
    found, expected = (np.concatenate([*each.scores.values()]) for each in (evaluation, exact))
    assert found == pytest.approx(expected, abs=0.02)
    assert (found != expected).mean() > 0.9
    sample = [number * 70 // 64 for number in range(64)]
    changed = np.sign(found[:, 0] - found[:, 1]) != np.sign(expected[:, 0] - expected[:, 1])
    figures = evaluation.figures()
    assert figures["bfloat16_sample_pairs"] == 64
    # the sample was computed in rows of its own, in float32
    largest = np.abs(found - expected)[sample].max()
    assert figures["bfloat16_sample_largest_difference"] == pytest.approx(largest, abs=1e-6) != 0
    assert figures["bfloat16_sample_changed_pairs"] == changed[sample].sum()
    assert figures["scores_precision"].startswith("scores of 70 held-out pairs computed in bfloat16; on a float32 ")


def test_no_more_pairs_than_the_sample_are_computed_in_float32():
    splits = {"validation": random_pairs(24, 0), "test": SPLITS["test"]}
    evaluation = evaluated(splits, bfloat16=True)
    assert evaluation.rounding is None
    assert (evaluation.scores["test"] == evaluated(splits).scores["test"]).all()


def test_what_rounding_changed_by_hand():
    exact = np.array([[1, 0], [0, 1], [2, 2], [0.5, 0.25]], np.float32)
    rounded = np.array([[1, 0.5], [0, 1.25], [2, 2.5], [0.25, 0.5]], np.float32)
    rounding = Rounding.of(exact, rounded)
    assert rounding == Rounding(
        sample_pairs=4, largest_difference=0.5, changed_pairs=2
    )  # a tie, and a pair that turned
    many = {"test": np.zeros((4231, 2), np.float32)}
    precision = "scores of 4,231 held-out pairs computed in bfloat16; on a float32 sample of 4 pairs the largest "
    precision += "difference of a score was 0.5 and 2 of 4 pairs were ranked differently"
    assert Evaluation(many, rounding).precision == precision
    precision = precision.replace("2 of 4 pairs were", "no pair was").replace("was 0.5", "was 0.0012")
    assert Evaluation(many, Rounding(4, 0.00123, 0)).precision == precision


def test_only_the_weights_of_the_body_are_rounded():
    scorer = Scorer(build("gemma3_text"))
    buffers = {name: buffer.clone() for name, buffer in scorer.named_buffers()}
    round_weights(scorer)
    dtypes = {name: weight.dtype for name, weight in scorer.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype != torch.bfloat16} == {"model.score.weight"}
    assert any("inv_freq" in name for name in buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in scorer.named_buffers())
