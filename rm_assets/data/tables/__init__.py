"""The columns of every dataset, the reasons for rejects, and how their Arrow values are read."""
