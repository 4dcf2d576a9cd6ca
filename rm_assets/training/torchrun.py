"""Runs torchrun as a child that ends when its parent does; `python -m rm_assets.training.torchrun` takes its arguments.

It exits with 137 if a worker was killed by SIGKILL, as the kernel does when memory runs out; torchrun itself would exit
with 1, however its workers ended.
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
        # others failed as a consequence, or were stopped by torchrun, whose signals are not listed as failures
        if all(failure.exitcode != -signal.SIGKILL for failure in error.failures.values()):
            raise
        traceback.print_exc()
        sys.exit(128 + signal.SIGKILL)
