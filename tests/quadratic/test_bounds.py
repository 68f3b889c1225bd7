"""The paper's bounds in mpmath, and the orderings of theory §3 as properties of any spectrum, state and noise."""

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mpf

import etastar
from etastar import InvalidArgument, Regime
from etastar.quadratic import Noise, Quadratic, Spectrum, guaranteed_ratio, paper_bounds
from oracles import EPSILON, assert_close
from oracles import criteria as oracle
from oracles.strategies import magnitudes, states

SLACK = 1e-11  # the orderings are sharp: equality occurs, and inputs are rounded


def make(state, isotropic=False):
    eigenvalues, counts, rank, variances, energies = state
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    noise = Noise.isotropic(variances[0]) if isotropic else Noise.diagonal(np.repeat(variances, counts))
    return Quadratic(spectrum, noise), energies


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


@given(states())
def test_gap_and_border_as_printed(state):
    q, energies = make(state)
    lam, cut, counts = [mpf(float(x)) for x in q.spectrum.eigenvalues], q.spectrum.cut, q.spectrum.multiplicities
    low, high = (mpf(float(x)) for x in (min(state[3]), max(state[3])))
    k, rest = q.spectrum.rank, q.spectrum.dimension - q.spectrum.rank
    bounds = paper_bounds(q, energy=energies)
    exact = 1 / (1 + high / low * mpf(rest) / k * (lam[cut] / lam[cut - 1]) ** 2)
    assert_close(bounds.gap, exact, 16 * EPSILON * exact)
    psi_D, psi_B = (
        mpmath.fsum(int(c) * x**2 for c, x in zip(counts[part], lam[part], strict=True))
        for part in (slice(None, cut), slice(cut, None))
    )
    A, h, m = low * psi_B, high * psi_D, mpmath.fsum(map(mpf, map(float, energies))) * (lam[0] ** 2 - lam[-1] ** 2)
    root = mpmath.sqrt((A - m - h) ** 2 + 4 * A * h)
    r0 = ((m + h - A) + root) / (2 * A)
    # θ* through 1 − θ*: perturbations of A, m, h move the root by (A + m + h)/root.
    sensitivity = (A + m + h) / root * r0 / (1 + r0) ** 2 + r0 / (1 + r0)
    assert_close(bounds.border, r0 / (1 + r0), 64 * EPSILON * sensitivity)
    assert_close(bounds.border_low, 1 - A / (m + h), 16 * EPSILON * (1 + A / (m + h)))
    assert_close(bounds.border_high, 1 - A / (m + A + h), 16 * EPSILON)
    assert bounds.border_low - SLACK <= bounds.border <= bounds.border_high + SLACK
    assert bounds.gap <= bounds.border + SLACK  # T6


@given(states())
def test_bounds_hold(state):
    q, energies = make(state)
    split, bounds = q.moments(energy=energies), paper_bounds(q, energy=energies)
    theta, step = etastar.alignment(split), etastar.critical_step_size(split)
    assert etastar.regime_border(split) <= bounds.border + SLACK  # θ† is sharper than θ*
    if theta >= bounds.border + SLACK:
        assert step.regime is Regime.HIGH  # T4
    if theta <= bounds.gap - SLACK:
        assert step.regime is Regime.LOW  # T3
        assert etastar.alignment_change(split, 1.001 * step.value) > 0
    if not np.isnan(bounds.critical_step_low):
        assert bounds.critical_step_low <= step.value * (1 + SLACK)
        assert step.value <= bounds.critical_step_high * (1 + SLACK)
    border = etastar.loss_border(split)
    assert bounds.loss_border_low - SLACK <= border <= bounds.loss_border_high + SLACK


@given(states())
def test_orderings_of_thresholds_and_borders(state):
    q, energies = make(state)
    split, lam, cut = q.moments(energy=energies), q.spectrum.eigenvalues, q.spectrum.cut
    step, bounds, theta = etastar.critical_step_size(split), etastar.loss_thresholds(split), etastar.alignment(split)
    assert bounds.dominant <= 2 / lam[cut - 1] * (1 + SLACK)
    assert 2 / lam[cut - 1] < 2 / lam[cut]
    assert (
        min(bounds.dominant, bounds.bulk) * (1 - SLACK)
        <= bounds.full
        <= max(bounds.dominant, bounds.bulk) * (1 + SLACK)
    )
    if bounds.dominant <= bounds.bulk:
        assert step.regime is Regime.LOW
    regime_border, loss_border = etastar.regime_border(split), etastar.loss_border(split)
    assert loss_border < regime_border + SLACK
    if abs(theta - regime_border) > SLACK:
        assert (step.regime is Regime.LOW) == (theta < regime_border)
    if abs(theta - loss_border) > SLACK:
        assert bounds.bulk_only == (theta < loss_border)
    N, _ = oracle.neutrality(split)
    assert N.value >= 0
    if step.regime is Regime.LOW:
        assert (
            etastar.alignment_change(split, 0.99 * step.value) < 0 < etastar.alignment_change(split, 1.01 * step.value)
        )


@given(states(quiet=True))
def test_bounds_without_noise(state):
    """2/(λ₁ + λ_{k+1}) ≤ η* ≤ 2/(λ_k + λ_d)."""
    q, energies = make(state)
    lam, cut = q.spectrum.eigenvalues, q.spectrum.cut
    step = etastar.critical_step_size(q.moments(energy=energies))
    assert step.regime is Regime.LOW
    assert 2 / (lam[0] + lam[cut]) * (1 - SLACK) <= step.value <= 2 / (lam[cut - 1] + lam[-1]) * (1 + SLACK)
    bounds = paper_bounds(q, energy=energies)
    assert bounds.critical_step_low == pytest.approx(2 / (lam[0] + lam[cut]))
    assert bounds.critical_step_high == pytest.approx(2 / (lam[cut - 1] + lam[-1]))
    assert np.isnan(bounds.gap)
    assert np.isnan(bounds.border)


@given(st.floats(1.001, 1e6), magnitudes(-3, 3), magnitudes(-3, 3), magnitudes(-3, 3), st.integers(1, 99))
def test_two_level_identity(ratio, variance, dominant, bulk, rank):
    """1/η* = (λ_D/η_D − λ_B/η_B)/(λ_D − λ_B)."""
    split = Quadratic(Spectrum.two_level(100, rank, ratio, 1.0), Noise.isotropic(variance)).moments(
        energy=[dominant, bulk]
    )
    step, bounds = etastar.critical_step_size(split), etastar.loss_thresholds(split)
    terms = ratio / bounds.dominant / (ratio - 1), 1 / bounds.bulk / (ratio - 1)
    inverse = terms[0] - terms[1]
    if inverse > 1e-9 * terms[0]:
        assert 1 / step.value == pytest.approx(inverse, abs=1e-12 * sum(terms) * ratio / (ratio - 1))
        assert step.regime is Regime.LOW


@given(states(), st.floats(1.0, 100.0))
def test_the_guaranteed_ratio_guarantees(state, factor):
    """For every spectrum whose λ_k/λ_{k+1} exceeds it, η_D < η_B; for two levels it is exact."""
    eigenvalues, counts, rank, variances, energies = state
    cut = int(np.searchsorted(np.cumsum(counts), rank)) + 1
    dominant, bulk = energies[:cut].sum(), energies[cut:].sum()
    needed = guaranteed_ratio(int(counts.sum()), rank, variances[0], dominant, bulk)
    exact = (1 + mpf(variances[0]) * int(counts.sum() - rank) / mpf(bulk)) / (
        1 + mpf(variances[0]) * rank / mpf(dominant)
    )
    assert_close(needed, max(exact, 1), 16 * EPSILON * max(exact, 1))
    raised = eigenvalues.copy()
    raised[:cut] *= max(1.0, needed * (1 + 1e-6) * factor * eigenvalues[cut] / eigenvalues[cut - 1])
    q, _ = make((raised, counts, rank, variances, energies), isotropic=True)
    bounds = etastar.loss_thresholds(q.moments(energy=energies))
    assert bounds.dominant < bounds.bulk
    assume(needed > 1.01)
    for sign in (-1, 1):
        two = Quadratic(Spectrum.two_level(100, 5, needed * (1 + sign * 1e-3), 1.0), Noise.isotropic(variances[0]))
        tight = guaranteed_ratio(100, 5, variances[0], dominant, bulk)
        two = Quadratic(Spectrum.two_level(100, 5, max(tight * (1 + sign * 1e-3), 1.0001), 1.0), two.noise)
        bounds = etastar.loss_thresholds(two.moments(energy=[dominant, bulk]))
        if tight > 1.01:
            assert (bounds.dominant < bounds.bulk) == (sign > 0)


def test_bounds_where_a_hypothesis_fails_are_absent():
    flat = paper_bounds(Quadratic(Spectrum([4.0, 1.0, 0.0], rank=1), Noise.isotropic(0.1)), energy=[1.0, 2.0, 0.0])
    assert np.isnan(flat.gap)
    assert np.isnan(flat.border)
    assert np.isfinite(flat.critical_step_low)
    nothing = paper_bounds(Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1)), gradient=[0.0, 0.0])
    assert all(np.isnan(getattr(nothing, name)) for name in nothing.__slots__)
    batch = paper_bounds(Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1)), gradient=np.ones((2, 3, 2)))
    assert batch.border.shape == batch.gap.shape == (2, 3)
    for spectrum in (Spectrum([1e200, 1.0], rank=1), Spectrum([1.0, 1e-200], rank=1), Spectrum([1.0, -1e308], rank=1)):
        for noise in (Noise.isotropic(0.0), Noise.isotropic(1e300), Noise.diagonal([0.0, 1.0])):
            paper_bounds(Quadratic(spectrum, noise), gradient=[1.0, 1.0])  # neither raises nor warns


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((10, 0, 1.0, 1.0, 1.0), "rank"),
        ((10, 10, 1.0, 1.0, 1.0), "rank"),
        ((10, 1.5, 1.0, 1.0, 1.0), "rank"),
        (("x", 1, 1.0, 1.0, 1.0), "dimension"),
        ((10, 1, -1.0, 1.0, 1.0), "variance"),
        ((10, 1, np.nan, 1.0, 1.0), "variance"),
        ((10, 1, "x", 1.0, 1.0), "variance"),
        ((10, 1, 1.0, "x", 1.0), "dominant"),
        ((10, 1, 1.0, 1.0, None), "bulk"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(InvalidArgument, match=f"^{name}: got ") as caught:
        guaranteed_ratio(*arguments)
    assert "\n" not in str(caught.value)
