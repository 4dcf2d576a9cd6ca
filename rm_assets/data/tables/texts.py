"""Many texts as one run of UTF-8 bytes: what Arrow, hashes and numpy can work on without a Python object per text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Texts(NamedTuple):
    """Text i is content[offsets[i] : offsets[i + 1]], in UTF-8; offsets are int64 [texts + 1]."""

    content: bytes
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> "Texts":
        """Texts one after the other; None counts as an empty one."""
        try:
            _, offsets, content = pa.array(texts, pa.large_string()).buffers()
        except UnicodeEncodeError:  # half a surrogate pair, which is no text to Arrow
            encoded = [text.encode("utf-8", "surrogatepass") if text else b"" for text in texts]
            return cls(b"".join(encoded), offsets_of([len(text) for text in encoded]))
        ends = np.frombuffer(offsets, np.int64, len(texts) + 1)
        return cls(content.slice(0, ends[-1]).to_pybytes() if content else b"", ends)

    def array(self, is_valid: NDArray[np.bool_] | None = None) -> pa.StringArray:
        """As an Arrow column, the bytes uncopied; null where `is_valid` is False. Raises ValueError beyond 2 GiB."""
        if len(self.content) > np.iinfo(np.int32).max:
            raise ValueError(f"the texts of one batch have {len(self.content)} bytes: lower max_pairs_per_prompt")
        validity = None if is_valid is None else pa.array(is_valid).buffers()[1]
        offsets = self.offsets.astype(np.int32)
        return pa.StringArray.from_buffers(
            len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(self.content), validity
        )


def offsets_of(lengths: "NDArray[Any] | list[int]") -> NDArray[np.int64]:
    """Where runs of these lengths begin and end, int64 [runs + 1]: [2, 1] gives [0, 2, 3]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
