"""Mini-batch SGD on data: deterministic and one-step answers, and the bookkeeping of the three ways to draw."""

import numpy as np
import pytest
from sklearn import datasets

import etastar
from etastar import InvalidArgument, UnstableStep
from etastar.quadratic import Averaged, HeavyBall, Nesterov, Noise, Preconditioned, Quadratic, Spectrum
from etastar.quadratic.minibatch.batches import _sampler, simulate_batches
from etastar.quadratic.minibatch.finite import FiniteLeastSquares, least_squares_minimum
from oracles.stepping import standard_errors

LIMIT = 4.0


def digits():
    pixels, digit = datasets.load_digits(return_X_y=True)
    return pixels / 16.0, digit / digit.std()


def diabetes():
    X, y = datasets.load_diabetes(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()


@pytest.mark.parametrize("optimizer", [None, HeavyBall(0.8), Nesterov(0.8), Averaged(0.7, HeavyBall(0.5))])
@pytest.mark.parametrize("sampling", ["distinct", "epochs"])
def test_whole_batches_are_gradient_descent(sampling, optimizer):
    """b = n without replacement: the noise-free closed form, dimension and spectrum from the data."""
    X, y = diabetes()
    spectrum = Spectrum.from_least_squares(X, rank=3, ridge=0.01)
    w = np.linspace(-1, 1, 10)
    g = X.T @ (X @ w - y) / len(X) + 0.01 * w
    options = {} if optimizer is None else {"optimizer": optimizer}
    times = [0, 1, 2, 10, 60]
    curve = Quadratic(spectrum, Noise.isotropic(0.0)).expected(
        gradient=spectrum.to_eigenbasis(g), step_size=0.1, times=times, **options
    )
    paths = simulate_batches(
        X,
        y,
        rank=3,
        ridge=0.01,
        step_size=0.1,
        steps=60,
        record=times,
        batch_size=len(X),
        start=w,
        replicas=2,
        sampling=sampling,
        **options,
    )
    np.testing.assert_allclose(paths.alignment, np.tile(curve.alignment, (2, 1)), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(paths.loss, np.tile(curve.loss, (2, 1)), rtol=1e-9)
    excess = 0.5 * np.mean((X @ w - y) ** 2) + 0.005 * w @ w
    best = least_squares_minimum(X, y, spectrum)
    excess -= 0.5 * np.mean((X @ best - y) ** 2) + 0.005 * best @ best
    assert paths.loss[0, 0] == pytest.approx(excess, rel=1e-10)
    assert paths.dominant_energy[0, 0] + paths.bulk_energy[0, 0] == pytest.approx(g @ g, rel=1e-10)


def test_minimum_of_a_singular_problem():
    """Some pixels of the digits are always dark: their weights stay out, and the rest is NumPy's least squares."""
    X, y = digits()
    best = least_squares_minimum(X, y, Spectrum.from_least_squares(X, rank=1))
    np.testing.assert_allclose(best, np.linalg.lstsq(X, y, rcond=None)[0], rtol=1e-8, atol=1e-10)
    paths = simulate_batches(X, y, rank=1, step_size=0.05, steps=20, batch_size=10, replicas=2)
    assert np.all(np.isfinite(paths.alignment))


@pytest.mark.parametrize(("load", "rank"), [(digits, 1), (diabetes, 2)])
@pytest.mark.parametrize("sampling", ["replacement", "distinct", "epochs"])
def test_one_step_has_the_moments_of_its_covariance(load, rank, sampling):
    """Mean energies and loss after a step, with the covariance of the data at w = 0; the finite-population factor."""
    X, y = load()
    b, ridge, runs = 40, 1e-3, 4000
    spectrum = Spectrum.from_least_squares(X, rank=rank, ridge=ridge)
    start = np.zeros(X.shape[1])
    noise = Noise.from_least_squares(X, y, at=start, batch_size=b, replace=sampling == "replacement")
    eta = 0.7 / float(spectrum.eigenvalues[0])
    curve = Quadratic(spectrum, noise).expected(
        gradient=spectrum.to_eigenbasis(-X.T @ y / len(X)), step_size=eta, times=[1]
    )
    paths = simulate_batches(
        X,
        y,
        rank=rank,
        ridge=ridge,
        step_size=eta,
        steps=1,
        record=[1],
        batch_size=b,
        replicas=runs,
        sampling=sampling,
    )
    for sample, mean in (
        (paths.dominant_energy, curve.split.dominant.signal.zeroth),
        (paths.bulk_energy, curve.split.bulk.signal.zeroth),
        (paths.loss, curve.loss),
    ):
        assert np.max(standard_errors(sample, mean)) < LIMIT
    assert np.all(paths.step_size[:, -1:] != paths.step_size[:, -1:])  # none was taken from the end


@pytest.mark.parametrize("optimizer", [HeavyBall(0.6), Nesterov(0.6), Averaged(0.9, Nesterov(0.6))])
def test_batches_step_as_written(optimizer):
    """One run against a loop over the same batches, in the coordinates of the data."""
    X, y = diabetes()
    inner = optimizer.inner if isinstance(optimizer, Averaged) else optimizer
    batches = _sampler("replacement", len(X), 8, 1)(np.random.default_rng(4))
    w, m, mean = np.zeros(10), np.zeros(10), np.zeros(10)
    for _ in range(30):
        rows = next(batches)[0]
        g = X[rows].T @ (X[rows] @ w - y[rows]) / 8 + 0.02 * w
        m = 0.6 * m + g
        w = w - 0.03 * (g + 0.6 * m if isinstance(inner, Nesterov) else m)
        mean = 0.9 * mean + 0.1 * w
    seen = mean if isinstance(optimizer, Averaged) else w
    spectrum = Spectrum.from_least_squares(X, rank=2, ridge=0.02)
    g = spectrum.to_eigenbasis(X.T @ (X @ seen - y) / len(X) + 0.02 * seen)
    paths = simulate_batches(
        X, y, rank=2, ridge=0.02, step_size=0.03, steps=30, batch_size=8, record=[30], seed=4, optimizer=optimizer
    )
    assert paths.dominant_energy[0, 0] == pytest.approx(np.sum(g[:2] ** 2), rel=1e-9)
    assert paths.bulk_energy[0, 0] == pytest.approx(np.sum(g[2:] ** 2), rel=1e-9)


def test_each_way_to_draw():
    rng = np.random.default_rng(0)
    epochs = _sampler("epochs", 10, 4, 3)(rng)
    for _ in range(2):
        parts = [next(epochs).copy() for _ in range(3)]
        assert [part.shape for part in parts] == [(3, 4), (3, 4), (3, 2)]
        assert np.array_equal(np.sort(np.concatenate(parts, axis=1), axis=1), np.tile(np.arange(10), (3, 1)))
    distinct = _sampler("distinct", 6, 4, 20_000)(rng)
    drawn = np.stack([next(distinct).copy() for _ in range(2)])
    assert all(len(set(batch)) == 4 for batch in drawn.reshape(-1, 4).tolist())
    spread = 4 * np.sqrt(20_000 / 6 * 5 / 6)
    for first in drawn:  # every sample at every place alike, from the first batch on
        places = np.array([np.bincount(column, minlength=6) for column in first.T])
        assert np.all(np.abs(places - 20_000 / 6) < spread)
    # The next batch does not know the last one: of each place as of each other.
    for place in range(4):
        joint = np.histogram2d(drawn[0][:, place], drawn[1][:, place], bins=6)[0]
        assert np.all(np.abs(joint - 20_000 / 36) < 4.5 * np.sqrt(20_000 / 36))
    repeated = next(_sampler("replacement", 6, 4, 2000)(rng))
    assert repeated.shape == (2000, 4)
    assert any(len(set(batch)) < 4 for batch in repeated.tolist())


def test_same_seed_same_runs():
    X, y = diabetes()
    runs = [
        simulate_batches(X, y, rank=1, step_size=0.05, steps=9, batch_size=5, seed=s, sampling="epochs").loss
        for s in (1, 1, 2)
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0][:, 1:], runs[2][:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"^batch_size: got 0; must be between 1 and the number of samples, 442"),
        ({"batch_size": 443}, r"^batch_size: got 443; must be between"),
        ({"sampling": "shuffle"}, r"^sampling: got 'shuffle'; must be one of replacement, distinct, epochs"),
        ({"step_size": 0.0}, r"^step_size: got 0.0"),
        ({"steps": -1}, r"^steps: got -1"),
        ({"record": [9]}, r"^record: got 9; must not exceed the number of steps, 3"),
        ({"start": [1.0]}, r"^start: got \(1,\); must have one weight for each of 10 features"),
        ({"replicas": 0}, r"^replicas: got 0"),
        ({"y": [1.0]}, r"^y: got \(1,\); must have one target for each of 442 samples"),
        ({"rank": 10}, r"^rank: got 10"),
        ({"optimizer": Preconditioned(np.ones(10))}, r"^optimizer: got 'Preconditioned'; scale the columns of X"),
    ],
)
def test_bad_input_is_told_in_a_line(change, message):
    X, y = diabetes()
    arguments = {"X": X, "y": y, "rank": 1, "step_size": 0.1, "steps": 3, "batch_size": 4} | change
    with pytest.raises(InvalidArgument, match=message):
        simulate_batches(**arguments)


@pytest.mark.parametrize("sampling", ["replacement", "distinct"])
@pytest.mark.parametrize(("load", "rank", "b", "share"), [(diabetes, 2, 4, 0.5), (digits, 1, 8, 0.5)])
def test_runs_meet_the_exact_moments_of_the_data(load, rank, b, share, sampling):
    """Energies and loss of real mini-batch runs, 4 standard errors; no model of the noise in between."""
    X, y = load()
    problem = FiniteLeastSquares.of(X, y, rank=rank, batch_size=b, sampling=sampling, ridge=1e-3)
    eta, times = share / float(problem.spectrum.eigenvalues[0]), [0, 1, 2, 10, 40]
    curve = problem.expected(step_size=eta, times=times)
    paths = simulate_batches(
        X,
        y,
        rank=rank,
        ridge=1e-3,
        step_size=eta,
        steps=40,
        record=times,
        batch_size=b,
        replicas=2000,
        sampling=sampling,
        seed=7,
    )
    assert curve.alignment[0] == pytest.approx(paths.alignment[0, 0], rel=1e-10)
    for sample, mean in (
        (paths.dominant_energy, curve.split.dominant.signal.zeroth),
        (paths.bulk_energy, curve.split.bulk.signal.zeroth),
        (paths.loss, curve.loss),
    ):
        assert np.max(standard_errors(sample[:, 1:], mean[1:])) < LIMIT
    assert curve.alignment[1:3] == pytest.approx(etastar.alignment_after(curve.split, eta)[:2], rel=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("sampling", ["replacement", "distinct"])
def test_moments_of_data_against_all_batches(ridge, sampling):
    """Every batch of a tiny data set enumerated; stability and stationary state by dense algebra."""
    rng = np.random.default_rng(2)
    X, y, b, eta = rng.standard_normal((5, 2)) * [2.0, 0.7], rng.standard_normal(5), 2, 0.12
    every = [(i, j) for i in range(5) for j in range(5) if sampling == "replacement" or i != j]
    maps, shifts = [], []
    for batch in every:
        A, target = X[list(batch)], y[list(batch)]
        maps.append(np.eye(2) - eta * (A.T @ A / b + ridge * np.eye(2)))
        shifts.append(eta * A.T @ target / b)
    lifted = np.mean([np.kron(T, T) for T in maps], axis=0)
    problem = FiniteLeastSquares.of(X, y, rank=1, batch_size=b, sampling=sampling, ridge=ridge)
    H = X.T @ X / 5 + ridge * np.eye(2)
    best = np.linalg.solve(H, X.T @ y / 5)
    np.testing.assert_allclose(problem.minimum, best, rtol=1e-12)
    assert (problem.kernel(eta) < 1) == (np.max(np.abs(np.linalg.eigvals(lifted))) < 1)
    start, second, mean = np.array([1.0, -2.0]), None, None
    mean, second = start - best, np.outer(start - best, start - best)
    curve = problem.expected(start, step_size=eta, times=[0, 1, 2, 3, 8])
    offsets = [T @ best + c - best for T, c in zip(maps, shifts, strict=True)]
    basis, lam = problem.spectrum.basis, problem.spectrum.eigenvalues
    for step in range(9):
        if step in (0, 1, 2, 3, 8):
            slot = [0, 1, 2, 3, 8].index(step)
            assert curve.loss[slot] == pytest.approx(0.5 * np.sum(H * second), rel=1e-12)
            energy = lam**2 * np.diag(basis.T @ second @ basis)
            assert curve.alignment[slot] == pytest.approx(energy[0] / energy.sum(), rel=1e-12)
        pairs = list(zip(maps, offsets, strict=True))
        second = np.mean(
            [T @ second @ T.T + np.outer(T @ mean, o) + np.outer(o, T @ mean) + np.outer(o, o) for T, o in pairs],
            axis=0,
        )
        mean = np.mean([T @ mean + o for T, o in pairs], axis=0)
    noise = np.mean([np.outer(o, o) for o in offsets], axis=0)
    fixed = np.linalg.solve(np.eye(4) - lifted, noise.ravel()).reshape(2, 2)
    split = problem.stationary(eta)
    energy = lam**2 * np.diag(basis.T @ fixed @ basis)
    assert [split.dominant.signal.zeroth, split.bulk.signal.zeroth] == pytest.approx(energy.tolist(), rel=1e-9)
    assert etastar.critical_step_size(split).value == pytest.approx(eta, rel=1e-8)


def test_stability_of_data():
    """The border against the dense map of second moments; the spread of the rows decides, not only their covariance."""
    X, y = diabetes()
    X = X[:, :4]
    for b in (1, 4):
        problem = FiniteLeastSquares.of(X, y, rank=1, batch_size=b)
        border = problem.largest_stable_step()
        radii = []
        for eta in (0.999 * border, 1.001 * border):
            keep = np.eye(4) - eta * X.T @ X / len(X)
            fourth = np.mean([np.kron(np.outer(a, a), np.outer(a, a)) for a in X], axis=0)
            H = X.T @ X / len(X)
            lifted = np.kron(keep, keep) + eta**2 / b * (fourth - np.kron(H, H))
            radii.append(np.max(np.linalg.eigvalsh(lifted)))
        assert radii[0] < 1 < radii[1]
        with pytest.raises(UnstableStep, match=r"^step_size: got .*; a stationary state needs K\(η\) < 1, got 1\.0"):
            problem.stationary(1.001 * border)
    with pytest.raises(UnstableStep, match=r"a stationary state needs 0 < step_size < 2/λ₁ = .*largest stable step is"):
        problem.stationary(9.0)
    whole = FiniteLeastSquares.of(X, y, rank=1, batch_size=len(X), sampling="distinct")
    assert whole.kernel(0.01) == 0.0
    assert whole.largest_stable_step() == pytest.approx(2 / whole.spectrum.eigenvalues[0], rel=1e-9)
    assert whole.stationary(0.01).bulk.signal.zeroth == 0.0
    exact = FiniteLeastSquares.of(X, X @ np.ones(4), rank=1, batch_size=4)
    assert exact.stationary(0.01).bulk.signal.zeroth == pytest.approx(0.0, abs=1e-25)
    with pytest.raises(InvalidArgument, match=r"^sampling: got 'epochs'; must be .*; epochs can be simulated only"):
        FiniteLeastSquares.of(X, y, rank=1, batch_size=4, sampling="epochs")
