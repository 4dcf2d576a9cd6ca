"""The reward model: building, loading and scoring, LoRA, and the probe that verifies packed rows."""
