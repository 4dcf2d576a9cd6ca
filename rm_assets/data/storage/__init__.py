"""Where snapshots are kept: files here and on object stores, Parquet, locks, publication, and what may be removed."""
