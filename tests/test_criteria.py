"""Criteria against exact arithmetic, over all magnitudes, signs, degenerate and nearly cancelling records."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import etastar
from etastar import Coupling, CurvatureMoments, Descent, InvalidArgument, Outcome, Regime, SplitMoments, SubspaceMoments
from oracles import EPSILON, assert_close
from oracles import criteria as oracle
from oracles.strategies import cancelling_splits, magnitudes, splits

STEPS = st.one_of(magnitudes(-30, 30), magnitudes(-300, 300), st.just(0.0))
RECORDS = st.one_of(splits(), splits(), cancelling_splits())
SIGNS = (-1.0, 0.0, 1.0)


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(oracle.DIGITS):
        yield


def record(d=(1.0, 1.0, 1.0), b=(1.0, 1.0, 1.0), dq=(0.0, 0.0, 0.0), bq=(0.0, 0.0, 0.0), coupling=None):
    D = SubspaceMoments(CurvatureMoments(*d), CurvatureMoments(*dq))
    return SplitMoments(D, SubspaceMoments(CurvatureMoments(*b), CurvatureMoments(*bq)), coupling)


@given(RECORDS)
def test_alignment_is_the_share_of_the_dominant_energy(split):
    exact = oracle.alignment(split)
    theta = etastar.alignment(split)
    if exact is None:
        assert np.isnan(theta)
        return
    assert_close(theta, exact.value, 8 * EPSILON * (exact.magnitude + abs(exact.value)))
    if theta >= 0:
        assert etastar.chi(split) == np.sqrt(theta)
    else:
        assert np.isnan(etastar.chi(split))


@given(RECORDS)
def test_critical_step_size_is_exact_to_its_reported_condition(split):
    N, M = oracle.neutrality(split)
    step = etastar.critical_step_size(split)
    expected = oracle.regime_of(split)
    if expected is Regime.UNDEFINED:
        assert step.regime is Regime.UNDEFINED
        assert np.isnan(step.value)
        assert np.isnan(step.condition)
        return
    condition = max(N.condition, M.condition)
    assert condition >= 1
    if condition < 1e13:
        assert abs(step.condition - condition) <= 1e-2 * condition
    elif condition > 1e25:
        return  # double-double arithmetic has run out of digits, and says so
    assert float(step.condition) <= 2 * condition
    exists = expected in (Regime.LOW, Regime.REVERSED)
    exact = 2 * N.value / M.value if exists else None
    if exists and not mpf(2) ** -1074 < exact < mpf(2) ** 1023:  # outside float64: absent, as documented
        assert np.isnan(step.value) or step.value > 0
        return
    assert step.regime is expected
    if exists:
        allowed = 32 * EPSILON * condition if condition < 1e13 else 8 * EPSILON + 64 * EPSILON**2 * condition
        assert_close(step.value, exact, allowed * exact)
    else:
        assert np.isnan(step.value)


@given(cancelling_splits())
def test_critical_step_size_keeps_all_digits_where_terms_cancel(split):
    N, M = oracle.neutrality(split)
    condition = max(N.condition, M.condition)
    step = etastar.critical_step_size(split)
    if condition < 1e20 and oracle.regime_of(split) in (Regime.LOW, Regime.REVERSED):
        digits = 8 * EPSILON + 16 * EPSILON**2 * condition
        assert_close(step.value, 2 * N.value / M.value, digits * abs(2 * N.value / M.value))


TABLE = {
    (1, 1): Regime.LOW,
    (1, 0): Regime.HIGH,
    (1, -1): Regime.HIGH,
    (0, -1): Regime.HIGH,
    (-1, 1): Regime.RISES,
    (-1, 0): Regime.RISES,
    (0, 1): Regime.RISES,
    (-1, -1): Regime.REVERSED,
    (0, 0): Regime.NEUTRAL,
}


@pytest.mark.parametrize(("signs", "regime"), TABLE.items())
def test_sign_table_row_by_row(signs, regime):
    """E_D = E_B = 1 makes N = m1_D − m1_B and M = w_D − w_B."""
    N, M = signs
    step = etastar.critical_step_size(record(d=(1, 2 + N, 15), b=(1, 2, 15), dq=(0, 0, 1), bq=(0, 0, 1 - M)))
    assert step.regime is regime
    assert (step.value == 2.0) if N == M != 0 else np.isnan(step.value)
    for eta in (0.5, 4.0):
        change = etastar.alignment_change(record(d=(1, 2 + N, 15), b=(1, 2, 15), dq=(0, 0, 1), bq=(0, 0, 1 - M)), eta)
        assert np.sign(change) == np.sign(eta * M - 2 * N)


@pytest.mark.parametrize(
    ("empty", "regime"), [("dominant", Regime.RISES), ("bulk", Regime.HIGH), ("both", Regime.UNDEFINED)]
)
def test_degenerate_rows(empty, regime):
    nothing, something, noise = (0.0, 0.0, 0.0), (1.0, 2.0, 4.0), (0.5, 0.5, 0.5)
    d = nothing if empty in ("dominant", "both") else something
    b = nothing if empty in ("bulk", "both") else something
    step = etastar.critical_step_size(record(d, b, noise, noise))
    assert step.regime is regime
    assert np.isnan(step.value)
    silent = etastar.critical_step_size(record(d, b))
    assert silent.regime is (Regime.UNDEFINED if empty == "both" else Regime.NEUTRAL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(12))
def test_what_is_not_finite_is_undefined_and_never_silent(bad, place):
    values = np.ones(12)
    values[place] = bad
    split = record(*values.reshape(4, 3))
    used = place % 3 != 0 or place < 6
    if used and place not in (7, 10):
        assert etastar.critical_step_size(split).regime is Regime.UNDEFINED
    bounds = etastar.loss_thresholds(split)
    if place in (0, 1, 7):
        assert bounds.dominant_outcome is Outcome.UNDEFINED
        assert np.isnan(bounds.dominant)
        assert not bounds.bulk_only
    for function in (etastar.regime_border, etastar.loss_border, etastar.chi, etastar.alignment):
        assert not np.isinf(function(split))
    etastar.step_budget(split, 0.1, 8)
    etastar.loss_change(split, 0.1)
    etastar.alignment_change(split, 0.1)


@given(RECORDS, STEPS)
def test_alignment_after_and_its_change(split, eta):
    eta = mpf(eta)
    D, B = (oracle.energy_after(part, eta) for part in (split.dominant, split.bulk))
    whole = D.value + B.value
    after, change = (f(split, float(eta)) for f in (etastar.alignment_after, etastar.alignment_change))
    condition = mpf("inf") if whole == 0 else (D.magnitude + B.magnitude) / abs(whole)
    if condition > 1e20:
        return
    slack = (abs(B.value) * D.magnitude + abs(D.value) * B.magnitude) / whole**2
    double = 64 * EPSILON * slack + 8 * EPSILON * (abs(D.value) + abs(B.value)) * abs(D.value) / whole**2
    assert_close(after, D.value / whole, double + mpf(2) ** -1000 * condition)
    before = oracle.alignment(split)
    if before is None:
        assert np.isnan(change)
        return
    N, M = oracle.neutrality(split)
    drift, terms = eta * M.value - 2 * N.value, eta * (M.magnitude + abs(M.value)) + 2 * (N.magnitude + abs(N.value))
    energy = oracle.total(*(oracle.part_numbers(part)[0] for part in (split.dominant, split.bulk)))
    if energy.condition > 1e20:
        return
    exact, size = eta * drift / (energy.value * whole), eta * terms / abs(energy.value * whole)
    # M and N are known to round-off until their own condition reaches 1/ε.
    own = eta * (abs(M.value) + EPSILON * M.magnitude) + 2 * (abs(N.value) + EPSILON * N.magnitude)
    tolerance = 64 * EPSILON * eta * own / abs(energy.value * whole) + 64 * EPSILON * abs(exact) * condition
    assert_close(change, exact, tolerance + 64 * EPSILON * abs(exact) * energy.condition + size * mpf(2) ** -1000)


def test_alignment_change_is_zero_at_the_critical_step():
    split = record(d=(1.0, 2.0, 4.0), b=(3.0, 3.0, 3.0), dq=(0, 0, 1.0), bq=(0, 0, 0.5))
    step = etastar.critical_step_size(split)
    assert abs(etastar.alignment_change(split, step.value)) < 4 * EPSILON
    assert etastar.alignment_change(split, 0.9 * step.value) < 0 < etastar.alignment_change(split, 1.1 * step.value)


@pytest.mark.parametrize("function", [etastar.regime_border, etastar.loss_border])
@given(split=RECORDS)
def test_borders_solve_their_quadratic(function, split):
    exact = oracle.border(split, 2 if function is etastar.regime_border else 1)
    if exact is None:
        assert np.isnan(function(split))
        return
    theta, sensitivity = exact
    gap = oracle.total(*(oracle.part_numbers(part)[0] for part in (split.dominant, split.bulk)))
    if gap.condition > 1e8 or sensitivity > 1e12:
        return
    assert_close(function(split), theta, 64 * EPSILON * sensitivity)


@pytest.mark.parametrize("d", SIGNS)
@pytest.mark.parametrize("slope", SIGNS)
def test_outcomes_and_bulk_only_against_a_scan_over_steps(slope, d):
    """bulk_only says: some step lowers the loss in the bulk and raises it in the dominant subspace."""
    steps = np.geomspace(1e-3, 1e3, 1201)
    for b_slope in (-2.0, 0.0, 2.0):
        for b_bend in (-3.0, 0.0, 3.0):
            split = record(d=(slope, d, 1.0), b=(b_slope, b_bend, 1.0))
            bounds, change = etastar.loss_thresholds(split), etastar.loss_change(split, steps)
            assert bounds.bulk_only == bool(np.any((change.dominant > 0) & (change.bulk < 0))), (b_slope, b_bend)
            assert bounds.dominant_outcome is oracle.outcome_of(mpf(slope), mpf(d))
            assert bounds.full_outcome is oracle.outcome_of(mpf(slope + b_slope), mpf(d + b_bend))
            assert np.isnan(bounds.dominant) == (bounds.dominant_outcome not in (Outcome.BELOW, Outcome.ABOVE))


@given(RECORDS, STEPS)
def test_loss_thresholds_and_loss_change(split, eta):
    bounds, change, eta = etastar.loss_thresholds(split), etastar.loss_change(split, eta), mpf(eta)
    for name in ("dominant", "bulk", "full"):
        if name == "full":
            slope, bend = oracle.full_loss_terms(split)
        else:
            slope, bend = oracle.projected_loss_terms(split, getattr(split, name))
        condition = max(slope.condition, bend.condition)
        if condition < 1e20:
            _check_threshold(getattr(bounds, name), getattr(bounds, name + "_outcome"), slope, bend, condition)
        terms = eta * (abs(slope.value) + EPSILON * slope.magnitude), eta**2 / 2 * (abs(bend.value) + bend.magnitude)
        exact = -eta * slope.value + eta**2 / 2 * bend.value
        tolerance = 32 * EPSILON * (terms[0] + terms[1]) + 32 * EPSILON * eta * slope.magnitude
        assert_close(getattr(change, name), exact, tolerance, name)


def _check_threshold(value, outcome, slope, bend, condition):
    expected = oracle.outcome_of(slope.value, bend.value)
    exact = 2 * slope.value / bend.value if expected in (Outcome.BELOW, Outcome.ABOVE) else None
    if exact is not None and slope.value != 0 and not mpf(2) ** -1070 < exact < mpf(2) ** 1023:
        assert outcome is not Outcome.UNDEFINED
        return
    assert outcome is expected
    if exact is None:
        assert np.isnan(value)
    else:
        assert_close(value, exact, (8 * EPSILON + 64 * EPSILON**2 * condition) * abs(exact))


@given(splits(st.one_of(magnitudes(-30, 30), magnitudes(-30, 30).map(lambda x: -x))), magnitudes(-9, 9))
def test_full_update_is_the_sum_of_the_projected_ones_and_their_coupling(split, eta):
    change = etastar.loss_change(split, eta)
    gamma, gamma_noise = oracle.coupling_numbers(split)
    joint = 2 * gamma * eta**2 / 2 + 2 * gamma_noise * eta**2 / 2
    terms = [part for terms in (oracle.full_loss_terms(split),) for part in (terms[0].magnitude, terms[1].magnitude)]
    size = eta * terms[0] + eta**2 * (terms[1] + abs(gamma) + abs(gamma_noise))
    assert_close(change.full, mpf(change.dominant) + mpf(change.bulk) + joint, 64 * EPSILON * size)


def test_arguments_broadcast_and_keep_their_shape():
    d0 = np.array([[1.0], [2.0]])
    split = record(d=(d0, 2.0, 4.0), b=(np.array([1.0, 2.0, 3.0]), 1.0, 1.0))
    assert split.shape == (2, 3)
    step, bounds = etastar.critical_step_size(split), etastar.loss_thresholds(split)
    assert step.value.shape == step.regime.shape == step.condition.shape == (2, 3)
    assert bounds.bulk_only.dtype == bool
    assert bounds.bulk_only.shape == bounds.full_outcome.shape == (2, 3)
    assert etastar.alignment_after(split, np.array([0.1, 0.2, 0.3])).shape == (2, 3)
    one = split[1, 2]
    assert etastar.critical_step_size(one).value == step.value[1, 2]
    assert etastar.critical_step_size(one).regime is step.regime[1, 2]
    assert etastar.regime_border(one) == etastar.regime_border(split)[1, 2] or np.isnan(etastar.regime_border(one))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "0.1", None, 1j, [0.1, -0.1], "x"])
@pytest.mark.parametrize("function", [etastar.alignment_after, etastar.alignment_change, etastar.loss_change])
def test_a_bad_step_size_is_named(function, bad):
    with pytest.raises(InvalidArgument, match=r"^step_size: got .*; must be") as caught:
        function(record(), bad)
    assert "\n" not in str(caught.value)


def test_descent_replaces_slope_and_curvature_but_not_the_energies():
    moments, quiet = CurvatureMoments(1.0, 2.0, 4.0), CurvatureMoments(0.0, 1.0, 1.0)
    directed = SubspaceMoments(moments, quiet, Descent(3.0, 5.0))
    split = SplitMoments(directed, directed, Coupling(0.5, 0.25))
    bounds = etastar.loss_thresholds(split)
    assert bounds.dominant == 2 * 3.0 / (5.0 + 1.0 - 0.25)
    assert bounds.full == 2 * 6.0 / (10.0 + 2.0 + 2 * 0.5)
    assert etastar.alignment(split) == 0.5


def test_the_loss_border_takes_the_coupling_out_as_the_thresholds_do():
    """For a subspace that is not invariant, η_D < η_B holds exactly below the border, along a path of states."""
    rng = np.random.default_rng(7)
    noises = CurvatureMoments(0.5, 1.0, 4.0), CurvatureMoments(0.5, 0.6, 0.5)
    for _ in range(200):
        d0, b0 = np.exp(rng.uniform(-4, 4, 2))
        state = SplitMoments(
            SubspaceMoments(CurvatureMoments(d0, 3.0 * d0, 10.0 * d0), noises[0]),
            SubspaceMoments(CurvatureMoments(b0, 0.9 * b0, b0), noises[1]),
            Coupling(0.1 * min(d0, b0), 0.2),
        )
        bounds = etastar.loss_thresholds(state)
        assert (etastar.alignment(state) < etastar.loss_border(state)) == (bounds.dominant < bounds.bulk)


@pytest.mark.parametrize("function", [etastar.alignment_after, etastar.alignment_change, etastar.loss_change])
def test_a_step_size_that_does_not_fit_the_batch_is_refused_by_name(function):
    pair = record(d=(1.0, 2.0, 3.0), b=(1.0, 1.0, 1.0)).map(lambda x: np.stack([x, x]))
    with pytest.raises(InvalidArgument, match=r"step_size: got \(3,\); must broadcast against the batch shape \(2,\)"):
        function(pair, [0.1, 0.2, 0.3])
