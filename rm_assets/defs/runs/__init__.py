"""Runs that are killed, cancelled or fail: how each ends with its reason."""
