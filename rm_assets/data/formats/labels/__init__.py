"""Labels, strengths and scores: which response a row prefers, and by how much."""
