"""The model card: names that try to be more than text, as Markdown and YAML read it, and where a model comes from."""

import functools
import json
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_assets.training.jobs.lineage import lineage_of
from rm_assets.training.saved_model.model_card import model_card

GOLDEN = {"conversations": [], "largest_bfloat16_difference": 0.0}
HOSTILE = [
    "![p](https:/host/x)",
    "[t](https:/e)",
    "<img src=x onerror=alert(1)>",
    "a`b``c",
    "a|b|c",
    "https://evil.example www.evil.example",
    "x\n---\nbase_model: other\n# Title",
    "x: y\x7f\x1b[31m\u202e",
    '"quoted" & *bold* _under_',
]


@functools.cache
def model_of(model_type="qwen3"):
    """A classifier of this type, without weights."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(model_type, num_hidden_layers=1, num_labels=1, pad_token_id=0)
        )


def card_of(make_job, name, **changes):
    """The card of a job whose every name is this one: its front matter, and the rest as HTML."""
    job = make_job(**changes).model_copy(update={"model": name, "data_snapshot": name, "key": name})
    tokenizer = SimpleNamespace(pad_token=name, chat_template="x")
    card = model_card(job, {"packing_reason": name, name: 1, "accuracy": 0.5}, tokenizer, GOLDEN, model_of())
    _, front_matter, body = card.split("---\n", 2)
    return yaml.safe_load(front_matter), MarkdownIt("gfm-like", {"linkify": False}).render(body)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_a_link_a_picture_a_row_or_a_field_of_the_card(make_job, name):
    fields, page = card_of(make_job, name, toy=False)
    plain_fields, plain_page = card_of(make_job, "org/model", toy=False)
    assert plain_fields.keys() == {"library_name", "pipeline_tag", "tags", "base_model", "lineage"}
    assert fields.keys() == plain_fields.keys() - (set() if "/" in name else {"base_model"})
    assert len(fields["lineage"]) == 2
    for tag in ("<h1>", "<h2>", "<tr>", "<td>", "<table>", "<a", "<img", "<em>", "<strong>", "<hr"):
        assert page.count(tag) == plain_page.count(tag), tag
    assert "href" not in page


def test_the_front_matter_names_the_base_model_of_the_hub(make_job):
    fields, page = card_of(make_job, "org/model-7B", toy=False)
    assert fields["base_model"] == "org/model-7B"
    assert "<h1>Reward model on org/model-7B</h1>" in page


def test_harmless_values_of_the_tables_stand_as_they_are(make_job):
    job = make_job(settings={"learning_rate": 0.0123})
    tokenizer = SimpleNamespace(pad_token="<pad>", chat_template="x")
    card = model_card(
        job, {"train_pairs": 12, "packing": "shared", "note": "(as (it) is)"}, tokenizer, GOLDEN, model_of()
    )
    for line in (
        "| learning_rate | 0.0123 |",
        "| train_pairs | 12 |",
        "| packing | shared |",
        "| note | `(as (it) is)` |",
    ):
        assert line in card
    assert "with `<pad>`, which" in card
    assert json.dumps(job.model) not in card  # a directory


# --- other programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("qwen3", None), ("llama", None), ("gemma2", None), ("gemma3_text", "Gemma3ForCausalLM")],
)
def test_vllm_is_given_the_causal_model_that_it_cannot_find_by_the_classifiers_name(make_job, model_type, architecture):
    tokenizer = SimpleNamespace(pad_token="<pad>", chat_template="x")
    card = model_card(make_job(), {}, tokenizer, GOLDEN, model_of(model_type))
    [command] = re.findall("^vllm serve .*$", card, re.MULTILINE)
    [call] = re.findall(r"LLM(\(model=.*\))$", card, re.MULTILINE)
    words = shlex.split(command)
    assert words[:7] == ["vllm", "serve", "DIRECTORY", "--runner", "pooling", "--dtype", "float32"]
    given = eval(f"dict{call}", {"directory": "DIRECTORY"})
    assert given["dtype"] == "float32"
    if architecture is None:
        assert len(words) == 7
        assert not given.keys() & {"convert", "hf_overrides"}
    else:
        assert words[7:10] == ["--convert", "classify", "--hf-overrides"]
        assert given["hf_overrides"] == json.loads(words[10]) == {"architectures": [architecture]}
        assert given["convert"] == "classify"


def test_programs_that_are_not_tested_with_encoders_are_not_in_the_card_of_one(make_job):
    tokenizer = SimpleNamespace(pad_token="<pad>", chat_template="x")
    decoder, encoder = (model_card(make_job(), {}, tokenizer, GOLDEN, model_of(name)) for name in ("qwen3", "bert"))
    for program in ("vllm", "openrlhf", "CrossEncoder", "rewardbench"):
        assert program in decoder
        assert program not in encoder
    for program in ("transformers", "trl", "rm_assets.training.serve"):
        assert program in decoder
        assert program in encoder


# --- where a model comes from --------------------------------------------------------------------------------


def write_card(make_job, directory, base, key, **metrics):
    """Train a model in name only: its card in `<key>/model`, as the job writes it."""
    (directory / key / "model").mkdir(parents=True)
    job = make_job(toy=False, model=str(base), lineage=lineage_of(str(base))).model_copy(update={"key": key + "0" * 48})
    card = model_card(job, metrics, SimpleNamespace(pad_token="<pad>", chat_template="x"), GOLDEN, model_of())
    (directory / key / "model" / "README.md").write_text(card)
    return directory / key / "model", card


def test_a_continued_reward_model_names_its_first_base_and_every_snapshot_since(make_job, tmp_path):
    first, second, third = (letter * 16 for letter in "abc")
    model, card = write_card(make_job, tmp_path, "Qwen/Qwen3-0.6B", first, head="new")
    assert "# Reward model on Qwen/Qwen3-0.6B" in card
    assert "continued from" not in card
    assert "| head at the start | new |" in card
    model, card = write_card(make_job, tmp_path, model, second, head="the checkpoint's (score.weight)")
    assert f"| continued from | `{first}` |" in card
    assert "| head at the start | `the checkpoint's (score.weight)` |" in card
    model.rename(tmp_path / "moved")  # the chain is in the card, wherever that goes
    _, card = write_card(make_job, tmp_path, tmp_path / "moved", third)
    assert "# Reward model on Qwen/Qwen3-0.6B" in card
    assert f"| continued from | `{first}`, then `{second}` |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "Qwen/Qwen3-0.6B"
    assert lineage_of(str(tmp_path / third / "model")) == ["Qwen/Qwen3-0.6B", first, second, third]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("llama-tuned", "llama-tuned"),
        ("reward_model/1f0c6a5f9d0b7c2e/model", "1f0c6a5f9d0b7c2e"),  # of before lineages were written
        ("hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de", "Qwen/Qwen3-0.6B"),
        ("hub/models--gpt2/snapshots/607a30d", "gpt2"),
    ],
)
@pytest.mark.parametrize(
    "card", [None, "", "---\nbase_model: x\n---\nlineage: [1]\n", "---\nlineage: [1]\n---\n", "\xff"]
)
def test_a_directory_without_a_lineage_is_named_and_its_path_is_not(tmp_path, path, name, card):
    (tmp_path / path).mkdir(parents=True)
    if card is not None:
        (tmp_path / path / "README.md").write_text(card, encoding="latin-1")
    assert lineage_of(str(tmp_path / path)) == [name]
