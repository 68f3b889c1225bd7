"""Curves, stationary states and one-step moments of momentum and averaging, against mpmath from the definitions."""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

import etastar
from etastar import UnstableStep
from etastar.quadratic import SGD, Averaged, HeavyBall, Nesterov, Noise, Quadratic, Spectrum
from oracles import EPSILON, assert_close, dense
from oracles.optimizers import Rule, direction_row, second_moments

KINDS = ("heavy ball", "nesterov")


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def optimizer(rule):
    inner = HeavyBall(rule.beta) if rule.kind == "heavy ball" else Nesterov(rule.beta)
    return inner if rule.omega is None else Averaged(rule.omega, inner)


def limit(rule):
    """The ηλ at which a step stops being stable."""
    return 2 * (1 + rule.beta) / (1 if rule.kind == "heavy ball" else 1 + 2 * rule.beta)


def moments(rule, s):
    """E g², E gh, E h² in mpmath of what is observed."""
    if rule.omega is not None:
        return (s[2][2],) * 3
    a, b = direction_row(rule.in_mpmath())
    return s[0][0], a * s[0][0] + b * s[0][1], a * a * s[0][0] + 2 * a * b * s[0][1] + b * b * s[1][1]


def envelope(rule, alpha, s):
    """What the moments swing between: a gradient that happens to cross zero is known only relative to its buffer."""
    if rule.omega is not None:
        return (s[2][2] + s[0][0] + alpha**2 * s[1][1],) * 3
    a, b = direction_row(rule.in_mpmath())
    g, h = s[0][0] + alpha**2 * s[1][1], a * a * s[0][0] + b * b * s[1][1]
    return g, mpmath.sqrt(g * h), h


def check(rule, eigenvalues, counts, rank, variances, energies, eta, times, slack=1.0):
    """Alignment, loss and all moments at each time, against what they swing between."""
    spectrum = Spectrum(eigenvalues, rank=rank, multiplicities=counts)
    quadratic = Quadratic(spectrum, Noise.diagonal(np.repeat(variances, counts)))
    curve = quadratic.expected(energy=energies, step_size=eta, times=times, optimizer=optimizer(rule))
    blocks = []
    for lam, count, variance, energy in zip(eigenvalues, counts, variances, energies, strict=True):
        alpha = mpf(float(eta)) * mpf(float(lam))
        blocks.append(second_moments(rule, alpha, mpf(float(variance)) * int(count), energy, times))
    # What the rounding of the arguments themselves does: to t·log|μ| of slow modes, and to the phase of swinging ones.
    alpha, left, t = float(eta) * float(eigenvalues[0]), 1.0 - rule.beta, np.array(times, dtype=float)
    exponents = 1.0 + np.minimum(700.0, t * alpha / left) + np.sqrt(alpha) * np.minimum(t, 50.0 / left)
    for index, time in enumerate(times):
        found = [moments(rule, block[index]) for block in blocks]
        totals, scale = [], mpf(2) ** -980 * sum(map(mpf, map(float, energies)))
        tolerance = slack * 64 * EPSILON * float(exponents[index])
        for part, name in ((slice(None, spectrum.cut), "dominant"), (slice(spectrum.cut, None), "bulk")):
            lam = [mpf(float(x)) for x in eigenvalues[part]]
            record = getattr(curve.split, name)
            sums = [
                mpmath.fsum(la**p * m[k] for la, m in zip(lam, found[part], strict=True))
                for k, p in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 1))
            ]
            sizes = [
                mpmath.fsum(
                    la**p * envelope(rule, la * mpf(float(eta)), b[index])[k]
                    for la, b in zip(lam, blocks[part], strict=True)
                )
                for k, p in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 1))
            ]
            signal = record.signal
            values = [signal.zeroth, signal.first, signal.second]
            values += [] if record.descent is None else [record.descent.slope, record.descent.curvature]
            for value, number, scaled in zip(values, sums, sizes, strict=False):
                assert_close(value[index], number, tolerance * scaled + scale, (name, time))
            totals.append((sums[0], sizes[0]))
        energy = sum(number for number, _ in totals)
        if energy > scale * mpf(2) ** 100:
            theta, swing = totals[0][0] / energy, sum(scaled for _, scaled in totals) / energy
            assert_close(
                curve.alignment[index], theta, 2 * tolerance * (totals[0][1] + theta * swing * energy) / energy, time
            )
        loss = mpmath.fsum(m[0] / (2 * mpf(float(x))) for x, m in zip(eigenvalues, found, strict=True))
        swings = [envelope(rule, mpf(float(eta * x)), b[index])[0] for x, b in zip(eigenvalues, blocks, strict=True)]
        bound = mpmath.fsum(w / (2 * mpf(float(x))) for x, w in zip(eigenvalues, swings, strict=True))
        assert_close(curve.loss[index], loss, 2 * tolerance * bound + mpf(10) ** 9 * scale, time)
    assert (curve.split.dominant.descent is None) == (rule.omega is not None)


@pytest.mark.parametrize("seed", range(60))
def test_random_problems(seed):
    """Every optimizer on 60 problems: mixed multiplicities, quiet blocks, steps from gentle to nearly unstable."""
    rng = np.random.default_rng(seed)
    for kind, averaged in ((KINDS[0], False), (KINDS[1], False), (KINDS[seed % 2], True)):
        rule = Rule(kind, float(rng.choice([0.0, 0.3, 0.9, 0.99])), float(rng.uniform(0, 0.99)) if averaged else None)
        eigenvalues = np.sort(rng.lognormal(0, 1, 3))[::-1]
        variances = rng.lognormal(-1, 1, 3) * (rng.random(3) < 0.8)
        eta = rng.uniform(0.02, 0.98) * limit(rule) / eigenvalues[0]
        counts = rng.integers(1, 4, 3)
        cut = int(counts[: rng.integers(1, 3)].sum())
        check(rule, eigenvalues, counts, cut, variances, rng.lognormal(0, 1, 3), eta, [0, 1, 2, 7, 40, 1000], slack=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_small_steps_and_late_times(kind, beta):
    """Modes that move by 1e-12 a step keep their digits up to t = 1e6, and noise alone is as exact as a start alone."""
    for product in (1e-12, 1e-6):
        for energies, variances in (([1.0, 1.0], [0.0, 0.0]), ([0.0, 0.0], [0.3, 0.3])):
            check(Rule(kind, beta), [1.0, 0.5], [1, 1], 1, variances, energies, product, [0, 1, 3, 1000, 10**6])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("ulps", [-3, 0, 3, 10**8])
def test_around_the_defective_points(kind, beta, ulps):
    """Equal roots, to the last digits: (1 + β − α)² = 4β for heavy ball, on either side, real and complex."""
    if kind == "heavy ball":
        products = [(1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2]
    else:
        products = [1 - 4 * beta / (1 + beta) ** 2]
    for product in products:
        moved = product * (1 + ulps * EPSILON)
        for energies, variances in (([1.0, 1.0], [0.0, 0.0]), ([0.0, 0.0], [0.3, 0.3])):
            times = [1, 2, 3, 10, 100] if variances[0] == 0 else [1, 2, 3, 10, 100, 10**4, 10**6]
            check(Rule(kind, beta), [1.0, 0.5], [1, 1], 1, variances, energies, moved, times, slack=40)


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("short", [1e-3, 1e-6, 1e-10, 1e-13])
def test_at_the_limit_of_stability(beta, short):
    """Heavy ball just below 2(1 + β): the room that is left is known to all its digits, whatever the time."""
    eta = 2 * (1 + beta) * (1 - short)
    check(Rule("heavy ball", beta), [1.0, 0.5], [1, 1], 1, [0.3, 0.0], [0.0, 0.0], eta, [1, 2, 9, 1000, 10**6])


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("product", [0.05, 1.0, 1.7])
def test_without_momentum_it_is_sgd(beta, product):
    q = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.diagonal([0.3, 0.0, 0.7]))
    arguments = {"energy": [[1.0, 2.0, 3.0], [0.0, 1.0, 1e-9]], "step_size": product / 4, "times": [0, 1, 10, 1000]}
    plain = q.expected(**arguments)
    for other in (HeavyBall(0.0), Nesterov(0.0), Averaged(0.0)):
        curve = q.expected(**arguments, optimizer=other)
        np.testing.assert_allclose(curve.alignment, plain.alignment, rtol=1e-12)
        np.testing.assert_allclose(curve.loss, plain.loss, rtol=1e-12)
        np.testing.assert_allclose(curve.split.bulk.signal.second, plain.split.bulk.signal.second, rtol=1e-12)
        for mine, his in zip(
            q.stationary(product / 4, optimizer=other).leaves()[:6], q.stationary(product / 4).leaves(), strict=False
        ):
            assert np.allclose(mine, his, rtol=1e-14)
    assert np.array_equal(q.expected(**arguments, optimizer=SGD()).loss, plain.loss)
    a, b = q.stationary(product / 4, optimizer=HeavyBall(beta)), q.stationary(product / 4 / (1 + beta))
    assert etastar.alignment(a) == pytest.approx(float(etastar.alignment(b)), rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("omega", [None, 0.0, 0.5, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99, 1 - 1e-9])
def test_stationary_closed_form_solves_its_equation(kind, omega, beta):
    """Against the fixed point of the affine map in mpmath: an independent linear solve, no iteration."""
    from oracles.optimizers import affine_map

    rule = Rule(kind, beta, omega)
    for product in (1e-9, 0.1, 0.5, 0.99, 1 - 1e-9):
        alpha = product * limit(rule)
        q = Quadratic(Spectrum([1.0, 0.3], rank=1), Noise.diagonal([0.7, 0.2]))
        split = q.stationary(alpha, optimizer=optimizer(rule))
        for lam, variance, part in ((1.0, 0.7, split.dominant), (0.3, 0.2, split.bulk)):
            step = affine_map(rule, mpf(alpha) * mpf(lam), variance)
            kept = 9 if omega is not None else 6  # the averaged part is idle without averaging
            rows = [1 + 3 * i + j for i in range(3) for j in range(3) if kept == 9 or max(i, j) < 2]
            A = mpmath.matrix([[step[i, j] - (i == j) for j in rows] for i in rows])
            solved = mpmath.lu_solve(A, mpmath.matrix([-step[i, 0] for i in rows]))
            full = [[mpf(0)] * 3 for _ in range(3)]
            for value, row in zip(solved, rows, strict=True):
                full[(row - 1) // 3][(row - 1) % 3] = value
            room = float(limit(rule) - alpha * lam) / limit(rule)
            for value, number, power in zip(
                (part.signal.zeroth, part.signal.first, part.signal.second), moments(rule, full), (0, 1, 2), strict=True
            ):
                exact = number * mpf(lam) ** power
                assert_close(value, exact, 64 * EPSILON * abs(exact) * (1 + 1 / room), (product, lam, power))


@pytest.mark.parametrize("other", [HeavyBall(0.9), Nesterov(0.7), Averaged(0.9, HeavyBall(0.5)), Averaged(0.95)])
def test_the_curve_ends_in_the_stationary_state_where_every_threshold_is_the_step(other):
    q = Quadratic(Spectrum([5.0, 3.0, 1.0, 0.2], rank=2), Noise.diagonal([0.1, 0.4, 0.3, 0.2]))
    for eta in (1e-3, 0.1, 0.25):
        split = q.stationary(eta, optimizer=other)
        last = q.expected(gradient=np.ones(4), step_size=eta, times=[10**7], optimizer=other).split[0]
        for mine, his in zip(split.leaves(), last.leaves(), strict=True):
            assert np.allclose(mine, his, rtol=1e-10)
        if not isinstance(other, Averaged):
            step, bounds = etastar.critical_step_size(split), etastar.loss_thresholds(split)
            assert step.value == pytest.approx(eta, rel=1e-13 * max(1.0, float(step.condition)))
            for threshold in (bounds.dominant, bounds.bulk, bounds.full):
                assert threshold == pytest.approx(eta, rel=1e-12)
    assert q.stationary(np.linspace(1e-6, 0.28, 50), optimizer=other).shape == (50,)


@pytest.mark.parametrize("other", [HeavyBall(0.9), Nesterov(0.7)])
def test_moments_along_a_curve_predict_its_next_step(other):
    q = Quadratic(Spectrum([5.0, 3.0, 1.0, 0.2], rank=2), Noise.diagonal([0.1, 0.4, 0.3, 0.2]))
    eta, times = 0.2, np.arange(60)
    curve = q.expected(gradient=[1.0, -2.0, 3.0, 0.5], step_size=eta, times=times, optimizer=other)
    np.testing.assert_allclose(etastar.alignment_after(curve.split, eta)[:-1], curve.alignment[1:], rtol=1e-9)
    np.testing.assert_allclose(etastar.loss_change(curve.split, eta).full[:-1], np.diff(curve.loss), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_one_step_from_gradient_and_buffer_against_matrices(kind, seed):
    rng = np.random.default_rng(seed)
    size, beta = 5, float(rng.uniform(0, 0.99))
    matrix = rng.standard_normal((size, size))
    H = matrix @ matrix.T
    covariance = matrix.T @ matrix
    spectrum = Spectrum.from_matrix(H, rank=2)
    V = spectrum.basis
    q = Quadratic(spectrum, Noise.covariance(V.T @ covariance @ V))
    g, m = rng.standard_normal((2, 3, size))
    other = HeavyBall(beta) if kind == "heavy ball" else Nesterov(beta)
    split = q.moments(gradient=g @ V, momentum=m @ V, optimizer=other)
    a, b = direction_row(Rule(kind, beta))
    for row in range(3):
        truth = dense.split_moments(H, V[:, :2] @ V[:, :2].T, a * a * covariance, g[row], a * g[row] + b * m[row])
        for part, exact in ((split.dominant[row], truth.dominant), (split.bulk[row], truth.bulk)):
            for mine, his in zip(part.leaves(), exact.leaves(), strict=True):
                assert np.allclose(mine, his, rtol=1e-9, atol=1e-11)
    empty = q.moments(gradient=g @ V, optimizer=other)
    zero = q.moments(gradient=g @ V, momentum=np.zeros((3, size)), optimizer=other)
    by_energy = q.moments(energy=(g @ V) ** 2, optimizer=other)
    for x, y, z in zip(empty.leaves(), zero.leaves(), by_energy.leaves(), strict=True):
        assert np.allclose(x, y, rtol=1e-12)
        assert np.allclose(x, z, rtol=1e-12)


@pytest.mark.parametrize("other", [HeavyBall(0.9), Nesterov(0.5), Averaged(0.9), Averaged(0.9, HeavyBall(0.5))])
def test_batches_many_times_and_many_blocks_are_as_if_alone(other):
    rng = np.random.default_rng(3)
    size, times = 1500, np.unique(rng.integers(0, 10**5, 150))
    q = Quadratic(Spectrum(np.sort(rng.uniform(0.01, 1.0, size))[::-1], rank=20), Noise.isotropic(1e-3))
    starts = rng.standard_normal((2, 3, size))
    curve = q.expected(gradient=starts, step_size=0.7, times=times, optimizer=other)
    assert curve.alignment.shape == curve.loss.shape == (2, 3, times.size)
    alone = q.expected(gradient=starts[1, 2], step_size=0.7, times=times[[5, 77, -1]], optimizer=other)
    np.testing.assert_allclose(curve.alignment[1, 2, [5, 77, -1]], alone.alignment, rtol=1e-11)
    np.testing.assert_allclose(curve.loss[1, 2, [5, 77, -1]], alone.loss, rtol=1e-11)
    even = q.expected(gradient=starts[0, 0], step_size=0.7, times=np.arange(0, 3000, 7), optimizer=other)
    some = q.expected(gradient=starts[0, 0], step_size=0.7, times=[7, 700, 2996], optimizer=other)
    np.testing.assert_allclose(even.alignment[[1, 100, 428]], some.alignment, rtol=1e-11)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("other", [HeavyBall(0.5), Nesterov(0.5), Averaged(0.9, HeavyBall(0.5))])
def test_unstable_and_quiet_runs_keep_the_alignment(other, noise):
    q = Quadratic(Spectrum([4.0, 3.0, 1.0], rank=1), Noise.isotropic(noise))
    up = q.expected(gradient=[1e-3, 1.0, 1.0], step_size=2.0, times=[0, 10, 1000, 10**6], optimizer=other)
    assert up.alignment[-1] == pytest.approx(1.0)
    assert np.isinf(up.loss[-1])
    assert not np.any(np.isnan(up.loss))
    down = q.expected(gradient=[1e3, 1.0, 1.0], step_size=0.01, times=[0, 10, 10**4, 10**6], optimizer=other)
    assert not np.any(np.isnan(down.alignment))
    if noise == 0:
        assert down.alignment[-1] == 0.0
        assert np.all(np.isfinite(down.loss))


@pytest.mark.parametrize("scale", [1e-280, 1e-140, 1e140, 1e280])
def test_units_of_energy_and_curvature_do_not_matter(scale):
    arguments = {"times": [0, 1, 10, 10**4], "optimizer": HeavyBall(0.9)}
    usual = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.isotropic(0.1))
    curve = usual.expected(energy=[1.0, 2.0, 3.0], step_size=0.1, **arguments)
    scaled = Quadratic(Spectrum([4.0, 2.0, 1.0], rank=1), Noise.isotropic(0.1 * scale))
    again = scaled.expected(energy=scale * np.array([1.0, 2.0, 3.0]), step_size=0.1, **arguments)
    np.testing.assert_allclose(again.alignment, curve.alignment, rtol=1e-12)
    np.testing.assert_allclose(again.loss / scale, curve.loss, rtol=1e-12)
    unit = np.sqrt(scale)
    steep = Quadratic(Spectrum(np.array([4.0, 2.0, 1.0]) * unit, rank=1), Noise.isotropic(0.1))
    again = steep.expected(energy=[1.0, 2.0, 3.0], step_size=0.1 / unit, **arguments)
    np.testing.assert_allclose(again.alignment, curve.alignment, rtol=1e-12)
    np.testing.assert_allclose(again.critical_step_size.value * unit, curve.critical_step_size.value, rtol=1e-10)


@pytest.mark.parametrize(
    ("other", "step", "limit"),
    [
        (HeavyBall(0.9), 0.95, "3.8/λ₁ = 0.95"),
        (Nesterov(0.5), 0.375, "1.5/λ₁ = 0.375"),
        (Averaged(0.5, HeavyBall(0.9)), 1.0, "3.8/λ₁"),
        (Averaged(0.5), 0.5, "2/λ₁ = 0.5"),
    ],
)
def test_no_stationary_state_is_told_with_the_optimizers_own_limit(other, step, limit):
    q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
    with pytest.raises(UnstableStep, match=f"^step_size: got .* needs 0 < step_size < {limit}"):
        q.stationary(np.nextafter(step, 9), optimizer=other)
    assert q.stationary(0.99 * step if step < 1 else 0.9, optimizer=other).shape == ()
    with pytest.raises(UnstableStep, match=r"^eigenvalues: got λ_d = -1"):
        Quadratic(Spectrum([4.0, -1.0], rank=1), Noise.isotropic(0.1)).stationary(0.1, optimizer=other)
