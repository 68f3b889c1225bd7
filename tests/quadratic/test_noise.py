"""Noise: covariances, mini-batches of a data set by enumeration, and every bad one told in one line."""

from itertools import combinations, product

import numpy as np
import pytest

from etastar import InvalidArgument
from etastar.quadratic import Noise, Quadratic, Spectrum
from oracles import stepping


def data(samples=5, features=3):
    rng = np.random.default_rng(2)
    return rng.standard_normal((samples, features)), rng.standard_normal(samples), rng.standard_normal(features)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("replace", [True, False])
def test_mini_batch_noise_is_the_covariance_over_all_mini_batches(batch, replace):
    X, y, w = data()
    noise = Noise.from_least_squares(X, y, at=w, batch_size=batch, replace=replace)
    basis = Spectrum.from_least_squares(X, rank=1).basis
    gradients = (X * (X @ w - y)[:, None]) @ basis
    draws = product(range(5), repeat=batch) if replace else combinations(range(5), batch)
    means = np.array([gradients[list(draw)].mean(axis=0) for draw in draws])
    np.testing.assert_allclose(noise.matrix, np.cov(means.T, bias=True), atol=1e-13)
    np.testing.assert_allclose(noise.variances, np.diag(noise.matrix), atol=0)


def test_one_sample_or_all_of_them_make_no_noise():
    X, y, w = data(1, 2)
    for replace in (True, False):
        assert np.all(Noise.from_least_squares(X, y, at=w, batch_size=1, replace=replace).matrix == 0)
    X, y, w = data()
    assert np.all(Noise.from_least_squares(X, y, at=w, batch_size=5, replace=False).matrix == 0)


def test_a_least_squares_problem_from_data_to_moments():
    """More features than samples: the gradient rotated into the eigenbasis is zero along λ = 0 but for round-off."""
    X, y, w = data(4, 7)
    spectrum = Spectrum.from_least_squares(X, rank=2)
    q = Quadratic(spectrum, Noise.from_least_squares(X, y, at=w, batch_size=2))
    gradient = X.T @ (X @ w - y) / 4
    rotated = spectrum.to_eigenbasis(gradient)
    split = q.moments(gradient=rotated)
    H = X.T @ X / 4
    total = split.dominant.signal.first + split.bulk.signal.first
    assert total == pytest.approx(gradient @ H @ gradient, rel=1e-12)
    per_sample = X * (X @ w - y)[:, None]
    sigma = np.cov(per_sample.T, bias=True) / 2
    assert split.dominant.noise.second + split.bulk.noise.second == pytest.approx(np.trace(H @ sigma @ H), rel=1e-12)
    paths = q.sample(gradient=rotated, step_size=0.1, times=[0, 5], keep_gradient=True)
    assert np.all(paths.gradient[..., 4:] == 0)
    with pytest.raises(InvalidArgument, match=r"^gradient: got .*vanishes there"):
        q.moments(gradient=rotated + 1e-6)


def test_kinds_and_extremes():
    assert Noise.isotropic(0.25).extremes() == (0.25, 0.25)
    assert Noise.diagonal([0.1, 0.0, 0.3]).extremes() == (0.0, 0.3)
    sigma = stepping.random_covariance(np.random.default_rng(0), 4)
    values = np.linalg.eigvalsh(sigma)
    assert Noise.covariance(sigma).extremes() == pytest.approx((values[0], values[-1]))
    singular = stepping.random_covariance(np.random.default_rng(0), 6, rank=2)
    noise = Noise.covariance(singular)
    assert noise.extremes()[0] >= 0
    np.testing.assert_allclose(noise.matrix, singular, atol=1e-14)
    assert np.all(noise.variances >= 0)
    assert np.all(Noise.covariance(np.zeros((3, 3))).matrix == 0)


def test_round_off_below_zero_is_clipped_and_no_more():
    rng = np.random.default_rng(1)
    V = stepping.random_orthogonal(rng, 4)
    slightly = (V * [1.0, 0.5, 0.1, -1e-13]) @ V.T
    assert np.linalg.eigvalsh(Noise.covariance(slightly).matrix)[0] > -1e-15
    with pytest.raises(InvalidArgument, match=r"^matrix: got 'eigenvalue -1e-08'; must be positive semi-definite"):
        Noise.covariance((V * [1.0, 0.5, 0.1, -1e-8]) @ V.T)


X, Y, W = data()
BAD = [
    (lambda: Noise.isotropic(-1.0), "variance", "not be negative"),
    (lambda: Noise.isotropic(np.nan), r"variance\[0\]", "finite"),
    (lambda: Noise.isotropic("loud"), "variance", "real numbers"),
    (lambda: Noise.isotropic([1.0, 2.0]), "variance", "one-dimensional"),
    (lambda: Noise.isotropic(None), "variance", "real numbers"),
    (lambda: Noise.diagonal([]), "variances", "non-empty"),
    (lambda: Noise.diagonal([1.0, -1e-300]), "variances", "not be negative"),
    (lambda: Noise.diagonal([1.0, np.inf]), r"variances\[1\]", "finite"),
    (lambda: Noise.diagonal([1.0, 1j]), "variances", "real numbers"),
    (lambda: Noise.covariance([[1.0, 0.5], [0.4, 1.0]]), "matrix", "symmetric"),
    (lambda: Noise.covariance([[1.0, 2.0], [2.0, 1.0]]), "matrix", "positive semi-definite"),
    (lambda: Noise.covariance([[-1.0]]), "matrix", "positive semi-definite"),
    (lambda: Noise.covariance([1.0, 2.0]), "matrix", "square"),
    (lambda: Noise.covariance([[np.inf, 0.0], [0.0, 1.0]]), "matrix", "finite"),
    (lambda: Noise.from_least_squares(X, Y[:-1], at=W, batch_size=1), "y", "each of 5 samples"),
    (lambda: Noise.from_least_squares(X, Y[:, None], at=W, batch_size=1), "y", "one-dimensional"),
    (lambda: Noise.from_least_squares(X, Y, at=W[:-1], batch_size=1), "at", "each of 3 features"),
    (lambda: Noise.from_least_squares(X, Y, at=W * np.nan, batch_size=1), r"at\[0\]", "finite"),
    (
        lambda: Noise.from_least_squares(X, Y, at=W, batch_size=0),
        "batch_size",
        "between 1 and the number of samples, 5",
    ),
    (lambda: Noise.from_least_squares(X, Y, at=W, batch_size=6), "batch_size", "between 1"),
    (lambda: Noise.from_least_squares(X, Y, at=W, batch_size=1.5), "batch_size", "whole number"),
    (lambda: Noise.from_least_squares(X, Y, at=W, batch_size="all"), "batch_size", "whole number"),
    (lambda: Noise.from_least_squares(X * 1e200, Y, at=W, batch_size=1), "matrix", "finite"),
    (lambda: Noise.from_least_squares(X * np.inf, Y, at=W, batch_size=1), "X", "finite"),
    (lambda: Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.diagonal([1.0])), "noise", "fit the dimension 2"),
    (lambda: Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.covariance(np.eye(3))), "noise", "fit the dimension 2"),
    (lambda: Quadratic([4.0, 1.0], Noise.isotropic(0.1)), "spectrum", "must be a Spectrum"),
    (lambda: Quadratic(Spectrum([4.0, 1.0], rank=1), 0.1), "noise", "must be a Noise"),
]


@pytest.mark.parametrize(("make", "name", "remedy"), BAD)
def test_bad_noise_is_one_line(make, name, remedy):
    with pytest.raises(InvalidArgument, match=f"^{name}: got .*{remedy}") as caught:
        make()
    assert "\n" not in str(caught.value)
