"""The step budget against its definitions in exact arithmetic, and its degenerate answers."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import etastar
from etastar import CurvatureMoments, InvalidArgument, SplitMoments, SubspaceMoments, step_budget
from etastar.quadratic import Noise, Quadratic, Spectrum
from oracles import EPSILON, assert_close
from oracles import criteria as oracle
from oracles.strategies import magnitudes, splits

NUMBERS = st.one_of(magnitudes(-40, 40), magnitudes(-40, 40), magnitudes(-40, 40).map(lambda x: -x), st.just(0.0))


@given(splits(NUMBERS), magnitudes(-20, 20), magnitudes(0, 6))
def test_every_field_is_its_definition(split, eta, batch):
    budget = step_budget(split, eta, batch)
    D, B = (oracle.part_numbers(part) for part in (split.dominant, split.bulk))
    gamma, gamma_noise = oracle.coupling_numbers(split)
    plain = split.dominant.descent is None
    own, both = (gamma, 0) if plain else (0, 2 * gamma)
    rows = {
        "dominant": [(D[0],), (D[6],), (D[7], -own), (D[3],), (D[4], -gamma_noise)],
        "bulk": [(B[0],), (B[6],), (B[7], -own), (B[3],), (B[4], -gamma_noise)],
        "full": [(D[0], B[0]), (D[6], B[6]), (D[7], B[7], both), (D[3], B[3]), (D[4], B[4])],
    }
    with mpmath.workdps(400):
        for name, terms in rows.items():
            _check(getattr(budget, name), [oracle.total(*t) for t in terms], mpf(eta), mpf(batch), name)


def _check(budget, sums, eta, batch, name):
    if max(s.condition for s in sums) > 1e6:
        return
    energy, slope, bend, q0, q1 = (s.value for s in sums)
    total = oracle.total(bend, q1)
    loose = 64 * EPSILON * max(s.condition for s in sums)
    if slope > 0 and total.condition < 1e6:
        used = eta * total.value / (2 * slope)
        best = slope**2 / (2 * total.value) if total.value else None
        fall = eta * slope - eta**2 * total.value / 2
        efficiency = fall / best if best else mpf(0)
        size = 4 * abs(used) * (1 + abs(used))
        assert_close(budget.efficiency, efficiency, loose * total.condition * size, name)
    elif slope <= 0:
        assert np.isnan(budget.efficiency)
    if total.value == 0:
        assert np.isnan(budget.noise_share)
    elif total.condition < 1e6:
        assert_close(budget.noise_share, q1 / total.value, loose * total.condition * abs(q1 / total.value), name)
    for field, top, bottom in (("noise_scale", q0, energy), ("curvature_noise_scale", q1, bend)):
        value = getattr(budget, field)
        if bottom == 0:
            assert np.isnan(value)
        else:
            assert_close(value, batch * top / bottom, loose * abs(batch * top / bottom), name)
    target = oracle.total(2 * slope / eta, -bend)
    if target.condition < 1e6:
        assert budget.curvature_limited == (target.value <= 0)
        if slope > 0 and target.value > 0:
            exact = batch * q1 / target.value
            assert_close(budget.batch_at_threshold, exact, loose * target.condition * abs(exact), name)
        else:
            assert np.isnan(budget.batch_at_threshold)


def test_the_batch_at_threshold_is_where_the_threshold_equals_the_step():
    spectrum, gradient, eta, batch = Spectrum([4.0, 2.0, 1.0], rank=1), [1.0, 3.0, 2.0], 0.3, 16
    budget = step_budget(Quadratic(spectrum, Noise.isotropic(0.5)).moments(gradient=gradient), eta, batch)
    for name in ("dominant", "bulk", "full"):
        there = getattr(budget, name).batch_at_threshold
        again = Quadratic(spectrum, Noise.isotropic(0.5 * batch / there)).moments(gradient=gradient)
        assert getattr(etastar.loss_thresholds(again), name) == pytest.approx(eta, rel=1e-12)


def test_efficiency_is_one_at_half_the_threshold_and_zero_at_it():
    split = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.5)).moments(gradient=[1.0, 3.0])
    for name, threshold in zip(
        ("dominant", "bulk", "full"),
        (getattr(etastar.loss_thresholds(split), n) for n in ("dominant", "bulk", "full")),
        strict=True,
    ):
        assert getattr(step_budget(split, threshold / 2, 1), name).efficiency == pytest.approx(1.0)
        assert getattr(step_budget(split, threshold, 1), name).efficiency == pytest.approx(0.0, abs=1e-12)
        assert getattr(step_budget(split, 2 * threshold, 1), name).efficiency < 0


@pytest.mark.parametrize("bad", ["x", None, 0, -1, np.nan, np.inf, 1j, [1, 0]])
def test_a_bad_batch_size_is_named(bad):
    split = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.5)).moments(gradient=[1.0, 3.0])
    with pytest.raises(InvalidArgument, match=r"^batch_size: got .*; must be a positive number"):
        step_budget(split, 0.1, bad)


def test_hopeless_moments_neither_warn_nor_claim():
    for value in (np.nan, np.inf, -np.inf, 0.0, 1.7e308):
        moments = CurvatureMoments(value, value, value)
        part = SubspaceMoments(moments, moments)
        budget = step_budget(SplitMoments(part, part), 0.0, 1)
        assert np.isnan(budget.full.noise_share) or value > 1e308
        if np.isnan(value):
            assert not budget.dominant.curvature_limited  # nothing is known


def test_batches_keep_their_shape():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.5))
    budget = step_budget(q.moments(gradient=np.ones((3, 2))), 0.1, 8)
    assert budget.full.efficiency.shape == budget.dominant.curvature_limited.shape == (3,)
