"""Programs with cyclic garbage for `benchmarks/collector_settings.py`. Each runs in a separate process."""
