"""Sampled and stepped runs of every optimizer against brute force; Gram chains of blocks; turns of the curve."""

import numpy as np
import pytest
from scipy import stats

import etastar
from etastar.quadratic import Averaged, HeavyBall, Nesterov, Noise, Quadratic, Spectrum
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import read_state
from etastar.quadratic.optimizers.frame import Frame
from etastar.quadratic.optimizers.rules import update_of
from etastar.quadratic.paths import Ensemble
from etastar.quadratic.sample import _LinearLeaps
from oracles import stepping
from oracles.optimizers import Rule, run

TIMES = [0, 1, 2, 3, 7, 12]
RUNS = 1200
KINDS = {
    "heavy ball": Rule("heavy ball", 0.0),
    "nesterov": Rule("nesterov", 0.0),
    "averaged": Rule("heavy ball", 0.0, 0.0),
    "averaged momentum": Rule("nesterov", 0.0, 0.0),
}


def rule_and_optimizer(kind, rng):
    momentum = kind != "averaged"
    beta = float(rng.choice([0.1, 0.5, 0.9, 0.98])) if momentum else 0.0
    omega = float(rng.uniform(0.05, 0.98)) if kind.startswith("averaged") else None
    name = "nesterov" if kind in ("nesterov", "averaged momentum") else "heavy ball"
    inner = {"heavy ball": HeavyBall, "nesterov": Nesterov}[name](beta)
    if omega is None:
        return Rule(name, beta), inner
    return Rule(name, beta, omega), Averaged(omega, inner) if momentum else Averaged(omega)


def random_problem(rng, kind):
    """Blocks of one to four modes; isotropic, diagonal, within-block, full or singular noise; λ = 0 now and then."""
    blocks = int(rng.integers(2, 4))
    counts, lam = rng.integers(1, 5, blocks), np.sort(rng.uniform(0.2, 4.0, blocks))[::-1]
    if rng.random() < 0.2:
        lam[-1] = 0.0
    spectrum = Spectrum(lam, rank=int(counts[: rng.integers(1, blocks)].sum()), multiplicities=counts)
    size, choice = spectrum.dimension, int(rng.integers(5))
    if choice == 0:
        noise = Noise.isotropic(float(rng.lognormal()))
    elif choice == 1:
        noise = Noise.diagonal(np.repeat(rng.lognormal(size=blocks), counts))
    elif choice == 2:
        noise = Noise.diagonal(rng.lognormal(size=size) * (rng.random(size) < 0.8))
    else:
        noise = Noise.covariance(stepping.random_covariance(rng, size, rank=None if choice == 3 else max(1, size // 2)))
    rule, optimizer = rule_and_optimizer(kind, rng)
    product = rng.uniform(0.05, 1.05) * update_of(optimizer).longest_product
    return spectrum, noise, rule, optimizer, product / lam[0], rng.standard_normal(size) * (np.repeat(lam, counts) != 0)


def indistinguishable(sample, other):
    if np.std(other) < 1e-6 * np.max(np.abs(other)):
        return np.allclose(sample, other.mean(), rtol=1e-4)
    return stats.ks_2samp(sample, other).pvalue > 1e-5


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_is_that_of_stepping(kind, seed):
    rng = np.random.default_rng([seed, len(kind), 7])
    spectrum, noise, rule, optimizer, eta, gradient = random_problem(rng, kind)
    q, rank = Quadratic(spectrum, noise), spectrum.rank
    lam = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    sigma = np.diag(np.broadcast_to(noise.variances, lam.shape)) if noise.matrix is None else noise.matrix
    truth = run(rng, rule, lam, sigma, gradient, eta, TIMES, RUNS)
    curve = q.expected(gradient=gradient, step_size=eta, times=TIMES, optimizer=optimizer)
    arguments = {"gradient": gradient, "step_size": eta, "replicas": RUNS, "optimizer": optimizer}
    sampled = [q.sample(**arguments, times=TIMES, seed=seed, keep_gradient=keep) for keep in (False, True)]
    sampled.append(q.simulate(**arguments, steps=TIMES[-1], record=TIMES, seed=seed + 1))
    for index in range(len(TIMES)):
        dominant, bulk = (truth[index, :, :rank] ** 2).sum(1), (truth[index, :, rank:] ** 2).sum(1)
        for energy, signal in ((dominant, curve.split.dominant.signal), (bulk, curve.split.bulk.signal)):
            expected = signal.zeroth[index]
            off = stepping.standard_errors(energy, expected)
            assert off < 4 or np.allclose(energy, expected, rtol=1e-6, atol=1e-12), (index, off)
        for paths in sampled:
            assert indistinguishable(paths.dominant_energy[:, index], dominant)
            assert indistinguishable(paths.bulk_energy[:, index], bulk)
            if np.all(dominant + bulk > 0):
                assert indistinguishable(paths.alignment[:, index], dominant / (dominant + bulk))
    moves = np.std(truth[-1], axis=0) > 1e-6 * np.max(np.abs(truth[-1]))
    last, brute = sampled[1].gradient[:, -1, moves], truth[-1][:, moves]
    spread = np.std(brute, axis=0)
    difference = np.abs(np.cov(last.T) - np.cov(brute.T)) / np.outer(spread, spread)
    assert np.all(difference < 12 / np.sqrt(RUNS)), difference


@pytest.mark.parametrize("optimizer", [HeavyBall(0.9), Nesterov(0.9), Averaged(0.8), Averaged(0.8, HeavyBall(0.5))])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("full", [False, True])
def test_the_covariance_of_a_leap_is_the_sum_over_its_steps(optimizer, steps, full):
    """No statistics: root·rootᵀ = Σ_s T^s·v·Σ·vᵀ·(T^s)ᵀ on the gradients, entry by entry, and T^s itself."""
    lam, eta = np.array([4.0, 2.0, 1.0, 0.0]), 0.3
    sigma = stepping.random_covariance(np.random.default_rng(1), 4, rank=2) if full else np.diag([0.1, 0.0, 0.4, 0.2])
    noise = Noise.covariance(sigma) if full else Noise.diagonal(np.diag(sigma))
    q, update = Quadratic(Spectrum(lam, rank=2), noise), update_of(optimizer)
    state = read_state(q.spectrum, [1.0, 1.0, 1.0, 0.0], None)
    ensemble = Ensemble.of(q.spectrum, q.noise, q.modes, state, 1, by_mode=True, update=update)
    frame = Frame.of(update, eta, ensemble.modes.eigenvalues)
    leap = _LinearLeaps(ensemble, frame).take(steps)
    size, T = update.size, update.lag(eta * lam) + np.eye(update.size)[..., None]
    v, power, exact = update.injection(eta * lam), np.repeat(np.eye(size)[..., None], 4, axis=2), np.zeros((4, 4))
    row = update.gradient
    for _ in range(steps):
        response = np.einsum("i,ijb,jb->b", row, power, v)
        exact += np.outer(response, response) * sigma
        power = np.einsum("ijb,jkb->ikb", T, power)
    shown = int(np.argmax(row))
    if full:
        covariance = (leap.root @ leap.root.T).reshape(size, 4, size, 4)[shown, :, shown]
    else:
        covariance = np.diag((leap.deviation[shown] ** 2).sum(0))
    np.testing.assert_allclose(covariance, exact, atol=1e-13 * exact.max())
    start = np.einsum("i,ijb,j->b", row, power, update.start)
    np.testing.assert_allclose(np.einsum("jb,jb->b", leap.factor[shown], frame.start), start, atol=1e-13)
    assert Decay.of(ensemble.modes, eta).stable


@pytest.mark.parametrize("optimizer", [HeavyBall(0.9), Nesterov(0.6), Averaged(0.9), Averaged(0.9, HeavyBall(0.5))])
def test_a_billion_dimensions(optimizer):
    q = Quadratic(Spectrum.two_level(10**9, 10, dominant=100.0, bulk=1.0), Noise.isotropic(1e-9))
    arguments = {"energy": [1.0, 9.0], "step_size": 0.005, "optimizer": optimizer}
    times = [0, 1, 5, 100, 10_000, 10**7]
    paths, curve = q.sample(**arguments, times=times, replicas=2000, seed=5), q.expected(**arguments, times=times)
    for index in range(len(times)):
        for sample, signal in (
            (paths.dominant_energy, curve.split.dominant.signal),
            (paths.bulk_energy, curve.split.bulk.signal),
        ):
            values, expected = sample[:, index], signal.zeroth[index]
            assert stepping.standard_errors(values, expected) < 4 or np.allclose(values, expected, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [HeavyBall(0.9), Averaged(0.9, HeavyBall(0.5))])
def test_gram_chains_of_blocks_have_the_law_of_their_modes(optimizer):
    """Blocks of 1, 2, 3 and 40 modes as Gram matrices, against the same modes one by one; also across two leaps."""
    q = Quadratic(Spectrum([4.0, 2.0, 1.0, 0.5], rank=3, multiplicities=[1, 2, 3, 40]), Noise.isotropic(0.3))
    gradient = np.zeros(46)
    gradient[[0, 1, 3, 6]] = 1.0, 2.0, 1.0, 3.0
    arguments = {"gradient": gradient, "step_size": 0.4, "times": [3, 5, 9], "replicas": 3000, "optimizer": optimizer}
    chains = [q.sample(**arguments, seed=1), q.simulate(**_stepped(arguments), seed=2)]
    modes = q.sample(**arguments, seed=3, keep_gradient=True)
    for chain in chains:
        for index in range(3):
            for name in ("dominant_energy", "bulk_energy", "loss", "alignment"):
                assert stats.ks_2samp(getattr(chain, name)[:, index], getattr(modes, name)[:, index]).pvalue > 1e-4
        for first, last in ((0, 1), (1, 2)):
            change = chain.bulk_energy[:, last] - chain.bulk_energy[:, first]
            assert stats.ks_2samp(change, modes.bulk_energy[:, last] - modes.bulk_energy[:, first]).pvalue > 1e-4


def _stepped(arguments):
    rest = {key: value for key, value in arguments.items() if key != "times"}
    return rest | {"steps": arguments["times"][-1], "record": arguments["times"]}


@pytest.mark.parametrize("optimizer", [HeavyBall(0.8), Nesterov(0.8)])
def test_stepping_sees_the_moments_of_its_next_step(optimizer):
    """The rule's record is that of (g, m) as they are: buffers are followed by hand through the recorded gradients."""
    lam = np.array([4.0, 3.0, 1.0, 0.5])
    q = Quadratic(Spectrum(lam, rank=2), Noise.diagonal([0.1, 0.0, 0.4, 0.2]))
    seen = []

    def rule(state):
        seen.append(state)
        return 0.02 + 0.1 * state.alignment

    start = np.array([1.0, -2.0, 3.0, 0.5])
    paths = q.simulate(gradient=start, step_size=rule, steps=5, replicas=6, keep_gradient=True, optimizer=optimizer)
    buffer, beta = np.zeros((6, 4)), 0.8
    for step, state in enumerate(seen):
        g, after = paths.gradient[:, step], paths.gradient[:, step + 1]
        exact = q.moments(gradient=g, momentum=buffer, optimizer=optimizer)
        for mine, his in zip(state.split.leaves(), exact.leaves(), strict=True):
            assert np.allclose(mine, his, rtol=1e-9)
        eta = paths.step_size[:, step, None]
        np.testing.assert_allclose(eta[:, 0], 0.02 + 0.1 * etastar.alignment(exact), rtol=1e-12)
        update = (g - after) / (eta * lam)  # what the step followed, its noise included
        if isinstance(optimizer, HeavyBall):
            buffer = update
        else:  # update = seen + β(βm + seen), m' = βm + seen
            buffer = beta * buffer + (update - beta**2 * buffer) / (1 + beta)


@pytest.mark.parametrize("projection", ["dominant", "bulk"])
@pytest.mark.parametrize("optimizer", [HeavyBall(0.8), Averaged(0.5, Nesterov(0.8))])
def test_projected_updates_leave_the_other_subspace_untouched(optimizer, projection):
    for spectrum in (Spectrum([4.0, 1.0], rank=1), Spectrum([4.0, 1.0], rank=3, multiplicities=[3, 9])):
        q = Quadratic(spectrum, Noise.isotropic(0.1))
        paths = q.simulate(
            energy=[1.0, 2.0], step_size=0.1, steps=9, projection=projection, replicas=20, optimizer=optimizer
        )
        still = paths.bulk_energy if projection == "dominant" else paths.dominant_energy
        moved = paths.dominant_energy if projection == "dominant" else paths.bulk_energy
        np.testing.assert_allclose(still, np.broadcast_to(still[:, :1], still.shape), rtol=1e-12)
        assert np.std(moved[:, -1]) > 0


def test_shapes_seeds_and_replicas():
    q = Quadratic(Spectrum([4.0, 1.0, 0.5], rank=1), Noise.isotropic(0.1))
    start = np.arange(1.0, 19.0).reshape(2, 3, 3)
    arguments = {"gradient": start, "step_size": 0.1, "times": [0, 4, 9], "replicas": 5, "optimizer": HeavyBall(0.9)}
    paths, again = (q.sample(**arguments, seed=1, keep_gradient=True) for _ in range(2))
    assert paths.alignment.shape == paths.loss.shape == (5, 2, 3, 3)
    assert paths.gradient.shape == (5, 2, 3, 3, 3)
    assert np.array_equal(paths.gradient, again.gradient)
    assert np.array_equal(paths.gradient[..., 0, :], np.broadcast_to(start, (5, 2, 3, 3)))
    far = q.sample(**(arguments | {"step_size": 3.0, "times": [0, 10**5]}))
    assert np.all(far.diverged)
    assert np.all(np.isnan(far.alignment[..., 1]))


def turning(theta):
    """Turns that stand out from the round-off of θ, as (first, last, kind)."""
    change = np.diff(theta)
    clear = np.flatnonzero(np.abs(change) > 1e-11 * np.minimum(theta[:-1], 1 - theta[:-1]) + 1e-14)
    flips = np.flatnonzero(np.diff(np.sign(change[clear])))
    return [(int(clear[f]) + 1, int(clear[f + 1]), "min" if change[clear[f]] < 0 else "max") for f in flips]


@pytest.mark.parametrize("seed", range(80))
def test_phases_find_every_turn_that_a_dense_curve_shows_and_claim_no_more(seed):
    rng = np.random.default_rng(seed)
    blocks, (_, optimizer) = int(rng.integers(2, 6)), rule_and_optimizer(list(KINDS)[seed % 4], rng)
    lam = np.sort(rng.lognormal(0, 1, blocks))[::-1]
    variances = rng.lognormal(-2, 1, blocks) * (0.0 if seed % 7 == 0 else 1.0)
    q = Quadratic(Spectrum(lam, rank=int(rng.integers(1, blocks))), Noise.diagonal(variances))
    eta, start = rng.uniform(0.02, 0.95) * update_of(optimizer).longest_product / lam[0], rng.standard_normal(blocks)
    phases = q.phases(gradient=start, step_size=eta, optimizer=optimizer)
    theta = q.expected(gradient=start, step_size=eta, times=np.arange(600), optimizer=optimizer).alignment
    for first, last, kind in turning(theta):
        assert any(first <= t <= last and k == kind for t, k in phases.turns), (first, last, kind)
    assert not phases.complete
    assert (phases.t_star, phases.t_star_sharp, phases.turn_bounds, phases.assumption_14) == (None, None, None, False)
    assert phases.stability == "stable"
    assert phases.alignment_start == pytest.approx(theta[0])
    assert phases.alignment_min <= theta.min() + 1e-9
    if seed % 7:
        limit = etastar.alignment(q.stationary(eta, optimizer=optimizer))
        assert phases.alignment_limit == pytest.approx(float(limit), rel=1e-12)
    assert len(phases.shape) < 400


def test_phases_of_unstable_and_marginal_steps():
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    up = q.phases(gradient=[1.0, 1.0], step_size=1.0, optimizer=HeavyBall(0.5))
    assert (up.stability, up.alignment_limit) == ("unstable", 1.0)
    edge = q.phases(gradient=[1.0, 1.0], step_size=0.75, optimizer=HeavyBall(0.5))
    assert (edge.stability, edge.alignment_limit) == ("marginal", 1.0)
