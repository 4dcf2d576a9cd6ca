"""From stored pairs to packed micro-batches, and the attention that reads them."""
