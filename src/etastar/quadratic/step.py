"""Stepping, for step sizes that depend on the state and for updates projected on one subspace.

DSGD and BSGD are the paper's eq. 3 and 4; ``lambda state: c * state.critical_step_size.value`` steps at c·η*_t.
One step of every run costs one normal per block and a few passes over it while it is in the cache.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.moments import SplitMoments
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.observables import Observable, observables, split_of, update_noise
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.paths import Ensemble, Paths, joint_root, lead_triangle
from etastar.quadratic.spectrum import Spectrum
from etastar.quadratic.stepping import Stepper, StepSize

__all__ = ["simulate"]

Array = npt.NDArray[np.float64]
_CHUNK = 32768  # numbers updated at a time, so that a chunk stays in the cache


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
    ensemble = Ensemble.of(spectrum, noise, modes, state, replicas, keep_gradient, update)
    return _Stepper(ensemble, step_size, projection, seed).run(steps, record, keep_gradient)


class _Stepper(Stepper):
    """With additive noise: states of all rows, and their weighted sums, updated chunk by chunk."""

    def __init__(self, ensemble: Ensemble, step_size: StepSize, projection: str | None, seed: int) -> None:
        super().__init__(ensemble, step_size, projection)
        modes = ensemble.modes
        self.several = ensemble.chi_square
        self.shape = np.maximum(modes.multiplicities[self.several] - ensemble.columns, 0) / 2
        self.absent = [(column, ensemble.absent(column)) for column in range(1, ensemble.columns)]
        self.chunks = ensemble.streams(seed, _CHUNK)
        height = max(part.stop - part.start for part, _ in self.chunks)
        # Once: fresh memory costs as much as the normals.
        self.scratch = np.empty((ensemble.columns, height, modes.eigenvalues.size))
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

    def totals(self) -> Array:
        """See `Stepper`."""
        return self.sums[:, :2].swapaxes(0, 1).reshape(4, -1).T

    def moments(self, shape: tuple[int, ...]) -> tuple[SplitMoments, Array]:
        """See `Stepper`."""
        sums = self.sums.reshape(2, -1, *shape)
        return split_of(self.noise, self.ensemble.update, *sums.copy()), sums[0, 1] + sums[1, 1]

    def advance(self, eta: Array) -> None:
        """See `Stepper`."""
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
