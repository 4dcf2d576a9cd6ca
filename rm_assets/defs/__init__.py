"""Everything Dagster: assets, checks, resources. Training is imported inside functions only."""
