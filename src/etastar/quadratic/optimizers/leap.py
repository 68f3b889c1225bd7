"""Many steps of a linear update taken at once: the one piece of mathematics behind curves, turns and samples.

After s steps the state of a mode is z' = P·z + noise of covariance S; a leap (P_a, S_a) and then (P_b, S_b) make
(P_b·P_a, P_b·S_a·P_bᵀ + S_b). Doubling gives any s in O(log s) with nothing to divide by and no eigenvectors, so
that defective and complex points are like any other, and spreads are sums of positive terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Leap", "Leaps", "congruence"]

Array = npt.NDArray[np.float64]
_VANISHING = 1e-155  # its square is no normal number; arithmetic on those is a hundred times slower


@dataclass(frozen=True, slots=True)
class Leap:
    """Some steps at once, with energies divided by e^(growth·steps); the last axis (or two) are modes.

    Attributes:
        power: P, ``(size, size, *batch, modes)``.
        spread: S, the same shape; ``(size, size, *batch, modes, modes)`` where noise correlates modes.
        fade: e^(−growth·steps), ``(*batch, 1)``: what becomes of the unit in which energies are counted.
    """

    power: Array
    spread: Array
    fade: Array

    def after(self, first: Leap) -> Leap:
        """`first`, and then this one."""
        joint = self.spread.ndim > self.power.ndim
        spread = congruence(self.power, first.spread, joint)
        spread += self.spread * (first.fade[..., None] if joint else first.fade)
        return Leap(_product(self.power, first.power), spread, self.fade * first.fade)

    @property
    def batched(self) -> Leap:
        """The same with a batch axis of one."""
        return Leap(self.power[:, :, None], self.spread[:, :, None], self.fade)

    def __getitem__(self, index: npt.NDArray[np.intp] | slice) -> Leap:
        return Leap(self.power[:, :, index], self.spread[:, :, index], self.fade[index])


class Leaps:
    """Leaps of any numbers of steps of one update, on modes ``(modes,)``.

    Args:
        lag: T − I, ``(size, size, modes)``.
        injection: The state per unit of noise of one step, ``(size, modes)``.
        noise: Variances ``(modes,)`` of the noise, or its covariance ``(modes, modes)``.
        growth: Energies are divided by e^(growth·steps), so that none overflows.
    """

    def __init__(self, lag: Array, injection: Array, noise: Array, growth: float = 0.0) -> None:
        shrunk = np.exp(-0.5 * growth)
        diagonal = np.arange(len(lag))
        power = shrunk * lag
        power[diagonal, diagonal] += np.expm1(-0.5 * growth)
        self._lag = _small(power[diagonal, diagonal])
        power[diagonal, diagonal] += 1.0
        added = shrunk * injection
        right = added if noise.ndim == 1 else added[:, None, :]
        left = added if noise.ndim == 1 else added[..., None]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            spread = left[:, None] * right[None] * noise
        self._growth = max(growth, 0.0)
        self._doublings = [Leap(power, spread, np.array([np.exp(-self._growth)]))]

    def at(self, steps: npt.NDArray[np.int64]) -> Leap:
        """The leaps of increasing numbers of steps ≥ 0, ``(count,)``, which becomes the batch axis."""
        if steps.size > 2 and np.all(np.diff(steps) == steps[1] - steps[0]):
            table, unit = self.at(steps[:1]), int(steps[1] - steps[0])
            while table.fade.size < steps.size:  # as many again, that much later
                more = self._one(table.fade.size * unit).batched.after(table)
                power = np.concatenate([table.power, more.power], axis=2)
                spread = np.concatenate([table.spread, more.spread], axis=2)
                table = Leap(power, spread, np.concatenate([table.fade, more.fade]))
            return table[slice(0, steps.size)]
        first = self._doublings[0]
        size, count = len(first.power), steps.size
        unit = np.broadcast_to(np.eye(size)[..., None, None], (size, size, count, first.power.shape[-1]))
        result = Leap(unit.copy(), np.zeros((size, size, count, *first.spread.shape[2:])), np.ones((count, 1)))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for level in range(int(steps.max()).bit_length()):
                chosen = np.flatnonzero(steps >> level & 1)
                if chosen.size:
                    moved = self._doubling(level).batched.after(result[chosen])
                    result.power[:, :, chosen], result.spread[:, :, chosen] = moved.power, moved.spread
                    result.fade[chosen] = moved.fade
        return result

    def moments(self, starts: Array, steps: npt.NDArray[np.int64]) -> Array:
        """Second moments ``(size, size, rows, count, modes)`` after increasing `steps`, from ``(…, rows, modes)``."""
        apart = np.diff(steps, prepend=0)
        if steps[0] == 0 and steps.size > 2 and np.all(apart[1:] == apart[1]):
            table = starts[:, :, :, None]
            while table.shape[3] < steps.size:
                count = min(table.shape[3], steps.size - table.shape[3])
                later = self._moved(table[:, :, :, :count], steps[:count], int(table.shape[3] * apart[1]))
                table = np.concatenate([table, later], axis=3)
            return table
        result = np.repeat(starts[:, :, :, None], steps.size, axis=3)
        for level in range(int(steps.max()).bit_length()):
            chosen = np.flatnonzero(steps >> level & 1)
            if chosen.size:
                before = steps[chosen] & ((1 << level) - 1)
                result[:, :, :, chosen] = self._moved(result[:, :, :, chosen], before, 1 << level)
        return result

    def _moved(self, moments: Array, taken: npt.NDArray[np.int64], steps: int) -> Array:
        """Second moments after so many further steps, `taken` before them."""
        leap = self._one(steps).batched
        moved = congruence(leap.power[:, :, None], moments)
        moved += leap.spread[:, :, None] * self.fade(taken)
        return moved

    def _one(self, steps: int) -> Leap:
        """The leap of `steps` ≥ 1 steps, without a batch axis."""
        levels = [level for level in range(steps.bit_length()) if steps >> level & 1]
        result = self._doubling(levels[0])
        for level in levels[1:]:
            result = self._doubling(level).after(result)
        return result

    def fade(self, steps: npt.NDArray[np.int64]) -> Array:
        """e^(−growth·steps), ``(count, 1)``."""
        return np.exp(-self._growth * steps)[:, None]

    def _doubling(self, level: int) -> Leap:
        """2^level steps. The diagonal of P − I is kept beside P, so that slow modes keep their digits."""
        while len(self._doublings) <= level:
            half = self._doublings[-1]
            whole = half.after(half)
            diagonal = np.arange(len(half.power))
            others = half.power * (1.0 - np.eye(len(diagonal)))[..., None]
            exchanged = np.einsum("ij...,ji...->i...", others, half.power)
            self._lag = _small(2.0 * self._lag + self._lag * self._lag + exchanged)
            known = np.isfinite(self._lag)
            whole.power[diagonal, diagonal] = np.where(known, 1.0 + self._lag, whole.power[diagonal, diagonal])
            whole.power[np.abs(whole.power) < _VANISHING] = 0.0
            self._doublings.append(whole)
        return self._doublings[level]


def _small(lag: Array) -> Array:
    """The diagonal of P − I while it is small; NaN from then on, since its errors may grow faster than those of P."""
    return np.where(np.abs(lag) < 0.5, lag, np.nan)


def congruence(power: Array, spread: Array, joint: bool = False) -> Array:
    """P·S·Pᵀ; with `joint`, P of each pair of modes from its left and from its right."""
    left, right = (power[..., None], power[..., None, :]) if joint else (power, power)
    return _product(_product(left, spread), np.swapaxes(right, 0, 1))


def _product(left: Array, right: Array) -> Array:
    return np.einsum("ij...,jk...->ik...", left, right)
