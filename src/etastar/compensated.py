"""Sums of products in twice the working precision, with exponents kept apart so that nothing overflows.

The criteria are differences of products of moments that differ by hundreds of orders of magnitude and
cancel near the borders they report. Dot2 (Ogita, Rump, Oishi 2005, doi:10.1137/030601818) on mantissas
from ``frexp`` makes such a difference accurate to round-off until its condition number reaches 1/ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Scaled", "aligned", "dot", "share"]

Array = npt.NDArray[np.float64]
_SPLITTER = 134217729.0  # 2**27 + 1, Veltkamp
_NO_EXPONENT = -(1 << 20)  # below every exponent that a product of two doubles can have


@dataclass(frozen=True, slots=True)
class Scaled:
    """Numbers `mantissa`·2^`exponent`, with the sum of absolute terms they came from at the same scale."""

    mantissa: Array
    exponent: npt.NDArray[np.int64]
    magnitude: Array

    @property
    def condition(self) -> Array:
        """Sum of absolute terms over absolute sum: 1 without cancellation (or terms), inf when all cancels."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(self.magnitude == 0, 1.0, self.magnitude / np.abs(self.mantissa))

    def to_float(self) -> Array:
        """As float64: overflows to ±inf, underflows to zero."""
        return _shift(self.mantissa, self.exponent)

    def __mul__(self, other: Scaled) -> Scaled:
        mantissa = self.mantissa * other.mantissa
        return Scaled(mantissa, self.exponent + other.exponent, np.abs(mantissa))

    def __truediv__(self, other: Scaled) -> Scaled:
        """NaN where `other` is zero."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            mantissa = np.where(other.mantissa == 0, np.nan, self.mantissa / other.mantissa)
        return Scaled(mantissa, self.exponent - other.exponent, np.abs(mantissa))


def dot(*terms: tuple[Any, Any], shifts: Sequence[Any] | None = None) -> Scaled:
    """Σ aᵢ·bᵢ over the given pairs, element by element; arguments broadcast. NaN where an input is not finite.

    Args:
        terms: The pairs.
        shifts: Binary exponents eᵢ: sums aᵢ·bᵢ·2^eᵢ, so that a third factor cannot leave float64's range.
    """
    shifts = (0,) * len(terms) if shifts is None else shifts
    shape = np.broadcast_shapes(*(np.shape(factor) for term in terms for factor in term), *map(np.shape, shifts))
    highs: list[Array] = []
    lows: list[Array] = []
    exponents: list[npt.NDArray[np.int64]] = []
    for (a, b), shift in zip(terms, shifts, strict=True):
        high, low, exponent = _product(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        highs.append(high)
        lows.append(low)
        exponents.append(np.where(high == 0, _NO_EXPONENT, exponent + shift))
    top = np.broadcast_to(np.maximum.reduce([np.broadcast_to(e, shape) for e in exponents]), shape)
    top = np.where(top == _NO_EXPONENT, 0, top)
    total, error, magnitude = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for high, low, exponent in zip(highs, lows, exponents, strict=True):
        term = _shift(high, exponent - top)
        total, rounding = _two_sum(total, term)
        error = error + (rounding + _shift(low, exponent - top))
        magnitude = magnitude + np.abs(term)
    return Scaled(total + error, top, magnitude)


def aligned(*numbers: Scaled) -> list[Array]:
    """Their mantissas at one exponent, that of the largest: proportions stay, and nothing overflows."""
    top = np.maximum.reduce(
        np.broadcast_arrays(*(np.where(n.mantissa == 0, _NO_EXPONENT, n.exponent) for n in numbers))
    )
    return [_shift(n.mantissa, n.exponent - top) for n in numbers]


def share(part: Scaled, rest: Scaled) -> Array:
    """Part / (part + rest) as float64; NaN where the whole is zero."""
    top, bottom = aligned(part, rest)
    whole = top + bottom
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(whole == 0, np.nan, top / whole)


def _product(a: Array, b: Array) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """The product of the mantissas as an unevaluated sum high + low, and its exponent."""
    a, exponent_a = np.frexp(np.where(np.isfinite(a), a, np.nan))
    b, exponent_b = np.frexp(np.where(np.isfinite(b), b, np.nan))
    high = a * b
    a_high = _SPLITTER * a - (_SPLITTER * a - a)
    b_high = _SPLITTER * b - (_SPLITTER * b - b)
    a_low, b_low = a - a_high, b - b_high
    low = a_low * b_low - (((high - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return high, low, exponent_a.astype(np.int64) + exponent_b


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _shift(value: Array, exponent: npt.NDArray[np.int64]) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(value, np.clip(exponent, -5000, 5000).astype(np.int32))
