"""Tokenizers and models that somebody hostile wrote: no code of theirs runs, no pickle is opened, each is one error."""

import builtins
import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rm_assets.data.chat.encoder import load_encoder
from rm_assets.data.chat.model_files import find_base_model, find_tokenizer
from rm_assets.data.chat.pretrained import load_tokenizer
from rm_assets.data.chat.tokenizer import load_chat_tokenizer, render
from rm_assets.settings import SAMPLE, Settings, SettingsError

CONVERSATION = [{"role": "user", "content": "two words"}, {"role": "assistant", "content": "three more words"}]
CODE = """
import pathlib

pathlib.Path({canary!r}).write_text("")


class Own:
    from_pretrained = classmethod(lambda *a, **b: a[0])
"""


def sample_tokenizer(directory: Path, **changes: Any) -> Path:
    """The built-in tokenizer, with files of these names (`tokenizer_config` for the JSON) as they are given."""
    shutil.copytree(SAMPLE / "tokenizer", directory)
    for name, content in changes.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def sample_file(name: str) -> Any:
    return json.loads((SAMPLE / "tokenizer" / f"{name}.json").read_text())


def sample_model(directory: Path, **changes: Any) -> Path:
    """A model directory with one small file of weights; `changes` are those of its configuration."""
    directory.mkdir()
    configuration = json.loads((SAMPLE / "model" / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(configuration))
    save_file({"model.norm.weight": np.zeros(128, np.float32)}, directory / "model.safetensors")
    return directory


def used(directory: Path) -> int:
    """The ids of a conversation by the tokenizer of a directory, counted."""
    files = find_tokenizer(Settings(tokenizer=str(directory)))
    chat = load_chat_tokenizer(files)
    ids = chat.reference(render(chat, CONVERSATION, ""), add_special_tokens=False)["input_ids"]
    assert max(*ids, chat.pad_token_id) < files.num_tokens
    return len(ids)


def error_of_tokenizer(directory: Path) -> str:
    with pytest.raises(SettingsError) as error:
        used(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def error_of_model(directory: Path) -> str:
    with pytest.raises(SettingsError) as error:
        find_base_model(Settings(model=str(directory)))
    assert str(error.value).startswith(f"model (or RM_MODEL) is {str(directory)!r}: ")
    return str(error.value)


# --- code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that code of the directories would write; somebody at the terminal says yes to everything."""
    monkeypatch.setattr(builtins, "input", lambda _="": "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


def with_code(directory: Path, canary: Path) -> Path:
    (directory / "own.py").write_text(CODE.format(canary=str(canary)))
    return directory


OWN = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoProcessor": "own.Own", "AutoConfig": "own.Own"}


@pytest.mark.parametrize("auto_map", [OWN, ["own.Own", None], ["own.Own", "own.Own"]])
@pytest.mark.parametrize("is_fast", [True, False])
def test_code_of_a_tokenizer_is_not_run(tmp_path: Path, canary: Path, auto_map: Any, is_fast: bool) -> None:
    configuration = sample_file("tokenizer_config") | {"auto_map": auto_map, "tokenizer_class": "OwnTokenizer"}
    directory = with_code(sample_tokenizer(tmp_path / "t", tokenizer_config=configuration), canary)
    if not is_fast:
        (directory / "vocab.json").write_text(json.dumps(sample_file("tokenizer")["model"]["vocab"]))
        (directory / "tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"^tokenizer .or RM_TOKENIZER. is .*auto_map asks for code of its own"):
        find_tokenizer(Settings(tokenizer=str(directory)))  # before any work


@pytest.mark.parametrize("name", ["AutoProcessor", "AutoTokenizer", "Qwen3Model", "RagRetriever", "pipeline", 5])
def test_a_class_that_is_no_tokenizer_is_not_asked_to_load_one(tmp_path: Path, canary: Path, name: Any) -> None:
    configuration = sample_file("tokenizer_config") | {"tokenizer_class": name}
    directory = with_code(sample_tokenizer(tmp_path / "t", tokenizer_config=configuration), canary)
    (directory / "processor_config.json").write_text(json.dumps({"auto_map": OWN}))
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert f"tokenizer_class is {name!r}, not the name of a tokenizer's class" in error_of_tokenizer(directory)


def test_a_tokenizer_within_a_tokenizer_does_not_run_its_code_either(tmp_path: Path, canary: Path) -> None:
    """transformers loads the two parts of this class without trust_remote_code, and would ask at the terminal."""
    directory = sample_tokenizer(tmp_path / "t", tokenizer_config={"tokenizer_class": "RagTokenizer"})
    part = {"model_type": "bert"}
    configuration = {"model_type": "rag", "question_encoder": part, "generator": part}
    (directory / "config.json").write_text(json.dumps(configuration))
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        within = sample_tokenizer(directory / name, tokenizer_config={"auto_map": OWN, "tokenizer_class": "Own"})
        (with_code(within, canary) / "tokenizer.json").unlink()
    with pytest.raises(SettingsError):
        load_tokenizer(str(directory))


def test_code_of_a_model_is_not_run(tmp_path: Path, canary: Path) -> None:
    directory = with_code(sample_model(tmp_path / "m", auto_map=OWN, model_type="own"), canary)
    assert "'config.json' in" in (told := error_of_model(directory))
    assert "auto_map asks for code of its own, which is never run; give a model of a type" in told


def test_a_model_that_transformers_knows_may_name_code_which_is_not_run(tmp_path: Path, canary: Path) -> None:
    directory = with_code(sample_model(tmp_path / "m", auto_map=OWN), canary)
    found = find_base_model(Settings(model=str(directory)))
    assert found is not None and found.vocab_size == 1500


def test_kernels_of_the_hub_are_not_asked_for(tmp_path: Path) -> None:
    within = {"text_config": {"_attn_implementation": "kernels-community/flash-attn"}}
    told = error_of_model(sample_model(tmp_path / "m", **within))
    assert "_attn_implementation is 'kernels-community/flash-attn', code on the Hub that is never run" in told


def test_another_configuration_than_the_one_that_is_checked_is_not_read(tmp_path: Path) -> None:
    """transformers reads it in place of config.json: here it asks for code on the Hub."""
    directory = sample_model(tmp_path / "m", configuration_files=["config.4.0.0.json"])
    hidden = {"model_type": "qwen3", "attn_implementation": "kernels-community/flash-attn"}
    (directory / "config.4.0.0.json").write_text(json.dumps(hidden))
    problem = "configuration_files names other files than config.json, which is the one to read"
    assert problem in error_of_model(directory)
    shutil.copytree(SAMPLE / "tokenizer", directory, dirs_exist_ok=True)
    assert f"'config.json' in {str(directory)!r}: {problem}" in error_of_tokenizer(directory)


# --- pickles -------------------------------------------------------------------------------------------------


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    directory = sample_model(tmp_path / "m")
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    assert "merge it into its base (merge_and_unload of peft)" in error_of_model(directory)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../model.safetensors", "/etc/passwd", "a\\b.safetensors", 5])
def test_weights_that_are_no_safetensors_beside_the_configuration_are_not_opened(tmp_path: Path, name: Any) -> None:
    assert f"transformers_weights is {name!r}" in error_of_model(
        sample_model(tmp_path / "m", transformers_weights=name)
    )
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": name}}
    directory = sample_model(tmp_path / "indexed")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"weight_map names {name!r}, not a safetensors file beside it" in error_of_model(directory)


# --- damaged and hostile files -------------------------------------------------------------------------------

VOCABULARY = sample_file("tokenizer")["model"]["vocab"]
HOSTILE_MODELS = {
    "an id as text": {"vocab": VOCABULARY | {"!": "4"}},
    "a huge id": {"vocab": VOCABULARY | {"!": 2_000_000_000}},
    "a negative id": {"vocab": VOCABULARY | {"!": -1}},
    "a truth value as id": {"vocab": VOCABULARY | {"!": True}},
    "a fraction as id": {"vocab": VOCABULARY | {"!": 4.5}},
    "no vocabulary": {"vocab": None},
    "a vocabulary that is a number": {"vocab": 5},
}


@pytest.mark.parametrize("model", [*({"type": "BPE"} | change for change in HOSTILE_MODELS.values()), [], None, "x"])
def test_a_vocabulary_without_sound_ids_is_refused_before_a_library_reads_it(tmp_path: Path, model: Any) -> None:
    directory = sample_tokenizer(tmp_path / "t", tokenizer=sample_file("tokenizer") | {"model": model})
    told = error_of_tokenizer(directory)
    assert told.startswith(f"tokenizer (or RM_TOKENIZER) is {str(directory)!r}: 'tokenizer.json' in ")
    assert told.endswith("; download the files again, or have save_pretrained of transformers write them")


def replacing(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "normalizer",
    [
        replacing("e" * 101, String="e"),
        {"type": "Sequence", "normalizers": [replacing("e" * 100, String="e")] * 4},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replacing("x", Regex="")] * 9}]},
        {"type": "Sequence", "normalizers": [replacing("é", String="")] * 5},
    ],
)
def test_a_normalizer_that_makes_texts_far_longer_is_refused(tmp_path: Path, normalizer: Any) -> None:
    definition = sample_file("tokenizer") | {"normalizer": normalizer}
    told = error_of_tokenizer(sample_tokenizer(tmp_path / "t", tokenizer=definition))
    assert "'tokenizer.json' in " in told
    assert "its normalizer may make texts " in told


def test_a_normalizer_as_others_have_it_is_taken(tmp_path: Path) -> None:
    steps = [replacing('"', String="``"), replacing("▁", Regex=" {2,}"), replacing("▁", String=" ")]
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, *steps]}
    assert used(sample_tokenizer(tmp_path / "t", tokenizer=sample_file("tokenizer") | {"normalizer": normalizer})) > 0


@pytest.mark.parametrize("number", [2_000_000_000, -1, "4", None, 2**100])
def test_an_added_token_without_a_sound_id_is_refused_wherever_it_stands(tmp_path: Path, number: Any) -> None:
    token = {"id": number, "content": "<x>", "special": True}
    fast = sample_file("tokenizer") | {"added_tokens": [token]}
    assert "'tokenizer.json'" in error_of_tokenizer(sample_tokenizer(tmp_path / "a", tokenizer=fast))
    assert "'added_tokens.json'" in error_of_tokenizer(sample_tokenizer(tmp_path / "b", added_tokens={"<x>": number}))
    if number != "4":  # the names of an object are text
        configuration = sample_file("tokenizer_config") | {"added_tokens_decoder": {str(number): {"content": "<x>"}}}
        directory = sample_tokenizer(tmp_path / "c", tokenizer_config=configuration)
        assert "'tokenizer_config.json'" in error_of_tokenizer(directory)


DAMAGES = {
    "empty": b"",
    "cut": (SAMPLE / "tokenizer" / "tokenizer.json").read_bytes()[:20_000],
    "a byte order mark": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"a": "\xff"}',
    "no JSON": b"PK\x03\x04",
    "a list": b"[]",
    "deep": b'{"a":' * 100_000,
    "deep and closed": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "added_tokens.json"])
def test_a_damaged_file_of_a_tokenizer_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    directory = sample_tokenizer(tmp_path / "t")
    (directory / name).write_bytes(content)
    if content == b"{}" and name != "tokenizer.json":
        return  # that is a sound file, which says nothing
    assert f"{name!r} in " in error_of_tokenizer(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**9, "num_hidden_layers": 2 * 10**9},
        {"text_config": {"num_labels": 2 * 10**9}},
        {"vocab_size": "2000"},
        {"vocab_size": True},
        {"vocab_size": -2000},
        {"vocab_size": None, "text_config": [2000]},
        {"vocab_size": 2000.0},
        {"vocab_size": None},
    ],
)
def test_a_configuration_of_hostile_sizes_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "config.json" in error_of_model(sample_model(tmp_path / "m", **changes))


def header(content: Any) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


PART = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED_WEIGHTS = {
    "empty": b"",
    "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "cut": header({"a": PART}) + b"\0" * 4,
    "overlapping": header({"a": PART, "b": PART}) + b"\0" * 8,
    "an unknown type": header({"a": PART | {"dtype": "F99"}}) + b"\0" * 8,
    "a huge shape": header({"a": PART | {"shape": [10**12, 10**12]}}) + b"\0" * 8,
    "a pickle": b"\x80\x04\x95" + b"\0" * 30,
}


@pytest.mark.parametrize("content", DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS)
def test_damaged_weights_are_named_before_any_work(tmp_path: Path, content: bytes) -> None:
    directory = sample_model(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(content)
    assert "'model.safetensors' in" in error_of_model(directory)


def test_an_index_of_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    directory = sample_model(tmp_path / "m")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "it names files that are missing: 'model-00001-of-00002.safetensors'" in error_of_model(directory)


# --- any value at any place ----------------------------------------------------------------------------------

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 5, 2_000_000_000, 2**63, 2**100, 1.5, float("nan"), "", "x", "5", "x" * 100_000),
    *([], {}, [None], ["a"], [["a", "b"]], {"a": 1}, {"a": None}, [[[[]]]]),
]
RICH = sample_file("tokenizer_config") | {
    "added_tokens_decoder": {"0": {"content": "<|pad|>", "special": True}, "2": {"content": "<|im_end|>"}},
    "extra_special_tokens": {"image_token": "<|im_start|>"},
    "model_input_names": ["input_ids"],
    "padding_side": "right",
    "bos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
}
SPECIAL = {
    "eos_token": "<|im_end|>",
    "pad_token": {"content": "<|pad|>"},
    "additional_special_tokens": ["<|im_start|>"],
}
SOUND = {
    "tokenizer": sample_file("tokenizer"),
    "tokenizer_config": RICH,
    "special_tokens_map": SPECIAL,
    "added_tokens": {"<|im_end|>": 2},
    "config": json.loads((SAMPLE / "model" / "config.json").read_text()),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values, of long lists and objects only to the first and last of them."""
    yield at
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in parts if len(parts) < 40 else parts[:2] + parts[-2:]:
        yield from places(part, (*at, key))


def changed(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    value = copy.copy(value)
    value[place[0]] = changed(value[place[0]], place[1:], other)
    return value


@pytest.mark.parametrize("name", SOUND)
def test_any_value_at_any_place_works_or_is_one_error_that_names_the_tokenizer(tmp_path: Path, name: str) -> None:
    drawn = random.Random(4711)
    mutations = [(place, other) for place in places(SOUND[name]) for other in HOSTILE]
    outcomes = []
    for number, (place, other) in enumerate(drawn.sample(mutations, 40)):
        directory = sample_tokenizer(tmp_path / str(number), **{name: changed(SOUND[name], place, other)})
        try:
            outcomes.append(used(directory) > 0)
        except SettingsError as error:
            assert str(directory) in str(error) and "\n" not in str(error), (place, other)
            outcomes.append(False)
    assert not all(outcomes)


def test_a_sound_tokenizer_with_all_these_files_is_taken(tmp_path: Path) -> None:
    assert used(sample_tokenizer(tmp_path / "t", **SOUND)) == used(SAMPLE / "tokenizer")


def test_a_token_that_the_self_test_would_repeat_for_minutes_is_refused(tmp_path: Path) -> None:
    definition = changed(sample_file("tokenizer"), ("added_tokens", 3, "content"), "x" * 100_000)
    files = find_tokenizer(Settings(tokenizer=str(sample_tokenizer(tmp_path / "t", tokenizer=definition))))
    with pytest.raises(SettingsError, match="its token with id 1500 has 100000 characters, more than 1000"):
        load_encoder(files)


_LISTED_ONCE = """
import os, sys
from pathlib import Path

listed = []

def note(event, arguments):
    if event == "os.scandir" and sys._getframe(1).f_code.co_name == "create_import_structure_from_path":
        listed.append(str(arguments[0]))

sys.addaudithook(note)
from rm_assets.data.chat.pretrained import load_tokenizer

load_tokenizer({tokenizer!r})
import transformers

models = Path(transformers.__file__).parent / "models"
assert listed.count(str(models)) == 1
names = set(dir(transformers.models))
from transformers.models import LlamaConfig, qwen2  # still found by name
from transformers.utils.import_utils import define_import_structure

defined = define_import_structure(str(models / "__init__.py"))
assert names > {{name for modules in defined.values() for names in modules.values() for name in names}}
"""


def test_a_tokenizer_is_loaded_with_one_listing_of_all_models() -> None:
    program = _LISTED_ONCE.format(tokenizer=str(SAMPLE / "tokenizer"))
    subprocess.run([sys.executable, "-c", program], check=True)


_WITHOUT_TORCH = """
import sys
from rm_assets.data.chat.pretrained import load_tokenizer

tokenizer = load_tokenizer({tokenizer!r})
tokenizer.apply_chat_template([{{"role": "user", "content": "2+2?"}}], tokenize=True)
assert "torch" not in sys.modules
from transformers import LlamaConfig, LlamaModel, modeling_rope_utils

rope = {{"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 8}}
config = LlamaConfig(vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=32, rope_parameters=rope)
import torch

model = LlamaModel(config)
assert modeling_rope_utils.torch is torch
assert model(torch.arange(9)[None]).last_hidden_state.shape == (1, 9, 16)
"""


def test_a_tokenizer_is_loaded_without_torch_and_models_work_in_the_same_process_afterwards() -> None:
    code = _WITHOUT_TORCH.format(tokenizer=str(SAMPLE / "tokenizer"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
