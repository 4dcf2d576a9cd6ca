"""Where shards are computed: in this process, on local workers, or on a Ray cluster."""
