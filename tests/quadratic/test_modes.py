"""States and modes: what a state may be, blocks against single modes, and moments against dense matrices."""

import numpy as np
import pytest
from hypothesis import given

import etastar
from etastar import InvalidArgument
from etastar.quadratic import Noise, Quadratic, Spectrum
from oracles import EPSILON, dense, stepping
from oracles.strategies import states

Q = Quadratic(Spectrum([4.0, 1.0], rank=2, multiplicities=[2, 3]), Noise.isotropic(0.1))


@given(states())
def test_blocks_have_the_moments_of_their_modes(state):
    eigenvalues, counts, rank, variances, energies = state
    blocks = Quadratic(
        Spectrum(eigenvalues, rank=rank, multiplicities=counts), Noise.diagonal(np.repeat(variances, counts))
    )
    gradient = np.repeat(np.sqrt(energies / counts), counts)
    lam = np.repeat(eigenvalues, counts)
    P = np.diag((np.arange(lam.size) < rank).astype(float))
    exact = dense.split_moments(np.diag(lam), P, np.diag(np.repeat(variances, counts)), gradient)
    for split in (blocks.moments(gradient=gradient), blocks.moments(energy=energies)):
        for value, truth in zip(split.leaves(), exact.leaves(), strict=False):  # a coupling of zero is left out
            np.testing.assert_allclose(value, truth, rtol=200 * EPSILON)
    assert blocks.moments(gradient=gradient).coupling is None
    assert exact.coupling.signal == 0


def test_a_matrix_problem_has_the_moments_of_its_matrices():
    rng = np.random.default_rng(0)
    for size in (3, 6):
        V = stepping.random_orthogonal(rng, size)
        H = (V * rng.standard_normal(size)) @ V.T
        sigma, g = stepping.random_covariance(rng, size), rng.standard_normal(size)
        spectrum = Spectrum.from_matrix(H, rank=2)
        W = spectrum.basis
        split = Quadratic(spectrum, Noise.covariance(W.T @ sigma @ W)).moments(gradient=spectrum.to_eigenbasis(g))
        exact = dense.split_moments(H, W[:, :2] @ W[:, :2].T, sigma, g)
        for value, truth in zip(split.leaves(), exact.leaves(), strict=False):
            np.testing.assert_allclose(value, truth, rtol=1e-10)


def test_gradient_at_is_the_hessian_times_the_parameters():
    assert np.array_equal(Q.gradient_at([1.0, 2.0, 3.0, 4.0, 5.0]), [4.0, 8.0, 3.0, 4.0, 5.0])
    assert Q.gradient_at(np.ones((2, 3, 5))).shape == (2, 3, 5)
    flat = Quadratic(Spectrum([4.0, 0.0], rank=1), Noise.isotropic(0.1))
    assert flat.moments(gradient=flat.gradient_at([1.0, 7.0])).bulk.signal.zeroth == 0
    for bad in ("x", [1.0], 1.0, [np.nan] * 5, [1j] * 5):
        with pytest.raises(InvalidArgument, match=r"^x: got "):
            Q.gradient_at(bad)


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e100, 1e150])
def test_moments_and_criteria_of_tiny_and_huge_spectra(scale):
    usual = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1)).moments(gradient=[1.0, 3.0])
    q = Quadratic(Spectrum([4.0 * scale, scale], rank=1), Noise.isotropic(0.1))
    step = etastar.critical_step_size(q.moments(gradient=[1.0, 3.0]))
    assert step.regime is etastar.Regime.LOW
    assert step.value * scale == pytest.approx(float(etastar.critical_step_size(usual).value), rel=1e-13)


def test_powers_of_an_eigenvalue_that_leave_float64_do_not_spoil_the_rest():
    q = Quadratic(Spectrum([1e200, 1.0], rank=1), Noise.isotropic(0.1))
    split = q.moments(gradient=[0.0, 1.0])
    assert split.dominant.signal.second == 0
    assert split.dominant.noise.second == np.inf
    assert etastar.critical_step_size(split).regime is etastar.Regime.UNDEFINED
    tiny = Quadratic(Spectrum([4e-170, 1e-170], rank=1), Noise.isotropic(1e100)).moments(gradient=[1e50, 3e50])
    assert etastar.critical_step_size(tiny).regime is etastar.Regime.LOW


@pytest.mark.parametrize(
    ("state", "name", "remedy"),
    [
        ({}, "gradient, energy", "exactly one"),
        ({"gradient": np.ones(5), "energy": np.ones(2)}, "gradient, energy", "exactly one"),
        ({"gradient": np.ones(4)}, "gradient", "last axis must have length 5"),
        ({"gradient": 1.0}, "gradient", "last axis"),
        ({"gradient": "steep"}, "gradient", "real numbers"),
        ({"gradient": [1.0, None, 1.0, 1.0, 1.0]}, "gradient", "real numbers"),
        ({"gradient": np.full(5, 1j)}, "gradient", "real numbers"),
        ({"gradient": [1.0, np.nan, 1.0, 1.0, 1.0]}, "gradient", "finite"),
        ({"gradient": np.full(5, 1e200)}, "gradient", "stay below 1.8e308"),
        ({"gradient": np.zeros((0, 5))}, "gradient", "at least one vector"),
        ({"energy": np.ones(5)}, "energy", "last axis must have length 2"),
        ({"energy": [1.0, -1e-300]}, "energy", "must not be negative"),
        ({"energy": [1.0, np.inf]}, "energy", "finite"),
        ({"energy": [1.7e308, 1.7e308]}, "energy", "stay below 1.8e308"),
    ],
)
def test_bad_states_are_one_line(state, name, remedy):
    for method in (Q.moments, lambda **s: Q.expected(step_size=0.1, times=[0], **s)):
        with pytest.raises(InvalidArgument, match=f"^{name}: got .*{remedy}") as caught:
            method(**state)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        ({"times": []}, "times", "non-empty"),
        ({"times": 3}, "times", "non-empty"),
        ({"times": [[0, 1]]}, "times", "non-empty"),
        ({"times": [-1, 0]}, "times", "steps ≥ 0"),
        ({"times": [0, 0]}, "times", "strictly increasing"),
        ({"times": [0, 0.5]}, "times", "whole numbers"),
        ({"times": [0, np.nan]}, "times", "whole numbers"),
        ({"times": [0, np.inf]}, "times", "whole numbers"),
        ({"times": [0, 1e300]}, "times", "whole numbers"),
        ({"times": [0, 2**70]}, "times", "whole numbers"),
        ({"times": ["0"]}, "times", "whole numbers"),
        ({"times": [True, False]}, "times", "whole numbers"),
        ({"times": [1j]}, "times", "whole numbers"),
        ({"times": None}, "times", "whole numbers"),
        ({"step_size": 0.0}, "step_size", "one positive number"),
        ({"step_size": -0.1}, "step_size", "not negative"),
        ({"step_size": np.nan}, "step_size", "finite"),
        ({"step_size": [0.1]}, "step_size", "one positive number"),
        ({"step_size": "1e-3"}, "step_size", "must be a number"),
        ({"step_size": 1e200}, "step_size", "stay below 1e"),
    ],
)
def test_bad_runs_are_one_line(change, name, remedy):
    with pytest.raises(InvalidArgument, match=f"^{name}: got .*{remedy}") as caught:
        Q.expected(**({"gradient": np.ones(5), "step_size": 0.1, "times": [0, 1]} | change))
    assert "\n" not in str(caught.value)


def test_a_gradient_along_a_zero_eigenvalue_is_refused():
    flat = Quadratic(Spectrum([4.0, 1.0, 0.0], rank=1, multiplicities=[1, 1, 2]), Noise.isotropic(0.1))
    for state, name in (({"gradient": [1.0, 1.0, 0.0, 1e-6]}, "gradient"), ({"energy": [1.0, 1.0, 1e-10]}, "energy")):
        with pytest.raises(InvalidArgument, match=f"^{name}: got .*vanishes there"):
            flat.moments(**state)
    assert flat.moments(gradient=[1.0, 1.0, 1e-17, -1e-17]).bulk.signal.zeroth == 1.0


def test_mode_by_mode_has_its_limit():
    big = Quadratic(Spectrum.two_level(10**8, 10, 2.0, 1.0), Noise.isotropic(0.1))
    with pytest.raises(InvalidArgument, match=r"^dimension: got 100000000; mode by mode at most"):
        big.modes.expand(big.spectrum, big.noise)


def test_whole_floats_and_numpy_integers_are_times():
    for times in ([0.0, 5.0], np.array([0, 5], dtype=np.uint8), range(0, 10, 5), (0, 5)):
        assert Q.expected(gradient=np.ones(5), step_size=0.1, times=times).times.tolist() == [0, 5]
