"""Benchmarks: ratios against references in the same run; ``python -m benchmarks`` prints the table."""
