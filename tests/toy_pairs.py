"""Rows of padded_pairs with the ids of a toy vocabulary, from which a tiny model learns at once."""

import pyarrow as pa

from rm_assets.data.tables.schemas import PADDED

PAD, END, VOCAB_SIZE = 0, 1, 40


def padded_row(number, chosen, rejected, margin=0.0, filler=PAD):
    """A row of padded_pairs; `filler` stands where padding is."""
    width = max(len(chosen), len(rejected))
    row = {name: "" for name in PADDED.names if PADDED.field(name).type == pa.string()}
    row |= {
        "source": "a.jsonl",
        "line": number + 1,
        "pair_id": f"pair{number}",
        "prompt_key": f"prompt{number}",
    }
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        row[f"{side}_input_ids"] = [*ids, *[filler] * (width - len(ids))]
        row[f"{side}_attention_mask"] = [1] * len(ids) + [0] * (width - len(ids))
        row[f"{side}_length"] = len(ids)
    return row | {"prefix_length": 0, "margin": margin}


def learnable_pairs(count, first=0):
    """Pairs of 3 to 9 tokens in which word 5 is always liked better than word 6."""
    pairs = []
    for number in range(first, first + count):
        prompt = [7 + (number * 3 + place) % 30 for place in range(1 + number % 5)]
        tail = [7 + number % 11] * (number % 3)
        pairs.append(([*prompt, 5, *tail, END], [*prompt, 6, END]))
    return pairs


def default_splits():
    return {
        "train": learnable_pairs(12),
        "validation": learnable_pairs(5, first=50),
        "test": learnable_pairs(3, first=80),
    }
