"""Sums of products in twice the working precision, exponents apart: against rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etastar.compensated import Scaled, aligned, dot, share
from oracles import EPSILON as MACHINE_EPSILON
from oracles.strategies import estimates

EPSILON = Fraction(MACHINE_EPSILON)
NUMBERS = st.one_of(estimates(), st.floats(allow_nan=False, allow_infinity=False), st.floats(-4, 4))
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6)


def exact(scaled):
    return Fraction(float(scaled.mantissa)) * Fraction(2) ** int(scaled.exponent)


@given(PAIRS, st.data())
def test_dot_is_as_if_computed_in_twice_the_precision(pairs, data):
    shifts = data.draw(st.one_of(st.none(), st.lists(st.integers(-900, 900), min_size=6, max_size=6)))
    shifts = None if shifts is None else shifts[: len(pairs)]
    result = dot(*pairs, shifts=shifts)
    powers = [0] * len(pairs) if shifts is None else shifts
    terms = [Fraction(a) * Fraction(b) * Fraction(2) ** e for (a, b), e in zip(pairs, powers, strict=True)]
    value, magnitude = sum(terms), sum(map(abs, terms))
    error = abs(exact(result) - value)
    assert error <= 2 * EPSILON * abs(value) + 64 * EPSILON**2 * magnitude
    if magnitude == 0:
        assert result.condition == 1
    elif abs(value) > EPSILON * magnitude:
        assert abs(Fraction(float(result.condition)) * abs(value) / magnitude - 1) < Fraction(1, 10**10)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_products_and_quotients_of_scaled_numbers(a, b, c, d):
    x, y = dot((a, b)), dot((c, d))
    value, other = Fraction(a) * Fraction(b), Fraction(c) * Fraction(d)
    assert abs(exact(x * y) - value * other) <= 4 * EPSILON * abs(value * other)
    if other == 0:
        assert np.isnan((x / y).mantissa)
    else:
        assert abs(exact(x / y) - value / other) <= 4 * EPSILON * abs(value / other)
    ratio = share(x, y)
    if value + other == 0:
        assert np.isnan(ratio)
    elif value > 0 and other > 0:
        assert (
            abs(Fraction(float(ratio)) - value / (value + other))
            <= 8 * EPSILON * value / (value + other) + Fraction(2) ** -1074
        )


def test_overflow_and_underflow_only_show_in_the_float():
    huge = dot((1e300, 1e300))
    assert huge.to_float() == np.inf
    assert (huge / huge).to_float() == 1.0
    tiny = dot((1e-300, -1e-300))
    assert tiny.to_float() == 0.0
    assert (tiny / tiny).to_float() == 1.0
    assert (huge * tiny).to_float() == pytest.approx(-1.0, rel=1e-15)
    assert share(huge, tiny) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nan(bad):
    assert np.isnan(dot((bad, 1.0), (1.0, 1.0)).to_float())
    assert np.isnan(dot((bad, 0.0)).to_float())
    assert np.isnan(dot((bad, 0.0)).condition)


def test_arrays_broadcast():
    result = dot((np.ones((2, 1)), np.arange(3.0)), (1.0, np.ones((2, 3))), shifts=(0, np.array([0, 1, 2])))
    assert np.array_equal(result.to_float(), [[1.0, 3.0, 6.0], [1.0, 3.0, 6.0]])
    ones, numbers = aligned(dot((1.0, 1.0)), dot((np.array([4.0, 0.0]), 1.0)))
    assert np.array_equal(numbers / ones, [4.0, 0.0])
    assert isinstance(result, Scaled)
