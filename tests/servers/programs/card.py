"""Scores the golden conversations by the code of the model card: `card.py MODEL_DIRECTORY`.

Prints, as JSON, the score of each conversation alone, those of all in one batch, and whether the texts are the same.
"""

import re
import sys

import torch
from golden import card_code, print_result, read_golden_scores

directory = sys.argv[1]
code = card_code(directory, "AutoModelForSequenceClassification")
first, second = re.split(r"^conversation = .*\n", code, flags=re.MULTILINE)
golden = read_golden_scores(directory)
names = {"directory": directory}
found = {"alone": [], "same_texts": True}
with torch.no_grad():
    exec(first, names)
    for item in golden:
        names["conversation"] = item["messages"]
        exec(second, names)
        found["alone"].append(names["score"].item())
        found["same_texts"] &= names["text"] == item["text"]
    tokenizer, texts = names["tokenizer"], [item["text"] for item in golden]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    found["together"] = names["model"](**batch).logits[:, 0].tolist()
print_result(found)
