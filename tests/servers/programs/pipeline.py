"""Scores the golden texts with a pipeline of transformers: `pipeline.py MODEL_DIRECTORY`."""

import sys

from golden import print_result, read_golden_scores
from transformers import pipeline

classify = pipeline("text-classification", model=sys.argv[1])
golden = read_golden_scores(sys.argv[1])
print_result([classify(item["text"], add_special_tokens=False)[0]["score"] for item in golden])
