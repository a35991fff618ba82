"""Benchmarks: ratios measured in one run, on real components. `make bench`."""
