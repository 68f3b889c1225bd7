"""Independent answers: many-digit mpmath, dense matrices, brute-force stepping. Nothing here imports the code it judges
(records and enumerations excepted), and nothing shares a formula with it.
"""

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)
TINY = 1e-322  # a few units in the last place of a subnormal number


def relative_error(value, exact):
    """|value − exact|/|exact| as float; inf for NaN, and unless both are zero when the exact value is."""
    import mpmath

    value = mpmath.mpf(float(value))
    if mpmath.isnan(value):
        return float("inf")
    if exact == 0:
        return 0.0 if value == 0 else float("inf")
    return float(abs((value - exact) / exact))


def assert_close(value, exact, tolerance, what=""):
    """|value − exact| ≤ tolerance, in mpmath; NaN never passes, and what is beyond float64 must be inf or zero."""
    import mpmath

    exact, tolerance = mpmath.mpf(exact), mpmath.mpf(tolerance)
    number = mpmath.mpf(float(value))
    assert not mpmath.isnan(number), f"{what}: NaN instead of {mpmath.nstr(exact, 20)}"
    if mpmath.isinf(number):
        assert abs(exact) * (1 + 1e-10) + tolerance >= 1.797e308, f"{what}: {value} for {mpmath.nstr(exact, 20)}"
        assert (number > 0) == (exact > 0), f"{what}: {value} for {mpmath.nstr(exact, 20)}"
        return
    error = abs(number - exact)
    assert error <= tolerance + TINY, (
        f"{what}: {float(value)!r} for {mpmath.nstr(exact, 25)}, error {mpmath.nstr(error, 5)}"
        f" > {mpmath.nstr(tolerance, 5)}"
    )
