"""Encoders as reward models: trained in padded rows, with stock pooling, and a head that is kept or new."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from architectures import CPU, alone, edge_cases, gradients
from safetensors.torch import load_file, save_file
from toy_pairs import learnable_pairs
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from rm_assets.settings import SettingsError
from rm_assets.training import devices
from rm_assets.training.jobs.result import SCORES_FILE, clear_output, read_result
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop import trainer
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.step import train_step
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import with_adapter
from rm_assets.training.model.architecture import check_architecture
from rm_assets.training.model.checkpoint_head import NEW
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.reward_model import build_with_origin, check_base_model
from rm_assets.training.model.scoring import Scorer, bfloat16_scores, round_weights
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.planning import Packing, plan_rows
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model.model_directory import save_model
from rm_assets.training.score import main as score

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
ENCODERS = {
    "bert": SIZES | DROPOUT,
    "roberta": SIZES | DROPOUT | {"pad_token_id": 1, "type_vocab_size": 1},
    "deberta-v2": SIZES
    | DROPOUT
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "share_att_key": True}
    | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "pooler_hidden_size": 16},
    "modernbert": SIZES
    | {"num_hidden_layers": 4, "local_attention": 8, "embedding_dropout": 0.5, "mlp_dropout": 0.5}
    | {"attention_dropout": 0.5, "classifier_dropout": 0.5, "classifier_pooling": "mean"}
    | {"bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 1},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    | {"max_position_embeddings": 64, "pad_token_id": 0},
    "electra": SIZES | DROPOUT | {"embedding_size": 8},
    "albert": SIZES | DROPOUT | {"embedding_size": 8},
}
MAIN = ["bert", "roberta", "deberta-v2", "modernbert"]


def config_of(name, **changes):
    return AutoConfig.for_model(name, **ENCODERS[name] | {"num_labels": 1} | changes)


def random_weights(auto_class, name, directory, **changes):
    """A model with random weights of every kind, biases too, saved in the directory."""
    torch.manual_seed(3)
    model = auto_class.from_config(config_of(name, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    model.save_pretrained(directory)
    return model


def rows_of(rankings, model):
    """The rankings with ids of the toy vocabulary."""
    return [[ids % model.config.vocab_size for ids in ranking] for ranking in rankings]


def run(job):
    output, lines = Path(job.output_directory), []
    clear_output(output)
    train_and_publish(job, SINGLE_PROCESS, TrainingLog(output / "metrics.jsonl", log=lines.append))
    return output, "\n".join(lines)


def in_padded_rows(model, rankings, score_batch):
    pairs = pairs_of(rankings)
    found = torch.zeros(len(pairs.sequences))
    for plan in plan_rows(pairs, np.arange(len(pairs)), Packing.PADDED, 10_000)[0]:
        numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
        found = found.index_put((torch.tensor(numbers),), score_batch(Scorer(model), collate(pairs, plan, CPU)))
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_padded_rows_give_the_scores_and_gradients_of_stock_transformers(tmp_path, name):
    model = random_weights(AutoModelForSequenceClassification, name, tmp_path)
    rankings = rows_of(edge_cases(), model)
    choice = choose_packing(model, pairs_of(rankings), CPU)
    assert choice.packing is Packing.PADDED
    assert choice.reason.startswith("padded rows of similar length: encoders are computed in padded rows; on 7 pairs ")
    expected, found = alone(model, rankings), in_padded_rows(model, rankings, Scorer.forward)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    others = gradients(model, found)
    for weight, gradient in gradients(model, expected).items():
        torch.testing.assert_close(others[weight], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", MAIN)
def test_a_gpu_computes_the_head_in_float32_and_the_body_in_bfloat16(monkeypatch, tmp_path, name):
    monkeypatch.setattr(devices, "BFLOAT16", {"cpu"})
    model = random_weights(AutoModelForSequenceClassification, name, tmp_path)
    rankings = rows_of(edge_cases(), model)
    assert choose_packing(model, pairs_of(rankings), CPU).packing is Packing.PADDED
    expected, found = alone(model, rankings).detach(), in_padded_rows(model, rankings, bfloat16_scores).detach()
    assert 0 < (found - expected).abs().max() < 0.2 * expected.std()
    round_weights(Scorer(model))
    heads = {weight.dtype for key, weight in model.named_parameters() if not key.startswith(model.base_model_prefix)}
    assert heads == {torch.float32}
    torch.testing.assert_close(in_padded_rows(model, rankings, Scorer.forward).detach(), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAIN)
def test_an_encoder_with_a_new_head_learns_and_is_saved_as_it_was_reported(make_job, tmp_path, capsys, name):
    random_weights(AutoModelForMaskedLM, name, tmp_path / "base")
    settings = {"epochs": 8, "learning_rate": 1e-2}
    job = make_job("first", model=str(tmp_path / "base"), toy=False, settings=settings)
    check_base_model(tmp_path / "base", 32)
    output, told = run(job)
    assert "a pretrained model, head: new" in told
    assert "have no place in this model" not in told
    metrics = read_result(output, job.key)["metrics"]
    assert metrics["test_accuracy"] == 1.0
    assert metrics["packing"] == "padded"
    assert metrics["train_loss"] < 0.3

    model = AutoModelForSequenceClassification.from_pretrained(output / "model")
    rows = pq.read_table(output / SCORES_FILE).to_pylist()
    pairs = [*learnable_pairs(5, first=50), *learnable_pairs(3, first=80)]
    with torch.no_grad():
        for row, sides in zip(rows, pairs, strict=True):
            expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids in sides]
            assert [row["chosen_score"], row["rejected_score"]] == pytest.approx(expected, abs=1e-5)

    (tmp_path / "in.jsonl").write_text('{"prompt": "w7 w8", "chosen": "w5", "rejected": "w6 w9"}\n')
    arguments = [str(output / "model"), str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert score(arguments) == 0
    assert "golden scores verified" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.jsonl").read_text())["margin"] > 0
    assert score([*arguments, "--padding", "left"]) == 1
    assert "is an encoder, whose scores need padding on the right" in capsys.readouterr().err
    assert not (output / "model" / "value_head.safetensors").exists()
    assert "vllm" not in (output / "model" / "README.md").read_text().lower()

    continued, origin = build_with_origin(make_job("second", model=str(output / "model"), toy=False))
    assert origin.head.startswith("the checkpoint's (classifier.")
    assert origin.unused == ()
    for key, weight in continued.state_dict().items():
        assert torch.equal(weight, model.state_dict()[key]), key


@pytest.mark.parametrize("name", MAIN)
def test_the_first_loss_is_that_of_plain_torch(make_job, metrics_of, tmp_path, name):
    model = random_weights(AutoModelForSequenceClassification, name, tmp_path / "model")
    pairs = learnable_pairs(4)
    job = make_job(model=str(tmp_path / "model"), toy=False, splits={"train": pairs}, settings={"center_rewards": 0.0})
    run(job)
    with torch.no_grad():
        margins = [
            model(input_ids=torch.tensor([chosen])).logits - model(input_ids=torch.tensor([rejected])).logits
            for chosen, rejected in pairs
        ]
    expected = -torch.nn.functional.logsigmoid(torch.cat(margins)).mean().item()
    [[step], _] = metrics_of(job)
    assert step["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM])
def test_a_new_head_depends_on_the_seed_alone_and_the_body_is_kept(make_job, tmp_path, name, auto_class):
    base = random_weights(auto_class, name, tmp_path / "base")
    job = make_job(model=str(tmp_path / "base"), toy=False)
    torch.rand(5)
    first, origin = build_with_origin(job)
    torch.rand(7)
    second, _ = build_with_origin(job)
    other, _ = build_with_origin(make_job("other", model=str(tmp_path / "base"), toy=False, settings={"seed": 1}))
    assert origin.head == NEW
    assert set(origin.unused) <= {"pooler.dense.bias", "pooler.dense.weight"}  # RoBERTa's classifier does not use it
    assert not first.training
    same = {key: torch.equal(weight, second.state_dict()[key]) for key, weight in first.state_dict().items()}
    assert all(same.values()), same
    assert not torch.equal(first.get_parameter(_output(first)), other.get_parameter(_output(first)))
    body = base if auto_class is AutoModel else getattr(base, base.base_model_prefix)
    for key, weight in getattr(first, first.base_model_prefix).state_dict().items():
        if key in body.state_dict():
            assert torch.equal(weight, body.state_dict()[key]), key


def _output(model):
    return [key for key, _ in model.named_parameters() if key.startswith("classifier") and key.endswith("weight")][-1]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_checkpoint_with_a_part_of_a_head_or_with_two_labels_is_an_error(make_job, tmp_path, name):
    model = random_weights(AutoModelForSequenceClassification, name, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole, output = load_file(path), _output(model)
    bias = output.replace("weight", "bias")
    save_file({key: weight for key, weight in whole.items() if key != bias}, path, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"lacks the weights \['classifier\..*bias'\]"):
        build_with_origin(make_job(model=str(tmp_path / "model"), toy=False))
    random_weights(AutoModelForSequenceClassification, name, tmp_path / "two", num_labels=2)
    with pytest.raises(SettingsError, match=r"a weight of shape \[2, 16\], and that of a reward model is \[1, "):
        check_base_model(tmp_path / "two", 32)
    save_file(whole | {"value_head.weight": torch.ones(1, 16)}, path, {"format": "pt"})
    with pytest.raises(SettingsError, match=r"'value_head\.weight' looks like part of a head of another kind"):
        check_base_model(tmp_path / "model", 32)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("convbert", "scores a sequence differently beside a longer one"),
        ("fnet", "scores a sequence differently beside a longer one"),
        ("nystromformer", "scores a sequence differently beside a longer one"),
        ("yoso", "scores a sequence differently beside a longer one"),
        ("mra", "cannot be computed in bfloat16"),
        ("xmod", "cannot be trained .*Input language unknown"),
    ],
)
def test_an_encoder_that_training_would_refuse_is_named_by_its_configuration(tmp_path, name, problem):
    AutoConfig.for_model(name, **SIZES).save_pretrained(tmp_path)
    with pytest.raises(
        SettingsError, match=f"ForSequenceClassification {problem}.*; change the setting model"
    ) as error:
        check_base_model(tmp_path, 32)
    assert "gradients" not in str(error.value)  # which are not computed


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_any_depth_and_vocabulary_passes_without_its_weights(tmp_path, name):
    many = {"vocab_size": 50_000, "pad_token_id": 49_999}
    config = config_of(name, **({} if name == "roberta" else many))
    config.save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    check_base_model(tmp_path, 32)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_encoder_with_its_layers_in_several_lists_passes(tmp_path):
    sizes = {"vocab_size": 40, "emb_dim": 16, "n_layers": 4, "n_heads": 2, "pad_token_id": 0}
    for config in (AutoConfig.for_model("xlm", **sizes), AutoConfig.for_model("flaubert", **sizes)):
        config.save_pretrained(tmp_path)
        check_base_model(tmp_path, 32)


@pytest.mark.parametrize(("name", "positions"), [("bert", 64), ("roberta", 62), ("deberta-v2", 64), ("modernbert", 64)])
def test_a_longest_pair_must_fit_into_the_positions(tmp_path, name, positions):
    model = random_weights(AutoModelForSequenceClassification, name, tmp_path)
    check_architecture(tmp_path, positions)
    model(input_ids=torch.full((1, positions), 5))
    with pytest.raises(SettingsError, match=f"its {positions} positions are fewer than max_length"):
        check_architecture(tmp_path, positions + 1)


def test_roberta_keeps_the_padding_token_that_its_positions_are_counted_from(make_job, tmp_path):
    model = random_weights(AutoModelForSequenceClassification, "roberta", tmp_path / "base")
    built, _ = build_with_origin(make_job(model=str(tmp_path / "base"), toy=False))  # which pads with 0
    built.save_pretrained(tmp_path / "saved")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[2, 9, 27, 5]])
    assert torch.equal(saved(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", MAIN)
def test_adapters_train_the_whole_head_and_are_merged_into_a_stock_model(make_job, tmp_path, name):
    random_weights(AutoModelForMaskedLM, name, tmp_path / "base")
    job = make_job(model=str(tmp_path / "base"), toy=False, settings={"lora_rank": 4, "epochs": 4})
    model, _ = build_with_origin(job)
    heads = [key for key in model.state_dict() if not key.startswith(model.base_model_prefix) or ".pooler." in key]
    trained = {key for key, weight in with_adapter(model, job.settings).named_parameters() if weight.requires_grad}
    for key in heads:
        top, _, rest = key.rpartition("pooler.") if "pooler." in key else ("", "", key)
        wrapped = (
            f"{top}pooler.modules_to_save.default.{rest}"
            if "pooler." in key
            else rest.replace(".", ".modules_to_save.default.", 1)
        )
        assert f"base_model.model.{wrapped}" in trained
    assert any("lora_A" in key for key in trained)
    output, _ = run(job)
    assert read_result(output, job.key)["metrics"]["train_loss"] < 0.69
    saved, stock = load_file(output / "model" / "model.safetensors"), build_with_origin(job)[0].state_dict()
    assert saved.keys() == stock.keys()


@pytest.mark.parametrize("name", MAIN)
def test_a_training_that_failed_resumes_bit_equal(make_job, monkeypatch, tmp_path, name):
    random_weights(AutoModelForMaskedLM, name, tmp_path / "base")
    settings = {"epochs": 3, "checkpoint_every_steps": 2}
    changes = {"model": str(tmp_path / "base"), "toy": False, "settings": settings}
    expected, _ = run(make_job("whole", **changes))

    def fails_at_step_6(run, step, *arguments):
        if step == 6:
            raise OSError("the disk is gone")
        return train_step(run, step, *arguments)

    job = make_job("resumed", **changes)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="the disk is gone"):
        patched.setattr(trainer, "train_step", fails_at_step_6)
        run(job)
    found, told = run(job)
    assert "resumes after step 4/9" in told
    weights = [output / "model" / "model.safetensors" for output in (expected, found)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_modernbert_is_saved_with_the_names_of_transformers_4_for_its_positions(tokenizer_directory, tmp_path):
    rope = {
        kind: {"rope_theta": theta, "rope_type": "default"}
        for kind, theta in {"full_attention": 50.0, "sliding_attention": 9.0}.items()
    }
    model = AutoModelForSequenceClassification.from_config(config_of("modernbert", rope_parameters=rope))
    save_model(model, AutoTokenizer.from_pretrained(tokenizer_directory), tmp_path / "saved")
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (fields["global_rope_theta"], fields["local_rope_theta"]) == (50.0, 9.0)
    assert AutoConfig.from_pretrained(tmp_path / "saved").rope_parameters == rope
