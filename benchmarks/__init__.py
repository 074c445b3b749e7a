"""Measurements, each run with `python -m benchmarks.NAME`; what came out is in benchmarks/README.md."""
