"""Brute force: rows drawn one by one against every closed form, and against the runs that draw no rows."""

import numpy as np
import pytest
from scipy import stats

import etastar
from etastar import InvalidArgument
from etastar.quadratic import Averaged, HeavyBall, Nesterov, Spectrum
from etastar.quadratic.minibatch.curve import expected
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.one_step import blocks_of, moments
from etastar.quadratic.minibatch.runs import simulate
from etastar.quadratic.minibatch.sharpness import batch_sharpness, edges
from etastar.quadratic.minibatch.stability import largest_stable_step, stationary, stationary_residual
from etastar.quadratic.modes import State, read_state
from etastar.quadratic.optimizers.rules import PLAIN, update_of
from oracles.minibatch import draw, every_batch
from oracles.stepping import standard_errors

PROBLEMS, D, RUNS = 50, 4, 2500
LIMIT = 4.0
OPTIMIZERS = {"sgd": (PLAIN, 0.0, False), "heavy ball": (update_of(HeavyBall(0.5)), 0.5, False)}
OPTIMIZERS["nesterov"] = (update_of(Nesterov(0.5)), 0.5, True)


def modes_of(eigenvalues, counts, rank):
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    return spectrum, blocks_of(spectrum)


def problems(seed, batch_size):
    """PROBLEMS spectra ``(P, d)`` with a start x each, label variances, and the objects of the library."""
    rng = np.random.default_rng(seed)
    eigenvalues = -np.sort(-(10.0 ** rng.uniform(-1, 0.7, (PROBLEMS, D))), axis=1)
    x = rng.standard_normal((PROBLEMS, D))
    label = 10.0 ** rng.uniform(-2, 1, PROBLEMS)
    made = [
        (*modes_of(values, np.ones(D, dtype=int), 2), MinibatchNoise(batch_size, s))
        for values, s in zip(eigenvalues, label, strict=True)
    ]
    return rng, eigenvalues, x, label, made


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_noise_and_batch_sharpness_by_drawing_rows(batch_size):
    """κ², the mean length of a batch gradient and E⟨g_B, H_B g_B⟩ on 50 problems."""
    rng, eigenvalues, x, label, made = problems(batch_size, batch_size)
    spread, lengths, curved = [], [], []
    for _ in range(10):
        points = np.broadcast_to(x, (RUNS // 2, PROBLEMS, D))
        rows, gradient = draw(rng, eigenvalues, points, batch_size, label[:, None])
        spread.append(np.square(gradient - eigenvalues * x))
        lengths.append(np.square(gradient).sum(axis=-1))
        curved.append(np.square(np.einsum("...bd,...d->...b", rows, gradient)).mean(axis=-1))
    spread, lengths, curved = (np.concatenate(values) for values in (spread, lengths, curved))
    states = [read_state(spectrum, values, None) for (spectrum, *_), values in zip(made, eigenvalues * x, strict=True)]
    variances = [
        noise.variances_at(modes.eigenvalues, modes.multiplicities, state.energy)
        for (_, modes, noise), state in zip(made, states, strict=True)
    ]
    assert np.max(standard_errors(spread, np.array(variances))) < LIMIT
    found = np.array(
        [batch_sharpness(modes, noise, state) for (_, modes, noise), state in zip(made, states, strict=True)]
    )
    length = np.array([np.sum(v) + np.sum(s.energy) for v, s in zip(variances, states, strict=True)])
    assert np.max(standard_errors(lengths, length)) < LIMIT
    assert np.max(standard_errors(curved, found * length)) < LIMIT
    assert np.max(standard_errors(curved - found * lengths, 0.0)) < LIMIT


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_expected_curve_by_drawing_rows(kind):
    """Energies of both subspaces and the loss after 1, 3 and 8 steps on 50 problems."""
    update, beta, nesterov = OPTIMIZERS[kind]
    rng, eigenvalues, x, label, made = problems(11, 3)
    eta = np.array([0.3 * largest_stable_step(modes, noise, update) for _, modes, noise in made])[:, None]
    position, buffer, times = np.broadcast_to(x, (RUNS, PROBLEMS, D)), np.zeros((RUNS, PROBLEMS, D)), [1, 3, 8]
    runs = []
    for step in range(1, 9):
        _, gradient = draw(rng, eigenvalues, position, 3, label[:, None])
        buffer = beta * buffer + gradient
        position = position - eta * (gradient + beta * buffer if nesterov else buffer)
        if step in times:
            runs.append(position)
    for index, (spectrum, modes, noise) in enumerate(made):
        lam = eigenvalues[index]
        curve = expected(modes, noise, read_state(spectrum, lam * x[index], None), float(eta[index, 0]), times, update)
        for slot, where in enumerate(runs):
            energy = np.square(lam * where[:, index])
            pairs = [
                (energy[:, :2].sum(axis=1), curve.split.dominant.signal.zeroth[slot]),
                (energy[:, 2:].sum(axis=1), curve.split.bulk.signal.zeroth[slot]),
                ((energy / (2 * lam)).sum(axis=1), curve.loss[slot]),
            ]
            assert max(float(standard_errors(sample, mean)) for sample, mean in pairs) < LIMIT


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_runs_without_rows_have_the_law_of_rows(kind):
    """Kolmogorov-Smirnov on alignment and loss after some steps; b below and above d."""
    update, beta, nesterov = OPTIMIZERS[kind]
    rng, lam, x = np.random.default_rng(5), np.array([3.0, 2.0, 0.7, 0.1]), np.array([0.3, -1.0, 2.0, 0.5])
    spectrum, modes = modes_of(lam, np.ones(D, dtype=int), 2)
    for batch_size in (1, 6):
        noise = MinibatchNoise(batch_size, 0.2)
        eta = 0.4 * largest_stable_step(modes, noise, update)
        position, buffer = np.broadcast_to(x, (RUNS, D)), np.zeros((RUNS, D))
        for _ in range(4):
            _, gradient = draw(rng, lam, position, batch_size, np.array([0.2]))
            buffer = beta * buffer + gradient
            position = position - eta * (gradient + beta * buffer if nesterov else buffer)
        energy = np.square(lam * position)
        state = read_state(spectrum, lam * x, None)
        paths = simulate(modes, noise, state, eta, 4, [4], replicas=RUNS, seed=3, update=update)
        theta = energy[:, :2].sum(axis=1) / energy.sum(axis=1)
        assert stats.ks_2samp(paths.alignment[:, 0], theta).pvalue > 1e-3
        assert stats.ks_2samp(paths.loss[:, 0], (energy / lam / 2).sum(axis=1)).pvalue > 1e-3


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_runs_by_blocks_meet_the_curve(kind):
    """Blocks of a million, of two and of one; 4 standard errors."""
    update, _, _ = OPTIMIZERS[kind]
    spectrum, modes = modes_of([3.0, 2.0, 1e-6, 1e-7], [1, 2, 10**6, 3], 3)
    noise, times = MinibatchNoise(4, 0.3), [0, 1, 2, 20, 60]
    state = read_state(spectrum, None, [1.0, 0.1, 1e-6, 1e-9])
    eta = 0.3 * largest_stable_step(modes, noise, update)
    curve = expected(modes, noise, state, eta, times, update)
    paths = simulate(modes, noise, state, eta, 60, times, replicas=8000, seed=1, update=update)
    assert np.allclose(paths.alignment[:, 0], curve.alignment[0], rtol=1e-12)
    for sample, mean in (
        (paths.dominant_energy, curve.split.dominant.signal.zeroth),
        (paths.bulk_energy, curve.split.bulk.signal.zeroth),
        (paths.loss, curve.loss),
    ):
        assert np.max(standard_errors(sample[:, 1:], mean[1:])) < LIMIT


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_blocks_have_the_law_of_their_modes(kind):
    update, _, _ = OPTIMIZERS[kind]
    noise, start = MinibatchNoise(2, 0.3), np.array([1.0, 0.5, -0.2, 0.3, 0.0])
    spectrum, modes = modes_of([2.0, 0.5], [2, 3], 2)
    options = {"replicas": RUNS, "update": update}
    by_block = simulate(modes, noise, read_state(spectrum, start, None), 0.1, 5, [5], seed=1, **options)
    state = read_state(spectrum, start, None)
    by_mode = simulate(modes, noise, state, 0.1, 5, [5], seed=2, keep_gradient=True, **options)
    assert by_mode.gradient.shape == (RUNS, 1, 5)
    for name in ("alignment", "loss", "bulk_energy"):
        assert stats.ks_2samp(getattr(by_block, name)[:, 0], getattr(by_mode, name)[:, 0]).pvalue > 1e-3


def test_rules_projections_and_seeds():
    spectrum, modes = modes_of([3.0, 1.0, 0.2], [1, 1, 1], 1)
    noise, state = MinibatchNoise(4, 0.1), read_state(spectrum, [[1.0, 2.0, 0.5], [0.1, 0.1, 0.1]], None)
    seen = []

    def rule(current):
        seen.append(current)
        return 0.5 * np.clip(current.critical_step_size.value, 0.0, 0.1)

    paths = simulate(modes, noise, state, rule, 3, replicas=5, seed=1)
    assert paths.alignment.shape == (5, 2, 4)
    assert np.all(np.isnan(paths.step_size[..., -1]))
    g = read_state(spectrum, [1.0, 2.0, 0.5], None)
    quiet = noise.variances_at(modes.eigenvalues, modes.multiplicities, g.energy)
    assert seen[0].split.bulk.noise.zeroth[0, 0] == pytest.approx(quiet[1:].sum(), rel=1e-14)
    assert seen[0].loss[0, 0] == pytest.approx((g.energy / modes.eigenvalues).sum() / 2, rel=1e-14)
    still = simulate(modes, noise, state, 0.1, 3, projection="dominant", replicas=2)
    assert np.allclose(still.bulk_energy, still.bulk_energy[..., :1], rtol=1e-14)
    assert not np.allclose(still.dominant_energy, still.dominant_energy[..., :1])
    again = [simulate(modes, noise, state, 0.1, 9, seed=s, replicas=3).loss for s in (1, 1, 2)]
    assert np.array_equal(again[0], again[1])
    assert not np.allclose(again[0], again[2])


def test_without_label_noise_a_run_may_end_at_the_minimum():
    spectrum, modes = modes_of([3.0, 1.0], [1, 1], 1)
    paths = simulate(modes, MinibatchNoise(4, 0.0), read_state(spectrum, [0.0, 0.0], None), 0.1, 5)
    assert np.all(paths.loss == 0)
    assert np.all(np.isnan(paths.alignment))
    assert not paths.diverged[0]
    wild = simulate(modes, MinibatchNoise(1, 0.0), read_state(spectrum, [1.0, 1.0], None), 50.0, 500, [500])
    assert wild.diverged[0]


def test_edges_at_the_stationary_state():
    """Each edge from its definition, by long runs and rows; NaN where a batch is too small for the step."""
    lam = np.array([4.0, 1.0, 0.5, 0.2])
    spectrum, modes = modes_of(lam, np.ones(D, dtype=int), 1)
    eta, sizes = 0.15, [1, 2, 8, 64, 10**6]
    found = edges(spectrum, eta, sizes)
    assert found.batch_size.tolist() == sizes
    assert found.limit == pytest.approx(2 / eta)
    assert found.largest_eigenvalue == 4.0
    assert np.isfinite(found.batch_sharpness).tolist() == (found.kernel < 1).tolist()
    good = found.kernel < 1
    assert found.loss_sharpness[good] == pytest.approx(np.full(good.sum(), 2 / eta), rel=1e-10)
    noise = MinibatchNoise(8, 0.7)
    paths = simulate(
        modes, noise, read_state(spectrum, lam, None), eta, 400, [400], replicas=10_000, keep_gradient=True, seed=2
    )
    g = paths.gradient[:, 0]
    rows, gradient = draw(np.random.default_rng(3), lam, g / lam, 8, np.array([0.7]))
    curved = np.square(np.einsum("...bd,...d->...b", rows, gradient)).mean(axis=-1)
    length = np.square(gradient).sum(axis=-1)
    assert standard_errors(curved - found.batch_sharpness[2] * length, 0.0) < LIMIT
    assert standard_errors((g * g) @ lam - found.critical_sharpness[2] * np.square(g).sum(axis=1), 0.0) < LIMIT
    residual = stationary_residual(modes, noise, eta)
    assert standard_errors((g * g) @ (1 / lam) + 0.7, residual) < LIMIT
    signal = stationary(modes, noise, eta)
    assert standard_errors(np.square(g[:, 0]), float(signal.dominant.signal.zeroth)) < LIMIT


def test_batch_sharpness_of_large_batches_is_the_curvature_along_the_gradient():
    spectrum, modes = modes_of([4.0, 1.0], [1, 5], 1)
    state = read_state(spectrum, None, [1.0, 3.0])
    assert batch_sharpness(modes, MinibatchNoise(10**12, 1.0), state) == pytest.approx(7 / 4, rel=1e-10)
    single = batch_sharpness(modes, MinibatchNoise(1, 1.0), state)
    assert single > 9  # of one row it is E‖a‖⁴r²/E‖a‖²r², above the trace
    assert np.isnan(batch_sharpness(modes, MinibatchNoise(4, 0.0), State(np.zeros(2), None)))
    assert batch_sharpness(modes, MinibatchNoise(4, 1.0), State(np.ones((3, 2)), None)).shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"^steps: got -1; must be at least 0"),
        ({"record": [7]}, r"^record: got 7; must not exceed the number of steps, 5"),
        ({"projection": "top"}, r"^projection: got 'top'; must be"),
        ({"step_size": [0.1, 0.2]}, r"^step_size: got \[0.1, 0.2\]; must be one number"),
        ({"step_size": lambda _: float("nan")}, r"^step_size at step 0: got nan; must be finite"),
        ({"step_size": lambda _: np.ones(7)}, r"^step_size at step 0: got \(7,\); must broadcast to \(1,\)"),
        ({"keep_gradient": True}, r"^energy: got 'block energies'; a record mode by mode needs gradient="),
        ({"update": update_of(Averaged(0.9))}, r"^optimizer: got 'Averaged'; mini-batch noise runs under SGD"),
        ({"replicas": 0}, r"^replicas: got 0"),
    ],
)
def test_bad_runs_are_told_in_a_line(options, message):
    spectrum, modes = modes_of([4.0, 1.0], [1, 5], 1)
    arguments = {"step_size": 0.1, "steps": 5} | options
    with pytest.raises(InvalidArgument, match=message):
        simulate(modes, MinibatchNoise(4, 1.0), read_state(spectrum, None, [1.0, 3.0]), **arguments)


def test_bad_edges_are_told_in_a_line():
    spectrum, _ = modes_of([4.0, 1.0], [1, 5], 1)
    for arguments, message in (
        ((0.0, [1]), r"^step_size: got 0.0"),
        ((0.1, []), r"^batch_sizes: got \[\]; give at least one"),
        ((0.1, [0]), r"^batch_size: got 0"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            edges(spectrum, *arguments)


def test_alignment_of_the_curve_is_that_of_its_moments():
    spectrum, modes = modes_of([4.0, 1.0], [1, 5], 1)
    curve = expected(modes, MinibatchNoise(4, 1.0), read_state(spectrum, None, [1.0, 3.0]), 0.1, [0, 1, 50])
    assert curve.alignment == pytest.approx(etastar.alignment(curve.split), rel=1e-14)
    after = etastar.alignment_after(curve.split[0], 0.1)
    assert curve.alignment[1] == pytest.approx(after, rel=1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_of_one_step_by_drawing_rows(kind):
    """From a gradient and a buffer on 50 problems: next energies and loss through the criteria."""
    update, beta, nesterov = OPTIMIZERS[kind]
    rng, eigenvalues, x, label, made = problems(23, 3)
    buffer = None if kind == "sgd" else rng.standard_normal((PROBLEMS, D))
    eta, points = 0.2, np.broadcast_to(x, (2 * RUNS, PROBLEMS, D))
    _, gradient = draw(rng, eigenvalues, points, 3, label[:, None])
    moved = gradient if buffer is None else beta * buffer + gradient
    after = points - eta * (gradient + beta * moved if nesterov else moved)
    energy = np.square(eigenvalues * after)
    loss = (energy / eigenvalues / 2).sum(axis=-1) - (eigenvalues * x * x / 2).sum(axis=-1)
    for index, (spectrum, _, noise) in enumerate(made):
        m = None if buffer is None else buffer[index]
        split = moments(spectrum, noise, gradient=eigenvalues[index] * x[index], momentum=m, update=update)
        for part, sample in ((split.dominant, energy[:, index, :2]), (split.bulk, energy[:, index, 2:])):
            m0, m1, m2 = part.signal.leaves()
            assert standard_errors(sample.sum(axis=1), m0 - 2 * eta * m1 + eta**2 * (m2 + part.noise.second)) < LIMIT
        assert standard_errors(loss[:, index], etastar.loss_change(split, eta).full) < LIMIT
    batch = moments(spectrum, noise, energy=np.ones((3, 2, D)), update=update)
    assert batch.shape == (3, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_noise_and_batch_sharpness_by_quadrature(batch_size):
    """Expectations over rows and labels by a rule that is exact for them, at several states."""
    lam = np.array([3.0, 0.4])
    spectrum, modes = modes_of(lam, [1, 1], 1)
    for x, label in (([0.7, -1.1], 0.3), ([0.0, 2.0], 0.0), ([1.0, 0.0], 5.0), ([1e-3, 1e-3], 1.0)):
        x, noise = np.array(x), MinibatchNoise(batch_size, label)
        rows, gradient, weight = every_batch(lam, x, batch_size, label)
        state = read_state(spectrum, lam * x, None)
        variances = noise.variances_at(modes.eigenvalues, modes.multiplicities, state.energy)
        assert weight @ gradient == pytest.approx(lam * x, rel=1e-11, abs=1e-12)
        assert weight @ np.square(gradient - lam * x) == pytest.approx(variances, rel=1e-11)
        curved = weight @ np.square(np.einsum("gbd,gd->gb", rows, gradient)).mean(axis=1)
        exact = curved / (weight @ np.square(gradient).sum(axis=1))
        assert batch_sharpness(modes, noise, state) == pytest.approx(exact, rel=1e-11)
