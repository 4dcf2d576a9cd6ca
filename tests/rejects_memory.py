"""The memory that gathering rejects takes, measured in a process of its own."""

import tracemalloc

import pyarrow as pa
from support import silent

from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.stages import rejects_result
from rm_assets.settings import Settings

_counted = pa.proxy_memory_pool(pa.default_memory_pool())


def memory_of_rejects(settings: Settings, raw: Snapshot) -> tuple[object, bool, int, int]:
    """The rows and the verdict of rejects, and the most bytes that Python took and Arrow held meanwhile.

    In Python 3.11, `tracemalloc.stop` crashes if a thread of Arrow allocates memory at that moment
    (python/cpython#128679): tracing goes on until the process ends.
    """
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    pa.set_memory_pool(_counted)
    result = rejects_result(publish_rejects(settings, {Stage.RAW: raw}, silent))
    peak = tracemalloc.get_traced_memory()[1] - before
    return result.metadata["dagster/row_count"], result.check_results[0].passed, peak, _counted.max_memory()
