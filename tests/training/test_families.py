"""Every family of decoders, from a checkpoint on disk to the scores of its saved reward model: `pytest -m soak`."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from architectures import PADDED, SHARED, WINDOW
from toy_pairs import default_splits
from training_jobs import run
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rm_assets.training.jobs.result import MODEL
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.stock_scoring import load_saved_model

pytestmark = pytest.mark.soak
TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "rm_assets" / "sample" / "tokenizer")
HELD_OUT = [pair for split in ("validation", "test") for pair in default_splits()[split]]
GROUPED, HEADS, EXPERTS = SHARED["qwen2"], SHARED["llama"], SHARED["mixtral"]
MOE = {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
FAMILIES = {name: sizes for name, sizes in (SHARED | PADDED).items() if name not in ("bert", "nemotron")} | {
    "arcee": HEADS,
    "deepseek_v2": {**GROUPED, **LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 2},
    "exaone4": {**HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": HEADS,
    "glm": HEADS,
    "glm4": HEADS,
    "gpt_bigcode": GPT,
    "gpt_neo": {**GROUPED, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {**GPT, "rotary_dim": 4},
    "helium": HEADS,
    "ministral3": HEADS,
    "mpt": {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "nemotron": {**GROUPED, "head_dim": 8},
    "olmo": GROUPED,
    "olmo3": {**GROUPED, "sliding_window": WINDOW},
    "opt": {**GROUPED, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": GROUPED,
    "phi": GROUPED,
    "qwen2_moe": MOE,
    "qwen3_moe": MOE,
    "seed_oss": HEADS,
    "smollm3": GROUPED,
    "starcoder2": {**GROUPED, "sliding_window": None},
}
FORMS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "sharded": {"max_shard_size": "20KB"},
    "tied": {"tie_word_embeddings": True},
    "not tied": {"tie_word_embeddings": False},
    "more rows than tokens": {"vocab_size": len(TOKENIZER) + 64},
}


@pytest.fixture
def scores_of_a_saved_model(tmp_path, job_in):
    """A function that trains a base model, and returns what the report has and what stock transformers gives."""

    def make(name, dtype=torch.float32, max_shard_size="5GB", **sizes):
        torch.manual_seed(0)
        special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "vocab_size": len(TOKENIZER)}
        config = AutoConfig.for_model(name, **FAMILIES[name] | special | sizes)
        base = tmp_path / "base"
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(base, max_shard_size=max_shard_size)
        assert max_shard_size == "5GB" or len(list(base.glob("*.safetensors"))) > 1
        TOKENIZER.save_pretrained(base)
        output = run(job_in(tmp_path, model=str(base), tokenizer=str(base), vocab_size=len(TOKENIZER), toy=False))
        verify_golden_scores(output / MODEL, load_saved_model(output / MODEL))
        model = AutoModelForSequenceClassification.from_pretrained(output / MODEL, dtype=torch.float32).eval()
        sequences = [ids for pair in HELD_OUT for ids in pair]
        with torch.no_grad():
            stock = [model(input_ids=torch.tensor([ids]), use_cache=False).logits.item() for ids in sequences]
        table = pq.read_table(output / "scores.parquet", columns=["chosen_score", "rejected_score"])
        return [score for row in table.to_pylist() for score in row.values()], stock

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_stock_transformers_gives_the_reported_scores(scores_of_a_saved_model, name):
    reported, stock = scores_of_a_saved_model(name)
    assert len(set(reported)) > 8
    assert stock == pytest.approx(reported, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gpt2"])
def test_a_checkpoint_of_another_form_trains_alike(scores_of_a_saved_model, name, form):
    reported, stock = scores_of_a_saved_model(name, **FORMS[form])
    assert len(set(reported)) > 8
    assert stock == pytest.approx(reported, abs=1e-5)
