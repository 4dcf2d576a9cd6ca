"""Annotation files: finding them, noticing changes, and reading their lines."""
