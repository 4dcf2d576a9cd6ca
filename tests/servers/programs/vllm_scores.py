"""Scores the golden conversations by the vLLM code of the model card: `vllm_scores.py MODEL_DIRECTORY`."""

import sys

from golden import card_code, print_result, read_golden_scores
from transformers import AutoTokenizer


def main() -> None:
    """In a function, because vLLM starts processes that import this file again."""
    directory = sys.argv[1]
    first, second = card_code(directory, "from vllm").split("ids = ", 1)
    # a test shares its machine: by default, vLLM takes nearly all of the memory
    first = first.replace("LLM(", "LLM(gpu_memory_utilization=0.1, max_model_len=512, enforce_eager=True, ")
    names = {"directory": directory, "tokenizer": AutoTokenizer.from_pretrained(directory)}
    exec(first, names)
    scores = []
    for item in read_golden_scores(directory):
        names["text"] = item["text"]
        exec(f"ids = {second}", names)
        scores.append(float(names["score"]))
    print_result(scores)
    names["llm"].llm_engine.engine_core.shutdown()  # or the process may abort at its end, with threads still running


if __name__ == "__main__":
    main()
