"""The report, as data, as PNG, and in a real browser."""
