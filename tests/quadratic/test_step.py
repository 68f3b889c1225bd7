"""Stepping: projected updates, state-dependent steps, shapes, and agreement with dense brute force."""

import numpy as np
import pytest
from scipy import stats

import etastar
from etastar import InvalidArgument
from etastar.quadratic import Noise, Quadratic, SimulationState, Spectrum
from oracles import stepping

SPECTRUM = Spectrum([4.0, 3.0, 1.0, 0.5], rank=2)
GRADIENT = np.array([1.0, -2.0, 3.0, 0.5])
NOISES = {
    "isotropic": Noise.isotropic(0.3),
    "diagonal": Noise.diagonal([0.1, 0.0, 0.4, 0.2]),
    "full": Noise.covariance(stepping.random_covariance(np.random.default_rng(0), 4)),
    "singular": Noise.covariance(stepping.random_covariance(np.random.default_rng(1), 4, rank=1)),
}


def covariance_of(noise):
    return noise.matrix if noise.matrix is not None else np.diag(np.broadcast_to(noise.variances, 4))


@pytest.mark.parametrize("projection", ["dominant", "bulk"])
@pytest.mark.parametrize("name", NOISES)
def test_projected_updates_leave_the_other_subspace_untouched(name, projection):
    q = Quadratic(SPECTRUM, NOISES[name])
    arguments = {"step_size": 0.3, "steps": 12, "replicas": 3000, "seed": 4, "projection": projection}
    paths = q.simulate(gradient=GRADIENT, **arguments, keep_gradient=True)
    moving = slice(None, 2) if projection == "dominant" else slice(2, None)
    still = slice(2, None) if projection == "dominant" else slice(None, 2)
    assert np.all(paths.gradient[..., still] == GRADIENT[still])
    by_energy = q.simulate(gradient=GRADIENT, **arguments)
    untouched = by_energy.bulk_energy if projection == "dominant" else by_energy.dominant_energy
    assert np.all(untouched == untouched[:, :1])
    P = np.diag([1.0, 1.0, 0.0, 0.0])
    moved = P if projection == "dominant" else np.eye(4) - P
    H, sigma = np.diag(SPECTRUM.eigenvalues), covariance_of(NOISES[name])
    truth = stepping.run(np.random.default_rng(5), H, sigma, GRADIENT, 0.3, [12], 3000, moving=moved)[0]
    for mode in range(4)[moving]:
        if np.std(truth[:, mode]) < 1e-9:
            assert np.allclose(paths.gradient[:, 12, mode], truth[:, mode], rtol=1e-9)
        else:
            assert stats.ks_2samp(paths.gradient[:, 12, mode], truth[:, mode]).pvalue > 1e-4


def test_blocks_of_projected_runs_stay_to_the_last_bit():
    spectrum = Spectrum.two_level(10**9, 10, 100.0, 1.0)
    q = Quadratic(spectrum, Noise.isotropic(1e-9))
    paths = q.simulate(energy=[0.3, 0.7], step_size=0.005, steps=30, projection="dominant", replicas=20)
    assert np.all(paths.bulk_energy == paths.bulk_energy[0, 0])
    assert paths.bulk_energy[0, 0] == pytest.approx(0.7, rel=1e-15)
    paths = q.simulate(energy=[0.3, 0.7], step_size=0.005, steps=30, projection="bulk", replicas=20)
    assert np.all(paths.dominant_energy == paths.dominant_energy[0, 0])


@pytest.mark.parametrize("name", NOISES)
def test_one_projected_step_changes_the_loss_as_the_criterion_says(name):
    q = Quadratic(SPECTRUM, NOISES[name])
    change = etastar.loss_change(q.moments(gradient=GRADIENT), 0.4)
    for projection in ("dominant", "bulk", None):
        paths = q.simulate(gradient=GRADIENT, step_size=0.4, steps=1, projection=projection, replicas=40_000, seed=2)
        exact = getattr(change, projection or "full")
        assert stepping.standard_errors(paths.loss[:, 1] - paths.loss[:, 0], exact) < 4


def test_state_dependent_steps_see_the_moments_of_the_next_step():
    q = Quadratic(SPECTRUM, NOISES["diagonal"])
    seen = []

    def rule(state):
        assert isinstance(state, SimulationState)
        seen.append(state)
        value = state.critical_step_size.value
        return np.where(np.isnan(value), 0.01, 0.5 * value)

    paths = q.simulate(gradient=np.tile(GRADIENT, (2, 1)), step_size=rule, steps=6, replicas=7, keep_gradient=True)
    assert [state.step for state in seen] == list(range(6))
    for state in seen:
        exact = q.moments(gradient=paths.gradient[:, :, state.step])
        assert state.alignment.shape == state.loss.shape == (7, 2)
        assert state.loss_thresholds.dominant.shape == (7, 2)
        np.testing.assert_allclose(state.alignment, etastar.alignment(exact), rtol=1e-12)
        np.testing.assert_allclose(state.critical_step_size.value, etastar.critical_step_size(exact).value, rtol=1e-9)
        np.testing.assert_allclose(state.loss, paths.loss[..., state.step], rtol=1e-12)
    expected = np.stack([np.broadcast_to(rule(state), (7, 2)) for state in list(seen)], axis=-1)
    np.testing.assert_array_equal(paths.step_size[..., :-1], expected)
    assert np.all(np.isnan(paths.step_size[..., -1]))


def test_a_state_dependent_rule_follows_brute_force():
    q = Quadratic(SPECTRUM, NOISES["full"])

    def rule(state):
        return 0.5 * state.alignment

    def dense_rule(_, g):
        return 0.5 * (g[:, :2] ** 2).sum(1) / (g**2).sum(1)

    truth = stepping.run(
        np.random.default_rng(6),
        np.diag(SPECTRUM.eigenvalues),
        covariance_of(NOISES["full"]),
        GRADIENT,
        dense_rule,
        [9],
        4000,
    )[0]
    paths = q.simulate(gradient=GRADIENT, step_size=rule, steps=9, record=[9], replicas=4000, seed=3)
    dominant, bulk = (truth[:, :2] ** 2).sum(1), (truth[:, 2:] ** 2).sum(1)
    assert stats.ks_2samp(paths.dominant_energy[:, 0], dominant).pvalue > 1e-4
    assert stats.ks_2samp(paths.bulk_energy[:, 0], bulk).pvalue > 1e-4


def test_constant_rules_and_constants_take_the_same_path():
    q = Quadratic(Spectrum([4.0, 1.0], rank=2, multiplicities=[2, 30]), Noise.isotropic(0.3))
    arguments = {"energy": [1.0, 3.0], "steps": 9, "replicas": 50, "seed": 1}
    a = q.simulate(step_size=0.2, **arguments)
    b = q.simulate(step_size=lambda state: 0.2, **arguments)
    assert np.array_equal(a.dominant_energy, b.dominant_energy)
    assert np.array_equal(a.loss, b.loss)
    assert a.alignment.shape == (50, 10)
    zero = q.simulate(step_size=0.0, **arguments)
    assert np.all(zero.bulk_energy == zero.bulk_energy[0, 0])


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        ({"steps": -1}, "steps", "at least 0"),
        ({"steps": 2.0}, "steps", "whole number"),
        ({"record": [0, 9]}, "record", "must not exceed the number of steps, 5"),
        ({"record": []}, "record", "non-empty"),
        ({"record": [1, 1]}, "record", "strictly increasing"),
        ({"projection": "top"}, "projection", 'must be "dominant", "bulk" or None'),
        ({"step_size": -0.1}, "step_size", "must be finite and not negative"),
        ({"step_size": "fast"}, "step_size", "must be a number"),
        ({"step_size": [0.1, 0.2]}, "step_size", "one number, or a function"),
        ({"step_size": lambda s: -1.0}, "step_size at step 0", "finite and not negative; handle regimes"),
        ({"step_size": lambda s: [np.nan] * 2}, "step_size at step 0", "handle regimes"),
        ({"step_size": lambda s: None}, "step_size at step 0", "must be"),
        ({"step_size": lambda s: np.ones(5)}, "step_size at step 0", r"must broadcast to \(2,\)"),
        ({"step_size": lambda s: 0.1 if s.step < 3 else np.inf}, "step_size at step 3", "handle regimes"),
        ({"replicas": 0}, "replicas", "at least 1"),
    ],
)
def test_bad_arguments_are_named(change, name, remedy):
    q = Quadratic(SPECTRUM, NOISES["isotropic"])
    with pytest.raises(InvalidArgument, match=f"^{name}: got .*{remedy}") as caught:
        q.simulate(**({"gradient": GRADIENT, "step_size": 0.1, "steps": 5, "replicas": 2} | change))
    assert "\n" not in str(caught.value)
