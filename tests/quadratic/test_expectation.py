"""E θ' by quadrature against mpmath's quadrature and sampling; its bound; and the corrected critical steps."""

import numpy as np
import pytest
from scipy.optimize import brentq

import etastar
from etastar import InvalidArgument, UnstableStep
from etastar.quadratic import (
    Noise,
    Quadratic,
    Spectrum,
    corrected_critical_step,
    expected_alignment,
    expected_alignment_after,
    expected_alignment_stationary,
    ratio_bound,
)
from oracles import stepping
from oracles.ratio import expected_share


def random_problem(seed, rank=None):
    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(2, 5))
    counts = rng.integers(1, 6, blocks)
    lam = np.sort(rng.lognormal(0, 1, blocks))[::-1]
    variances = rng.lognormal(-1, 2, blocks) * (rng.random(blocks) < 0.85)
    spectrum = Spectrum(lam, rank=int(counts[: rng.integers(1, blocks)].sum()), multiplicities=counts)
    q = Quadratic(spectrum, Noise.diagonal(np.repeat(variances, counts)))
    return q, rng.standard_normal(spectrum.dimension), float(rng.uniform(0.05, 1.9) / lam[0]), variances


@pytest.mark.parametrize("seed", range(30))
def test_quadrature_is_that_of_mpmath(seed):
    q, gradient, eta, variances = random_problem(seed)
    lam, counts = q.spectrum.eigenvalues, q.spectrum.multiplicities
    starts = np.cumsum(counts) - counts
    energies = np.add.reduceat(gradient**2, starts)
    exact = expected_share((1 - eta * lam) ** 2 * energies, (eta * lam) ** 2 * variances, counts, q.spectrum.cut)
    assert expected_alignment_after(q, gradient=gradient, step_size=eta) == pytest.approx(float(exact), rel=1e-10)
    assert expected_alignment_after(q, energy=energies, step_size=eta) == pytest.approx(float(exact), rel=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_quadrature_is_the_mean_over_runs_and_the_bound_holds(seed):
    q, gradient, eta, _ = random_problem(seed)
    paths = q.sample(gradient=gradient, step_size=eta, times=[1], replicas=40_000, seed=seed)
    exact = expected_alignment_after(q, gradient=gradient, step_size=eta)
    theta = paths.alignment[:, 0]
    assert stepping.standard_errors(theta, exact) < 4 or np.allclose(theta, exact, rtol=1e-9)
    ratio_of_means = etastar.alignment_after(q.moments(gradient=gradient), eta)
    assert abs(exact - ratio_of_means) <= ratio_bound(q, gradient=gradient, step_size=eta) + 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_holds_for_correlated_noise(seed):
    rng = np.random.default_rng(seed)
    sigma = stepping.random_covariance(rng, 4, rank=None if seed % 2 else 1)
    q = Quadratic(Spectrum(np.sort(rng.lognormal(0, 1, 4))[::-1], rank=2), Noise.covariance(sigma))
    gradient, eta = rng.standard_normal(4), 0.5 / q.spectrum.eigenvalues[0]
    theta = q.sample(gradient=gradient, step_size=eta, times=[1], replicas=20_000, seed=seed).alignment[:, 0]
    gap = abs(theta.mean() - etastar.alignment_after(q.moments(gradient=gradient), eta))
    H = np.diag(q.spectrum.eigenvalues)
    after = np.sum(((1 - eta * q.spectrum.eigenvalues) * gradient) ** 2) + eta**2 * np.trace(H @ sigma @ H)
    bound = ratio_bound(q, gradient=gradient, step_size=eta)
    assert bound == pytest.approx(2 * eta * np.sqrt(np.linalg.norm(H @ sigma @ H, 2) / after), rel=1e-10)
    assert gap <= bound + 4 * theta.std() / np.sqrt(20_000)


def test_extremes_of_the_quadrature():
    quiet = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.0))
    after = etastar.alignment_after(quiet.moments(gradient=[1.0, 3.0]), 0.1)
    assert expected_alignment_after(quiet, gradient=[1.0, 3.0], step_size=0.1) == pytest.approx(after, rel=1e-13)
    assert np.isnan(expected_alignment_after(quiet, gradient=[1.0, 0.0], step_size=0.25))
    # Noise alone, k modes of d: a beta distribution, whatever the scale; a billion dimensions.
    for scale in (1e-300, 1e-12, 1.0, 1e12, 1e290):
        q = Quadratic(Spectrum([2.0, 1.0], rank=1, multiplicities=[1, 1]), Noise.isotropic(scale))
        value = expected_alignment_after(q, gradient=[0.0, 0.0], step_size=0.25)
        assert value == pytest.approx(2 / 3, rel=1e-10)  # E[4a²/(4a² + b²)] = 2/(2 + 1)
    big = Quadratic(Spectrum.two_level(10**9, 10, 100.0, 1.0), Noise.isotropic(1e-9))
    ratio = etastar.alignment_after(big.moments(energy=[1.0, 9.0]), 0.01)
    assert expected_alignment_after(big, energy=[1.0, 9.0], step_size=0.01) == pytest.approx(ratio, rel=1e-6)
    # ηλ = 1 but for an ulp: what is left of the dominant mode keeps its digits.
    near = Quadratic(Spectrum([3.0, 1.0], rank=1), Noise.diagonal([0.0, 0.0]))
    step = np.nextafter(1 / 3, 1)
    exact = near.expected(gradient=[1e12, 1e-4], step_size=step, times=[1]).alignment[0]
    assert expected_alignment_after(near, gradient=[1e12, 1e-4], step_size=step) == pytest.approx(exact, rel=1e-10)
    assert 0.1 < exact < 0.9


def test_stationary_expectation_is_the_mean_of_late_runs():
    for seed in range(4):
        q, gradient, eta, variances = random_problem(seed)
        if not np.all(variances):
            continue
        exact = expected_alignment_stationary(q, eta)
        lam, counts = q.spectrum.eigenvalues, q.spectrum.multiplicities
        floor = eta * lam * variances / (2 - eta * lam)
        oracle = expected_share(np.zeros_like(lam), floor, counts, q.spectrum.cut)
        assert exact == pytest.approx(float(oracle), rel=1e-10)
        late = int(40 / min(eta * lam[-1], 2 - eta * lam[0])) + 1
        theta = q.sample(gradient=gradient, step_size=eta, times=[late], replicas=20_000, seed=seed).alignment[:, 0]
        assert stepping.standard_errors(theta, exact) < 4
    with pytest.raises(UnstableStep, match=r"^step_size: got "):
        expected_alignment_stationary(q, 3.0 / q.spectrum.eigenvalues[0])


@pytest.mark.parametrize("rank", [10, 30])
@pytest.mark.parametrize("variance", [0.02, 0.1, 0.3])
def test_corrected_steps_come_closer_than_the_critical_step(rank, variance):
    """At k ≥ 10: to where E θ' = θ by quadrature, and to where E log(E_D'/E_B') is unchanged by sampling."""
    rng = np.random.default_rng(rank)
    lam = np.concatenate([rng.uniform(3, 4, rank), rng.uniform(0.2, 1.0, 4 * rank)])
    q = Quadratic(Spectrum(np.sort(lam)[::-1], rank=rank), Noise.isotropic(variance))
    gradient = rng.standard_normal(5 * rank) * np.where(np.arange(5 * rank) < rank, 0.4, 1.0)
    theta = etastar.alignment(q.moments(gradient=gradient))
    steps = corrected_critical_step(q, gradient=gradient)
    exact = brentq(
        lambda eta: expected_alignment_after(q, gradient=gradient, step_size=eta) - theta,
        0.5 * steps.ratio_of_means,
        2 * steps.ratio_of_means,
    )
    assert abs(steps.mean_of_ratio - exact) < 0.5 * abs(steps.ratio_of_means - exact)
    normal = rng.standard_normal((30_000, 5 * rank))

    def drift(eta):
        after = gradient - eta * q.spectrum.eigenvalues * (gradient + np.sqrt(variance) * normal)
        dominant, bulk = (after[:, :rank] ** 2).sum(1), (after[:, rank:] ** 2).sum(1)
        return np.mean(np.log(dominant / bulk)) - np.log(theta / (1 - theta))

    there = brentq(drift, 0.5 * steps.ratio_of_means, 2 * steps.ratio_of_means, xtol=1e-6)
    assert abs(steps.mean_of_log - there) < 0.5 * abs(steps.ratio_of_means - there)
    assert steps.ratio_of_means == etastar.critical_step_size(q.moments(gradient=gradient)).value


def test_corrected_steps_as_printed_and_absent_without_a_critical_step():
    q = Quadratic(Spectrum([4.0, 3.0, 1.0, 0.5], rank=2), Noise.diagonal([0.1, 0.3, 0.2, 0.4]))
    g = np.array([0.5, 0.3, 2.0, 1.0])
    lam, kappa = q.spectrum.eigenvalues, q.noise.variances
    steps, split = corrected_critical_step(q, gradient=g), q.moments(gradient=g)
    eta, theta = float(steps.ratio_of_means), float(etastar.alignment(split))
    sigma, y = np.diag(eta**2 * lam**2 * kappa), (1 - eta * lam) * g
    nu = []
    for S in (np.diag([1.0, 1, 0, 0]), np.diag([0.0, 0, 1, 1])):
        energy = y @ S @ y + np.trace(S @ sigma)
        nu.append((2 * np.trace(S @ sigma @ S @ sigma) + 4 * y @ S @ sigma @ S @ y) / energy**2)
    D, B = split.dominant, split.bulk
    a_D, a_B = (float(part.signal.first / part.signal.zeroth) for part in (D, B))
    phi = 1 - 2 * eta * a_D + eta**2 * float((D.signal.second + D.noise.second) / D.signal.zeroth)
    expected = eta + phi * (theta * nu[0] - (1 - theta) * nu[1]) / (2 * (a_D - a_B))
    assert steps.mean_of_ratio == pytest.approx(expected, rel=1e-12)
    assert steps.mean_of_log == pytest.approx(eta + phi * (nu[0] - nu[1]) / (4 * (a_D - a_B)), rel=1e-12)
    absent = corrected_critical_step(q, gradient=[[1.0, 1.0, 0.0, 0.0], [0.0] * 4])
    assert np.all(np.isnan(absent.mean_of_ratio))
    assert np.all(np.isnan(absent.mean_of_log))


def test_batches_blocks_and_bad_arguments():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1, multiplicities=[1, 2]), Noise.isotropic(0.3))
    starts = np.random.default_rng(0).standard_normal((2, 4, 3))
    batch = expected_alignment_after(q, gradient=starts, step_size=0.2)
    assert batch.shape == ratio_bound(q, gradient=starts, step_size=0.2).shape == (2, 4)
    assert batch[1, 2] == pytest.approx(expected_alignment_after(q, gradient=starts[1, 2], step_size=0.2), rel=1e-14)
    uneven = Quadratic(q.spectrum, Noise.diagonal([0.1, 0.2, 0.3]))
    full = Quadratic(q.spectrum, Noise.covariance(np.eye(3) + 0.1))
    alone = Quadratic(Spectrum([4.0, 1.0, 1.0 - 1e-15], rank=1), Noise.diagonal([0.1, 0.2, 0.3]))
    g = starts[0, 0]
    assert expected_alignment_after(uneven, gradient=g, step_size=0.2) == pytest.approx(
        expected_alignment_after(alone, gradient=g, step_size=0.2), rel=1e-12
    )
    for function in (
        lambda p, **state: expected_alignment_after(p, step_size=0.2, **state),
        corrected_critical_step,
    ):
        with pytest.raises(InvalidArgument, match=r"^energy: got .*differs within a block; give gradient="):
            function(uneven, energy=[1.0, 2.0])
        with pytest.raises(InvalidArgument, match=r"^noise: got 'a full covariance'"):
            function(full, gradient=g)
    with pytest.raises(InvalidArgument, match=r"^noise: got 'a full covariance'"):
        expected_alignment_stationary(full, 0.1)
    for bad in (0.0, -1.0, np.nan, [0.1, 0.2], "x"):
        with pytest.raises(InvalidArgument, match=r"^step_size: got "):
            ratio_bound(q, gradient=g, step_size=bad)


def test_along_a_run_it_starts_at_one_step_and_ends_stationary():
    q = Quadratic(Spectrum([4.0, 2.0, 1.0, 0.5], rank=2), Noise.diagonal([0.3, 0.1, 0.2, 0.4]))
    start = [1.0, -0.5, 2.0, 0.3]
    run = expected_alignment(q, start, step_size=0.3, times=[0, 1, 10_000])
    np.testing.assert_allclose(run[0], 1.25 / 5.34, rtol=1e-12)
    np.testing.assert_allclose(run[1], expected_alignment_after(q, start, step_size=0.3), rtol=1e-13)
    np.testing.assert_allclose(run[2], expected_alignment_stationary(q, 0.3), rtol=1e-12)


def test_along_a_run_it_is_the_mean_of_sampled_alignments():
    q = Quadratic(Spectrum.two_level(90, 3, dominant=9.0, bulk=1.0), Noise.isotropic(0.05))
    times = [2, 8, 40]
    paths = q.sample(energy=[8.0, 20.0], step_size=0.05, times=times, replicas=20_000, seed=4)
    exact = expected_alignment(q, energy=[8.0, 20.0], step_size=0.05, times=times)
    error = paths.alignment.std(axis=0, ddof=1) / np.sqrt(20_000)
    assert np.all(np.abs(paths.alignment.mean(axis=0) - exact) < 4 * error)
