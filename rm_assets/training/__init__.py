"""The training job: torch and transformers, no Dagster. `python -m rm_assets.training JOB.json` runs it."""
