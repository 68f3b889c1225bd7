"""Stepping, for step sizes that depend on the state and for updates projected on one subspace.

DSGD and BSGD are the paper's eq. 3 and 4; ``lambda state: c * state.critical_step_size.value`` steps at c·η*_t.
One step of every run costs one normal per block and a few passes over it while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.quadratic.arguments import read_times, whole_number
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.paths import Ensemble, Paths, joint_root
from etastar.quadratic.spectrum import Spectrum

__all__ = ["SimulationState", "StepSize", "simulate"]

Array = npt.NDArray[np.float64]
_CHUNK = 32768  # numbers updated at a time, so that a chunk stays in the cache


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


def simulate(
    spectrum: Spectrum,
    noise: Noise,
    modes: Modes,
    state: State,
    step_size: StepSize,
    steps: int,
    record: Any,
    projection: Literal["dominant", "bulk"] | None,
    replicas: int,
    seed: int,
    keep_gradient: bool,
) -> Paths:
    """Step-by-step runs; see `Quadratic.simulate`."""
    steps = whole_number("steps", steps, least=0)
    when = np.arange(steps + 1) if record is None else read_times(record, "record")
    if when[-1] > steps:
        raise InvalidArgument("record", int(when[-1]), f"must not exceed the number of steps, {steps}")
    if projection not in (None, "dominant", "bulk"):
        raise InvalidArgument("projection", projection, 'must be "dominant", "bulk" or None')
    ensemble = Ensemble.of(spectrum, noise, modes, state, replicas, keep_gradient)
    return _Stepper(ensemble, step_size, projection, seed).run(when, keep_gradient)


class _Stepper:
    """The runs in progress: leads of all rows, and their weighted sums, updated chunk by chunk."""

    def __init__(self, ensemble: Ensemble, step_size: StepSize, projection: str | None, seed: int) -> None:
        modes = ensemble.modes
        self.ensemble = ensemble
        self.step_size = step_size if callable(step_size) else as_step_size(step_size)
        if isinstance(self.step_size, np.ndarray) and self.step_size.ndim:
            raise InvalidArgument("step_size", step_size, "must be one number, or a function of the state")
        self.lead = ensemble.start.copy()
        self.chunks = ensemble.streams(seed, _CHUNK)
        height = max(part.stop - part.start for part, _ in self.chunks)
        self.scratch = np.empty((height, modes.eigenvalues.size))  # once: fresh memory costs as much as the normals
        moving = np.ones(modes.eigenvalues.size)
        if projection is not None:
            dominant = np.arange(moving.size) < modes.cut
            moving = np.where(dominant == (projection == "dominant"), 1.0, 0.0)
        self.rate = moving * modes.eigenvalues  # what a unit step moves, per block
        self.root = _root(modes.covariance)
        self.noise = modes.curvature_moments(modes.variances)
        self.sums = np.empty((self.lead.shape[0], 8))
        # Squared leads of a subspace times this: the energy, its loss, and the first and second moment.
        with np.errstate(over="ignore", invalid="ignore"):
            powers = [modes.eigenvalues**p for p in (0, 1, 2)]
            # Transposed from contiguous rows: BLAS multiplies by it several times faster than by columns.
            self.weights = np.stack([powers[0], modes.loss_weights, *powers[1:]]).T
            self._add_up(slice(None), np.square(self.lead))

    def _add_up(self, rows: slice, squares: Array) -> None:
        """Per subspace, so that one that overflows leaves the other's sums alone."""
        cut = self.ensemble.modes.cut
        self.sums[rows, :4] = squares[:, :cut] @ self.weights[:cut]
        self.sums[rows, 4:] = squares[:, cut:] @ self.weights[cut:]

    def run(self, when: npt.NDArray[np.int64], keep_gradient: bool) -> Paths:
        rows, blocks = self.lead.shape
        sums = np.empty((rows, when.size, 4))
        taken = np.full((rows, when.size), np.nan)
        gradient = np.empty((rows, when.size, blocks)) if keep_gradient else None
        slot = {int(t): i for i, t in enumerate(when)}
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for step in range(int(when[-1]) + 1):
                index = slot.get(step)
                if index is not None:
                    sums[:, index] = self.sums[:, [0, 4, 1, 5]]
                    if gradient is not None:
                        gradient[:, index] = self.lead
                if step == when[-1]:
                    break
                eta = self._step_size(step)
                if index is not None:
                    taken[:, index] = eta
                self._advance(eta)
        return self.ensemble.paths(when, sums, taken, gradient)

    def _step_size(self, step: int) -> Array:
        rows = self.lead.shape[0]
        if not callable(self.step_size):
            return np.broadcast_to(self.step_size, (rows,))
        shape = (self.ensemble.replicas, *self.ensemble.batch)
        columns = [column.reshape(shape) for column in self.sums.T]
        split = SplitMoments(
            SubspaceMoments(CurvatureMoments(columns[0], columns[2], columns[3]), self.noise[0]),
            SubspaceMoments(CurvatureMoments(columns[4], columns[6], columns[7]), self.noise[1]),
        )
        value = self.step_size(SimulationState(step, split, columns[1] + columns[5]))
        try:
            return np.broadcast_to(as_step_size(value), shape).reshape(rows)
        except InvalidArgument as error:
            remedy = "must be finite and not negative; handle regimes without a critical step in the rule"
            raise InvalidArgument(f"step_size at step {step}", error.value, remedy) from None
        except ValueError:
            raise InvalidArgument(f"step_size at step {step}", np.shape(value), f"must broadcast to {shape}") from None

    def _advance(self, eta: Array) -> None:
        several, modes = self.ensemble.chi_square, self.ensemble.modes
        shape = (modes.multiplicities[several] - 1) / 2
        for part, rng in self.chunks:
            lead = self.lead[part]
            move = self.scratch[: lead.shape[0]]
            rng.standard_normal(out=move)
            if self.root is None:
                move *= self.ensemble.deviation
            else:
                move[...] = move @ self.root.T
            move += lead
            move *= self.rate
            move *= eta[part, None]
            lead -= move
            if several.size:
                rest = 2.0 * rng.standard_gamma(shape, size=(lead.shape[0], several.size))
                spread = np.square(eta[part, None] * self.rate[several] * self.ensemble.deviation[several])
                lead[:, several] = np.sqrt(np.square(lead[:, several]) + spread * rest)
            np.square(lead, out=move)
            self._add_up(part, move)


def _root(covariance: Array | None) -> Array | None:
    if covariance is None:
        return None
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return joint_root(deviation, covariance / deviation[:, None] / deviation)
