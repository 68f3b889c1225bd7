"""Two arithmetics for one formula: float64 with a rigorous error bound, and fractions.

A claim is written once, against `Number`. Evaluated with `Bounded` arrays it is *screened*: every operation carries a
bound on its round-off, so a comparison answers yes, no or undecided. Evaluated with object arrays of `Fraction` it is
*decided*. Nothing is ever concluded from a bare float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bounded", "Floats", "Number", "Truth", "Undecided", "as_floats", "as_number", "exactly", "root"]

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

# One rounding is at most half of this; the other half pays for the rounding of the error term itself.
EPSILON = 2.0**-52
SLACK = 1.0 + 2.0**-50
TINY = 1e-300  # covers underflow, which only products and quotients of non-zero numbers can suffer


class Truth(Protocol):
    """The answer to a comparison, element by element: a bool array, or `Undecided` where float64 cannot tell."""

    def __and__(self, other: Any, /) -> Truth: ...
    def __or__(self, other: Any, /) -> Truth: ...
    def __invert__(self) -> Truth: ...


class Number(Protocol):
    """What formulas may do with a number: an array of `Fraction` objects or a `Bounded` array."""

    def __add__(self, other: Any, /) -> Number: ...
    def __radd__(self, other: Any, /) -> Number: ...
    def __sub__(self, other: Any, /) -> Number: ...
    def __rsub__(self, other: Any, /) -> Number: ...
    def __mul__(self, other: Any, /) -> Number: ...
    def __rmul__(self, other: Any, /) -> Number: ...
    def __truediv__(self, other: Any, /) -> Number: ...
    def __rtruediv__(self, other: Any, /) -> Number: ...
    def __pow__(self, power: int, /) -> Number: ...
    def __neg__(self) -> Number: ...
    def __abs__(self) -> Number: ...
    def __lt__(self, other: Any, /) -> Truth: ...
    def __gt__(self, other: Any, /) -> Truth: ...
    def __le__(self, other: Any, /) -> Truth: ...
    def __ge__(self, other: Any, /) -> Truth: ...
    def __getitem__(self, index: Any, /) -> Number: ...
    def sum(self, axis: int, /) -> Number:
        """Sum along an axis."""
        ...

    def max(self, axis: int, /) -> Number:
        """Largest along an axis."""
        ...

    def min(self, axis: int, /) -> Number:
        """Smallest along an axis."""
        ...


@dataclass(frozen=True, slots=True)
class Undecided:
    """Three-valued truth (Kleene): surely true, surely false, or neither.

    Attributes:
        true: Where the answer is certainly yes.
        false: Where the answer is certainly no.
    """

    true: Bools
    false: Bools

    def __and__(self, other: Undecided) -> Undecided:
        return Undecided(self.true & other.true, self.false | other.false)

    def __or__(self, other: Undecided) -> Undecided:
        return Undecided(self.true | other.true, self.false & other.false)

    def __invert__(self) -> Undecided:
        return Undecided(self.false, self.true)


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """A float64 array and a bound on its distance from the exact result.

    Not-a-number, overflow and division by what may be zero leave every later comparison undecided.

    Attributes:
        value: What float64 arithmetic gave.
        error: The exact number is within this of `value`.
    """

    value: Floats
    error: Floats

    # Keeps NumPy from distributing an array operand over this object.
    __array_ufunc__ = None

    @staticmethod
    def of(values: Any) -> Bounded:
        """Take numbers over: float64 and integers as they are, fractions rounded and the rounding noted."""
        if isinstance(values, Bounded):
            return values
        given = np.asarray(values)
        value = given.astype(np.float64)
        rounded = given.dtype == object or (given.dtype != np.float64 and bool((np.abs(value) > 2**53).any()))
        return Bounded(value, np.abs(value) * EPSILON if rounded else np.zeros_like(value))

    def _rounded(self, value: Floats, error: Floats) -> Bounded:
        return Bounded(value, (error + np.abs(value) * EPSILON) * SLACK)

    def __add__(self, other: Any) -> Bounded:
        that = Bounded.of(other)
        return self._rounded(self.value + that.value, self.error + that.error)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error)

    def __sub__(self, other: Any) -> Bounded:
        return self + (-Bounded.of(other))

    def __rsub__(self, other: Any) -> Bounded:
        return Bounded.of(other) - self

    def __mul__(self, other: Any) -> Bounded:
        that = Bounded.of(other)
        error = np.abs(self.value) * that.error + (np.abs(that.value) + that.error) * self.error
        error = error + TINY * ((self.value != 0) & (that.value != 0))
        return self._rounded(self.value * that.value, error)

    def __truediv__(self, other: Any) -> Bounded:
        that = Bounded.of(other)
        least = np.abs(that.value) - that.error
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = self.value / that.value
            error = np.where(least > 0, (self.error + np.abs(value) * that.error) / least, np.inf)
            error = error + TINY * (self.value != 0)
            return self._rounded(value, error)

    def __rtruediv__(self, other: Any) -> Bounded:
        return Bounded.of(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __pow__(self, power: int) -> Bounded:
        if power == 0:
            return Bounded.of(np.ones_like(self.value))
        half = self ** (power // 2)
        return half * half * self if power % 2 and power > 1 else self if power == 1 else half * half

    def __abs__(self) -> Bounded:
        return Bounded(np.abs(self.value), self.error)

    def __lt__(self, other: Any) -> Undecided:
        that = Bounded.of(other)
        distance, doubt = that.value - self.value, (self.error + that.error) * SLACK
        return Undecided(distance > doubt, (-distance >= doubt) & np.isfinite(doubt))

    def __gt__(self, other: Any) -> Undecided:
        return Bounded.of(other) < self

    def __le__(self, other: Any) -> Undecided:
        return ~(self > other)

    def __ge__(self, other: Any) -> Undecided:
        return ~(self < other)

    def __getitem__(self, index: Any) -> Bounded:
        return Bounded(self.value[index], self.error[index])

    def sum(self, axis: int) -> Bounded:
        """Sum along an axis; the bound holds for any order of summation."""
        error = self.error.sum(axis) + np.abs(self.value).sum(axis) * (EPSILON * self.value.shape[axis])
        return self._rounded(self.value.sum(axis), error)

    def max(self, axis: int) -> Bounded:
        """Largest along an axis."""
        return Bounded(self.value.max(axis), self.error.max(axis))

    def min(self, axis: int) -> Bounded:
        """Smallest along an axis."""
        return Bounded(self.value.min(axis), self.error.max(axis))


def as_number(values: Any) -> Number:
    """Declare an array to be a `Number`: comparing NumPy's overloads with the protocol takes a type checker minutes."""
    return values


def as_floats(number: Any) -> Floats:
    """Declare a `Number` to be the float64 array that it is while instances are drawn."""
    return number


def exactly(values: Any) -> Number:
    """Return numbers (float64, integers or fractions) as an object array of `Fraction`, without rounding."""
    return as_number(np.vectorize(Fraction, otypes=[object])(np.asarray(values)))


def root(number: Number) -> Number:
    """Return the square root: with its error bound in float64, exactly for squares of rationals.

    A fraction that is no square has no rational root; its entry is -1, for the hypotheses to refuse.
    """
    if isinstance(number, Bounded):
        value = np.sqrt(np.maximum(number.value, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(number.value > number.error, number.error / value, np.sqrt(number.error))
        return Bounded(value, (slope + value * EPSILON) * SLACK)
    return as_number(np.vectorize(_rational_root, otypes=[object])(number))


def _rational_root(square: Fraction) -> Fraction:
    if square < 0:
        return Fraction(-1)
    candidate = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    return candidate if candidate**2 == square else Fraction(-1)
