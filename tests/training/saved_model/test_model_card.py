"""A model card of names that try to be more than text, as Markdown and YAML read it."""

import json
from types import SimpleNamespace

import pytest
import yaml
from markdown_it import MarkdownIt

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


def card_of(make_job, name, **changes):
    """The card of a job whose every name is this one: its front matter, and the rest as HTML."""
    job = make_job(**changes).model_copy(update={"model": name, "data_snapshot": name, "key": name})
    tokenizer = SimpleNamespace(pad_token=name, chat_template="x")
    card = model_card(job, {"packing_reason": name, name: 1, "accuracy": 0.5}, tokenizer, GOLDEN)
    _, front_matter, body = card.split("---\n", 2)
    return yaml.safe_load(front_matter), MarkdownIt("gfm-like", {"linkify": False}).render(body)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_a_link_a_picture_a_row_or_a_field_of_the_card(make_job, name):
    fields, page = card_of(make_job, name, toy=False)
    plain_fields, plain_page = card_of(make_job, "org/model", toy=False)
    assert fields.keys() == plain_fields.keys() == {"library_name", "pipeline_tag", "tags", "base_model"}
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
    card = model_card(job, {"train_pairs": 12, "packing": "shared", "note": "(as (it) is)"}, tokenizer, GOLDEN)
    for line in (
        "| learning_rate | 0.0123 |",
        "| train_pairs | 12 |",
        "| packing | shared |",
        "| note | `(as (it) is)` |",
    ):
        assert line in card
    assert "with `<pad>`, which" in card
    assert json.dumps(job.model) not in card  # a directory
