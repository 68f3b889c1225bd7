"""The jackknife against brute force, against the standard error of a mean, and its coverage in a simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from etastar import (
    CurvatureMoments,
    InvalidArgument,
    SplitMoments,
    SubspaceMoments,
    alignment,
    critical_step_size,
    loss_thresholds,
)
from etastar.uncertainty import critical_step_interval, exactly, jackknife, mean_of


def critical(split):
    return critical_step_size(split).value


def threshold(split):
    return loss_thresholds(split).bulk


def energy(split):
    return split.dominant.signal.zeroth


def replicated(shape, seed=0, spread=0.2):
    """Independent Gaussian estimates of the moments of a LOW state (θ = 1/4, η* = 2·9/(3·17 − 4) = 18/47)."""
    rng = np.random.default_rng(seed)

    def around(mean):
        return mean * (1 + spread * rng.standard_normal(shape))

    def part(*means):
        return CurvatureMoments(*map(around, means))

    noise = (0.1, 0.5, 1.0)
    return SplitMoments(
        SubspaceMoments(part(1.0, 4.0, 16.0), part(*noise)), SubspaceMoments(part(3.0, 3.0, 3.0), part(*noise))
    )


@given(st.integers(2, 7), st.integers(0, 10**6), st.sampled_from([alignment, critical, threshold, energy]))
def test_against_brute_force(count, seed, criterion):
    split = replicated((count,), seed)
    estimate = jackknife(criterion, split, level=0.8)
    mean = float(criterion(split.mean(0)))
    left = np.array([criterion(split[[i for i in range(count) if i != j]].mean(0)) for j in range(count)])
    error = math.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2))
    low, high = stats.t.interval(0.8, count - 1, mean, error)
    assert estimate.value == mean
    assert estimate.standard_error == pytest.approx(error, rel=1e-12, nan_ok=True)
    assert estimate.bias == pytest.approx((count - 1) * (left.mean() - mean), abs=1e-12 * abs(mean), nan_ok=True)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), nan_ok=True)
    assert estimate.level == 0.8
    assert estimate.resolved == math.isfinite(mean + error)


def test_a_mean_has_its_textbook_standard_error():
    split = replicated((25,))
    estimate = jackknife(energy, split)
    sample = split.dominant.signal.zeroth
    assert estimate.standard_error == pytest.approx(stats.sem(sample))
    assert estimate.bias == pytest.approx(0, abs=1e-14)
    assert (estimate.low, estimate.high) == pytest.approx(stats.t.interval(0.9, 24, sample.mean(), stats.sem(sample)))
    assert estimate.resolved


@pytest.mark.parametrize(("criterion", "truth"), [(alignment, 1 / 4), (critical, 18 / 47)])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_as_often_as_they_say(criterion, truth, level):
    trials = 4_000
    estimate = jackknife(criterion, replicated((40, trials), seed=1), level=level)
    covered = np.mean((estimate.low <= truth) & (truth <= estimate.high))
    assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / trials)
    assert estimate.resolved.all()


def test_the_bias_is_that_of_the_ratio():
    trials = 4_000
    estimate = jackknife(alignment, replicated((10, trials), seed=2, spread=0.5))
    bias, told = estimate.value - 1 / 4, estimate.bias
    assert abs(np.mean(bias - told)) < 4 * np.std(bias - told) / math.sqrt(trials)
    assert abs(np.mean(told)) > 5 * np.std(told) / math.sqrt(trials)  # there is one to be told


def test_any_axis_may_hold_the_replicates():
    split = replicated((2, 5, 3))
    for axis in range(-3, 3):
        estimate = jackknife(critical, split, axis=axis)
        moved = jackknife(critical, split.map(lambda m, axis=axis: np.moveaxis(m, axis, 0)))
        assert estimate.value.shape == tuple(np.delete([2, 5, 3], axis))
        for name in ("value", "standard_error", "bias", "low", "high", "resolved"):
            np.testing.assert_array_equal(getattr(estimate, name), getattr(moved, name))


def test_fields_without_the_replicate_axis_are_certain():
    quiet = CurvatureMoments(0.0, 0.0, 0.0)
    bulk = SubspaceMoments(CurvatureMoments(3.0, 3.0, 3.0), quiet)
    split = SplitMoments(SubspaceMoments(CurvatureMoments([1.0, 1.2, 0.8], 4.0, 16.0), quiet), bulk)
    assert jackknife(lambda s: s.bulk.signal.zeroth, split).standard_error == 0
    assert jackknife(alignment, split).standard_error > 0


def test_a_criterion_that_does_not_exist_is_unresolved():
    high = SplitMoments(  # noise in the bulk so large that the regime is HIGH
        SubspaceMoments(CurvatureMoments([1.0, 1.1], 4.0, 16.0), CurvatureMoments(0.0, 0.0, 0.0)),
        SubspaceMoments(CurvatureMoments(3.0, 3.0, 3.0), CurvatureMoments(0.0, 0.0, 1e6)),
    )
    estimate = jackknife(critical, high)
    assert np.isnan([estimate.value, estimate.standard_error, estimate.low, estimate.high, estimate.bias]).all()
    assert not estimate.resolved
    assert jackknife(alignment, high).resolved


def test_one_replicate_left_out_may_leave_it_unresolved():
    noise = CurvatureMoments(0.0, 0.0, [0.0, 0.0, 0.0, 90.0])  # LOW on average, HIGH without some of them
    split = SplitMoments(
        SubspaceMoments(CurvatureMoments(1.0, 4.0, 16.0), CurvatureMoments(0.0, 0.0, 0.0)),
        SubspaceMoments(CurvatureMoments(3.0, 3.0, 25.0), noise),
    )
    estimate = jackknife(critical, split)
    assert math.isfinite(estimate.value)
    assert not estimate.resolved
    assert not exactly(math.nan).resolved


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_missing_moments_make_it_unresolved(missing):
    split = replicated((4,))
    split = split.map(lambda m: np.where(np.arange(4) == 2, missing, m))
    assert not jackknife(critical, split).resolved


def test_exact_moments_have_no_width():
    estimate = exactly([1.5, math.nan], 0.8)
    np.testing.assert_array_equal(estimate.value, [1.5, math.nan])
    np.testing.assert_array_equal(estimate.low, estimate.high)
    np.testing.assert_array_equal(estimate.standard_error, [0.0, math.nan])
    assert estimate.resolved.tolist() == [True, False]
    assert estimate.level == 0.8


def numerators(split):
    """N and M of η* = 2N/M, straight from their definitions."""
    D, B = split.dominant, split.bulk
    d0, b0 = D.signal.zeroth, B.signal.zeroth
    N = b0 * D.signal.first - d0 * B.signal.first
    return N, b0 * (D.signal.second + D.noise.second) - d0 * (B.signal.second + B.noise.second)


@given(st.integers(3, 7), st.integers(0, 10**6))
def test_the_ends_of_the_critical_interval_are_where_the_test_of_zero_turns(count, seed):
    """At either end, ηM − 2N is exactly t standard errors away from zero."""
    split = replicated((count,), seed)
    estimate = critical_step_interval(split, level=0.8)
    assert estimate.value == critical(split.mean(0))
    if not estimate.resolved:
        return
    assert estimate.low <= estimate.value <= estimate.high
    quantile = stats.t.ppf(0.9, count - 1)
    left = [split[[i for i in range(count) if i != j]].mean(0) for j in range(count)]
    for end in (estimate.low, estimate.high):
        N, M = numerators(split.mean(0))
        each = np.array([end * m - 2 * n for n, m in map(numerators, left)])
        error = math.sqrt((count - 1) / count * np.sum((each - each.mean()) ** 2))
        assert abs(end * M - 2 * N) == pytest.approx(quantile * error, rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_the_critical_interval_covers_as_often_as_it_says(level, spread):
    """Where M is hardly larger than its error too: there the interval is often unbounded, and counts as covering."""
    trials = 4_000
    estimate = critical_step_interval(replicated((40, trials), seed=4, spread=spread), level=level)
    unbounded = ~np.isfinite(estimate.high)
    covered = np.mean(unbounded | ((estimate.low <= 18 / 47) & (estimate.high >= 18 / 47)))
    assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / trials) + 0.01 * spread
    if spread < 0.5:
        assert estimate.resolved.all()
        plain = jackknife(critical, replicated((40, trials), seed=4, spread=spread), level=level)
        assert np.median(estimate.standard_error / plain.standard_error) == pytest.approx(1, abs=0.01)
        assert np.median(estimate.bias - plain.bias) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("missing", [math.nan, math.inf, 0.0])
def test_missing_moments_leave_the_critical_interval_unresolved(missing):
    split = replicated((4,)).map(lambda m: np.where(np.arange(4) == 2, missing, m))
    if missing == 0.0:
        split = split.map(lambda m: 0.0 * m)
    assert not critical_step_interval(split).resolved


def test_a_mean_of_replicates():
    sample = np.array([1.0, 2.0, 4.0, 5.0])
    estimate = mean_of(sample, level=0.8)
    assert (estimate.low, estimate.high) == pytest.approx(stats.t.interval(0.8, 3, 3.0, stats.sem(sample)))
    assert (estimate.value, estimate.bias, estimate.resolved) == (3.0, 0.0, True)
    assert mean_of(2.0) == exactly(2.0)
    assert not mean_of([1.0, math.nan]).resolved


@pytest.mark.parametrize(
    ("shape", "arguments", "name"),
    [
        ((), {}, "split"),
        ((1,), {}, "split"),
        ((0,), {}, "split"),
        ((3,), {"axis": 1}, "split"),
        ((3,), {"axis": -2}, "split"),
        ((3, 1), {"axis": -1}, "split"),
        ((3,), {"level": 0.0}, "level"),
        ((3,), {"level": 1.0}, "level"),
        ((3,), {"level": math.nan}, "level"),
    ],
)
def test_bad_arguments_are_named(shape, arguments, name):
    for estimator in (lambda split, **more: jackknife(alignment, split, **more), critical_step_interval):
        with pytest.raises(InvalidArgument) as caught:
            estimator(replicated(shape), **arguments)
        assert caught.value.name == name
