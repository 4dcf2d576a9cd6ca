"""Scores the golden conversations by the card's code for sentence-transformers: `cross_encoder.py MODEL_DIRECTORY`."""

import sys

from golden import card_code, print_result, read_golden_scores

names, scores = {"directory": sys.argv[1]}, []
for item in read_golden_scores(sys.argv[1]):
    exec(card_code(sys.argv[1], "CrossEncoder"), names | {"conversation": item["messages"]}, names)
    scores.append(float(names["score"]))
print_result(scores)
