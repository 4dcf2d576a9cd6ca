"""Torchrun as a child that ends with its parent: `python -m rm_assets.training.torchrun` takes torchrun's arguments.

It ends with 137 if a worker was killed by SIGKILL, as the kernel does when memory runs out; torchrun itself ends with
1 whatever became of its workers.
"""

import os
import signal
import sys
import traceback

from rm_assets.training.processes import children

if __name__ == "__main__":
    children.die_with_parent()
    os.environ[children.PARENT] = str(os.getpid())  # for the workers
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # takes seconds
    from torch.distributed.run import main

    try:
        main()
    except ChildFailedError as error:
        # the others failed of it, or were stopped by torchrun, whose own signals are no failures
        if all(failure.exitcode != -signal.SIGKILL for failure in error.failures.values()):
            raise
        traceback.print_exc()
        sys.exit(128 + signal.SIGKILL)
