"""Scores the golden conversations with sentence-transformers: `cross_encoder.py MODEL_DIRECTORY`."""

import json
import sys
from pathlib import Path

from sentence_transformers import CrossEncoder

golden = json.loads((Path(sys.argv[1]) / "golden_scores.json").read_text())["conversations"]
model = CrossEncoder(sys.argv[1])
print("result:", json.dumps([float(score) for score in model.predict([item["messages"] for item in golden])]))
