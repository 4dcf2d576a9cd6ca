"""The assets: five data stages, their rejects, the models, the report and suspect labels."""
