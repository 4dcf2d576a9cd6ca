"""Scores the golden texts with OpenRLHF's reward model, as its server does: `openrlhf_scores.py MODEL`.

Prints, as JSON, the scores by dtype. OpenRLHF offers no float32: for that its loader is given another dtype, and is
otherwise as it is.
"""

import sys

import kernels  # noqa: F401  before OpenRLHF
import torch
from golden import print_result, read_golden_scores
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.utils import get_tokenizer, utils

directory, found = sys.argv[1], {}
texts = [item["text"] for item in read_golden_scores(directory)]
for dtype in ("bfloat16", "float32"):
    if dtype == "float32":
        utils.convert_to_torch_dtype = lambda _: torch.float32
    model = get_llm_for_sequence_regression(directory, "reward", attn_implementation="sdpa").eval()
    tokenizer = get_tokenizer(directory, model, "left", None)
    batch = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True)
    with torch.no_grad():
        found[dtype] = model(batch["input_ids"], batch["attention_mask"]).tolist()
print_result(found)
