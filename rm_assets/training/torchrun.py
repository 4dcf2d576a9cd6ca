"""Torchrun as a child that ends with its parent: `python -m rm_assets.training.torchrun` takes torchrun's arguments."""

import os

from rm_assets.training.processes import children

if __name__ == "__main__":
    children.die_with_parent()
    os.environ[children.PARENT] = str(os.getpid())  # for the workers
    from torch.distributed.run import main  # takes seconds

    main()
