"""Expected curves under mini-batch noise: mpmath stepping, additive noise as a limit, and the two routes."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import etastar
from etastar import InvalidArgument
from etastar.quadratic import Averaged, HeavyBall, Nesterov, Noise, Quadratic, Spectrum
from etastar.quadratic.minibatch.curve import expected
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.one_step import blocks_of
from etastar.quadratic.minibatch.rank_one import decompose
from etastar.quadratic.minibatch.stability import largest_stable_step, stationary
from etastar.quadratic.modes import read_state
from etastar.quadratic.optimizers.rules import PLAIN, update_of
from oracles import EPSILON, assert_close
from oracles.minibatch import Rows
from oracles.strategies import magnitudes, states

OPTIMIZERS = {"sgd": None, "heavy ball": HeavyBall, "nesterov": Nesterov}


def modes_of(eigenvalues, counts, rank):
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    return spectrum, blocks_of(spectrum)


def check(eigenvalues, counts, rank, energies, noise, eta, times, kind="sgd", beta=0.0, tolerance=64 * EPSILON):
    """Every moment and the loss at each time, against stepping in 50 digits, mode by mode."""
    spectrum, modes = modes_of(eigenvalues, counts, rank)
    update = PLAIN if kind == "sgd" else update_of(OPTIMIZERS[kind](beta))
    curve = expected(modes, noise, read_state(spectrum, None, energies), eta, times, update)
    rows = Rows(np.repeat(eigenvalues, counts), rank, noise.batch_size, noise.label_variance)
    with mpmath.workdps(50):
        exact = rows.run(np.repeat(np.asarray(energies) / counts, counts), eta, times, beta, kind == "nesterov")
        for index, state in enumerate(exact):
            found, loss = rows.moments(state, beta, kind == "nesterov")
            assert_close(curve.loss[index], loss, tolerance * loss + mpmath.mpf(10) ** -290, f"loss at {times[index]}")
            for part, numbers in zip((curve.split.dominant, curve.split.bulk), found, strict=True):
                record = [*part.signal.leaves(), *part.noise.leaves(), part.slope, part.bend]
                # Sums of signed products (momentum) are right to round-off of their absolute terms.
                sizes = [number if kind == "sgd" else _size(found, i) for i, number in enumerate(numbers)]
                for value, number, size in zip(record, numbers, sizes, strict=True):
                    assert_close(value[index], number, tolerance * size + mpmath.mpf(10) ** -290, times[index])


def _size(found, index):
    """Of a signed moment ⟨g, h⟩: √(⟨g, g⟩⟨h, h⟩) bounds its terms, over both subspaces."""
    whole = [sum(numbers[i] for numbers in found) for i in range(8)]
    bounds = {1: mpmath.sqrt(abs(whole[0] * whole[2])), 6: mpmath.sqrt(abs(whole[0] * whole[7]))}
    return abs(found[0][index]) + abs(found[1][index]) + bounds.get(index, 0)


@given(states(), st.integers(1, 40), magnitudes(-3, 3), st.floats(1e-3, 1.5))
@settings(max_examples=60)
def test_curve_of_sgd(state, batch_size, label, share):
    """Stable and unstable steps, many magnitudes, equal eigenvalues."""
    eigenvalues, counts, rank, _, energies = state
    noise = MinibatchNoise(batch_size, label)
    _, modes = modes_of(eigenvalues, counts, rank)
    eta = share * largest_stable_step(modes, noise)
    check(eigenvalues, counts, rank, energies, noise, eta, [0, 1, 2, 5, 60], tolerance=1e-12)


@given(states(most=4), st.integers(1, 40), magnitudes(-2, 2), st.floats(0.01, 1.2), st.floats(0.0, 0.95))
@settings(max_examples=50)
@pytest.mark.parametrize("kind", ["heavy ball", "nesterov"])
def test_curve_with_momentum(kind, state, batch_size, label, share, beta):
    eigenvalues, counts, rank, _, energies = state
    noise = MinibatchNoise(batch_size, label)
    _, modes = modes_of(eigenvalues, counts, rank)
    eta = share * largest_stable_step(modes, noise, update_of(OPTIMIZERS[kind](beta)))
    check(eigenvalues, counts, rank, energies, noise, eta, [0, 1, 2, 7, 25], kind, beta, tolerance=1e-11)


@pytest.mark.parametrize("bottom", [1e-4, 1e-8, 1e-12])
def test_slow_modes_keep_their_digits(bottom):
    """A spectrum so wide that a dense eigensolver would know nothing of its slow modes."""
    noise = MinibatchNoise(7, 1e-3)
    check([1.0, 0.1, bottom], [1, 1, 1], 1, [1.0, 1e-6, 1e-9], noise, 0.5, [0, 1, 3, 50, 200], tolerance=1e-12)


def test_equal_decay_of_different_modes():
    """At b = 1, ηλ = ¼ and ¾ decay alike, to the last digit: part of them couples, the rest does not."""
    noise = MinibatchNoise(1, 0.3)
    eigenvalues, counts = [6.0, 2.0, 1.0], [1, 2, 3]
    matrix = decompose(np.array([0.375, 0.375, 0.2]), np.array([0.75, 0.25, 0.1]))
    assert matrix.tied.tolist() == [True, True, False]
    check(eigenvalues, counts, 1, [1.0, 0.0, 0.5], noise, 0.125, [0, 1, 2, 9, 60], tolerance=1e-13)
    check(eigenvalues, counts, 1, [0.0, 1.0, 0.0], noise, 0.125, [0, 1, 2, 9, 60], tolerance=1e-13)


@pytest.mark.parametrize("size", [1, 2, 7, 60])
@pytest.mark.parametrize("spread", [0.0, 3.0, 12.0, -1e-13, -1e-15])
def test_rank_one_decomposition(size, spread):
    """Poles over many magnitudes, and (negative spread) all within some units in the last place of each other."""
    rng = np.random.default_rng(size)
    d = rng.uniform(0.1, 1.0, size) * 10.0 ** (-spread * rng.random(size))
    if spread < 0:
        d = 0.7 * (1.0 - spread * rng.integers(0, 9, size))
    v = np.sqrt(d) * rng.uniform(0.1, 1.0, size) / np.sqrt(size)
    matrix = decompose(d, v)
    dense = np.diag(d) - np.outer(v, v)
    rebuilt = (matrix.vectors * matrix.eigenvalues) @ matrix.vectors.T + matrix.remainder(np.eye(size)) * d
    assert np.allclose(matrix.vectors.T @ matrix.vectors, np.eye(matrix.eigenvalues.size), rtol=0, atol=1e-13)
    assert np.allclose(rebuilt, dense, rtol=0, atol=1e-14)
    scaled = dense / np.sqrt(np.outer(d, d))  # each entry against its own row and column
    assert np.allclose(rebuilt / np.sqrt(np.outer(d, d)), scaled, rtol=0, atol=1e-13)


@pytest.mark.parametrize("slow", [1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("short", [0.0, 1e-15, 1e-12, 1e-9])
def test_slow_modes_at_the_border_of_stability(slow, short):
    """K ≈ 1: an eigenvalue comes as close to the slow poles as they are to zero, and all cancels beside them."""
    d, v = np.array([slow, 1.0, 0.5, 2 * slow]), np.array([slow, 0.1**0.5, (0.45 - 0.5 * short) ** 0.5, slow])
    matrix = decompose(d, v)
    assert np.allclose(matrix.vectors.T @ matrix.vectors, np.eye(4), rtol=0, atol=1e-14)
    rebuilt = (matrix.vectors * matrix.eigenvalues) @ matrix.vectors.T
    assert np.allclose(rebuilt, np.diag(d) - np.outer(v, v), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_large_batches_are_additive_noise(kind):
    """b → ∞ with s²/b fixed: what is left is label noise, κ²_i = λ_i·s²/b, the additive laboratory."""
    spectrum, modes = modes_of([5.0, 3.0, 1.0, 0.2], [1, 2, 3, 10], 3)
    optimizer = {} if kind == "sgd" else {"optimizer": OPTIMIZERS[kind](0.8)}
    update = update_of(optimizer["optimizer"]) if optimizer else PLAIN
    q = Quadratic(spectrum, Noise.diagonal(0.01 * np.repeat(spectrum.eigenvalues, spectrum.multiplicities)))
    batch = 10**17
    noise = MinibatchNoise(batch, 0.01 * batch)
    energies, times = [1.0, 1e-3, 0.5, 2.0], [0, 1, 2, 10, 100, 999, 10**4, 10**6]
    found = expected(modes, noise, read_state(spectrum, None, energies), 0.1, times, update)
    additive = q.expected(energy=energies, step_size=0.1, times=times, **optimizer)
    np.testing.assert_allclose(found.alignment, additive.alignment, rtol=2e-13)
    np.testing.assert_allclose(found.loss, additive.loss, rtol=2e-13)
    for mine, theirs in zip(found.split.leaves(), additive.split.leaves(), strict=True):
        np.testing.assert_allclose(mine, np.broadcast_to(theirs, mine.shape), rtol=2e-12, atol=1e-15)
    assert found.critical_step_size.value == pytest.approx(additive.critical_step_size.value, rel=1e-9, nan_ok=True)


def test_from_the_minimum_the_first_step_feels_label_noise_alone():
    spectrum, modes = modes_of([5.0, 1.0], [1, 3], 1)
    curve = expected(modes, MinibatchNoise(8, 0.4), read_state(spectrum, None, [0.0, 0.0]), 0.1, [0, 1])
    q = Quadratic(spectrum, Noise.diagonal(np.array([5.0, 1.0, 1.0, 1.0]) * 0.4 / 8))
    additive = q.expected(energy=[0.0, 0.0], step_size=0.1, times=[0, 1])
    assert np.isnan(curve.alignment[0])
    assert curve.loss == pytest.approx(additive.loss, rel=1e-15)
    assert curve.alignment[1] == pytest.approx(additive.alignment[1], rel=1e-15)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_time_ends_at_the_stationary_state(kind):
    spectrum, modes = modes_of([5.0, 3.0, 1e-4], [1, 2, 50], 3)
    noise, update = MinibatchNoise(4, 0.3), PLAIN if kind == "sgd" else update_of(OPTIMIZERS[kind](0.5))
    eta = 0.4 * largest_stable_step(modes, noise, update)
    curve = expected(modes, noise, read_state(spectrum, None, [1.0, 2.0, 3e-6]), eta, [10**12], update)
    for value, limit in zip(curve.split.leaves(), stationary(modes, noise, eta, update).leaves(), strict=True):
        np.testing.assert_allclose(value[0], limit, rtol=1e-10)
    assert float(curve.critical_step_size.value[0]) == pytest.approx(eta, rel=1e-8)


@pytest.mark.parametrize("kind", ["heavy ball", "nesterov"])
def test_leaps_agree_with_steps(kind):
    spectrum, modes = modes_of([5.0, 3.0, 1.0, 0.02], [1, 2, 3, 10], 3)
    state = read_state(spectrum, None, [[1.0, 2.0, 0.5, 0.1], [0.0, 0.0, 0.0, 1e-9]])
    for label, share in ((0.3, 0.5), (0.0, 0.5), (0.3, 1.1), (0.0, 1.1)):
        noise, update = MinibatchNoise(4, label), update_of(OPTIMIZERS[kind](0.7))
        eta = share * largest_stable_step(modes, noise, update)
        stepped = expected(modes, noise, state, eta, np.arange(0, 4001, 500), update)
        leapt = expected(modes, noise, state, eta, [0, 4000], update)
        np.testing.assert_allclose(leapt.alignment[:, -1], stepped.alignment[:, -1], rtol=1e-11)
        np.testing.assert_allclose(leapt.loss[:, -1], stepped.loss[:, -1], rtol=1e-11)


def test_momentum_zero_is_sgd():
    """Two routes to one curve: eigenvectors and the recursion."""
    spectrum, modes = modes_of(np.geomspace(4.0, 1e-3, 60), np.ones(60, dtype=int), 5)
    noise, state = MinibatchNoise(3, 0.1), read_state(spectrum, None, np.geomspace(1.0, 1e-4, 60))
    times = [0, 1, 2, 3, 10, 100, 999, 5000, 10**6]
    closed = expected(modes, noise, state, 0.05, times)
    stepped = expected(modes, noise, state, 0.05, times, update_of(HeavyBall(0.0)))
    np.testing.assert_allclose(closed.alignment, stepped.alignment, rtol=1e-11)
    np.testing.assert_allclose(closed.loss, stepped.loss, rtol=1e-11)
    np.testing.assert_allclose(closed.critical_step_size.value, stepped.critical_step_size.value, rtol=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_alignment_outlives_overflow_and_underflow(kind):
    spectrum, modes = modes_of([4.0, 1.0], [1, 5], 1)
    update = PLAIN if kind == "sgd" else update_of(OPTIMIZERS[kind](0.5))
    state = read_state(spectrum, None, [[1.0, 1e-3], [0.0, 2.0]])
    for label in (0.0, 0.2):
        noise = MinibatchNoise(2, label)
        border = largest_stable_step(modes, noise, update)
        wild = expected(modes, noise, state, 1.5 * border, [0, 100, 10**5, 10**6], update)
        assert np.all(np.isinf(wild.loss[:, -1]))
        # The top eigenvector of the map, whatever the start.
        assert wild.alignment[0, -1] == pytest.approx(wild.alignment[1, -1], rel=1e-9)
        assert 0 < wild.alignment[0, -1] < 1
    calm = expected(modes, MinibatchNoise(2, 0.0), state, 0.5 * border, [0, 10**5, 10**6], update)
    assert np.all(calm.loss[:, -1] == 0)
    assert calm.alignment[:, -1] == pytest.approx(calm.alignment[:, -2], rel=1e-9)
    assert np.all((calm.alignment[:, -1] > 0) & (calm.alignment[:, -1] < 1))  # noise feeds every mode


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("power", [-460, -90, 90, 460])
def test_units_do_not_matter(kind, power):
    """H → cH, η → η/c, E → cE: the same run, to the last digit where c is a power of two."""
    noise, times = MinibatchNoise(3, 0.2), [0, 1, 10, 5000]
    update = PLAIN if kind == "sgd" else update_of(OPTIMIZERS[kind](0.5))
    curves = []
    for c in (1.0, 2.0**power):
        spectrum, modes = modes_of(np.array([4.0, 1.0, 0.1]) * c, [1, 2, 3], 1)
        state = read_state(spectrum, None, np.array([1.0, 2.0, 0.1]) * c)
        curves.append(expected(modes, noise, state, 0.1 / c, times, update))
    assert np.array_equal(curves[0].alignment, curves[1].alignment)
    assert np.array_equal(curves[0].loss, curves[1].loss)
    first, scaled = (curve.split.bulk.noise.zeroth for curve in curves)
    assert np.array_equal(first * 2.0**power, scaled)
    assert not np.any(np.isnan(curves[1].split.dominant.signal.second))


def test_blocks_are_their_modes():
    spectrum, modes = modes_of([5.0, 1.0], [2, 30], 2)
    single, apart = modes_of(np.repeat([5.0, 1.0], [2, 30]), np.ones(32, dtype=int), 2)
    noise, times = MinibatchNoise(4, 0.3), [0, 1, 5, 100, 10**5]
    together = expected(modes, noise, read_state(spectrum, None, [1.0, 3.0]), 0.05, times)
    split = expected(apart, noise, read_state(single, None, np.repeat([0.5, 0.1], [2, 30])), 0.05, times)
    np.testing.assert_allclose(together.alignment, split.alignment, rtol=1e-12)
    np.testing.assert_allclose(together.loss, split.loss, rtol=1e-12)


def test_a_dimension_of_a_billion():
    spectrum, modes = modes_of([1.0, 1e-9], [10, 10**9], 10)
    noise = MinibatchNoise(32, 1.0)
    curve = expected(modes, noise, read_state(spectrum, None, [1.0, 1e-9]), 0.5, [0, 10, 10**10, 10**12])
    assert curve.alignment[-1] == pytest.approx(float(etastar.alignment(stationary(modes, noise, 0.5))), rel=1e-6)


def test_zero_eigenvalues_stay_out():
    spectrum, modes = modes_of([4.0, 1.0, 0.0], [1, 2, 3], 1)
    short, less = modes_of([4.0, 1.0], [1, 2], 1)
    noise, times = MinibatchNoise(4, 0.3), [0, 1, 10, 1000]
    for update in (PLAIN, update_of(HeavyBall(0.5))):
        padded = expected(modes, noise, read_state(spectrum, None, [1.0, 2.0, 0.0]), 0.1, times, update)
        plain = expected(less, noise, read_state(short, None, [1.0, 2.0]), 0.1, times, update)
        np.testing.assert_allclose(padded.alignment, plain.alignment, rtol=1e-14)
        np.testing.assert_allclose(padded.loss, plain.loss, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinibatchNoise(0, 1.0), r"^batch_size: got 0; must be at least 1"),
        (lambda: MinibatchNoise(2.5, 1.0), r"^batch_size: got 2.5; must be a whole number"),
        (lambda: MinibatchNoise(2, -1.0), r"^label_variance: got -1.0; must be at least 0"),
        (lambda: MinibatchNoise(2, float("nan")), r"^label_variance: got nan; must be one finite number"),
        (lambda: _curve([4.0, -1.0]), r"^eigenvalues: got -1.0; H is the covariance of the rows"),
        (lambda: _curve([4.0, 1e-101]), r"^eigenvalues: got 1e-101; with mini-batch noise λ₁/λ_d must be"),
        (lambda: _curve([4.0, 1.0], eta=1e80), r"^step_size: got 1e\+80; times an eigenvalue must stay below"),
        (lambda: _curve([4.0, 1.0], times=[2, 1]), r"^times: got"),
        (
            lambda: _curve([4.0, 1.0], update=update_of(Averaged(0.9))),
            r"^optimizer: got 'Averaged'; mini-batch noise runs",
        ),
        (lambda: _curve(np.linspace(2, 1, 6001)), r"^eigenvalues: got 6001; at most 6000 blocks"),
    ],
)
def test_bad_input_is_told_in_a_line(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def _curve(eigenvalues, eta=0.1, times=(0, 1), update=PLAIN):
    spectrum, modes = modes_of(np.asarray(eigenvalues), np.ones(len(eigenvalues), dtype=int), 1)
    return expected(
        modes, MinibatchNoise(2, 1.0), read_state(spectrum, None, np.ones(len(eigenvalues))), eta, times, update
    )
