"""What the Dagster UI shows of each asset: metadata, checks and plots."""
