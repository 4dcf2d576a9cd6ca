"""The job file for scoring pairs with a saved model: what it reads, and where it writes. No torch here.

It is for pairs that no training job has tokenized: the null baselines' other prompts, and today's test pairs for the
promoted model, which has its own tokenizer and chat template.
"""

from collections.abc import Callable
from typing import ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from rm_assets.data.tables import schemas

SCORED_FILE = "scored.parquet"

_KEY = [schemas.VALIDATED.field(name) for name in ("source", "line", "pair_id", "prompt_key")]
_VARIANT = pa.field("variant", pa.string(), nullable=False)
PAIRS = pa.schema(
    [*_KEY, _VARIANT, *(schemas.VALIDATED.field(name) for name in ("prompt", "chosen", "rejected", "tools"))]
)
"""Pairs as messages, like validated_preferences; `variant` names how the prompt was changed, or is empty."""

SCORED = pa.schema(
    [
        *_KEY,
        _VARIANT,
        pa.field("chosen_score", pa.float32()),
        pa.field("rejected_score", pa.float32()),
        pa.field("problem", pa.string(), nullable=False),
    ]
)
"""A row for each pair, in their order; both scores are null if `problem` gives a reason."""


class ScoringJob(BaseModel):
    """Written as JSON by the launcher, read by `python -m rm_assets.training JOB.json`.

    `model` is a directory as `save_pretrained` writes it, with its tokenizer, and `model_sha256` has the hashes of its
    files, by name; `pairs` is a Parquet file with the schema PAIRS, and `pairs_sha256` its hash. Pairs with a side of
    more than `max_length` tokens are not scored. The job writes SCORED_FILE, with the schema SCORED, into
    `output_directory`, then a manifest with its hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    num_processes: ClassVar = 1

    output_directory: str
    model: str
    model_sha256: dict[str, str] = {}
    pairs: str
    pairs_sha256: str = ""
    max_length: int
    batch_size: int

    def with_paths(self, read: Callable[[str], str], output_directory: str) -> "ScoringJob":
        """The same job with the paths it reads replaced by `read(path)`, and another output directory."""
        changes = {"output_directory": output_directory, "model": read(self.model), "pairs": read(self.pairs)}
        return self.model_copy(update=changes)
