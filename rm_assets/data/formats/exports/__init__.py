"""Rows of annotation tools and public data sets."""
