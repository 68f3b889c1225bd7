"""The named experiments, end to end."""
