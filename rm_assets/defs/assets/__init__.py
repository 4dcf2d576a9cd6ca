"""The assets: five data stages, their rejects, the model, its report, promotion and suspect labels."""
