"""The closed form against mpmath: any step, any time, any scale; and the stationary state."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import etastar
from etastar import InvalidArgument, UnstableStep
from etastar.quadratic import Noise, Quadratic, Spectrum
from oracles import EPSILON, assert_close
from oracles.curve import DIGITS, Problem
from oracles.strategies import magnitudes, states

TIMES = [0, 1, 2, 3, 7, 100, 12_345, 10**6, 10**9]


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(DIGITS):
        yield


def make(eigenvalues, counts, rank, variances):
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    noise = Noise.diagonal(np.repeat(variances, counts))
    return Quadratic(spectrum, noise), Problem(np.asarray(eigenvalues), np.asarray(counts), rank, np.asarray(variances))


def check(quadratic, problem, energies, eta, times, slack=1.0):
    """θ, moments and loss at each time: round-off times the exponent t·log ρ, which amplifies the inputs' too."""
    curve = quadratic.expected(energy=energies, step_size=eta, times=times)
    for index, time in enumerate(times):
        exact = problem.energies(energies, eta, time)
        rates = [
            abs(mpmath.log(abs(1 - mpf(eta) * mpf(float(lam))))) if eta * lam != 1 else 0 for lam in problem.eigenvalues
        ]
        exponents = [2 * time * rate for rate in rates]
        # e^(−x) with x known to ε·x: beyond x = 700 a term is below 1e−300 of the start and counts as zero.
        loss_of_digits = 16 + 4 * float(min(max(exponents), 1500)) * slack
        found = [curve.split.dominant.signal, curve.split.bulk.signal]
        for (m0, m1, m2, _), signal in zip(problem.moments(exact), found, strict=True):
            vanishing = mpf(2) ** -990 * mpmath.fsum(map(mpf, map(float, energies)))
            for value, number in ((signal.zeroth, m0), (signal.first, m1), (signal.second, m2)):
                scale = mpf(float(np.max(np.abs(problem.eigenvalues)) ** 2 + 1))
                assert_close(value[index], number, loss_of_digits * EPSILON * abs(number) + vanishing * scale, time)
        (dominant, *_), (bulk, *_) = problem.moments(exact)
        theta = dominant / (dominant + bulk)
        assert_close(curve.alignment[index], theta, loss_of_digits * EPSILON * theta + mpf(10) ** -290, time)
        losses = [moments[3] for moments in problem.moments(exact)]
        assert_close(curve.loss[index], sum(losses), loss_of_digits * EPSILON * sum(map(abs, losses)) + mpf(10) ** -280)


@given(states(), st.floats(1e-3, 1.999))
def test_curve_of_a_stable_step(state, product):
    eigenvalues, counts, rank, variances, energies = state
    quadratic, problem = make(eigenvalues, counts, rank, variances)
    check(quadratic, problem, energies, product / eigenvalues[0], [0, 1, 2, 5, 40, 1000, 10**6])


@pytest.mark.parametrize("product", [1e-12, 1e-6, 0.5, 1.0, 1.5, 1.9])
@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_steps_around_the_special_ones(product, ulps):
    """ηλ tiny, at and around 1 (nothing is left), at the branch points of log ρ; times up to 1e9."""
    eta = product / 4.0
    for _ in range(abs(ulps)):
        eta = np.nextafter(eta, 9 if ulps > 0 else 0)
    quadratic, problem = make([4.0, 2.0, 1.0], [1, 2, 5], 3, [0.3, 0.0, 0.7])
    check(quadratic, problem, np.array([1.0, 1e-3, 2.0]), float(eta), TIMES)


@pytest.mark.parametrize("ulps", [-3, -1, 0, 1, 3])
@pytest.mark.parametrize("lam", [4.0, 3.0, 0.1])
def test_steps_at_the_limit_of_stability(ulps, lam):
    """ηλ₁ = 2 within a few units in the last place: noise accumulates linearly, and slightly less or more."""
    eta = 2.0 / lam
    for _ in range(abs(ulps)):
        eta = np.nextafter(eta, 99 if ulps > 0 else 0)
    quadratic, problem = make([lam, lam / 2, lam / 4], [1, 2, 5], 1, [0.3, 0.2, 0.7])
    check(quadratic, problem, np.array([1.0, 1e-3, 2.0]), float(eta), TIMES)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("eta", [0.6, 0.9, 3.0])
def test_unstable_steps_keep_the_alignment_although_energies_overflow(eta, noise):
    quadratic, problem = make([4.0, 3.0, 1.0], [1, 2, 3], 3, [noise, noise, noise])
    energies, times = np.array([1e-3, 1.0, 2.0]), [0, 1, 10, 100, 1000, 10**5]
    curve = quadratic.expected(energy=energies, step_size=eta, times=times)
    for time, theta in zip(times, curve.alignment, strict=True):
        exact = problem.alignment(energies, eta, time)
        assert_close(theta, exact, 1e-9 * exact)
    assert np.isinf(curve.loss[-1])
    assert not np.any(np.isnan(curve.loss))


@pytest.mark.parametrize("product", [1e-9, 0.3, 1.0, 1.3, 1.8])
def test_runs_without_noise_end_in_the_slowest_modes(product):
    quadratic, problem = make([4.0, 3.0, 1.0], [1, 2, 3], 1, [0.0, 0.0, 0.0])
    energies, times = np.array([1.0, 1e-3, 2.0]), [0, 1, 1000, 10**6, 10**9]
    curve = quadratic.expected(energy=energies, step_size=product / 4, times=times)
    for time, theta in zip(times, curve.alignment, strict=True):
        exact = problem.alignment(energies, product / 4, time)
        digits = 1e-13 * min(1 + time * product, 1e13)  # t·log ρ is known to ε·t·|log ρ|
        assert_close(theta, exact, (digits + 1e-14) * exact + mpf(10) ** -300)
    assert np.all(np.isfinite(curve.alignment))


def test_a_gradient_that_vanishes_exactly_has_no_alignment():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.0))
    curve = q.expected(gradient=[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], step_size=0.25, times=[0, 1, 5, 10**6])
    assert curve.alignment[0, 0] == 1.0
    assert np.all(np.isnan(curve.alignment[0, 1:]))
    assert np.all(np.isnan(curve.alignment[1]))
    assert curve.alignment[2].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert np.all(curve.loss[0, 1:] == 0)


def test_every_state_of_a_batch_is_as_if_alone():
    """States that decay, grow and rest at different rates share no common factor."""
    states = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1e-200, 0.0, 1.0]])
    times = [0, 1, 10, 10**4, 10**6]
    for variance in ([0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]):
        for eta in (0.1, 0.25, 0.5, 0.7, 1.1):
            q = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.diagonal(variance))
            together = q.expected(energy=states, step_size=eta, times=times)
            for index, one in enumerate(states):
                alone = q.expected(energy=one, step_size=eta, times=times)
                np.testing.assert_allclose(together.alignment[index], alone.alignment, rtol=1e-13)
                np.testing.assert_allclose(together.loss[index], alone.loss, rtol=1e-13)
                exact = Problem(np.array([4.0, 2.0, 1.0]), np.ones(3), 1, np.array(variance))
                for time, theta in zip(times, alone.alignment, strict=True):
                    truth = exact.alignment(one, eta, time)
                    if mpmath.isnan(truth):
                        assert np.isnan(theta)
                    else:
                        assert_close(theta, truth, 1e-8 * truth + mpf(10) ** -290)


def test_dead_modes_that_would_explode_change_nothing():
    q = Quadratic(Spectrum([4.0, 1.0, 0.5], rank=1), Noise.diagonal([0.0, 1.0, 1.0]))
    curve = q.expected(gradient=[0.0, 1.0, 1.0], step_size=0.9, times=[0, 10, 10**4, 10**9])
    assert curve.alignment.tolist() == [0.0] * 4
    assert np.all(np.isfinite(curve.loss))


@pytest.mark.parametrize("bottom", [0.0, -0.5])
def test_zero_and_negative_eigenvalues(bottom):
    quadratic, problem = make([4.0, 1.0, bottom], [1, 2, 2], 1, [0.3, 0.2, 0.7])
    energies = np.array([1.0, 2.0, 0.0 if bottom == 0 else 0.5])
    times = [0, 1, 30, 300]
    curve = quadratic.expected(energy=energies, step_size=0.1, times=times)
    for index, time in enumerate(times):
        exact = problem.energies(energies, 0.1, time)
        (dominant, _, _, loss), (bulk, _, _, more) = problem.moments(exact)
        assert_close(curve.alignment[index], dominant / (dominant + bulk), 1e-12)
        assert_close(curve.loss[index], loss + more, 1e-12 * (abs(loss) + abs(more)))


@pytest.mark.parametrize("scale", [1e-280, 1e-140, 1e140, 1e280])
def test_energies_of_any_scale_have_one_curve(scale):
    spectrum, start = Spectrum([4.0, 2.0, 1.0], rank=1), np.array([1.0, 2.0, 3.0])
    usual = Quadratic(spectrum, Noise.isotropic(0.1)).expected(energy=start, step_size=1e-3, times=TIMES)
    scaled = Quadratic(spectrum, Noise.isotropic(0.1 * scale)).expected(
        energy=scale * start, step_size=1e-3, times=TIMES
    )
    np.testing.assert_allclose(scaled.alignment, usual.alignment, rtol=1e-12)
    np.testing.assert_allclose(scaled.loss / scale, usual.loss, rtol=1e-12)
    np.testing.assert_allclose(scaled.critical_step_size.value, usual.critical_step_size.value, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-40, 1e40, 1e140])
def test_spectra_of_any_scale_have_one_curve(scale):
    usual = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.isotropic(0.1))
    scaled = Quadratic(Spectrum(np.array([4.0, 2.0, 1.0]) * scale, rank=1), Noise.isotropic(0.1))
    a = usual.expected(energy=[1.0, 2.0, 3.0], step_size=0.1, times=TIMES)
    b = scaled.expected(energy=[1.0, 2.0, 3.0], step_size=0.1 / scale, times=TIMES)
    np.testing.assert_allclose(b.alignment, a.alignment, rtol=1e-12)
    np.testing.assert_allclose(b.critical_step_size.value * scale, a.critical_step_size.value, rtol=1e-11)
    np.testing.assert_allclose(b.loss * scale, a.loss, rtol=1e-12)


def test_many_blocks_many_times_many_states_agree_with_one_at_a_time():
    """More than one tile in every direction."""
    rng = np.random.default_rng(3)
    size, times = 5001, np.unique(rng.integers(0, 10**6, 150))
    spectrum = Spectrum(np.sort(rng.uniform(0.01, 1.0, size))[::-1], rank=20)
    q = Quadratic(spectrum, Noise.diagonal(rng.uniform(0, 1e-3, size)))
    starts = rng.standard_normal((2, 3, size))
    curve = q.expected(gradient=starts, step_size=1.3, times=times)
    assert curve.alignment.shape == curve.loss.shape == (2, 3, times.size)
    lam, kappa, t = spectrum.eigenvalues, q.noise.variances, times[:, None].astype(float)
    alpha = 1.3 * lam
    power = np.exp(2 * t * np.log(np.abs(1 - alpha)))
    floor = alpha * kappa / (2 - alpha)
    for index in np.ndindex(2, 3):
        energies = floor + (starts[index] ** 2 - floor) * power
        theta = energies[:, :20].sum(1) / energies.sum(1)
        np.testing.assert_allclose(curve.alignment[index], theta, rtol=1e-10)
        np.testing.assert_allclose(
            curve.split.bulk.signal.second[index], (energies * lam**2)[:, 20:].sum(1), rtol=1e-10
        )


def test_energy_per_block_and_gradient_agree_and_a_billion_dimensions_cost_nothing():
    spectrum = Spectrum.two_level(10**9, 10, dominant=100.0, bulk=1.0)
    q = Quadratic(spectrum, Noise.isotropic(1e-9))
    problem = Problem(np.array([100.0, 1.0]), np.array([10, 10**9 - 10]), 10, np.full(2, 1e-9))
    check(q, problem, np.array([1.0, 9.0]), 0.01, [0, 10, 1000, 10**6])
    small = Quadratic(Spectrum([3.0, 1.0], rank=2, multiplicities=[2, 3]), Noise.isotropic(0.1))
    a = small.expected(gradient=[1.0, 2.0, 1.0, 0.0, 2.0], step_size=0.1, times=[0, 5])
    b = small.expected(energy=[5.0, 5.0], step_size=0.1, times=[0, 5])
    assert np.array_equal(a.alignment, b.alignment)


@given(states(), st.floats(1e-9, 2.0, exclude_max=True))
def test_at_stationarity_every_step_size_equals_the_step(state, product):
    eigenvalues, counts, rank, variances, _ = state
    eta = product / eigenvalues[0]
    if eta * eigenvalues[0] >= 2:
        return
    quadratic, problem = make(eigenvalues, counts, rank, variances)
    split = quadratic.stationary(eta)
    for (m0, m1, m2, _), part in zip(problem.moments(problem.floors(eta)), (split.dominant, split.bulk), strict=True):
        for value, exact in ((part.signal.zeroth, m0), (part.signal.first, m1), (part.signal.second, m2)):
            assert_close(value, exact, 16 * EPSILON * exact)
    step, bounds = etastar.critical_step_size(split), etastar.loss_thresholds(split)
    assert step.value == pytest.approx(eta, rel=64 * EPSILON * max(1.0, float(step.condition)))
    for threshold in (bounds.dominant, bounds.bulk, bounds.full):
        assert threshold == pytest.approx(eta, rel=1e-13)


def test_stationary_alignment_rises_with_the_step_and_has_its_limits():
    q = Quadratic(Spectrum([5.0, 3.0, 1.0, 0.2], rank=2), Noise.diagonal([0.1, 0.4, 0.3, 0.2]))
    steps = np.linspace(1e-9, 0.4 - 1e-12, 500)
    theta = etastar.alignment(q.stationary(steps))
    assert theta.shape == (500,)
    assert np.all(np.diff(theta) > 0)
    traces = q.spectrum.eigenvalues * q.noise.variances
    assert theta[0] == pytest.approx(traces[:2].sum() / traces.sum(), rel=1e-8)
    assert theta[-1] == pytest.approx(1.0, abs=1e-9)
    assert etastar.alignment(q.expected(gradient=np.ones(4), step_size=0.1, times=[10**6]).split) == pytest.approx(
        etastar.alignment(q.stationary(0.1)), rel=1e-12
    )


@pytest.mark.parametrize("bad", [0.0, 0.5, np.nextafter(0.5, 1), 1.0, [0.1, 0.6]])
def test_no_stationary_state_is_told_with_the_limit(bad):
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    with pytest.raises(UnstableStep, match=r"^step_size: got .*; a stationary state needs 0 < step_size < 2/λ₁ = 0.5$"):
        q.stationary(bad)
    assert q.stationary(np.nextafter(0.5, 0)).shape == ()
    with pytest.raises(UnstableStep, match=r"^eigenvalues: got λ_d = -1; no stationary state"):
        Quadratic(Spectrum([4.0, -1.0], rank=1), Noise.isotropic(0.1)).stationary(0.1)


@given(magnitudes(-3, 3), st.lists(st.integers(0, 10**12), min_size=1, max_size=40, unique=True))
def test_the_number_of_times_does_not_matter(variance, times):
    q = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.isotropic(variance))
    times = sorted(times)
    together = q.expected(energy=[1.0, 2.0, 3.0], step_size=0.01, times=times).alignment
    apart = [q.expected(energy=[1.0, 2.0, 3.0], step_size=0.01, times=[t]).alignment[0] for t in times]
    np.testing.assert_allclose(together, apart, rtol=1e-13)


def test_csv_has_a_line_a_time(tmp_path):
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    curve = q.expected(gradient=[1.0, 3.0], step_size=0.1, times=[0, 5, 9])
    curve.to_csv(tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("time,alignment,loss,critical_step_size,regime")
    rows = [line.split(",") for line in lines[1:]]
    assert [int(row[0]) for row in rows] == [0, 5, 9]
    assert [float(row[1]) for row in rows] == curve.alignment.tolist()
    assert [float(row[3]) for row in rows] == curve.critical_step_size.value.tolist()
    assert [float(row[5]) for row in rows] == curve.loss_thresholds.dominant.tolist()
    with pytest.raises(InvalidArgument, match=r"^curve: got \(1, 3\); must be a single curve"):
        q.expected(gradient=[[1.0, 3.0]], step_size=0.1, times=[0, 5, 9]).to_csv(tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()
