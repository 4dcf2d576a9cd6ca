"""Scores the golden conversations by the code of the model card: `card.py MODEL_DIRECTORY`.

Prints, as JSON, the score of each conversation alone, those of all in one batch, and whether the texts are the same.
"""

import json
import re
import sys
from pathlib import Path

import torch

directory = sys.argv[1]
card = (Path(directory) / "README.md").read_text()
[code] = re.findall(r"transformers:\n\n```python\n(.*?)```", card, re.DOTALL)
first, second = re.split(r"^conversation = .*\n", code, flags=re.MULTILINE)
golden = json.loads((Path(directory) / "golden_scores.json").read_text())["conversations"]
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
print("result:", json.dumps(found))
