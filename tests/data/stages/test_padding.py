"""What padding does to pairs."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.stages.padding import padded, padded_table
from rm_assets.data.tables import schemas
from rm_assets.data.tables.ragged import join_rows


def test_rows_are_padded_at_their_ends() -> None:
    values = np.array([1, 2, 3], dtype=np.int32)
    assert padded(values, np.array([2, 1]), np.array([3, 1]), 0).tolist() == [1, 2, 0, 3]


ROWS = st.lists(st.tuples(*[st.lists(st.integers(0, 5), min_size=1, max_size=6)] * 2), max_size=8)


@given(ROWS)
def test_both_sides_have_one_length_and_masks_that_give_the_ids_back(rows: list[tuple[list[int], list[int]]]) -> None:
    pad = 0  # also a real id here: masks must not come from `ids != pad`
    chosen, rejected = ([np.array(row[side], dtype=np.int32) for row in rows] for side in (0, 1))
    text = [str(number) for number in range(len(rows))]
    columns = dict.fromkeys(("source", "pair_id", "prompt_key", "chosen_key", "rejected_key"), text)
    columns |= {"line": list(range(len(rows))), "margin": [0.0] * len(rows)}
    columns |= {"prefix_length": [0] * len(rows), "num_dropped_turns": [0] * len(rows)}
    arrays = [
        join_rows(chosen if field.name == "chosen_ids" else rejected).array(field.type)
        if field.name.endswith("_ids")
        else pa.array(columns[field.name], field.type)
        for field in schemas.TOKENIZED
    ]
    table = padded_table(pa.Table.from_arrays(arrays, schema=schemas.TOKENIZED), pad)
    assert table.schema == schemas.PADDED
    for row, original in zip(table.to_pylist(), rows, strict=True):
        widths = {
            len(row[f"{side}_{part}"]) for side in ("chosen", "rejected") for part in ("input_ids", "attention_mask")
        }
        assert widths == {max(map(len, original))}
        for side, ids in zip(("chosen", "rejected"), original, strict=True):
            length = row[f"{side}_length"]
            assert row[f"{side}_input_ids"][:length] == ids
            width = max(map(len, original))
            assert row[f"{side}_attention_mask"] == [1] * length + [0] * (width - length)
