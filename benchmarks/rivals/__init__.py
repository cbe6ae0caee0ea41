"""Rivals and our own methods at equal calls and tuning: `python -m benchmarks.rivals`."""
