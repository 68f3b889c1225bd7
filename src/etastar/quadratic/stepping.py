"""What all stepping shares: the record, rules for the step size, and projected updates.

How one step is taken depends on the noise: ``step`` has the additive one, ``minibatch.runs`` that of mini-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import (
    CriticalStep,
    LossThresholds,
    alignment,
    as_step_size,
    critical_step_size,
    loss_thresholds,
)
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import read_record
from etastar.quadratic.paths import Ensemble, Paths

__all__ = ["SimulationState", "StepSize", "Stepper"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimulationState:
    """What a step-size rule sees before a step; arrays have shape ``(replicas, *batch)``.

    Attributes:
        step: Steps taken so far.
        split: The moments of the next step, from the gradients as they are.
        loss: Loss above the minimum, [loss].
    """

    step: int
    split: SplitMoments
    loss: Array

    @property
    def alignment(self) -> Any:
        """θ of each run."""
        return alignment(self.split)

    @property
    def critical_step_size(self) -> CriticalStep:
        """η* of each run."""
        return critical_step_size(self.split)

    @property
    def loss_thresholds(self) -> LossThresholds:
        """Loss thresholds of each run."""
        return loss_thresholds(self.split)


StepSize = float | Callable[[SimulationState], Any]


class Stepper(ABC):
    """Runs in progress.

    Attributes:
        ensemble: Their layout.
        state: Of all rows, ``(size, columns, rows, blocks)``.
        rate: What a unit step moves, per block: λ, or 0 where the projection holds still.
        shown: Which vector of the state is observed.
    """

    def __init__(self, ensemble: Ensemble, step_size: StepSize, projection: str | None) -> None:
        if projection not in (None, "dominant", "bulk"):
            raise InvalidArgument("projection", projection, 'must be "dominant", "bulk" or None')
        self._step_size = step_size if callable(step_size) else as_step_size(step_size)
        if isinstance(self._step_size, np.ndarray) and self._step_size.ndim:
            raise InvalidArgument("step_size", step_size, "must be one number, or a function of the state")
        self.ensemble, self.state = ensemble, ensemble.states()
        self.shown = int(np.argmax(ensemble.update.gradient))
        dominant = np.arange(ensemble.modes.eigenvalues.size) < ensemble.modes.cut
        moving = np.ones(dominant.size) if projection is None else dominant == (projection == "dominant")
        self.rate = moving * ensemble.modes.eigenvalues

    @abstractmethod
    def totals(self) -> Array:
        """Energies, then losses, of both subspaces, ``(rows, 4)``."""

    @abstractmethod
    def moments(self, shape: tuple[int, ...]) -> tuple[SplitMoments, Array]:
        """Of the next step, and the loss, both of this shape: the rows as ``(replicas, *batch)``."""

    @abstractmethod
    def advance(self, eta: Array) -> None:
        """Take a step of these sizes, ``(rows,)``."""

    def run(self, steps: int, record: Any, keep_gradient: bool) -> Paths:
        """Step, and record the times asked for."""
        when = read_record(steps, record)
        _, _, rows, blocks = self.state.shape
        sums, taken = np.empty((rows, when.size, 4)), np.full((rows, when.size), np.nan)
        gradient = np.empty((rows, when.size, blocks)) if keep_gradient else None
        slot = {int(t): i for i, t in enumerate(when)}
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for step in range(int(when[-1]) + 1):
                index = slot.get(step)
                if index is not None:
                    sums[:, index] = self.totals()
                    if gradient is not None:
                        gradient[:, index] = self.state[self.shown, 0]
                if step == when[-1]:
                    break
                eta = self._next_step(step)
                if index is not None:
                    taken[:, index] = eta
                self.advance(eta)
        return self.ensemble.paths(when, sums, taken, gradient)

    def _next_step(self, step: int) -> Array:
        rows = self.state.shape[2]
        if not callable(self._step_size):
            return np.broadcast_to(self._step_size, (rows,))
        shape = (self.ensemble.replicas, *self.ensemble.batch)
        value = self._step_size(SimulationState(step, *self.moments(shape)))
        try:
            return np.broadcast_to(as_step_size(value), shape).reshape(rows)
        except InvalidArgument as error:
            remedy = "must be finite and not negative; handle regimes without a critical step in the rule"
            raise InvalidArgument(f"step_size at step {step}", error.value, remedy) from None
        except ValueError:
            raise InvalidArgument(f"step_size at step {step}", np.shape(value), f"must broadcast to {shape}") from None
