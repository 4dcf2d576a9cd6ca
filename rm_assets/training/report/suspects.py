"""Suspect labels: the pairs most contradicted by a model that was not trained on them.

Prompts are split into folds by a hash; for each fold a model is trained on the others and scores it (cross-fitting, as
in confident learning, Northcutt et al. 2021). If the model has learned anything, the margin chosen - rejected of a
wrong label is far below zero. Dividing by the fold's standard deviation makes margins of different folds comparable.
"""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rm_assets.data.tables import schemas


def fold_of(prompt_key: str, num_folds: int) -> int:
    """The fold of a prompt: all its pairs are in one, and it never changes as data arrives."""
    return int.from_bytes(hashlib.blake2b(f"fold {prompt_key}".encode(), digest_size=8).digest()) % num_folds


def folds_of(prompt_keys: list[str], num_folds: int) -> NDArray[np.int64]:
    return np.array([fold_of(key, num_folds) for key in prompt_keys], dtype=np.int64)


def rank_suspects(scored: pd.DataFrame) -> pd.DataFrame:
    """The contradicted pairs, most suspect first: those whose rejected side scores higher, as in schemas.SUSPECTS.

    `scored` has a row per pair with its fold and both scores from that fold's model. `margin` is chosen - rejected,
    below zero here; `suspicion` is its size in standard deviations of the fold's margins.
    """
    margin = scored["chosen_score"].astype("float64") - scored["rejected_score"].astype("float64")
    spread = margin.groupby(scored["fold"]).transform(lambda values: values.std(ddof=0))
    rows = scored.assign(margin=margin, suspicion=-margin / spread.where(spread > 0, 1.0))
    rows = rows[rows["margin"] < 0].sort_values(
        ["suspicion", "source", "line", "pair_id"], ascending=[False, True, True, True], ignore_index=True
    )
    return rows[schemas.SUSPECTS.names]
