"""The data stages, one module for each dataset, and the invariants checked between them."""
