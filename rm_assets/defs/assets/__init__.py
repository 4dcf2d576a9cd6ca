"""The assets: five data stages, their rejects, the reward model, its report, the promoted model and suspect labels."""
