"""64-bit digests of keys, in a quarter of the memory; nearly all distinct keys have distinct digests."""

import binascii
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_JOINED_ROWS = 2**16


def key_digests(keys: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The first 16 of each key's 32 hexadecimal digits as a number, without a Python object per key."""
    digests = [np.empty(0, np.uint64)]
    for chunk in _joined(keys.chunks):
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        numbers = binascii.unhexlify(chunk.buffers()[2][offsets[0] : offsets[-1]]) if len(chunk) else b""
        digests.append(np.frombuffer(numbers, ">u8")[::2].astype(np.uint64))
    return np.concatenate(digests)


def _joined(chunks: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """The arrays joined into ones of at least _JOINED_ROWS rows, as there may be thousands, one for each shard."""
    waiting: list[pa.Array] = []
    num_rows = 0
    for chunk in chunks:
        waiting.append(chunk)
        num_rows += len(chunk)
        if num_rows >= _JOINED_ROWS:
            yield pa.concat_arrays(waiting)
            waiting, num_rows = [], 0
    if waiting:
        yield pa.concat_arrays(waiting)


def shared_digests(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The digests in both; looking the shorter array up in the longer is many times faster than making sets."""
    shorter, longer = map(np.sort, sorted((one, other), key=len))
    if not len(longer):
        return shorter
    places = np.minimum(np.searchsorted(longer, shorter), len(longer) - 1)
    return np.asarray(shorter[longer[places] == shorter])


def keys_with(keys: pa.ChunkedArray, digests: NDArray[np.uint64], shared: NDArray[np.uint64]) -> set[str]:
    """The keys whose digest is among the shared ones."""
    return set(keys.take(np.flatnonzero(np.isin(digests, shared))).to_pylist()) if len(shared) else set()
