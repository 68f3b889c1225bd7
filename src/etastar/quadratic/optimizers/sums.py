"""Expected sums of a linear update at any times: leaps to every hi + lo, contracted by matrix products.

A time is split as hi + lo, with at most 64 different los. States after lo steps and the weights of the sums
carried back over hi steps meet in a matrix product, so that T times cost far less than T leaps. Memory does not
grow with the blocks times the times.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etastar.quadratic.arguments import Times
from etastar.quadratic.modes import Modes
from etastar.quadratic.optimizers.frame import Frame
from etastar.quadratic.optimizers.leap import Leap, Leaps
from etastar.quadratic.optimizers.observables import POWERS, Observable, observables

__all__ = ["expected_sums"]

Array = npt.NDArray[np.float64]
_VANISHING = 1e-300  # arithmetic on subnormal numbers is a hundred times slower
Seen = tuple[Observable, Array]  # and its weights
_LOW = 64  # different los
_HIGH = 32  # his at a time
_BLOCKS = 1024  # blocks at a time
_STATES = 1 << 21  # numbers that the states of a group of rows after all los may take


def expected_sums(modes: Modes, frame: Frame, starts: Array, times: Times, growth: float) -> Array:
    """Sums over the dominant and the bulk blocks, over e^(growth·t), ``(2, columns, rows, T)``.

    Args:
        modes: The blocks.
        frame: The update on them.
        starts: Second moments of the state at time 0, summed over each block, ``(size, size, rows, blocks)``.
        times: Strictly increasing, ``(T,)``.
        growth: At least the growth of every block that holds energy or noise; below zero only without noise.
    """
    order = np.argsort([c for o in observables(frame.gradient, frame.direction) for c in o.columns])
    result = np.zeros((2, order.size, starts.shape[2], times.size))
    parts = (slice(0, modes.cut), slice(modes.cut, modes.eigenvalues.size))
    # Eigenvalues in units of the largest of their subspace, so that no power of them overflows.
    units = [int(np.frexp(np.abs(modes.eigenvalues[part]).max())[1]) for part in parts]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for first in range(0, modes.eigenvalues.size, _BLOCKS):
            blocks = slice(first, min(first + _BLOCKS, modes.eigenvalues.size))
            cut = int(np.clip(modes.cut - first, 0, blocks.stop - first))
            piece, unit = frame[blocks], np.repeat(units, [cut, blocks.stop - first - cut])
            eigenvalues = np.ldexp(modes.eigenvalues[blocks], -unit)
            seen = [(o, o.weights(eigenvalues)) for o in observables(piece.gradient, piece.direction)]
            leaps = piece.leaps(modes.variances[blocks], growth)
            inside = [(result[0], slice(0, cut)), (result[1], slice(cut, unit.size))]
            inside = [(total, part) for total, part in inside if part.start < part.stop]
            _contract(leaps, seen, inside, starts[..., blocks], times)
        scale = np.outer(units, POWERS[: order.size])[..., None, None]
        return np.ldexp(result[:, order], scale)


def _contract(leaps: Leaps, seen: list[Seen], parts: list[tuple[Array, slice]], starts: Array, times: Times) -> None:
    """Add the sums over each part of the modes to its total ``(columns, rows, T)``, columns in the order of `seen`."""
    span = _LOW * max(1, int(np.gcd.reduce(times)))
    high, first = np.unique(times // span, return_index=True)
    low, which = np.unique(times % span, return_inverse=True)
    ends = np.append(first[1:], times.size)
    height = max(1, _STATES // (low.size * starts.shape[0] ** 2 * starts.shape[-1]))
    groups = [slice(top, top + height) for top in range(0, starts.shape[2], height)]
    fade = leaps.fade(low)
    for group in groups:
        moved = leaps.moments(starts[:, :, group], low)
        moved[np.abs(moved) < _VANISHING] = 0.0
        states = [_packed(moved[..., part]) for _, part in parts]
        for begin in range(0, high.size, _HIGH):
            highs = leaps.at(high[begin : begin + _HIGH] * span)
            for state, (total, part) in zip(states, parts, strict=True):
                carried, accrued = _carried(highs, seen, part)
                for index, weights in enumerate(carried, begin):
                    window = slice(first[index], ends[index])
                    there = which[window]
                    inputs = state if there.size == low.size else state[:, there]
                    sums = (inputs.reshape(-1, weights.shape[1]) @ weights.T).reshape(len(inputs), there.size, -1)
                    sums += fade[there] * accrued[index - begin]
                    total[:, group, window] += sums.transpose(2, 0, 1)


def _packed(symmetric: Array) -> Array:
    """The upper triangle of symmetric matrices ``(size, size, *batch, blocks)`` as ``(*batch, pairs·blocks)``."""
    *batch, blocks = symmetric.shape[2:]
    pairs = _pairs(len(symmetric))
    packed = np.empty((*batch, len(pairs), blocks))
    for place, pair in enumerate(pairs):
        packed[..., place, :] = symmetric[pair]
    return packed.reshape(*batch, -1)


def _carried(leap: Leap, seen: list[Seen], part: slice) -> tuple[Array, Array]:
    """The weights of packed states before each leap, and what its noise adds, on some of the modes.

    Shapes ``(leaps, columns, pairs·modes)`` and ``(leaps, columns)``.
    """
    power, spread = leap.power[..., part], leap.spread[..., part]
    size, _, count, blocks = power.shape
    pairs, columns = _pairs(size), sum(weight.shape[1] for _, weight in seen)
    carried, accrued = np.empty((count, columns, len(pairs), blocks)), np.empty((count, columns))
    first = 0
    for observable, every in seen:
        weight = every[part]
        left = _before(observable.left[:, part], power)
        right = left if observable.right is observable.left else _before(observable.right[:, part], power)
        for place, (i, j) in enumerate(pairs):
            form = left[i] * right[j] if i == j else left[i] * right[j] + left[j] * right[i]
            for column, factor in enumerate(weight.T, first):
                np.multiply(form, factor, out=carried[:, column, place])
        here = slice(first, first + weight.shape[1])
        noise = _before(observable.right[:, part], _before(observable.left[:, part], spread))
        accrued[:, here] = noise @ weight
        first = here.stop
    return carried.reshape(count, columns, -1), accrued


def _pairs(size: int) -> list[tuple[int, int]]:
    """Indices of the upper triangle."""
    return [(i, j) for i in range(size) for j in range(i, size)]


def _before(row: Array, matrices: Array) -> Array:
    """Σ_i row_i·matrices_i over the first axis, per mode."""
    total: Array = row[0] * matrices[0]
    for entry, matrix in zip(row[1:], matrices[1:], strict=True):
        if np.any(entry):
            total += entry * matrix
    return total
