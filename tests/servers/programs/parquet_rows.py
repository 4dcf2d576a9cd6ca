"""Prints the rows of Parquet files, as a library reads them: `parquet_rows.py duckdb|pyarrow|spark FILE...`."""

import sys

from golden import print_result

library, *paths = sys.argv[1:]
if library == "duckdb":
    import duckdb

    relations = [duckdb.sql(f"from read_parquet('{path}')") for path in paths]
    found = [[dict(zip(each.columns, row, strict=True)) for row in each.fetchall()] for each in relations]
elif library == "spark":
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    found = [[row.asDict(recursive=True) for row in spark.read.parquet(path).collect()] for path in paths]
    spark.stop()
else:
    import pyarrow.parquet as pq

    found = [pq.read_table(path).to_pylist() for path in paths]
print_result(found)
