"""The files of annotations: which there are, whether they change, and their lines."""
