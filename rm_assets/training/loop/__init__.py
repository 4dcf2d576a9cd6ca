"""The training loop: loss, optimizer, checkpoints, sharding, held-out evaluation and progress."""
