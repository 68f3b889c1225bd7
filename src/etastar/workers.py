"""Worker processes that leave Ctrl-C to the command that started them.

A terminal sends the interrupt to every process. Workers that are still starting would print a traceback each; these
ignore it from their first instruction, and end because their pool is given up.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

__all__ = ["WorkerPool"]

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool(ProcessPoolExecutor):
    """A pool of spawned processes; leaving its ``with`` block early gives up what has not begun, without waiting.

    Args:
        workers: Processes, started as jobs come.
        initializer: Called in each as it starts.
        arguments: Of `initializer`; may hold shared memory.
    """

    def __init__(
        self, workers: int, initializer: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(workers, get_context("spawn"), initializer, arguments)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the executor's; a process that starts now ignores interrupts."""
        with _interrupts_ignored():
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)


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
