"""The two arithmetics: error bounds that hold, comparisons that never guess, exact roots."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etastar.claims.number import Bounded, exactly, root

finite = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


def formula(a, b, c):
    return ((a - b) ** 3 * c + a * b / (2 + c**2) - abs(b - c) / 3) / (1 + a**2) - (c - 1) * 5


@given(finite, finite, finite)
def test_the_exact_result_lies_within_the_error_bound(a, b, c):
    screened = formula(*(Bounded.of(np.array([v])) for v in (a, b, c)))
    decided = formula(*(exactly(np.array([v])) for v in (a, b, c)))[0]
    assert abs(Fraction(float(screened.value[0])) - decided) <= Fraction(float(screened.error[0]))


@given(st.lists(finite, min_size=1, max_size=9))
def test_sums_and_extremes_are_bounded(values):
    numbers, exact = Bounded.of(np.array([values])) * Bounded.of(np.array([1 / 3])), exactly([values])
    exact = exact * Fraction(1 / 3)
    for name in ("sum", "max", "min"):
        screened, decided = getattr(numbers, name)(-1), getattr(exact, name)(-1)[0]
        assert abs(Fraction(float(screened.value[0])) - decided) <= Fraction(float(screened.error[0]))


def test_round_off_leaves_a_comparison_undecided_and_fractions_decide_it():
    a, b = 0.1, 0.2
    screened = Bounded.of(np.array([a])) + b
    truth = screened <= 0.30000000000000004
    assert not truth.true[0]
    assert not truth.false[0]
    assert (exactly([a]) + Fraction(b) > Fraction(0.3))[0]


def test_zero_stays_exactly_zero_and_equal_numbers_are_known_to_be_equal():
    zero = (Bounded.of(np.zeros((1, 3))) * 7.5).sum(-1)
    assert (zero <= 0).true[0]
    assert (zero > 0).false[0]
    assert (Bounded.of(np.ones(1)) >= 1).true[0]


@pytest.mark.parametrize("divisor", [0.0, 1e-310])
def test_division_by_what_may_be_zero_and_overflow_decide_nothing(divisor):
    with np.errstate(all="ignore"):
        quotient = Bounded.of(np.array([1.0])) / (Bounded.of(np.array([divisor])) * 1.0)
        for truth in (quotient < 1, quotient > 1, quotient <= 1, quotient >= 1):
            assert not truth.true[0]
            assert not truth.false[0]


def test_operands_on_the_left_are_taken_over():
    two = Bounded.of(np.array([2.0]))
    assert (1 - two).value[0] == -1
    assert (1 / two).value[0] == 0.5
    assert (np.array([3.0]) * two).value[0] == 6
    assert (two**0).value[0] == 1
    assert (two**5).value[0] == 32
    assert (two > 1).true[0]


def test_roots_are_exact_for_squares_and_refused_otherwise():
    assert list(root(exactly([Fraction(9, 4), 2, 0, -1]))) == [Fraction(3, 2), -1, 0, -1]
    rough = root(Bounded(np.array([2.0, 0.0]), np.array([1e-3, 1e-6])))
    assert abs(rough.value[0] - 2**0.5) < rough.error[0] < 1e-3
    assert rough.error[1] == pytest.approx(1e-3)
