"""Named experiments: a producer, its pictures and its checks, put together. The command line calls these."""
