"""One resource for all settings, and every mistake told before any work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import dagster as dg
import pytest
from safetensors.numpy import save_file
from support import plain_row, silent, write_lines
from transformers import AutoModel, AutoTokenizer, LlamaConfig

from rm_assets.data.chat.tokenizer import load_chat_tokenizer
from rm_assets.data.stages.raw import publish_raw
from rm_assets.definitions import definitions
from rm_assets.defs.project import Project, ProjectResource
from rm_assets.settings import GROUPS, SettingsError, setting_fields


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RM_STORAGE", str(tmp_path / "storage"))


def ready_with(config: dict) -> Project:
    """What an asset gets when a run is launched with this config."""
    seen = []

    @dg.asset
    def probe(project: ProjectResource) -> None:
        seen.append(project.ready())

    run_config = {"resources": {"project": {"config": config}}}
    result = dg.materialize([probe], resources={"project": ProjectResource()}, run_config=run_config)
    assert result.success
    return seen[0]


def test_the_launchpad_reaches_every_setting_and_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_MAX_LENGTH", "300")
    monkeypatch.setenv("RM_EPOCHS", "9")
    project = ready_with({"max_length": 200, "learning_rate": 0.5, "template_date": "2024-02-29", "previews": False})
    assert project.settings.max_length == 200
    assert project.settings.training.epochs == 9
    assert project.settings.training.learning_rate == 0.5
    assert project.settings.template_date.isoformat() == "2024-02-29"
    schema = ProjectResource.to_config_schema().as_field().config_type.fields
    assert set(schema) == {name for name, _ in setting_fields()}


def test_a_choice_is_typed_config_and_another_word_is_refused_before_the_run() -> None:
    chosen = {"over_long": "drop_turns", "promotion_requires": ["model_beats_length"], "verify": "full"}
    settings = ready_with(chosen).settings
    assert {name: getattr(settings, name) for name in chosen} == chosen
    assert ProjectResource(over_long="drop_turns").settings().over_long == "drop_turns"
    for wrong in ({"over_long": "shorten"}, {"promotion_requires": ["is_good"]}):
        with pytest.raises(dg.DagsterInvalidConfigError, match="not in enum type"):
            ready_with(wrong)


def test_every_choice_of_every_setting_is_listed_in_the_launchpad() -> None:
    schema = ProjectResource.to_config_schema().as_field().config_type.fields
    listed = {
        name: {value.config_value for value in field.config_type.inner_type.enum_values}
        for name, field in schema.items()
        if hasattr(field.config_type.inner_type, "enum_values")
    }
    annotations = {name: field.annotation for name, field in setting_fields()}
    assert listed == {name: set(get_args(kind)) for name, kind in annotations.items() if get_origin(kind) is Literal}


def test_a_field_says_its_variable_its_default_and_the_value_in_force() -> None:
    script = (
        "from rm_assets.defs.project import ProjectResource\n"
        "for name in ('max_length', 'epochs', 'model'): print(ProjectResource.model_fields[name].description)"
    )
    for given, now in (("77", ["Default: 1024. Now: 77.", "Default: 1. Now: 3.", "Default: unset."]), ("-1", None)):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RM_")}
        run = [sys.executable, "-c", script]
        said = subprocess.run(
            run, env={**environment, "RM_MAX_LENGTH": given}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        expected = now or ["Default: 1024.", "Default: 1.", "Default: unset."]  # a run reports what is not valid
        assert [line.partition("Environment variable: ")[2].partition(". ")[2] for line in said] == expected


def test_each_setting_is_described_with_its_group_and_the_resource_lists_all_by_group() -> None:
    groups = {name: title for title, group in GROUPS.items() for name in group.model_fields}
    for name, field in ProjectResource.model_fields.items():
        assert field.description.startswith(f"[{groups[name]}] ")
    page = ProjectResource.__doc__
    titles = [page.index(f"**{title}**") for title in GROUPS]
    assert titles == sorted(titles)
    for name, title in groups.items():
        position = page.index(f"\n| {name} | ")
        assert max(t for t in titles if t < position) == page.index(f"**{title}**")


def test_the_page_of_the_resource_has_the_values_in_force() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RM_")}
    environment |= {"RM_MAX_LENGTH": "77", "RM_COLUMNS": '{"prompt": "a|b"}'}
    script = "from rm_assets.defs.project import ProjectResource; print(ProjectResource.__doc__)"
    page = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for row in (
        "| max_length | **`77`** | `1024` |",
        "| epochs | **`3`** | `1` |",  # of the sample
        r'| columns | **`{"prompt": "a\|b"}`** | `{}` |',
        "| model | `unset` | `unset` |",
    ):
        assert row in page


def test_the_launchpad_of_each_job_begins_with_settings_that_change_nothing() -> None:
    jobs = [job for job in definitions().resolve_all_job_defs() if not job.name.startswith("__")]
    for job in jobs:
        config = job.run_config["resources"]["project"]["config"]
        assert config and set(config.values()) == {None}
        assert dg.validate_run_config(job, job.run_config)
        assert ProjectResource(**config).settings() == ProjectResource().settings()


def test_assets_that_should_never_be_old_have_a_freshness_policy_if_the_environment_says_so() -> None:
    script = (
        "from rm_assets.definitions import definitions\n"
        "specs = [spec for spec in definitions().resolve_all_asset_specs() if spec.freshness_policy]\n"
        "print(dict(sorted((spec.key.to_user_string(), spec.freshness_policy.fail_window.seconds) for spec in specs)))"
    )
    for given, expected in (("3", {"padded_pairs": 10_800, "promoted_reward_model": 10_800}), ("", {})):
        environment = os.environ | ({"RM_FRESHNESS_HOURS": given} if given else {})
        run = [sys.executable, "-c", script]
        said = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout == f"{expected}\n"


def test_every_asset_has_the_owners_that_the_environment_names() -> None:
    script = (
        "from rm_assets.definitions import definitions\n"
        "print({tuple(spec.owners) for spec in definitions().resolve_all_asset_specs()})"
    )
    owners = ("team:alignment", "ann@example.com")
    for given, expected in (({}, {()}), ({"RM_OWNERS": json.dumps(owners)}, {owners})):
        run = [sys.executable, "-c", script]
        said = subprocess.run(run, env=os.environ | given, capture_output=True, text=True, check=True)
        assert said.stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("RM_LEARNING_RATES", "1", "did you mean environment variable RM_LEARNING_RATE?"),
        ("RM_EPOCHS", "0", "epochs (or RM_EPOCHS) is '0'"),
        ("RM_ARRIVAL_SECONDS", "soon", "arrival_seconds (or RM_ARRIVAL_SECONDS) is 'soon'"),
        ("RM_OWNERS", '["alignment"]', "'alignment' must be an email address, or a team such as 'team:alignment'"),
    ],
)
def test_definitions_do_not_load_with_settings_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    """So `dagster definitions validate` finds them, before a tick or a run does."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=re.escape(problem)):
        definitions()


def test_mappings_are_typed_config_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_LABELS", '{"0": "first", "1": "second"}')
    project = ready_with({"columns": {"prompt": "query"}})
    assert project.settings.columns == {"prompt": "query"}
    assert project.settings.labels == {"0": "first", "1": "second"}
    nested = {"columns": {"prompt": "query", "shp/*": {"prompt": "history"}}, "labels": {"shp/*": {"0": "second"}}}
    project = ready_with(nested)
    assert {"columns": project.settings.columns, "labels": project.settings.labels} == nested


def test_the_sample_is_a_toy_at_the_vocabulary_of_its_tokenizer() -> None:
    project = ProjectResource().ready()
    assert project.model.toy
    assert project.model.vocab_size == project.tokenizer.num_tokens


def save_tokenizer(directory: Path, *, chat_template: str | None, num_words: int = 5) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[END]": 1} | {f"w{n}": n + 2 for n in range(num_words)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[END]")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return directory


TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} [END]{% endfor %}"


def test_a_tokenizer_without_a_chat_template_names_the_setting_that_gives_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_TOKENIZER", str(save_tokenizer(tmp_path / "t", chat_template=None)))
    with pytest.raises(SettingsError, match=r"no chat template; set chat_template \(or RM_CHAT_TEMPLATE\)"):
        ProjectResource().ready()
    assert ProjectResource(chat_template="plain").ready().tokenizer.chat_template
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    assert ProjectResource(chat_template=str(tmp_path / "own.jinja")).ready().tokenizer.chat_template == TEMPLATE
    with pytest.raises(SettingsError, match=r"chat_template \(or RM_CHAT_TEMPLATE\) is 'missing.jinja'"):
        ProjectResource(chat_template="missing.jinja").ready()


TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def save_model_files(directory: Path, *, vocab_size: int | None, weights: bool = True, **changes: object) -> Path:
    save_tokenizer(directory, chat_template=TEMPLATE)
    config = {"model_type": "llama", **TINY, "max_position_embeddings": 2048} | changes
    config |= {"vocab_size": vocab_size} if vocab_size else {}
    (directory / "config.json").write_text(json.dumps(config))
    if weights:
        write_weights(directory, vocab_size or 7)
    return directory


def write_weights(directory: Path, vocab_size: int) -> None:
    """Random weights of the tiny model."""
    config = LlamaConfig(**TINY, vocab_size=vocab_size)
    weights = AutoModel.from_config(config).state_dict()
    save_file({name: weight.numpy() for name, weight in weights.items()}, directory / "model.safetensors")


def test_a_model_brings_its_own_tokenizer_unless_another_is_named(tmp_path: Path) -> None:
    model = save_model_files(tmp_path / "m", vocab_size=7)
    own = ProjectResource(model=str(model)).ready()
    assert own.tokenizer.directory == str(model)
    assert (own.model.name, own.model.toy) == (str(model), False)
    other = save_tokenizer(tmp_path / "t", chat_template=TEMPLATE, num_words=4)
    assert ProjectResource(model=str(model), tokenizer=str(other)).ready().tokenizer.directory == str(other)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("no_weights", {"vocab_size": 7, "weights": False}, "has neither 'model.safetensors' nor"),
        ("no_vocabulary", {"vocab_size": None}, "has no vocab_size"),
        (
            "small",
            {"vocab_size": 1},
            r"the tokenizer has ids up to 6, the model only 1 embeddings, and a token of the te",
        ),
        (
            "encoder",
            {"vocab_size": 7, "model_type": "t5"},
            "T5ForSequenceClassification is an encoder-decoder without a",
        ),
        (
            "short",
            {"vocab_size": 7, "max_position_embeddings": 1023},
            r"1023 positions are fewer than max_length \(or RM_",
        ),
        (
            "invalid",
            {"vocab_size": 7, "hidden_act": "none"},
            r"describes no model that can be built \(KeyError: 'none'\): correct it, or",
        ),
        (
            "large",
            {"vocab_size": 7, "hidden_size": 8000},
            r"have the shape \[7, 8\], and its config.json describes \[7, 8000\]",
        ),
        (
            "classifier",
            {"vocab_size": 7, "model_type": "granite"},
            "no sequence classifier for models of its type 'granit",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_told_before_any_work(
    tmp_path: Path, name: str, options: dict, complaint: str
) -> None:
    model = save_model_files(tmp_path / name, **options)
    with pytest.raises(SettingsError, match=complaint) as error:
        ProjectResource(model=str(model)).ready()
    assert name == "small" or str(error.value).startswith(f"model (or RM_MODEL) is {str(model)!r}: ")


def test_a_model_that_is_wrong_is_the_error_even_if_its_tokenizer_is_missing(tmp_path: Path) -> None:
    model = save_model_files(tmp_path / "encoder", vocab_size=7, model_type="t5")
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with pytest.raises(SettingsError, match="is an encoder"):
        ProjectResource(model=str(model)).ready()


def test_ids_without_embeddings_are_a_warning_where_no_conversation_must_have_them(tmp_path: Path) -> None:
    """As in gemma-3-1b-it, whose tokenizer has a token for images that its text model has no row for."""
    project = ProjectResource(model=str(save_model_files(tmp_path / "m", vocab_size=6))).ready()
    [warning] = project.warnings
    assert warning.startswith("the tokenizer has ids up to 6, the model only 6 embeddings")
    assert ProjectResource(model=str(save_model_files(tmp_path / "n", vocab_size=7))).ready().warnings == ()


def test_a_token_without_an_embedding_is_no_error_if_the_template_only_names_it(tmp_path: Path) -> None:
    """As templates of models with images do, of which rows with images are rejects."""
    model = save_model_files(tmp_path / "m", vocab_size=7)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    for template, is_error in ((TEMPLATE + "{% if images %}<image>{% endif %}", False), (TEMPLATE + "<image>", True)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
        if is_error:
            with pytest.raises(SettingsError, match="and a token of the template, '<image>', has id 7: set tokenizer"):
                ProjectResource(model=str(model)).ready()
        else:
            assert ProjectResource(model=str(model)).ready().warnings


def test_a_padding_token_without_an_embedding_is_an_error(tmp_path: Path) -> None:
    model = save_model_files(tmp_path / "m", vocab_size=7)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(model)
    with pytest.raises(
        SettingsError, match="only 7 embeddings, and the padding token, '<pad>', has id 7: set tokenizer"
    ):
        ProjectResource(model=str(model)).ready()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"model": "./nowhere"}, r"model \(or RM_MODEL\) is './nowhere': no such directory"),
        ({"model": "owner/not-in-the-cache"}, r"model \(or RM_MODEL\) is 'owner/not-in-the-cache': .* the Hub did not"),
        ({"model": "my models/a b"}, r"model \(or RM_MODEL\) is 'my models/a b': .* the Hub did not give it"),
        ({"tokenizer": "-/a..b"}, r"tokenizer \(or RM_TOKENIZER\) is '-/a..b': .* the Hub did not give it"),
        ({"model": "x" * 5000}, r"model \(or RM_MODEL\) is 'x+': no such directory"),
        ({"model": "x/" + "y" * 5000}, r"model \(or RM_MODEL\) is 'x/y+': no such directory"),
        ({"storage": "x" * 5000}, r"storage \(or RM_STORAGE\): .*File name too long"),
        ({"tokenizer": "./nowhere"}, r"tokenizer \(or RM_TOKENIZER\) is './nowhere'"),
        ({"model": "."}, "no model there .*; give a directory that save_pretrained of transformers wrote$"),
        ({"tokenizer": "."}, "no tokenizer there"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_clear_error(
    given: dict, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=complaint) as error:
        ProjectResource(**given).ready()
    assert error.value.__cause__ is None  # which the last line of a command would be about


@pytest.mark.parametrize(
    "given",
    [
        *(
            {"annotations": name}
            for name in ("secret", "secret.jsonl/..", "/dev/zero", "/proc/self/mem", "/proc/self/fd")
        ),
        *({"model": name} for name in ("secret", "/dev", "..", "/dev/zero")),
        *({"tokenizer": name} for name in ("secret", "/dev", "..", "/dev/zero")),
        *({"chat_template": name} for name in ("secret", "..", "/dev/zero", "/proc/self/mem")),
        *({"storage": name} for name in ("secret", "/dev/zero", "/proc/self")),
        {"evaluation_files": {"held": "secret"}},
        {"evaluation_files": {"held": "/dev/zero"}},
    ],
    ids=str,
)
def test_a_setting_that_names_a_file_of_another_kind_is_one_clear_error_without_its_content(
    given: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("root:x:0:0")
    write_lines(tmp_path / "a.jsonl", [plain_row(1)])
    [setting] = given
    with pytest.raises(SettingsError) as error:
        project = ProjectResource(**{"annotations": "a.jsonl", "storage": "storage", **given}).ready()
        publish_raw(project.settings, silent)
        load_chat_tokenizer(project.tokenizer)
    assert f"{setting} (or RM_{setting.upper()})" in str(error.value)
    assert "root:" not in str(error.value)
    assert "\n" not in str(error.value)


def test_one_byte_a_shard_and_a_billion_workers_are_settings_like_others(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [plain_row(number) for number in range(5)])
    given = {"annotations": str(tmp_path / "a.jsonl"), "storage": str(tmp_path / "storage")}
    project = ProjectResource(**given, shard_bytes=1, num_workers=10**9).ready()
    assert len(publish_raw(project.settings, silent).manifest.shards) == 5


@pytest.mark.parametrize("storage", ["file", "file/below"])
def test_a_storage_that_cannot_be_written_is_named(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"storage \(or RM_STORAGE\) is .* is not a writable directory"):
        ProjectResource(storage=storage).ready()


def test_a_changed_weight_or_template_is_another_identity(tmp_path: Path) -> None:
    model = save_model_files(tmp_path / "m", vocab_size=7)
    before = ProjectResource(model=str(model)).ready()
    write_weights(model, vocab_size=7)
    (model / "chat_template.jinja").write_text(TEMPLATE + " ")
    after = ProjectResource(model=str(model)).ready()
    assert before.model.identity != after.model.identity
    assert before.tokenizer.identity != after.tokenizer.identity


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        ({"lora_rank": 8}, "peft", "lora"),
        ({"lora_rank": 8, "load_in_4bit": True}, "bitsandbytes", "4bit"),
        ({"tracking": "tensorboard"}, "tensorboard", "tensorboard"),
        ({"tracking": "wandb"}, "wandb", "wandb"),
    ],
)
def test_a_package_that_training_would_lack_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], package: str, extra: str
) -> None:
    name = list(settings)[-1]
    said = rf"{name} \(or RM_{name.upper()}\) is .*, which needs {package}: pip install 'rm_assets\[{extra}\]'"
    monkeypatch.setattr("rm_assets.defs.project.find_spec", lambda name: None if name == package else name)
    storage = str(tmp_path / "storage")
    with pytest.raises(SettingsError, match=said):
        ProjectResource(storage=storage, **settings).ready()
    assert not (tmp_path / "storage").exists()
    ProjectResource(storage=storage).ready()
    there = {"launcher": "ray", "shared_storage": True}  # the job runs on another machine
    ProjectResource(storage=storage, **settings, **there).ready()
