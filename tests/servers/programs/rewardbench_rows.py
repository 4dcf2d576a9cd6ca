"""Runs a command of rewardbench and prints the rows that it writes: `rewardbench_rows.py MODEL ARGUMENT...`.

rewardbench moves its batches to a GPU, whether there is one or not; here they stay.
"""

import json
import sys
from pathlib import Path

from golden import print_result
from rewardbench.rewardbench import main
from transformers import BatchEncoding

BatchEncoding.to = lambda self, *_: self
model = sys.argv.pop(1)
main()
print_result([json.loads(line) for line in Path(f"{model}_outputs.jsonl").read_text().splitlines()])
