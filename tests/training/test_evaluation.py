import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rm_assets.training.evaluation import evaluate, pair_scores, write_scores
from rm_assets.training.group import ALONE
from rm_assets.training.planning import Packing
from rm_assets.training.probe import use_packing
from rm_assets.training.probe_pairs import pairs_of
from rm_assets.training.result import SCORES
from rm_assets.training.scoring import Scorer
from rm_assets.training.store import open_store

from .architectures import alone, build, edge_cases

PAIRS = pairs_of(edge_cases())


@pytest.mark.parametrize("row_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("packing", list(Packing))
def test_a_score_is_that_of_the_sequence_alone_whatever_it_is_batched_with(packing, row_tokens):
    model = build("gemma3_text")
    expected = alone(model, edge_cases()).detach().numpy()
    use_packing(model, packing)
    scores = pair_scores(Scorer(model), PAIRS, np.arange(len(PAIRS)), ALONE, packing, row_tokens)
    assert scores.shape == (len(PAIRS), 2)
    assert scores[:, 0] == pytest.approx(expected[PAIRS.chosen], abs=1e-5)
    assert scores[:, 1] == pytest.approx(expected[PAIRS.rejected], abs=1e-5)
    assert np.unique(scores.round(4)).size == len(PAIRS.sequences)


def test_the_rows_that_are_asked_for_come_in_their_order():
    model = build("llama")
    use_packing(model, Packing.SHARED)
    every = pair_scores(Scorer(model), PAIRS, np.arange(len(PAIRS)), ALONE, Packing.SHARED, 100)
    some = pair_scores(Scorer(model), PAIRS, np.array([9, 0, 4]), ALONE, Packing.SHARED, 100)
    assert some == pytest.approx(every[[9, 0, 4]], abs=1e-6)


def test_a_look_makes_no_tensors_that_training_could_not_write_afterwards():
    scorer = Scorer(build("llama"))
    seen = []
    scorer.register_forward_pre_hook(
        lambda *_: seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    )
    pair_scores(scorer, PAIRS, np.arange(len(PAIRS)), ALONE, Packing.PADDED, 10_000)
    assert set(seen) == {(False, False)}


def test_every_pair_has_its_row_of_the_scores_file(tmp_path, write_pairs):
    path = write_pairs(tmp_path / "a.parquet", [([4, 5, 6], [4, 7]), ([8], [9, 9], 0.5)])
    splits = open_store(tmp_path / "scratch", "s", {"test": [path], "evaluation/other": []})
    scores = evaluate(Scorer(build("bert")), splits, ALONE, Packing.PADDED, 100)
    write_scores(tmp_path / "scores.parquet", splits, scores)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.equals(SCORES)
    assert table.column("split").to_pylist() == ["test", "test"]
    assert table.column("pair_id").to_pylist() == ["pair0", "pair1"]
    assert table.column("chosen_length").to_pylist() == [3, 1]
    assert table.column("rejected_length").to_pylist() == [2, 2]
    assert table.column("margin").to_pylist() == [0, 0.5]
    found = pa.compute.subtract(table.column("chosen_score"), table.column("rejected_score")).to_pylist()
    assert found == pytest.approx((scores["test"][:, 0] - scores["test"][:, 1]).tolist())
