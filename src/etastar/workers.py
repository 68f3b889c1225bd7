"""Worker processes that live and die with the command that started them.

A terminal sends Ctrl-C to every process: workers that are still starting would print a traceback each, so they ignore
it from their first instruction. They end with their pool, also where that is left by an error, and with its process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

__all__ = ["WorkerPool"]

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool(ProcessPoolExecutor):
    """A pool of spawned processes. Leaving its ``with`` block by an error ends them at once, whatever they are at.

    Args:
        workers: Processes, started as jobs come; twice as many as there are cores at most, more would only take memory.
        initializer: Called in each as it starts.
        arguments: Of `initializer`; may hold shared memory.
    """

    def __init__(
        self, workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        most = 2 * (os.cpu_count() or 1)
        super().__init__(min(workers, most), get_context("spawn"), _begin, (initializer, arguments))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the executor's; a process that starts now ignores interrupts."""
        with _interrupts_ignored():
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = list((self._processes or {}).values())
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)
        if kind is not None:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()


def _begin(initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on for hours, or wait for work for ever."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    """What is ignored here is ignored by the processes started meanwhile; only the main thread may ask for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
