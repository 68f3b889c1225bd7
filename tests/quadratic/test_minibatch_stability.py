"""Mean-square stability and the stationary state under mini-batch noise: the dense map, mpmath, and its invariants."""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

import etastar
from etastar import UnstableStep
from etastar.quadratic import HeavyBall, Nesterov, Noise, Quadratic, Spectrum
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.one_step import blocks_of
from etastar.quadratic.minibatch.stability import largest_stable_step, stability, stationary, stationary_residual
from etastar.quadratic.optimizers.rules import PLAIN, update_of
from oracles import assert_close
from oracles.minibatch import Rows, mode_step

SGD_AND_MOMENTUM = [(PLAIN, 0.0, False), (update_of(HeavyBall(0.6)), 0.6, False), (update_of(Nesterov(0.7)), 0.7, True)]


def problem(seed, counts=None):
    rng = np.random.default_rng(seed)
    eigenvalues = np.sort(10.0 ** rng.uniform(-2, 1, 5))[::-1]
    counts = rng.integers(1, 4, 5) if counts is None else counts
    spectrum = Spectrum(eigenvalues, rank=int(counts[:2].sum()), multiplicities=counts)
    noise = MinibatchNoise(int(rng.integers(1, 20)), float(10 ** rng.uniform(-2, 2)))
    return rng, spectrum, blocks_of(spectrum), noise


def radius(spectrum, noise, eta, beta, nesterov):
    """Spectral radius of one step of (E g², E gm, E m²), column by column from the oracle's definition."""
    lam = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    rows = Rows(lam, spectrum.rank, noise.batch_size, 0.0)
    a, c = (1 + beta, beta**2) if nesterov else (1.0, beta)
    size = lam.size
    columns = []
    for index in range(3 * size):
        X, Y, Z = np.eye(3 * size)[index].reshape(3, size)
        kappa = (X + (X / lam).sum() * lam) / rows.batch_size
        p, q, r = 1 - eta * lam * a, -eta * lam * c, -eta * lam * a
        columns.append(
            np.concatenate(
                [
                    p * p * X + 2 * p * q * Y + q * q * Z + r * r * kappa,
                    p * X + (p * beta + q) * Y + q * beta * Z + r * kappa,
                    X + 2 * beta * Y + beta * beta * Z + kappa,
                ]
            )
        )
    return float(np.max(np.abs(np.linalg.eigvals(np.array(columns).T))))


@pytest.mark.parametrize(("update", "beta", "nesterov"), SGD_AND_MOMENTUM)
def test_the_border_is_where_the_spectral_radius_is_one(update, beta, nesterov):
    """50 random problems: both sides of the largest stable step."""
    for seed in range(50):
        _, spectrum, modes, noise = problem(seed)
        border = largest_stable_step(modes, noise, update)
        assert radius(spectrum, noise, 0.998 * border, beta, nesterov) < 1
        assert radius(spectrum, noise, 1.002 * border, beta, nesterov) > 1
        found = stability(modes, noise, [0.5 * border, 0.999 * border, 1.001 * border], update)
        assert found.stable.tolist() == [True, True, False]
        assert found.largest_step == border


def test_the_border_to_all_digits():
    for seed in range(60):
        _, spectrum, modes, noise = problem(seed)
        b = noise.batch_size
        with mpmath.workdps(50):
            lam = [mpf(float(v)) for v in np.repeat(spectrum.eigenvalues, spectrum.multiplicities)]
            border = mpf(largest_stable_step(modes, noise))

            def kernel(eta, lam=lam, b=b):
                return mpmath.fsum(eta * v / (2 * b - eta * v * (b + 1)) for v in lam) - 1

            root = mpmath.findroot(kernel, border)
            assert_close(float(border), root, 1e-14 * root)
            assert root * lam[0] * (b + 1) < 2 * b


@pytest.mark.parametrize(("update", "beta", "nesterov"), SGD_AND_MOMENTUM)
def test_the_stationary_state_does_not_move(update, beta, nesterov):
    """50 problems: one step in mpmath from the energies of the closed form gives the same moments."""
    with mpmath.workdps(50):
        for seed in range(50):
            rng, spectrum, modes, noise = problem(seed, counts=np.ones(5, dtype=int))
            eta = rng.uniform(0.02, 0.95) * largest_stable_step(modes, noise, update)
            rows = Rows(spectrum.eigenvalues, 2, noise.batch_size, noise.label_variance)
            state = stationary_state(rows, eta, beta, nesterov)
            (exact, *_), loss = rows.moments(state, beta, nesterov), rows.moments(state)[1]
            split = stationary(modes, noise, eta, update)
            residual = 2 * loss + noise.label_variance
            if update is PLAIN:
                assert_close(stationary_residual(modes, noise, eta), residual, 1e-10 * residual)
            for part, numbers in zip((split.dominant, split.bulk), exact, strict=True):
                record = [*part.signal.leaves(), *part.noise.leaves(), part.slope, part.bend]
                for value, number in zip(record, numbers, strict=True):
                    assert_close(value, number, 1e-10 * abs(number))


def stationary_state(rows, eta, beta, nesterov):
    """The fixed point of the oracle's own step: a linear system in 50 digits."""
    size = rows.eigenvalues.size
    quiet = Rows(rows.eigenvalues, rows.cut, rows.batch_size, 0.0)
    zero = [(mpf(0),) * 3] * size

    def step(which, state):
        kappa = which.variances([x for x, _, _ in state])
        alphas = [mpf(float(eta)) * mpf(float(v)) for v in rows.eigenvalues]
        moved = [mode_step(a, mpf(beta), nesterov, *xyz, k) for a, xyz, k in zip(alphas, state, kappa, strict=True)]
        return [number for xyz in moved for number in xyz]

    matrix = mpmath.matrix(3 * size)
    for column in range(3 * size):
        unit = [mpf(int(i == column)) for i in range(3 * size)]
        for row, value in enumerate(step(quiet, [tuple(unit[3 * i : 3 * i + 3]) for i in range(size)])):
            matrix[row, column] = int(row == column) - value
    solution = mpmath.lu_solve(matrix, mpmath.matrix(step(rows, zero)))
    return [tuple(solution[3 * i + j] for j in range(3)) for i in range(size)]


@pytest.mark.parametrize(("update", "beta", "nesterov"), SGD_AND_MOMENTUM)
def test_every_threshold_is_the_step_itself(update, beta, nesterov):
    """With momentum η_D and η_B are of other updates; η* and, of SGD, all thresholds equal η at stationarity."""
    for seed in range(50):
        rng, _, modes, noise = problem(seed)
        eta = rng.uniform(0.05, 0.9) * largest_stable_step(modes, noise, update)
        split = stationary(modes, noise, eta, update)
        assert etastar.critical_step_size(split).value == pytest.approx(eta, rel=1e-8)
        if update is PLAIN:
            bounds = etastar.loss_thresholds(split)
            assert [bounds.dominant, bounds.bulk, bounds.full] == pytest.approx([eta] * 3, rel=1e-10)


@pytest.mark.parametrize(("update", "beta", "nesterov"), SGD_AND_MOMENTUM)
def test_stationary_alignment_is_free_of_the_label_variance(update, beta, nesterov):
    for seed in range(50):
        rng, _, modes, noise = problem(seed)
        eta = rng.uniform(0.05, 0.95) * largest_stable_step(modes, noise, update)
        splits = [stationary(modes, MinibatchNoise(noise.batch_size, s), eta, update) for s in (1e-12, 1.0, 1e9)]
        theta = [float(etastar.alignment(split)) for split in splits]
        assert theta == pytest.approx([theta[1]] * 3, rel=1e-13)
        energies = [float(split.bulk.signal.zeroth) for split in splits]
        assert energies == pytest.approx([energies[1] * s for s in (1e-12, 1.0, 1e9)], rel=1e-13)
    quiet = stationary(modes, MinibatchNoise(noise.batch_size, 0.0), eta, update)
    assert etastar.critical_step_size(quiet).regime is etastar.Regime.UNDEFINED


def test_large_batches_have_the_additive_stationary_state():
    _, spectrum, modes, _ = problem(1)
    etas = np.array([0.01, 0.5, 0.9]) * 2 / spectrum.eigenvalues[0]
    additive = Quadratic(spectrum, Noise.diagonal(np.repeat(spectrum.eigenvalues, spectrum.multiplicities) * 0.3))
    found = stationary(modes, MinibatchNoise(10**17, 0.3e17), etas)
    for value, limit in zip(found.leaves(), additive.stationary(etas).leaves(), strict=True):
        np.testing.assert_allclose(value, np.broadcast_to(limit, value.shape), rtol=1e-14)


def test_at_small_batch_momentum_acts_as_the_longer_step():
    """Gain-limited stability: η/(1 − β), not η/(1 + β) (theory §7)."""
    modes = blocks_of(Spectrum([1.01, 1.0], rank=1, multiplicities=[1, 399]))
    noise = MinibatchNoise(1, 1.0)
    plain = largest_stable_step(modes, noise)
    for beta in (0.5, 0.9, 0.99):
        heavy = largest_stable_step(modes, noise, update_of(HeavyBall(beta)))
        assert heavy / (1 - beta) == pytest.approx(plain, rel=0.01)
        many = MinibatchNoise(10**9, 1.0)
        longest = largest_stable_step(modes, many, update_of(HeavyBall(beta)))
        assert longest / (1 + beta) == pytest.approx(largest_stable_step(modes, many), rel=1e-3)


@pytest.mark.parametrize(
    ("step", "beta", "message"),
    [
        (0.0, None, r"^step_size: got 0.0; a stationary state needs a positive step; the largest stable step is 0.23"),
        (
            0.36,
            None,
            r"^step_size: got 0.36; noise makes the mode of λ₁ diverge by itself: .*ηλ₁\(b \+ 1\) < 2b = 8; the",
        ),
        (0.25, None, r"^step_size: got 0.25; noise makes the loss feed itself: .*K\(η\) < 1, got 1.24285; the largest"),
        ([0.1, 0.25], None, r"^step_size: got 0.25; noise makes the loss feed itself"),
        (0.5, 0.9, r"^step_size: got 0.5; noise makes the mode of λ₁ diverge by itself: .*R₁ < b = 4; the largest"),
        (9.0, None, r"^step_size: got 9.0; noise makes the mode of λ₁ diverge by itself"),
    ],
)
def test_no_stationary_state_is_told_with_its_condition(step, beta, message):
    spectrum = Spectrum([5.0, 3.0, 1.0, 0.2], rank=3, multiplicities=[1, 2, 3, 10])
    modes = blocks_of(spectrum)
    with pytest.raises(UnstableStep, match=message):
        stationary(modes, MinibatchNoise(4, 0.3), step, PLAIN if beta is None else update_of(HeavyBall(beta)))
