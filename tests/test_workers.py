"""Worker processes: how many there may be."""

import os

from etastar.workers import WorkerPool


def test_a_hundred_thousand_workers_are_asked_for_and_not_started(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with WorkerPool(100_000) as pool:
        found = {pool.submit(os.getpid).result() for _ in range(6)}
        started = len(pool._processes)  # of those that the pool would still add, one a job
        waiting = [pool.submit(abs, -value) for value in range(40)]
        assert [future.result() for future in waiting] == list(range(40))
        assert started <= len(pool._processes) <= 2
    assert os.getpid() not in found
