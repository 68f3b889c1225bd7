"""A meter in a training loop: when it measures, where measurements go, and what may fail without ending the run.

It hooks in where ``optimizer.step`` begins: the parameters, momentum buffers and step size are then those of the step
about to be made, whatever a scheduler did since the last one, and a step that AMP skips never gets there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from etastar.errors import EtastarError, InvalidArgument
from etastar.history import HistoryFile
from etastar.network.batches import whole_number
from etastar.network.direction import step_size_of
from etastar.quantities import metrics

if TYPE_CHECKING:
    from etastar.network.meter import AlignmentMeter

__all__ = ["MeterHandle", "Tracker"]

_LOG = logging.getLogger(__name__)
# What a measurement may fail by without ending the run; anything else is a mistake in the program.
_FAILURES = (
    EtastarError,
    torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
    torch.OutOfMemoryError,
)


class Tracker(Protocol):
    """Anything that takes metrics by step: an experiment tracker, or a class of three lines around one."""

    def log(self, metrics: dict[str, float | str], step: int, /) -> object:
        """Record what `etastar.quantities.metrics` gives: finite floats, and the regime as text where resolved."""
        ...


class MeterHandle:
    """What `AlignmentMeter.attach` returns; the hooks, the file and the clock of one attachment."""

    def __init__(
        self,
        meter: AlignmentMeter,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        path: str | Path | None,
        log: Tracker | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        whole_number("batch_size", batch_size, 1)
        if log is not None and not callable(getattr(log, "log", None)):
            raise InvalidArgument("log", log, "must have a method log(metrics, step)")
        self._meter, self._optimizer, self._batch_size, self._tracker = meter, optimizer, batch_size, log
        self._file = None if path is None else HistoryFile(path, meter.history)
        self._tried = meter.history[-1].step if len(meter.history) else -1
        self._clock, self._began = clock, clock()
        self._spent = self._last = 0.0
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def attached(self) -> bool:
        """Whether it still measures."""
        return bool(self._hooks)

    def remove(self, *, measure: bool = True) -> None:
        """Stop measuring; the history stays. A second call does nothing.

        Args:
            measure: Whether to take the measurement that is due where the run has ended.
        """
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if measure:
            self._measure_if_due()

    def _before(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self._measure_if_due()

    def _after(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer skips for the scaler, inside its step
        self._meter.step += overflow is None or not bool(overflow)

    def _measure_if_due(self) -> None:
        meter, step = self._meter, self._meter.step
        if step % meter.every or step == self._tried or not self._affordable():
            return
        self._tried, begin = step, self._clock()
        try:
            self._measure(step)
        finally:
            self._last = self._clock() - begin
            self._spent += self._last

    def _measure(self, step: int) -> None:
        meter, optimizer = self._meter, self._optimizer
        try:
            measurement = meter.measure(step_size_of(optimizer), self._batch_size, optimizer)
            if self._tracker is not None:
                self._tracker.log(metrics(measurement), step)
            if self._file is not None:
                self._file.append(measurement)
        except _FAILURES as error:
            if not meter.skipped or meter.skipped[-1][1] != str(error):
                _LOG.warning("step %d: %s", step, error)
            meter.skipped.append((step, str(error)))

    def _affordable(self) -> bool:
        """Whether one more measurement like the last one still fits the budget of the run's own time."""
        overhead = self._meter.overhead
        if overhead is None or self._last == 0:
            return True
        trained = self._clock() - self._began - self._spent
        return self._spent + self._last <= overhead * trained
