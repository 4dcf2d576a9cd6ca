"""Scores the golden conversations by the vLLM code of the model card: `vllm_scores.py MODEL_DIRECTORY`."""

import json
import re
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main() -> None:
    """In a function, because vLLM starts processes that import this file again."""
    directory = sys.argv[1]
    card = (Path(directory) / "README.md").read_text()
    [code] = [each for each in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "from vllm" in each]
    first, second = code.split("ids = ", 1)
    # a test shares its machine: by default, vLLM takes nearly all of the memory
    first = first.replace("LLM(", "LLM(gpu_memory_utilization=0.1, max_model_len=512, enforce_eager=True, ")
    names = {"directory": directory, "tokenizer": AutoTokenizer.from_pretrained(directory)}
    exec(first, names)
    scores = []
    for item in json.loads((Path(directory) / "golden_scores.json").read_text())["conversations"]:
        names["text"] = item["text"]
        exec(f"ids = {second}", names)
        scores.append(float(names["score"]))
    print("result:", json.dumps(scores))


if __name__ == "__main__":
    main()
