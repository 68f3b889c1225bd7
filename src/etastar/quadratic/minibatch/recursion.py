"""The closed linear recursion of second moments with momentum: per block a symmetric matrix, coupled by the loss.

P' = T P Tᵀ + f fᵀ·κ², κ² = (E g² + μλ(Σ E g²/λ + s²))/b (theory §7), with T and f those of the optimizer. A step is
O(blocks); long gaps between times are leapt over by powers of the whole map. Numbers carry an exponent of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from etastar.quadratic.arguments import Times
from etastar.quadratic.modes import Modes
from etastar.quadratic.optimizers.rules import Update

__all__ = ["run"]

Array = npt.NDArray[np.float64]
_STEPS = 1000  # a gap beyond it is leapt over …
_DENSE = 2000  # … if the map has at most as many rows
_RANGE = 100  # binary exponents that a state may drift before it is scaled back


@dataclass(frozen=True)
class _Map:
    """One step of the second moments of the state, summed over blocks: packed triangles, then the constant 1."""

    modes: Modes
    batch_size: int
    label: float
    eta: float
    update: Update

    @cached_property
    def transfer(self) -> Array:
        """T, ``(size, size, blocks)``."""
        return self.update.lag(self.eta * self.modes.eigenvalues) + np.eye(self.update.size)[..., None]

    @cached_property
    def fed(self) -> Array:
        """What a unit of noise adds, f fᵀ, ``(size, size, blocks)``."""
        added = self.update.injection(self.eta * self.modes.eigenvalues)
        return np.einsum("i...,j...->ij...", added, added)

    @cached_property
    def triangle(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Indices of the pairs that a packed state holds; the first is E g²."""
        return np.triu_indices(self.update.size)

    @property
    def size(self) -> int:
        """Entries of a state."""
        return len(self.triangle[0]) * self.modes.eigenvalues.size + 1

    def unpack(self, state: Array) -> Array:
        """Symmetric matrices ``(size, size, rows, blocks)`` of states ``(rows, entries)``."""
        count = self.update.size
        matrix = np.empty((count, count, len(state), self.modes.eigenvalues.size))
        pairs = state[:, :-1].reshape(len(state), -1, self.modes.eigenvalues.size).swapaxes(0, 1)
        matrix[self.triangle] = pairs
        matrix[self.triangle[::-1]] = pairs
        return matrix

    def pack(self, matrix: Array, constant: Array) -> Array:
        """Inverse of `unpack`."""
        pairs = matrix[self.triangle].swapaxes(0, 1)
        return np.concatenate([pairs.reshape(len(constant), -1), constant[:, None]], axis=1)

    def step(self, state: Array) -> Array:
        """The states after one step."""
        modes, P, constant = self.modes, self.unpack(state), state[:, -1]
        residual = P[0, 0] @ (2.0 * modes.loss_weights) + self.label * constant
        variances = (P[0, 0] + residual[:, None] * (modes.multiplicities * modes.eigenvalues)) / self.batch_size
        carried = np.einsum("ik...,klr...->ilr...", self.transfer, P)
        moved = np.einsum("ilr...,jl...->ijr...", carried, self.transfer)
        # Without label noise the constant feeds nothing, and must not set the scale of powers either.
        return self.pack(moved + self.fed[:, :, None] * variances, constant if self.label > 0 else 0.0 * constant)


class _Powers:
    """Powers of the map by squaring, each with a binary exponent."""

    def __init__(self, single: _Map) -> None:
        self.known = [_scaled(single.step(np.eye(single.size)))]

    def leap(self, state: Array, exponent: npt.NDArray[np.int64], steps: int) -> tuple[Array, npt.NDArray[np.int64]]:
        bit = 0
        while steps:
            if bit == len(self.known):
                matrix, power = self.known[-1]
                squared, more = _scaled(matrix @ matrix)
                self.known.append((squared, 2 * power + more))
            if steps & 1:
                matrix, power = self.known[bit]
                state, exponent = _settled(state @ matrix, exponent + power)
            steps, bit = steps >> 1, bit + 1
        return state, exponent


def run(
    modes: Modes, batch_size: int, label: float, rows: Array, eta: float, times: Times, update: Update
) -> tuple[Array, Array]:
    """Sums over both subspaces ``(2, 8, rows, T)`` over e^exponent, ``(rows, T)``.

    The columns: of E g² energy, loss, first and second moment; of E gh and of E h² zeroth and first, and second.
    """
    single = _Map(modes, batch_size, label, eta, update)
    constant = np.full(len(rows), 1.0 if label > 0 else 0.0)
    begin = np.multiply.outer(np.outer(update.start, update.start), rows)
    state, exponent = _settled(single.pack(begin, constant), np.zeros(len(rows), dtype=np.int64))
    powers: _Powers | None = None
    sums = np.empty((2, 8, len(rows), times.size))
    scale = np.empty((len(rows), times.size))
    for index, gap in enumerate(np.diff(times, prepend=0)):
        if gap > _STEPS and single.size <= _DENSE:
            powers = powers or _Powers(single)
            state, exponent = powers.leap(state, exponent, int(gap))
        else:
            for _ in range(int(gap)):
                state, exponent = _settled(single.step(state), exponent)
        sums[..., index], scale[:, index] = _observed(modes, update, single.unpack(state)), exponent
    return sums, scale * np.log(2.0)


def _observed(modes: Modes, update: Update, P: Array) -> Array:
    """The sums of one time, ``(2, 8, rows)``."""
    g, h = update.gradient, update.direction
    assert h is not None  # noqa: S101 (for the type checker: only momentum comes here)
    ones, lam = np.ones_like(modes.eigenvalues), modes.eigenvalues
    columns: list[tuple[Array, Array, list[Array]]] = [
        (g, g, [ones, modes.loss_weights, lam, lam * lam]),
        (g, h, [ones, lam]),
        (h, h, [lam, lam * lam]),
    ]
    found: list[Array] = []
    for left, right, factors in columns:
        moment = np.einsum("i,ij...,j->...", left, P, right)
        found += [np.stack(modes.total(moment * factor)) for factor in factors]
    return np.stack(found, axis=1)


def _scaled(matrix: Array) -> tuple[Array, int]:
    _, exponent = np.frexp(np.abs(matrix).max())
    return np.ldexp(matrix, -exponent), int(exponent)


def _settled(state: Array, exponent: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.int64]]:
    """The same states with an exponent each, scaled back where they drifted far; the constant goes along."""
    _, drift = np.frexp(np.abs(state).max(axis=1))
    if np.all(np.abs(drift) < _RANGE):
        return state, exponent
    return np.ldexp(state, -drift[:, None]), exponent + drift
