"""Real least squares against dense brute force on the data themselves, and bad arguments."""

import numpy as np
import pytest
from sklearn import datasets

from etastar import InvalidArgument
from etastar.recipes.real_least_squares import load_least_squares, minibatch_alignment

RIDGE, BATCH = 1e-3, 32


def raw(name):
    if name == "digits":
        pixels, digit = datasets.load_digits(return_X_y=True)
        return pixels / 16, digit / digit.std()
    features, target = datasets.load_diabetes(return_X_y=True)
    return (features - features.mean(0)) / features.std(0), (target - target.mean()) / target.std()


@pytest.fixture(scope="module", params=[("digits", 1), ("diabetes", 3)], ids=lambda param: param[0])
def case(request):
    name, rank = request.param
    return load_least_squares(name, rank, BATCH, RIDGE)


@pytest.fixture(scope="module")
def dense(case):
    """(H, minimum, noise covariance, gradient at zero), each by the book."""
    X, y = raw(case.name)
    H = X.T @ X / len(X) + RIDGE * np.eye(X.shape[1])
    minimum = np.linalg.solve(H, X.T @ y / len(X))
    each = np.array([x * (x @ minimum - t) for x, t in zip(X, y, strict=True)])
    return H, minimum, np.cov(each.T, bias=True) / BATCH, -X.T @ y / len(X)


def test_the_data_are_the_data(case):
    X, y = raw(case.name)
    np.testing.assert_array_equal(case.X, X)
    np.testing.assert_allclose(case.y, y)


def test_spectrum_and_minimum(case, dense):
    H, minimum, _, _ = dense
    scale = np.linalg.norm(H, 2)
    np.testing.assert_allclose(case.problem.spectrum.eigenvalues, np.linalg.eigvalsh(H)[::-1], atol=1e-13 * scale)
    np.testing.assert_allclose(case.minimum, minimum, atol=1e-10 * np.abs(minimum).max())


def test_moments_against_dense_matrices(case, dense):
    H, _, covariance, gradient = dense
    _, vectors = np.linalg.eigh(H)
    k = case.problem.spectrum.rank
    split = case.problem.moments(gradient=case.start)
    for part, basis in ((split.dominant, vectors[:, -k:]), (split.bulk, vectors[:, :-k])):
        S = basis @ basis.T
        signal = [gradient @ S @ gradient, gradient @ S @ H @ gradient, np.sum((S @ H @ gradient) ** 2)]
        noise = [np.trace(S @ covariance), np.trace(S @ H @ covariance), np.trace(S @ H @ covariance @ H)]
        np.testing.assert_allclose([x[()] for x in part.signal.leaves()], signal, rtol=1e-9)
        np.testing.assert_allclose([x[()] for x in part.noise.leaves()], noise, rtol=1e-9)


def test_real_runs_start_on_the_curve(case):
    eta, times = 0.5 / float(case.problem.spectrum.eigenvalues[0]), [0, 1]
    real = minibatch_alignment(case, eta, times, 400, seed=1)
    exact = case.problem.expected(gradient=case.start, step_size=eta, times=times).alignment
    assert real[0] == pytest.approx(exact[0], rel=1e-9)
    assert abs(real[1] - exact[1]) < 0.05  # the noise at the start is not that at the minimum


def test_at_the_minimum_real_runs_have_the_noise_of_the_model(case, dense):
    """One step from the minimum: the gradient is −ηHξ, with ξ of the covariance that the model takes there."""
    H, _, covariance, _ = dense
    rng, eta = np.random.default_rng(3), 0.01
    drawn = rng.integers(len(case.X), size=(4_000, BATCH))
    residual = case.X[drawn] @ case.minimum - case.y[drawn]
    noise = np.einsum("rb,rbd->rd", residual, case.X[drawn]) / BATCH + RIDGE * case.minimum
    seen = np.sum((eta * noise @ H) ** 2, axis=1)
    expected = case.problem.expected(gradient=1e-12 * case.start, step_size=eta, times=[1]).split
    energy = float(expected.dominant.signal.zeroth[0] + expected.bulk.signal.zeroth[0])
    assert abs(seen.mean() - energy) < 4 * seen.std() / np.sqrt(len(seen))
    assert np.trace(H @ covariance @ H) * eta**2 == pytest.approx(energy, rel=1e-6)


def test_mini_batches_repeat_with_their_seed(case):
    first, again, other = (minibatch_alignment(case, 0.01, [1, 3], 3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"name": "iris"}, "data"),
        ({"rank": 0}, "rank"),
        ({"rank": 10}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 443}, "batch_size"),
        ({"ridge": -1e-3}, "ridge"),
        ({"ridge": float("nan")}, "ridge"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(InvalidArgument) as caught:
        load_least_squares(**({"name": "diabetes"} | arguments))
    assert caught.value.name == name
