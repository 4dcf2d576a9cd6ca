"""Held-out evaluation: accuracy, intervals, calibration, baselines, and the promotion rule. No torch here."""
