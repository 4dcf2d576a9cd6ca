"""Torchrun as a child that ends with its parent: `python -m rm_assets.training.torchrun` takes torchrun's arguments."""

import os

from rm_assets.training import processes

if __name__ == "__main__":
    processes.die_with_parent()
    os.environ[processes.PARENT] = str(os.getpid())  # for the workers
    from torch.distributed.run import main  # takes seconds

    main()
