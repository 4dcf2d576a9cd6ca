"""Models, reports, promotions and suspect labels as snapshots: found by key, or made and published."""
