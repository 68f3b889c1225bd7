"""Hypothesis strategies: moments over all magnitudes, degenerate ones, and ones that nearly cancel."""

import numpy as np
from hypothesis import strategies as st

from etastar import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments


def magnitudes(low=-300, high=300):
    """Positive float64 of any exponent in between, mantissas included."""
    return st.builds(lambda m, e: float(m * 10.0**e), st.floats(1.0, 9.999), st.integers(low, high))


def estimates(low=-300, high=300):
    """Positive, negative, zero and subnormal numbers: what unbiased estimates may be."""
    positive = magnitudes(low, high)
    return st.one_of(positive, positive, positive.map(lambda x: -x), st.just(0.0), st.sampled_from([5e-324, 1e-310]))


def parts(numbers, descent=None):
    moments = st.builds(CurvatureMoments, numbers, numbers, numbers)
    direction = st.none() if descent is None else st.builds(Descent, descent, descent)
    return st.builds(SubspaceMoments, moments, moments, direction)


def splits(numbers=None):
    """Records of one step, with and without coupling and descent."""
    numbers = estimates() if numbers is None else numbers
    coupling = st.one_of(st.none(), st.builds(Coupling, numbers, numbers))
    plain = st.builds(SplitMoments, parts(numbers), parts(numbers), coupling)
    directed = st.builds(SplitMoments, parts(numbers, numbers), parts(numbers, numbers), coupling)
    return st.one_of(plain, plain, directed)


@st.composite
def cancelling_splits(draw):
    """Moments whose N, M or loss curvature cancels to within a few units in the last place, or exactly."""
    scale = draw(st.integers(-60, 60))
    d0, b0, d1, d2, dq = (draw(magnitudes(scale - 2, scale + 2)) for _ in range(5))
    nudge = draw(st.integers(-3, 3))
    b1 = _nudged(d1 / d0 * b0, nudge)
    b2 = draw(st.one_of(st.just(0.0), magnitudes(scale - 2, scale + 2)))
    bq = _nudged((d2 + dq) / d0 * b0 - b2, draw(st.integers(-3, 3)))
    quiet = draw(magnitudes(scale - 2, scale + 2))
    D = SubspaceMoments(CurvatureMoments(d0, d1, d2), CurvatureMoments(quiet, _nudged(-d1, nudge), dq))
    B = SubspaceMoments(CurvatureMoments(b0, b1, b2), CurvatureMoments(quiet, _nudged(-b1, nudge), bq))
    return SplitMoments(D, B)


@st.composite
def states(draw, low=-3, high=3, most=6, quiet=False):
    """(eigenvalues, multiplicities, rank, variances and energies per block) of a small H ≻ 0 with a gap at the rank."""
    blocks = draw(st.integers(2, most))
    steps = [draw(st.floats(1e-3, 2.0)) for _ in range(blocks)]
    bottom = 10.0 ** draw(st.floats(low, 0))
    eigenvalues = bottom * np.cumprod([1.0, *(1.0 + s for s in steps[1:])])[::-1]
    counts = np.array([draw(st.integers(1, 4)) for _ in range(blocks)])
    cut = draw(st.integers(1, blocks - 1))
    noisy = st.just(0.0) if quiet else magnitudes(low, high)
    variances = np.array([draw(noisy) for _ in range(blocks)])
    energies = np.array([draw(magnitudes(low, high)) for _ in range(blocks)])
    return eigenvalues, counts, int(counts[:cut].sum()), variances, energies


def _nudged(value, steps):
    for _ in range(abs(steps)):
        value = np.nextafter(value, np.inf if steps > 0 else -np.inf)
    return float(value)
