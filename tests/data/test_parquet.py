"""How tables are written as Parquet."""

import subprocess
import sys

WRITES = """
import pyarrow as pa
from rm_assets.data.parquet import parquet_writer

rows = pa.table({"text": ["x" * 4_000] * 16_000})
pool = pa.default_memory_pool()
before = pool.bytes_allocated()
with parquet_writer("/dev/null", rows.schema) as writer:
    writer.write_table(rows)
print(rows.nbytes, pool.max_memory() - before)
"""


def test_writing_texts_takes_less_than_their_size() -> None:
    """In a process of its own, as Arrow knows the most that was ever allocated in one."""
    done = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True, check=True)
    num_bytes, more_bytes = map(int, done.stdout.split())
    assert more_bytes < num_bytes
