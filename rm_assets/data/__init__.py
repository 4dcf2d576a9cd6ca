"""Bytes to pairs to token ids, in pure functions on records and Arrow tables: no Dagster, no torch."""
