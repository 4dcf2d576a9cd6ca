"""Scores the golden texts with a pipeline of transformers: `pipeline.py MODEL_DIRECTORY`."""

import json
import sys
from pathlib import Path

from transformers import pipeline

golden = json.loads((Path(sys.argv[1]) / "golden_scores.json").read_text())["conversations"]
classify = pipeline("text-classification", model=sys.argv[1])
print("result:", json.dumps([classify(item["text"], add_special_tokens=False)[0]["score"] for item in golden]))
