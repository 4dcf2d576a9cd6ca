"""The sensor that ends killed runs as failed."""

import dagster as dg

from rm_assets.defs.runs import pool
from rm_assets.defs.runs.dead_runs import end_dead_runs, is_watched


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends killed runs as failed and frees their pool slots.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Requests no runs. As the one sensor that is on by default, it also gives the GPU pool its limit."""
    pool.set_default_limit(context.instance)
    if not is_watched(context.instance):
        return dg.SkipReason("the instance's run launcher watches over its runs itself")
    ended = end_dead_runs(context.instance)
    return dg.SkipReason(f"ended as failed: {', '.join(ended)}" if ended else "every run's process is alive")
