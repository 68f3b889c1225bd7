"""Runs of SGD on fresh batches of Gaussian rows, step by step, exact in law and at a cost free of the batch size.

Given the residuals r ~ N(0, T) of a batch, with T = xᵀHx + s², q = H^½x and χ² = ‖r‖²/T of b degrees of freedom,
g_B = (χ²/b)·g + (√(Tχ²)/b)·H^½n with n ~ N(0, I − qqᵀ/T): one χ² and a normal per mode instead of b rows. A block
of μ equal eigenvalues needs its leads alone (see ``paths``), the rest of it one more χ².
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import whole_number
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.optimizers.observables import split_of_blocks
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.paths import Ensemble, Paths, lead_triangle
from etastar.quadratic.stepping import Stepper, StepSize

__all__ = ["simulate"]

Array = npt.NDArray[np.float64]


def simulate(
    modes: Modes,
    noise: MinibatchNoise,
    state: State,
    step_size: StepSize,
    steps: int,
    record: Any = None,
    projection: Literal["dominant", "bulk"] | None = None,
    replicas: int = 1,
    seed: int = 0,
    keep_gradient: bool = False,
    update: Update = PLAIN,
) -> Paths:
    """Independent runs, as `Quadratic.simulate` has them; `keep_gradient` needs a state given mode by mode.

    Raises:
        InvalidArgument: A bad argument, or an averaged iterate.
    """
    noise.check(modes.eigenvalues, update.averaging)
    ensemble = _layout(modes, state, replicas, keep_gradient, update)
    return _Runs(ensemble, noise, step_size, projection, seed).run(steps, record, keep_gradient)


def _layout(modes: Modes, state: State, replicas: int, by_mode: bool, update: Update) -> Ensemble:
    replicas = whole_number("replicas", replicas, least=1)
    lead = np.sqrt(state.energy)
    if by_mode or (state.gradient is not None and np.all(modes.multiplicities == 1)):
        if state.gradient is None:
            raise InvalidArgument("energy", "block energies", "a record mode by mode needs gradient=")
        lead, counts = state.gradient, modes.multiplicities
        single = np.ones(lead.shape[-1], dtype=np.int64)
        zero = np.zeros(lead.shape[-1])
        modes = Modes(np.repeat(modes.eigenvalues, counts), single, zero, int(counts[: modes.cut].sum()), True)
    flat = lead.reshape(-1, lead.shape[-1])
    start = np.broadcast_to(flat, (replicas, *flat.shape)).reshape(-1, flat.shape[-1])
    return Ensemble(modes, start, replicas, state.batch, np.zeros(flat.shape[-1]), update)


class _Runs(Stepper):
    """With the noise of mini-batches: leads of gradient and buffer."""

    def __init__(
        self, ensemble: Ensemble, noise: MinibatchNoise, step_size: StepSize, projection: str | None, seed: int
    ) -> None:
        super().__init__(ensemble, step_size, projection)
        self.noise, self.root = noise, np.sqrt(ensemble.modes.eigenvalues)
        self.rng = np.random.Generator(np.random.SFC64(whole_number("seed", seed, least=0)))
        self.inverse = np.divide(1.0, self.root, out=np.zeros_like(self.root), where=self.root > 0)

    def totals(self) -> Array:
        """See `Stepper`."""
        modes = self.ensemble.modes
        energy = _inner(self.state[0], self.state[0])
        return np.stack([*modes.total(energy), *modes.total(energy * modes.loss_weights)], axis=-1)

    def moments(self, shape: tuple[int, ...]) -> tuple[SplitMoments, Array]:
        """See `Stepper`."""
        modes, update = self.ensemble.modes, self.ensemble.update
        g, h = (np.tensordot(row, self.state, 1) for row in (update.gradient, _direction(update)))
        gg, gh, hh = (_inner(a, b).reshape(*shape, -1) for a, b in ((g, g), (g, h), (h, h)))
        variances = self.noise.variances_at(modes.eigenvalues, modes.multiplicities, gg)
        split = split_of_blocks(replace(modes, variances=variances), update, gg, gh, hh)
        return split, gg @ modes.loss_weights

    def advance(self, eta: Array) -> None:
        """See `Stepper`."""
        ensemble, rng, b = self.ensemble, self.rng, self.noise.batch_size
        update, counts, (size, columns, rows, blocks) = ensemble.update, ensemble.modes.multiplicities, self.state.shape
        q = self.state[0] * self.inverse
        T = np.einsum("crb,crb->r", q, q) + self.noise.label_variance
        spread = rng.chisquare(b, rows)
        # n less its part along q, (1 − √(s²/T))/(xᵀHx) of it: without the cancellation near the minimum.
        root = np.sqrt(np.divide(self.noise.label_variance, T, out=np.ones(rows), where=T > 0))
        less = np.divide(1.0, T * (1.0 + root), out=np.zeros(rows), where=T > 0)
        n = rng.standard_normal((columns, rows, blocks))
        for column in range(1, columns):
            n[column][:, ensemble.absent(column)] = 0.0
        along, scale = np.einsum("crb,crb->r", q, n), np.sqrt(T * spread) / b
        batch = self.state[0] * (spread / b - scale * less * along)[:, None] + scale[:, None] * self.root * n
        rest = np.zeros((size, 1, rows, blocks))
        if columns > 1 or ensemble.chi_square.size:
            free = rng.standard_gamma(np.maximum(counts - columns, 0) / 2, size=(rows, blocks))
            rest[0, 0] = scale[:, None] * self.root * np.sqrt(2.0 * free)
            batch = np.concatenate([batch, rest[0]])
            self.state = np.concatenate([self.state, np.zeros_like(rest)], axis=1)
        h = update.fresh * batch
        if update.memory is not None:
            h += update.stale * self.state[1]
            self.state[1] *= update.memory
            self.state[1] += batch
        self.state[0] -= eta[:, None] * self.rate * h
        if self.state.shape[1] > columns:
            self.state = lead_triangle(self.state)


def _direction(update: Update) -> Array:
    return update.gradient if update.direction is None else update.direction


def _inner(left: Array, right: Array) -> Array:
    """Per block, of vectors given by their columns ``(columns, rows, blocks)``."""
    return np.einsum("crb,crb->rb", left, right)
