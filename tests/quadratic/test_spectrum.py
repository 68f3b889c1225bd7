"""Spectra: constructors, round trips, and every bad one told in one line."""

import numpy as np
import pytest

from etastar import InvalidArgument
from etastar.quadratic import Spectrum
from oracles import stepping


def test_blocks_count_with_multiplicity():
    spectrum = Spectrum([4.0, 2.0, 1.0], rank=5, multiplicities=[2, 3, 10**9])
    assert (spectrum.dimension, spectrum.cut, spectrum.ratio) == (10**9 + 5, 2, 2.0)
    assert Spectrum([1.0, 0.0], rank=1).ratio == np.inf
    assert np.isnan(Spectrum([1.0, -1.0], rank=1).ratio)
    assert Spectrum([1e308, -1e308], rank=1).dimension == 2
    assert Spectrum([1e-323, 5e-324], rank=1).ratio == 2.0


def test_two_level_power_law_and_paper():
    two = Spectrum.two_level(100, 3, dominant=5.0, bulk=1.0)
    assert (two.eigenvalues.tolist(), two.multiplicities.tolist(), two.rank) == ([5.0, 1.0], [3, 97], 3)
    power = Spectrum.power_law(50, 5, exponent=1.5, largest=3.0)
    np.testing.assert_allclose(power.eigenvalues, 3.0 * np.arange(1, 51) ** -1.5, rtol=1e-15)
    for ratio in (1.0, 5, 100.0, 1000.0):
        paper = Spectrum.paper(ratio=ratio)
        assert (paper.dimension, paper.rank) == (500, 50)
        assert paper.ratio == pytest.approx(ratio + 0.1, rel=1e-12)
        assert (paper.eigenvalues[0], paper.eigenvalues[49]) == (100.0, 80.0)
        assert paper.eigenvalues[50] / paper.eigenvalues[-1] == pytest.approx(7.0)


def test_a_matrix_and_its_spectrum_round_trip():
    rng = np.random.default_rng(0)
    for size in (2, 5, 40):
        V = stepping.random_orthogonal(rng, size)
        lam = np.sort(rng.standard_normal(size))[::-1]
        H = (V * lam) @ V.T
        spectrum = Spectrum.from_matrix(H, rank=1)
        np.testing.assert_allclose(spectrum.eigenvalues, lam, atol=1e-13)
        np.testing.assert_allclose((spectrum.basis * spectrum.eigenvalues) @ spectrum.basis.T, H, atol=1e-13)
        v = rng.standard_normal((3, 2, size))
        there = spectrum.to_eigenbasis(v)
        np.testing.assert_allclose(spectrum.from_eigenbasis(there), v, atol=1e-13)
        np.testing.assert_allclose(there * spectrum.eigenvalues, spectrum.to_eigenbasis(v @ H), atol=1e-12)
    plain = Spectrum([2.0, 1.0], rank=1)
    assert np.array_equal(plain.to_eigenbasis([3.0, 4.0]), [3.0, 4.0])
    assert np.array_equal(plain.from_eigenbasis([3.0, 4.0]), [3.0, 4.0])


@pytest.mark.parametrize(("samples", "features"), [(50, 6), (6, 6), (3, 6), (1, 2)])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_least_squares_spectrum_is_that_of_its_hessian(samples, features, ridge):
    X = np.random.default_rng(1).standard_normal((samples, features)) * np.geomspace(1, 1e-6, features)
    spectrum = Spectrum.from_least_squares(X, rank=1, ridge=ridge)
    H = X.T @ X / samples + ridge * np.eye(features)
    V = spectrum.basis
    np.testing.assert_allclose((V * spectrum.eigenvalues) @ V.T, H, atol=1e-13)
    np.testing.assert_allclose(V.T @ V, np.eye(features), atol=1e-12)
    if ridge == 0:
        assert np.all(spectrum.eigenvalues[min(samples, features) :] == 0)
        # Nothing is squared first: eigenvalues of 1e−12 of the largest keep their digits.
        singular = np.linalg.svd(X, compute_uv=False)
        np.testing.assert_allclose(spectrum.eigenvalues[: singular.size], singular**2 / samples, rtol=1e-9)


BAD = [
    (lambda: Spectrum([], rank=1), "eigenvalues", "non-empty"),
    (lambda: Spectrum([[1.0, 2.0]], rank=1), "eigenvalues", "one-dimensional"),
    (lambda: Spectrum(3.0, rank=1), "eigenvalues", "one-dimensional"),
    (lambda: Spectrum("41", rank=1), "eigenvalues", "real numbers"),
    (lambda: Spectrum(["4", "1"], rank=1), "eigenvalues", "real numbers"),
    (lambda: Spectrum([4.0, None], rank=1), "eigenvalues", "real numbers"),
    (lambda: Spectrum(np.array([2 + 1j, 1]), rank=1), "eigenvalues", "real numbers"),
    (lambda: Spectrum([4.0, np.nan], rank=1), r"eigenvalues\[1\]", "finite"),
    (lambda: Spectrum([np.inf, 1.0], rank=1), r"eigenvalues\[0\]", "finite"),
    (lambda: Spectrum([1.0, 4.0], rank=1), r"eigenvalues\[1\]", "sorted, largest first"),
    (lambda: Spectrum([-1e308, 1e308], rank=1), r"eigenvalues\[1\]", "sorted"),
    (lambda: Spectrum([4.0, 1.0], rank=0), "rank", "at least 1 and less than the dimension 2"),
    (lambda: Spectrum([4.0, 1.0], rank=2), "rank", "less than the dimension 2"),
    (lambda: Spectrum([4.0], rank=1), "rank", "less than the dimension 1"),
    (lambda: Spectrum([4.0, 1.0], rank=-1), "rank", "at least 1"),
    (lambda: Spectrum([4.0, 1.0], rank=1.0), "rank", "whole number"),
    (lambda: Spectrum([4.0, 1.0], rank=True), "rank", "whole number"),
    (lambda: Spectrum([4.0, 1.0], rank="1"), "rank", "whole number"),
    (lambda: Spectrum([2.0, 2.0], rank=1), "rank", "no gap at all"),
    (lambda: Spectrum([0.0, -0.0], rank=1), "rank", "no gap at all"),
    (lambda: Spectrum([3.0, 2.0, 2.0, 1.0], rank=2), "rank", "nearest clean ranks: 1 and 3"),
    (lambda: Spectrum([2.0, 2.0, 1.0], rank=1), "rank", "nearest clean ranks: 2"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[2, 2]), "rank", "nearest clean ranks: 2"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[1]), "multiplicities", "one entry for each of 2"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[1, 0]), "multiplicities", "at least 1"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[1, 1.5]), "multiplicities", "whole numbers"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[1, 1e19]), "multiplicities", "whole numbers"),
    (lambda: Spectrum([2.0, 1.0], rank=1, multiplicities=[1, np.nan]), r"multiplicities\[1\]", "finite"),
    (lambda: Spectrum([2.0, 1.0], rank=1, basis=np.eye(3)), "basis", "2 eigenvectors"),
    (lambda: Spectrum.two_level(10, 10, 2.0, 1.0), "rank", "less than the dimension 10"),
    (lambda: Spectrum.two_level(10.5, 2, 2.0, 1.0), "dimension", "whole number"),
    (lambda: Spectrum.two_level(10, 2, 1.0, 2.0), r"eigenvalues\[1\]", "sorted"),
    (lambda: Spectrum.two_level(10, 2, 1.0, 1.0), "rank", "no gap"),
    (lambda: Spectrum.power_law(1, 1), "dimension", "at least 2"),
    (lambda: Spectrum.power_law(10, 1, exponent="steep"), "exponent", "number"),
    (lambda: Spectrum.power_law(10, 1, exponent=-1.0), "exponent", "at least 0"),
    (lambda: Spectrum.power_law(10, 1, exponent=np.nan), "exponent", "finite"),
    (lambda: Spectrum.power_law(10, 1, largest=-2.0), "largest", "at least 0"),
    (lambda: Spectrum.power_law(10, 1, largest=[1.0]), "largest", "one finite number"),
    (lambda: Spectrum.power_law(10, 1, exponent=0.0), "rank", "no gap"),
    (lambda: Spectrum.paper(ratio=0.9), "ratio", "above 0.9"),
    (lambda: Spectrum.paper(ratio=np.inf), "ratio", "finite"),
    (lambda: Spectrum.paper(ratio="100"), "ratio", "number"),
    (lambda: Spectrum.paper(dimension=50, rank=50), "rank", "less than the dimension 50"),
    (lambda: Spectrum.from_matrix([[1.0, 2.0]], 1), "H", "square"),
    (lambda: Spectrum.from_matrix([[1.0, 2.0], [3.0, 1.0]], 1), "H", "symmetric; symmetrise"),
    (lambda: Spectrum.from_matrix([[1.0, 1e308], [-1e308, 1.0]], 1), "H", "symmetric"),
    (lambda: Spectrum.from_matrix([[1.0, np.nan], [np.nan, 1.0]], 1), "H", "finite"),
    (lambda: Spectrum.from_matrix(np.array([[2.0, 1j], [-1j, 1.0]]), 1), "H", "real"),
    (lambda: Spectrum.from_matrix("H", 1), "H", "real square matrix"),
    (lambda: Spectrum.from_matrix(np.zeros((0, 0)), 1), "H", "square"),
    (lambda: Spectrum.from_least_squares([[1.0], [2.0]], 1), "X", "at least 2 features"),
    (lambda: Spectrum.from_least_squares(np.zeros((0, 3)), 1), "X", "samples, features"),
    (lambda: Spectrum.from_least_squares([1.0, 2.0], 1), "X", "samples, features"),
    (lambda: Spectrum.from_least_squares([[1.0, np.inf], [1.0, 2.0]], 1), "X", "finite; drop or impute"),
    (lambda: Spectrum.from_least_squares("X", 1), "X", "real matrix"),
    (lambda: Spectrum.from_least_squares(np.eye(3) * 1e200, 1), r"eigenvalues\[0\]", "finite"),
    (lambda: Spectrum.from_least_squares(np.eye(3), 1, ridge=-1.0), "ridge", "at least 0"),
    (lambda: Spectrum.from_least_squares(np.eye(3), 1, ridge="big"), "ridge", "number"),
    (lambda: Spectrum([2.0, 1.0], rank=1).to_eigenbasis([1.0]), "v", "dimension 2"),
    (lambda: Spectrum([2.0, 1.0], rank=1).from_eigenbasis("ab"), "v", "real numbers"),
    (lambda: Spectrum([2.0, 1.0], rank=1).from_eigenbasis(1.0), "v", "dimension 2"),
]


@pytest.mark.parametrize(("make", "name", "remedy"), BAD)
def test_bad_spectra_are_one_line(make, name, remedy):
    with pytest.raises(InvalidArgument, match=f"^{name}: got .*{remedy}") as caught:
        make()
    assert "\n" not in str(caught.value)
