"""Everything Dagster: assets, checks, resources. Modules load neither torch nor pandas."""
