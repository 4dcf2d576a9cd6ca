"""Dagster assets from files of human preference annotations to an evaluated Bradley-Terry reward model."""
