"""Pairs as a whole: their keys, duplicates, splits, and overlap with evaluation sets."""
