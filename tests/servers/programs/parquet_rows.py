"""Prints the rows of Parquet files, by the library that is asked for: `parquet_rows.py duckdb|pyarrow FILE...`."""

import json
import sys

library, *paths = sys.argv[1:]
if library == "duckdb":
    import duckdb

    relations = [duckdb.sql(f"from read_parquet('{path}')") for path in paths]
    found = [[dict(zip(each.columns, row, strict=True)) for row in each.fetchall()] for each in relations]
else:
    import pyarrow.parquet as pq

    found = [pq.read_table(path).to_pylist() for path in paths]
print("result:", json.dumps(found))
