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
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import read_times, whole_number
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.observables import Observable, observables, split_of, update_noise
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.paths import Ensemble, Paths, joint_root, lead_triangle
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
    update: Update = PLAIN,
) -> Paths:
    """Step-by-step runs; see `Quadratic.simulate`."""
    steps = whole_number("steps", steps, least=0)
    when = np.arange(steps + 1) if record is None else read_times(record, "record")
    if when[-1] > steps:
        raise InvalidArgument("record", int(when[-1]), f"must not exceed the number of steps, {steps}")
    if projection not in (None, "dominant", "bulk"):
        raise InvalidArgument("projection", projection, 'must be "dominant", "bulk" or None')
    ensemble = Ensemble.of(spectrum, noise, modes, state, replicas, keep_gradient, update)
    return _Stepper(ensemble, step_size, projection, seed).run(when, keep_gradient)


class _Stepper:
    """The runs in progress: states of all rows, and their weighted sums, updated chunk by chunk."""

    def __init__(self, ensemble: Ensemble, step_size: StepSize, projection: str | None, seed: int) -> None:
        modes = ensemble.modes
        self.ensemble = ensemble
        self.step_size = step_size if callable(step_size) else as_step_size(step_size)
        if isinstance(self.step_size, np.ndarray) and self.step_size.ndim:
            raise InvalidArgument("step_size", step_size, "must be one number, or a function of the state")
        self.state = ensemble.states()
        self.shown = int(np.argmax(ensemble.update.gradient))
        self.several = ensemble.chi_square
        self.shape = np.maximum(modes.multiplicities[self.several] - ensemble.columns, 0) / 2
        self.absent = [(column, ensemble.absent(column)) for column in range(1, ensemble.columns)]
        self.chunks = ensemble.streams(seed, _CHUNK)
        height = max(part.stop - part.start for part, _ in self.chunks)
        # Once: fresh memory costs as much as the normals.
        self.scratch = np.empty((ensemble.columns, height, modes.eigenvalues.size))
        moving = np.ones(modes.eigenvalues.size)
        if projection is not None:
            dominant = np.arange(moving.size) < modes.cut
            moving = np.where(dominant == (projection == "dominant"), 1.0, 0.0)
        self.rate = moving * modes.eigenvalues  # what a unit step moves, per block
        self.root = _root(modes.covariance)
        self.observables = [
            (o, o.weights(modes.eigenvalues)) for o in observables(ensemble.update.gradient, ensemble.update.direction)
        ]
        self.noise = update_noise(modes, ensemble.update)
        self.sums = np.empty((2, sum(len(o.columns) for o, _ in self.observables), self.state.shape[2]))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            self._add_up(slice(0, self.state.shape[2]))

    def _add_up(self, rows: slice, scratch: Array | None = None) -> None:
        """Per subspace, so that one that overflows leaves the other's sums alone."""
        cut, state = self.ensemble.modes.cut, self.state[:, :, rows]
        for observable, weights in self.observables:
            product = _product(observable, state, scratch)
            self.sums[0, observable.columns, rows] = (product[:, :cut] @ weights[:cut]).T
            self.sums[1, observable.columns, rows] = (product[:, cut:] @ weights[cut:]).T

    def run(self, when: npt.NDArray[np.int64], keep_gradient: bool) -> Paths:
        _, _, rows, blocks = self.state.shape
        sums = np.empty((rows, when.size, 4))
        taken = np.full((rows, when.size), np.nan)
        gradient = np.empty((rows, when.size, blocks)) if keep_gradient else None
        slot = {int(t): i for i, t in enumerate(when)}
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for step in range(int(when[-1]) + 1):
                index = slot.get(step)
                if index is not None:
                    sums[:, index] = self.sums[:, :2].swapaxes(0, 1).reshape(4, rows).T
                    if gradient is not None:
                        gradient[:, index] = self.state[self.shown, 0]
                if step == when[-1]:
                    break
                eta = self._step_size(step)
                if index is not None:
                    taken[:, index] = eta
                self._advance(eta)
        return self.ensemble.paths(when, sums, taken, gradient)

    def _step_size(self, step: int) -> Array:
        rows = self.state.shape[2]
        if not callable(self.step_size):
            return np.broadcast_to(self.step_size, (rows,))
        shape = (self.ensemble.replicas, *self.ensemble.batch)
        sums = self.sums.reshape(2, -1, *shape)
        split = split_of(self.noise, self.ensemble.update, *sums.copy())
        value = self.step_size(SimulationState(step, split, sums[0, 1] + sums[1, 1]))
        try:
            return np.broadcast_to(as_step_size(value), shape).reshape(rows)
        except InvalidArgument as error:
            remedy = "must be finite and not negative; handle regimes without a critical step in the rule"
            raise InvalidArgument(f"step_size at step {step}", error.value, remedy) from None
        except ValueError:
            raise InvalidArgument(f"step_size at step {step}", np.shape(value), f"must broadcast to {shape}") from None

    def _advance(self, eta: Array) -> None:
        several = self.several
        for part, rng in self.chunks:
            state, step = self.state[:, :, part], eta[part, None]
            noise = self.scratch[:, : step.size]
            rng.standard_normal(out=noise)
            if self.root is None:
                noise *= self.ensemble.deviation
            else:
                noise[...] = noise @ self.root.T
            for column, blocks in self.absent:
                noise[column][:, blocks] = 0.0
            self._move(state, noise, step)
            if several.size:
                rest = 2.0 * rng.standard_gamma(self.shape, size=(step.size, several.size))
                if len(state) == 1:
                    lead, spread = state[0, 0], np.square(step * self.rate[several] * self.ensemble.deviation[several])
                    lead[:, several] = np.sqrt(np.square(lead[:, several]) + spread * rest)
                else:
                    other = self._injected(step, several) * (np.sqrt(rest) * self.ensemble.deviation[several])
                    state[..., several] = lead_triangle(np.concatenate([state[..., several], other[:, None]], axis=1))
            self._add_up(part, noise[0])

    def _move(self, state: Array, noise: Array, step: Array) -> None:
        """Take the step, with `noise` ``(columns, rows, blocks)``, which is used up."""
        update, gradient = self.ensemble.update, state[0]
        noise += gradient
        if update.memory is not None:
            buffer, fresh = state[1], noise.copy()
            noise *= update.fresh
            noise += update.stale * buffer
            buffer *= update.memory
            buffer += fresh
        noise *= self.rate
        noise *= step
        gradient -= noise
        if update.averaging is not None:
            state[-1] += (1.0 - update.averaging) * (gradient - state[-1])

    def _injected(self, step: Array, blocks: npt.NDArray[np.intp]) -> Array:
        """What a unit of noise adds to the state of `blocks`, ``(size, rows, blocks)``."""
        product = step * self.rate[blocks]
        return self.ensemble.update.injection(product.ravel()).reshape(-1, *product.shape)


def _product(observable: Observable, state: Array, scratch: Array | None) -> Array:
    """The two sides of an observable multiplied and summed over the columns of leads, ``(rows, blocks)``."""
    left = _side(observable.left, state)
    right = left if observable.right is observable.left else _side(observable.right, state)
    out = scratch if len(left) == 1 else None
    product = np.multiply(left[0], right[0], out=out)
    for other, another in zip(left[1:], right[1:], strict=True):
        product += other * another
    return product


def _side(row: Array, state: Array) -> Array:
    """A row applied to the state, ``(columns, rows, blocks)``; no copy where it picks one vector."""
    chosen = np.flatnonzero(row)
    if chosen.size == 1 and row[chosen[0]] == 1.0:
        return state[chosen[0]]
    return np.einsum("i,i...->...", row, state)


def _root(covariance: Array | None) -> Array | None:
    if covariance is None:
        return None
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return joint_root(deviation, covariance / deviation[:, None] / deviation)
