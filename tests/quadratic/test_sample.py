"""The exact-in-law sampler against brute-force stepping: distributions, moments, determinism, hard corners."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from etastar import InvalidArgument
from etastar.quadratic import Noise, Quadratic, Spectrum
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import read_state
from etastar.quadratic.paths import Ensemble
from etastar.quadratic.sample import _leap
from oracles import stepping

TIMES = [0, 1, 2, 5, 11]
RUNS = 1500


def random_problem(seed):
    """(spectrum, noise, Σ, η, gradient): mixed multiplicities and noises; η stable, above 1/λ, marginal, unstable."""
    rng = np.random.default_rng(seed)
    blocks = int(rng.integers(2, 5))
    counts = rng.integers(1, 4, blocks)
    lam = np.sort(rng.uniform(0.2, 4.0, blocks))[::-1]
    if seed % 7 == 3:
        lam[-1] = 0.0
    if seed % 7 == 5:
        lam[-1] = -0.3
    spectrum = Spectrum(lam, rank=int(counts[: rng.integers(1, blocks)].sum()), multiplicities=counts)
    size = spectrum.dimension
    kind = seed % 5
    if kind == 0:
        noise = Noise.isotropic(float(rng.lognormal()))
    elif kind == 1:
        noise = Noise.diagonal(np.repeat(rng.lognormal(size=blocks), counts))
    elif kind == 2:
        noise = Noise.diagonal(rng.lognormal(size=size) * (rng.random(size) < 0.8))
    else:
        noise = Noise.covariance(stepping.random_covariance(rng, size, rank=None if kind == 3 else max(1, size // 2)))
    sigma = np.diag(np.broadcast_to(noise.variances, size)) if noise.matrix is None else noise.matrix
    product = [0.05, 0.7, 1.0, 1.4, 1.9, 2.0, 2.2][seed % 7 if seed % 3 else (seed // 7) % 7]
    gradient = rng.standard_normal(size) * (np.repeat(lam, counts) != 0)
    return spectrum, noise, sigma, product / lam[0], gradient


def energies(gradients, rank):
    return (gradients[..., :rank] ** 2).sum(-1), (gradients[..., rank:] ** 2).sum(-1)


def indistinguishable(sample, other):
    """KS where there is any spread; equality to round-off where there is none."""
    if np.std(other) < 1e-9 * np.max(np.abs(other)):
        return np.allclose(sample, other.mean(), rtol=1e-7)
    return stats.ks_2samp(sample, other).pvalue > 1e-5


@pytest.mark.parametrize("seed", range(50))
def test_law_is_that_of_stepping(seed):
    spectrum, noise, sigma, eta, gradient = random_problem(seed)
    q, rank = Quadratic(spectrum, noise), spectrum.rank
    lam = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    truth = stepping.run(np.random.default_rng(seed + 999), np.diag(lam), sigma, gradient, eta, TIMES, RUNS)
    by_mode = q.sample(gradient=gradient, step_size=eta, times=TIMES, replicas=RUNS, seed=seed, keep_gradient=True)
    by_block = q.sample(gradient=gradient, step_size=eta, times=TIMES, replicas=RUNS, seed=seed + 1)
    stepped = q.simulate(gradient=gradient, step_size=eta, steps=11, record=TIMES, replicas=RUNS, seed=seed + 2)
    curve = q.expected(gradient=gradient, step_size=eta, times=TIMES)
    weights = np.divide(0.5, lam, out=np.zeros_like(lam), where=lam != 0)
    for paths in (by_mode, by_block, stepped):
        assert paths.alignment.shape == (RUNS, len(TIMES))
        for index in range(len(TIMES)):
            dominant, bulk = energies(truth[index], rank)
            assert indistinguishable(paths.dominant_energy[:, index], dominant)
            assert indistinguishable(paths.bulk_energy[:, index], bulk)
            assert indistinguishable(paths.alignment[:, index], dominant / (dominant + bulk))
            assert indistinguishable(paths.loss[:, index], (truth[index] ** 2) @ weights)
            for sample, signal in (
                (paths.dominant_energy, curve.split.dominant.signal),
                (paths.bulk_energy, curve.split.bulk.signal),
            ):
                expected = signal.zeroth[index]
                off = stepping.standard_errors(sample[:, index], expected)
                assert off < 4.5 or np.allclose(sample[:, index], expected, rtol=1e-9)  # 1,500 of them: ±4.5
    last = by_mode.gradient[:, -1]
    mean, covariance = np.mean(truth[-1], axis=0), np.cov(truth[-1].T)
    spread = np.sqrt(np.diag(covariance) + 1e-300)
    assert np.all(np.abs(last.mean(0) - mean) < 5 * spread * np.sqrt(2 / RUNS) + 1e-9 * np.abs(mean))
    difference = np.abs(np.cov(last.T) - covariance) / np.outer(spread, spread)
    assert np.all(difference[np.outer(spread, spread) > 1e-12] < 8 / np.sqrt(RUNS))


@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_a_full_covariance_that_is_diagonal_is_diagonal_also_at_the_limit_of_stability(ulps):
    """ηλ₁ = 2 ± ulps: the variance of s steps is s times that of one, with correlations or without."""
    lam, variances = np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.2, 0.1])
    eta = 2 / 3
    for _ in range(abs(ulps)):
        eta = np.nextafter(eta, 9 if ulps > 0 else 0)
    arguments = {"gradient": np.zeros(3), "step_size": eta, "times": [1, 1000], "replicas": 4000, "keep_gradient": True}
    for noise in (Noise.diagonal(variances), Noise.covariance(np.diag(variances))):
        paths = Quadratic(Spectrum(lam, rank=1), noise).sample(**arguments, seed=3)
        expected = (eta * lam) ** 2 * variances * [1000, 1 / (1 - (1 - eta * 2) ** 2), 1 / (1 - (1 - eta) ** 2)]
        ratio = paths.gradient[:, 1].var(0) / expected
        assert np.all(np.abs(ratio - 1) < 5 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("product", [0.1, 1.0, 1.7, 2.0, 2.1])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("rank", [1, 4])
def test_covariance_of_a_leap_is_the_sum_over_its_steps(product, steps, rank):
    """No statistics: S·Sᵀ = Σ_j (I − ηH)^j·ηH·Σ·Hη·(I − ηH)^j, entry by entry."""
    lam = np.array([4.0, 2.0, 1.0, 0.0])
    sigma = stepping.random_covariance(np.random.default_rng(1), 4, rank=rank)
    q = Quadratic(Spectrum(lam, rank=2), Noise.covariance(sigma))
    state = read_state(q.spectrum, [1.0, 1.0, 1.0, 0.0], None)
    ensemble = Ensemble.of(q.spectrum, q.noise, q.modes, state, 1, by_mode=True)
    eta = product / 4
    leap = _leap(ensemble, Decay.of(ensemble.modes, eta), steps)
    exact = np.zeros((4, 4))
    for j in range(steps):
        carry = (1 - eta * lam) ** j * eta * lam
        exact += np.outer(carry, carry) * sigma
    np.testing.assert_allclose(leap.root @ leap.root.T, exact, atol=1e-14 * exact.max())
    np.testing.assert_allclose(leap.deviation**2, np.diag(exact), rtol=1e-13)
    np.testing.assert_allclose(leap.factor, (1 - eta * lam) ** steps, rtol=1e-13)


def test_small_modes_of_a_full_covariance_keep_their_variance():
    """λ over nine decades with correlated noise: bulk variances are 1e−18 of the largest."""
    lam, correlation = np.array([1.0, 1e-4, 1e-9]), np.array([[1.0, 0.6, 0.3], [0.6, 1.0, 0.5], [0.3, 0.5, 1.0]])
    q = Quadratic(Spectrum(lam, rank=1), Noise.covariance(correlation))
    sampled = q.sample(gradient=np.zeros(3), step_size=0.5, times=[1], replicas=20_000, seed=1, keep_gradient=True)
    stepped = q.simulate(
        gradient=np.zeros(3), step_size=0.5, steps=1, record=[1], replicas=20_000, seed=2, keep_gradient=True
    )
    for paths in (sampled, stepped):
        scaled = paths.gradient[:, 0] / (0.5 * lam)
        assert np.allclose(np.cov(scaled.T), correlation, atol=0.05)


def test_a_billion_dimensions():
    q = Quadratic(Spectrum.two_level(10**9, 10, dominant=100.0, bulk=1.0), Noise.isotropic(1e-9))
    times = [0, 1, 100, 10_000, 10**7]
    paths = q.sample(energy=[1.0, 9.0], step_size=0.01, times=times, replicas=2000, seed=5)
    curve = q.expected(energy=[1.0, 9.0], step_size=0.01, times=times)
    for index in range(len(times)):
        for sample, signal in (
            (paths.dominant_energy, curve.split.dominant.signal),
            (paths.bulk_energy, curve.split.bulk.signal),
        ):
            expected = signal.zeroth[index]
            values = sample[:, index]
            assert stepping.standard_errors(values, expected) < 4 or np.allclose(values, expected, rtol=1e-9)


def test_block_energies_follow_the_non_central_chi_square():
    q = Quadratic(Spectrum([2.0, 1.0], rank=3, multiplicities=[3, 50]), Noise.isotropic(0.3))
    paths = q.sample(energy=[4.0, 9.0], step_size=0.4, times=[7], replicas=4000, seed=8)
    for sample, lam, count, start in ((paths.dominant_energy, 2.0, 3, 4.0), (paths.bulk_energy, 1.0, 50, 9.0)):
        rho = (1 - 0.4 * lam) ** 2
        variance = (0.4 * lam) ** 2 * 0.3 * (1 - rho**7) / (1 - rho)
        law = stats.ncx2(count, rho**7 * start / variance, scale=variance)
        assert stats.kstest(sample[:, 0], law.cdf).pvalue > 1e-4


def test_shapes_seeds_and_replicas():
    q = Quadratic(Spectrum([4.0, 1.0, 0.5], rank=1), Noise.isotropic(0.1))
    start = np.arange(1.0, 19.0).reshape(2, 3, 3)
    arguments = {"gradient": start, "step_size": 0.1, "times": [0, 4, 9], "replicas": 5}
    paths = q.sample(**arguments, seed=1, keep_gradient=True)
    assert paths.alignment.shape == paths.loss.shape == paths.step_size.shape == (5, 2, 3, 3)
    assert paths.gradient.shape == (5, 2, 3, 3, 3)
    assert paths.diverged.shape == (5, 2, 3)
    assert np.array_equal(paths.gradient[..., 0, :], np.broadcast_to(start, (5, 2, 3, 3)))
    assert np.array_equal(paths.times, [0, 4, 9])
    assert np.array_equal(paths.step_size[..., :2], np.full((5, 2, 3, 2), 0.1))
    assert np.all(np.isnan(paths.step_size[..., 2]))
    np.testing.assert_allclose(paths.dominant_energy, paths.gradient[..., 0] ** 2, rtol=1e-14)
    again, other = q.sample(**arguments, seed=1, keep_gradient=True), q.sample(**arguments, seed=2, keep_gradient=True)
    assert np.array_equal(paths.gradient, again.gradient)
    assert not np.array_equal(paths.gradient[..., 1:, :], other.gradient[..., 1:, :])
    assert len(np.unique(paths.gradient[..., 1, :])) == 5 * 18  # every run has noise of its own


DIGEST = """
import hashlib, numpy as np
from etastar.quadratic import Noise, Quadratic, Spectrum
digest = hashlib.sha256()
for noise in (Noise.isotropic(0.1), Noise.diagonal(np.arange(1.0, 61.0)), Noise.covariance(np.eye(60) + 0.5)):
    q = Quadratic(Spectrum(np.linspace(4.0, 0.1, 20), rank=6, multiplicities=[3] * 20), noise)
    start = np.ones((7, 60))
    for paths in (
        q.sample(gradient=start, step_size=0.3, times=range(0, 99, 3), replicas=40, seed=9),
        q.simulate(gradient=start, step_size=0.3, steps=20, replicas=40, seed=9),
    ):
        for array in (paths.alignment, paths.loss, paths.dominant_energy):
            digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_results_do_not_depend_on_the_number_of_cores():
    digests = set()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for count, threads in ((1, "1"), (len(cores), "1"), (1, "1")):
        code = f"import os\nif hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, {cores[:count]})\n"
        code += f"os.cpu_count = lambda: {count}\n" + DIGEST
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_runs_that_leave_float64_are_marked_and_the_rest_is_not_harmed():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    for noise in (Noise.isotropic(0.1), Noise.covariance([[0.1, 0.05], [0.05, 0.1]])):
        q = Quadratic(Spectrum([4.0, 1.0], rank=1), noise)
        for paths in (
            q.sample(gradient=[1.0, 3.0], step_size=1.0, times=[0, 3, 5000], replicas=50),
            q.simulate(gradient=[1.0, 3.0], step_size=1.0, steps=1500, record=[0, 3, 1500], replicas=50),
        ):
            assert np.all(paths.diverged)
            assert np.all(np.isnan(paths.alignment[:, 2]))
            assert np.all(np.isfinite(paths.alignment[:, :2]))
            assert np.all(np.isfinite(paths.bulk_energy[:, 2]))
            assert not np.any(np.isnan(paths.loss[:, :2]))


def test_dead_modes_that_would_explode_stay_dead():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.diagonal([0.0, 1.0]))
    paths = q.sample(gradient=[0.0, 1.0], step_size=0.9, times=[0, 10, 10**4], replicas=5)
    assert np.all(paths.dominant_energy == 0)
    assert np.all(paths.alignment == 0)
    assert not np.any(paths.diverged)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"times": [2, 1]}, "times"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": [0.1]}, "step_size"),
        ({"gradient": None}, "gradient, energy"),
        ({"energy": [1.0, 1.0]}, "gradient, energy"),
    ],
)
def test_bad_arguments_are_named(change, name):
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    with pytest.raises(InvalidArgument, match=f"^{name}: got ") as caught:
        q.sample(**({"gradient": [1.0, 3.0], "step_size": 0.1, "times": [0, 1]} | change))
    assert "\n" not in str(caught.value)


def test_modes_need_a_gradient():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1, multiplicities=[1, 2]), Noise.diagonal([1.0, 1.0, 2.0]))
    with pytest.raises(InvalidArgument, match=r"^energy: got .*needs gradient="):
        q.sample(energy=[1.0, 3.0], step_size=0.1, times=[0])
    big = Quadratic(Spectrum.two_level(10**9, 10, 2.0, 1.0), Noise.isotropic(0.1))
    with pytest.raises(InvalidArgument, match=r"^energy: got .*needs gradient="):
        big.sample(energy=[1.0, 3.0], step_size=0.1, times=[0], keep_gradient=True)
