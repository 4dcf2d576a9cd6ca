"""Where a setting comes from, and what is said of one that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from rm_assets.settings import SAMPLE, Settings, SettingsError, TrainingSettings, setting_fields
from rm_assets.settings_loading import load_settings


def test_without_anything_given_the_sample_brings_its_own_training_settings() -> None:
    settings = load_settings({}, {"PATH": "/bin"})
    own = json.loads((SAMPLE / "training.json").read_text())
    assert settings.uses_sample_annotations
    assert settings.shows_previews
    assert settings.training == TrainingSettings(**own)


def test_a_storage_in_the_users_home_is_found_there() -> None:
    assert load_settings({"storage": "~/pairs"}, {"HOME": "/ignored"}).storage == str(Path.home() / "pairs")


@pytest.mark.parametrize("name", ["RM_ANNOTATIONS", "RM_MODEL", "RM_TOKENIZER"])
def test_real_data_or_a_real_model_is_trained_with_the_defaults(name: str) -> None:
    assert load_settings({}, {name: "somewhere"}).training == TrainingSettings()


def test_dagster_config_beats_the_environment_and_the_environment_the_sample() -> None:
    environment = {"RM_MAX_LENGTH": "77", "RM_EPOCHS": "5", "RM_LEARNING_RATE": "0.5", "RM_PREVIEWS": "false"}
    settings = load_settings({"max_length": 88, "storage": None}, environment)
    assert (settings.max_length, settings.training.epochs, settings.training.learning_rate) == (88, 5, 0.5)
    assert settings.previews is False
    assert settings.storage == Settings().storage


@pytest.mark.parametrize(
    ("overrides", "environment", "complaint"),
    [
        (
            {},
            {"RM_MAX_LENGHT": "5"},
            "unknown environment variable RM_MAX_LENGHT: did you mean environment variable RM_MAX_LENGTH",
        ),
        ({}, {"RM_ZZZ": "5"}, "unknown environment variable RM_ZZZ: known are"),
        ({"max_lenght": 5}, {}, "unknown setting 'max_lenght'"),
        ({}, {"RM_ANNOTATIONS": ""}, "annotations is set but empty: unset RM_ANNOTATIONS"),
        ({}, {"RM_MAX_LENGTH": "long"}, r"max_length \(or RM_MAX_LENGTH\) is 'long'"),
        ({}, {"RM_LEARNING_RATE": "inf"}, r"learning_rate \(or RM_LEARNING_RATE\) is 'inf': .* finite number"),
        ({"max_grad_norm": float("inf")}, {}, r"max_grad_norm .* is inf: .* finite number"),
        ({"checkpoint_minutes": float("nan")}, {}, r"checkpoint_minutes .* is nan: "),
        ({"seed": 2**63}, {}, r"seed \(or RM_SEED\) is 9223372036854775808: .* below 2\*\*63"),
        ({}, {"RM_MAX_LENGTH": "1" + "0" * 30}, r"max_length .* below 2\*\*63"),
        ({"num_gpus": 10**30}, {}, r"num_gpus .* below 2\*\*63"),
        ({"storage": "a\0b"}, {}, r"storage \(or RM_STORAGE\) holds a null character"),
        ({"split_seed": "\udcff"}, {}, r"split_seed .* must be UTF-8 text"),
        ({"epochs": 0}, {}, r"epochs \(or RM_EPOCHS\) is 0"),
        ({"test_fraction": 0.97}, {}, "must stay below 1"),
        (
            {},
            {"RM_COLUMNS": "prompt=query"},
            r"columns \(or RM_COLUMNS\) is 'prompt=query': a JSON object is needed",
        ),
        (
            {},
            {"RM_COLUMNS": '{"promt": "query"}'},
            r"columns \(or RM_COLUMNS\) is .* Input should be 'prompt', 'system'",
        ),
        (
            {},
            {"RM_COLUMNS": '{"shp/*": {"shp/*": "a"}}'},
            "or, at the top level, a glob of files such as 'shp/.', not 'shp/.'",
        ),
        ({"columns": {"prompt": {"a": "b"}}}, {}, "'prompt' needs the name of a column"),
        ({"columns": {"shp/*": "query"}}, {}, "a glob of files needs a mapping of its own"),
        ({"columns": {"shp/*": {"prompt": "a", "chosen": "a"}}}, {}, "each field needs a column of its own"),
        ({"labels": {"winner": {"0": "A"}}}, {}, "'0': Input should be 'first', 'second' or 'tie'"),
        (
            {"labels": {"winner": {"loser": {"0": "first"}}}},
            {},
            "'loser' is a mapping inside a column: globs hold columns",
        ),
        ({"labels": {"a/*": {"b/*": {"0": "first"}}}}, {}, "'b/.' is a mapping inside a glob: globs hold columns"),
        ({}, {"RM_COLUMNS": '["prompt"]'}, r"columns \(or RM_COLUMNS\) is .* valid dictionary"),
        ({"columns": {"prompt": "a", "chosen": "a"}}, {}, "each field needs a column of its own"),
        ({"labels": {"0": "A"}}, {}, r"labels \(or RM_LABELS\) is .* Input should be 'first', 'second' or 'tie'"),
        ({"labels": {"A": "first", "a ": "second"}}, {}, "'a' is given twice, with different values"),
        ({}, {"RM_ENGINE": "slurm"}, r"engine \(or RM_ENGINE\) is 'slurm'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(overrides: dict, environment: dict, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load_settings(overrides, environment)


@pytest.mark.parametrize("value", ["2025-01-31", "20250131", 20250131])
def test_a_date_is_read_by_its_name(value: object) -> None:
    assert load_settings({"template_date": value}, {}).template_date.isoformat() == "2025-01-31"


@pytest.mark.parametrize("value", ["0", "2025", "1738281600", "2025-02-30", "31.01.2025", "2025-01-31T10:00:00", 7])
def test_a_number_is_not_a_date(value: object) -> None:
    with pytest.raises(
        SettingsError, match=r"template_date \(or RM_TEMPLATE_DATE\) is .*: it must be a date such as 2025-01"
    ):
        load_settings({"template_date": value}, {})


def test_names_are_unique_and_each_knob_says_what_it_means() -> None:
    names = [name for name, _ in setting_fields()]
    assert len(names) == len(set(names))
    assert all(field.description and field.description.endswith(".") for _, field in setting_fields())


def test_every_mapping_and_list_is_read_as_json_from_the_environment() -> None:
    environment = {
        "RM_COLUMNS": '{"prompt": "query"}',
        "RM_LABELS": '{"0": "first"}',
        "RM_EVALUATION_FILES": '{"llmbar": "llmbar.jsonl"}',
        "RM_PROMOTION_REQUIRES": '["model_beats_length"]',
    }
    settings = load_settings({}, environment)
    assert (settings.columns, settings.labels) == ({"prompt": "query"}, {"0": "first"})
    assert settings.evaluation_files == {"llmbar": "llmbar.jsonl"}
    assert settings.promotion_requires == ["model_beats_length"]


def test_mappings_come_as_json_from_the_environment_and_as_they_are_from_config() -> None:
    environment = {"RM_COLUMNS": '{"prompt": "query", "chosen": "winner"}', "RM_LABELS": '{" Left ": "first"}'}
    settings = load_settings({"labels": {"0": "second"}}, environment)
    assert settings.columns == {"prompt": "query", "chosen": "winner"}
    assert settings.labels == {"0": "second"}
    assert load_settings({}, environment).labels == {"left": "first"}
    nested = {"RM_LABELS": '{"A ": "first", "Winner": {" 1": "second"}, "SHP/*": {"X": "tie", "Label": {"B ": "tie"}}}'}
    assert load_settings({}, nested).labels == {
        "a": "first",
        "Winner": {"1": "second"},
        "SHP/*": {"x": "tie", "Label": {"b": "tie"}},
    }


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"launcher": "kubernetes", "image": "rm:1"}, "a directory of this machine: give a URI such as s3://bucket"),
        ({"launcher": "ray"}, "or set shared_storage"),
        ({"launcher": "kubernetes", "storage": "s3://b/p"}, "image .or RM_IMAGE. must name a container image"),
        ({"num_nodes": 2, "storage": "s3://b/p"}, "nodes write a checkpoint together"),
    ],
)
def test_a_launcher_whose_machines_cannot_work_together_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as error:
        load_settings(given, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"launcher": "kubernetes", "image": "rm:1", "storage": "s3://b/p"},
        {"launcher": "kubernetes", "pod_spec": "pod.yaml", "shared_storage": True},
        {"launcher": "ray", "shared_storage": True},
    ],
)
def test_a_launcher_whose_machines_see_the_storage_is_taken(given: dict[str, Any]) -> None:
    assert load_settings(given, {}).launch.launcher == given["launcher"]


def test_settings_that_change_rounding_alone_are_not_part_of_a_models_key() -> None:
    others = {"micro_batch_tokens": 7, "gradient_checkpointing": True, "compile": True, "num_processes": 2}
    others |= {"num_nodes": 3}
    assert TrainingSettings(**others).decisive() == TrainingSettings().decisive()
    assert TrainingSettings(**others).rounding() == others
    assert TrainingSettings(lora_rank=8).decisive() != TrainingSettings().decisive()


def test_models_that_were_trained_before_a_setting_was_added_keep_their_keys() -> None:
    first = {
        "batch_pairs",
        "center_rewards",
        "epochs",
        "label_smoothing",
        "learning_rate",
        "lora_alpha",
        "lora_rank",
        "loss",
        "max_grad_norm",
        "saved_dtype",
        "seed",
        "warmup_fraction",
        "weight_decay",
    }
    assert set(TrainingSettings().decisive()) == first, (
        "name a new setting in ADDED_LATER, or all models are trained again"
    )
    assert set(TrainingSettings(lora_rank=8, load_in_4bit=True).decisive()) == first | {"load_in_4bit"}


def test_a_base_in_4_bits_needs_adapters() -> None:
    assert load_settings({"load_in_4bit": True, "lora_rank": 8}, {}).training.load_in_4bit
    assert load_settings({"lora_rank": 8}, {"RM_LOAD_IN_4BIT": "true"}).training.load_in_4bit
    four_bits = TrainingSettings(lora_rank=8, load_in_4bit=True)
    assert four_bits.decisive() != TrainingSettings(lora_rank=8).decisive()
    said = r"load_in_4bit \(or RM_LOAD_IN_4BIT\) is True: .* LoRA adapters trained over them: set lora_rank"
    for given in ({"load_in_4bit": True}, {"load_in_4bit": True, "lora_rank": 0}):
        with pytest.raises(SettingsError, match=said):
            load_settings(given, {})


def test_without_test_pairs_there_must_be_an_evaluation_set() -> None:
    own = {"evaluation_files": {"own": "own.jsonl"}}
    assert load_settings({"test_fraction": 0, "validation_fraction": 0, **own}, {}).test_fraction == 0
    assert load_settings({"validation_fraction": 0}, {}).validation_fraction == 0
    assert load_settings({}, {"RM_TEST_FRACTION": "0", "RM_EVALUATION_FILES": '{"own": "a.jsonl"}'}).test_fraction == 0
    with pytest.raises(SettingsError, match=r"test_fraction .* the model cannot be judged: set evaluation_files"):
        load_settings({"test_fraction": 0}, {})
    for name in ("test_fraction", "validation_fraction"):
        with pytest.raises(SettingsError, match=name):
            load_settings({name: -0.1, **own}, {})


@pytest.mark.parametrize("name", ["publish_model_to", "publish_data_to"])
@pytest.mark.parametrize("value", ["name", "a/b/c", "https://huggingface.co/a/b", "a/b--c", "a/.b", "a b/c", "a/b.git"])
def test_a_repository_of_the_hub_needs_a_valid_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} \(or RM_{name.upper()}\) is '{value}': "):
        load_settings({name: value}, {})
    assert load_settings({name: "an-org/a_model.v2"}, {}).publishes


def test_a_license_is_named_as_the_hub_spells_it() -> None:
    assert load_settings({"publish_license": "cc-by-4.0"}, {}).publish_license == "cc-by-4.0"
    with pytest.raises(SettingsError, match="publish_license"):
        load_settings({"publish_license": "Apache 2.0"}, {})
