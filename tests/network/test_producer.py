"""The network as a producer: its moments against dense algebra, and against the laboratory on linear regression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from etastar import (
    CurvatureMoments,
    InvalidArgument,
    SplitMoments,
    SubspaceMoments,
    alignment,
    critical_step_size,
    jackknife,
    loss_thresholds,
)
from etastar.network import HessianOperator
from etastar.network.expansion import turn_of, with_beyond
from etastar.network.noise import sample_noise
from etastar.network.population import population_moments
from etastar.network.producer import Basis, Direction, training_moments
from etastar.quadratic import Noise, Quadratic, Spectrum

N, D, K, B = 60, 6, 2, 5


def squared(model, batch):
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


@pytest.fixture
def regression():
    torch.manual_seed(0)
    X = torch.randn(N, D, dtype=torch.float64) * torch.tensor([4.0, 3.0, 1.0, 0.7, 0.5, 0.2], dtype=torch.float64)
    y = X @ torch.randn(D, dtype=torch.float64) + 0.3 * torch.randn(N, dtype=torch.float64)
    model = nn.Linear(D, 1, bias=False).double()
    batches = [(X[:25], y[:25]), (X[25:50], y[25:50]), (X[50:], y[50:])]  # ragged
    return model, batches, X, y


def exact_basis(X):
    values, vectors = torch.linalg.eigh(X.T @ X / len(X))
    V = vectors[:, -K:].flip(1)
    return Basis(V, (X.T @ X / len(X)) @ V, values[-K:].flip(0))


def test_training_moments_are_those_of_the_exact_quadratic(regression):
    model, batches, X, y = regression
    spectrum = Spectrum.from_least_squares(X.numpy(), rank=K)
    weights = model.weight.detach()[0].numpy()
    noise = Noise.from_least_squares(X.numpy(), y.numpy(), at=weights, batch_size=B, replace=False)
    gradient = spectrum.to_eigenbasis(X.numpy().T @ (X.numpy() @ weights - y.numpy()) / N)
    exact = Quadratic(spectrum, noise).moments(gradient=gradient)
    operator = HessianOperator(model, squared, batches)
    produced = training_moments(operator, squared, exact_basis(X), B, probes=400, replace=False)
    mean = produced.moments.mean(0)
    for side in ("dominant", "bulk"):
        ours, theirs = getattr(mean, side), getattr(exact, side)
        for moment in ("zeroth", "first", "second"):
            np.testing.assert_allclose(getattr(ours.signal, moment), getattr(theirs.signal, moment), rtol=1e-9)
    for moment in ("zeroth", "first", "second"):  # exact in the dominant subspace
        np.testing.assert_allclose(
            getattr(mean.dominant.noise, moment), getattr(exact.dominant.noise, moment), rtol=1e-9
        )
    for moment in ("zeroth", "first", "second"):
        estimate = jackknife(lambda split, moment=moment: getattr(split.bulk.noise, moment), produced.moments)
        assert abs(estimate.value - getattr(exact.bulk.noise, moment)) < 4 * estimate.standard_error
    step = jackknife(lambda split: critical_step_size(split).value, produced.moments)
    assert abs(step.value - critical_step_size(exact).value) < 4 * step.standard_error
    np.testing.assert_allclose(mean.coupling.signal, 0.0, atol=1e-12 * mean.dominant.signal.first)


def test_ritz_vectors_beyond_the_basis_take_the_variance_out_of_the_bulk(regression):
    """All of them, exact: nothing is left to be probed. Some of them, inexact: the mean stays what it is."""
    model, batches, X, y = regression
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(X.T @ X / N))
    deviation = X * (X @ model.weight.detach()[0] - y)[:, None]
    deviation = (deviation - deviation.mean(0)) @ vectors[:, K:]
    variances = deviation.square().sum(0) / N / B
    operator = HessianOperator(model, squared, batches)
    whole = Basis(vectors[:, :K], None, values[:K], vectors[:, K:], values[K:])
    noise = training_moments(operator, squared, whole, B, probes=3).moments.bulk.noise
    for power, moment in enumerate((noise.zeroth, noise.first, noise.second)):
        np.testing.assert_allclose(moment, float(variances @ values[K:] ** power), rtol=1e-9)
    turned = vectors[:, K : K + 2] + 0.3 * vectors[:, K + 2 : K + 4]
    some = Basis(vectors[:, :K], None, values[:K], turned / turned.norm(dim=0), 0.9 * values[K : K + 2])
    moments = training_moments(operator, squared, some, B, probes=400).moments
    plain = training_moments(operator, squared, replace(some, beyond=None), B, probes=400).moments
    for power, name in enumerate(("zeroth", "first", "second")):
        estimate, without = (
            jackknife(lambda split, name=name: getattr(split.bulk.noise, name), one) for one in (moments, plain)
        )
        exact = float(variances @ values[K:] ** power)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.7 * without.standard_error


def test_an_inexact_basis_keeps_its_coupling(regression):
    model, batches, X, _ = regression
    torch.manual_seed(3)
    H = X.T @ X / N
    V, _ = torch.linalg.qr(torch.randn(D, K, dtype=torch.float64))
    operator = HessianOperator(model, squared, batches)
    produced = training_moments(operator, squared, Basis(V, H @ V, torch.ones(K)), B, probes=4000)
    g = operator.gradient()
    P, Q = V @ V.T, torch.eye(D, dtype=torch.float64) - V @ V.T
    np.testing.assert_allclose(produced.moments.coupling.signal, (P @ g) @ H @ Q @ g, rtol=1e-9)
    deviations = torch.stack(
        [row * (row @ model.weight.detach()[0] - t) for row, t in zip(X, regression[3], strict=True)]
    )
    deviations = deviations - g
    sigma = deviations.T @ deviations / N / B
    for probed, exact in (
        (produced.moments.coupling.noise, torch.trace(P @ H @ Q @ sigma)),
        (produced.moments.dominant.noise.first, torch.trace(P @ H @ sigma)),
        (produced.moments.dominant.noise.second, torch.trace(P @ H @ sigma @ H)),
    ):
        assert abs(probed.mean() - exact) < 4 * probed.std(ddof=1) / np.sqrt(len(probed))
    eta = 0.07  # the projected update's expected loss change, by brute force
    change = -eta * g @ P @ g + 0.5 * eta**2 * (g @ P @ H @ P @ g + torch.trace(P @ H @ P @ sigma))
    from etastar import loss_change

    np.testing.assert_allclose(loss_change(produced.moments, eta).dominant, change, rtol=1e-9)


def test_momentum_enters_through_the_descent_pair(regression):
    model, batches, X, _ = regression
    torch.manual_seed(4)
    basis, H = exact_basis(X), X.T @ X / N
    h = torch.randn(D, dtype=torch.float64)
    operator = HessianOperator(model, squared, batches)
    produced = training_moments(operator, squared, basis, B, probes=2, direction=lambda _: Direction(h, 1.5))
    g, P = operator.gradient(), basis.vectors @ basis.vectors.T
    part = produced.moments.dominant
    np.testing.assert_allclose(part.signal.first, (P @ g) @ H @ h, rtol=1e-9)
    np.testing.assert_allclose(part.descent.slope, (P @ g) @ h, rtol=1e-9)
    np.testing.assert_allclose(part.descent.curvature, h @ P @ H @ P @ h, rtol=1e-9)
    plain = training_moments(operator, squared, basis, B, probes=2)
    np.testing.assert_allclose(part.noise.first, 1.5**2 * plain.moments.dominant.noise.first, rtol=1e-12)


def test_population_moments_are_unbiased():
    """Means over many fresh data sets meet the population's moments; plugging in would not."""
    rng = np.random.default_rng(0)
    spectrum, label = np.array([4.0, 2.0, 0.5, 0.25]), 0.3
    w = np.array([0.2, -0.3, 0.4, 0.5])
    H = torch.tensor(np.diag(spectrum))
    basis = Basis(torch.eye(4, dtype=torch.float64)[:, :1], H[:, :1].clone(), torch.tensor([4.0]))
    size, sets = 8, 400
    seen = {"m0": [], "m1": [], "m2": [], "q0": []}

    def draw(count):
        X = rng.standard_normal((count, 4)) * np.sqrt(spectrum)
        return torch.tensor(X), torch.tensor(label * rng.standard_normal(count))

    class Matrix:
        def __init__(self, X):
            self.H = X.T @ X / len(X)

        def __matmul__(self, vectors):
            return self.H @ vectors

    for _ in range(sets):
        halves = tuple(Matrix(draw(30)[0]) for _ in range(2))
        gradients = []
        for _ in range(4):
            X, e = draw(size)
            gradients.append(X.T @ (X @ torch.tensor(w) - e) / size)
        split = population_moments(halves, torch.stack(gradients), size, basis, size).moments.mean(0)
        seen["m0"].append(float(split.dominant.signal.zeroth))
        seen["m1"].append(float(split.bulk.signal.first))
        seen["m2"].append(float(split.bulk.signal.second))
        seen["q0"].append(float(split.bulk.noise.zeroth))
    g = spectrum * w
    covariance = (np.outer(g, g) + (w @ (spectrum * w) + label**2) * np.diag(spectrum)) / size
    expected = {
        "m0": g[0] ** 2,
        "m1": np.sum(g[1:] ** 2 * spectrum[1:]),
        "m2": np.sum(g[1:] ** 2 * spectrum[1:] ** 2),
        "q0": np.trace(covariance[1:, 1:]),
    }
    for name, values in seen.items():
        error = np.std(values) / np.sqrt(sets)
        assert abs(np.mean(values) - expected[name]) < 4 * error, name


def test_pseudo_values_give_the_jackknife_of_the_statistic():
    rng = np.random.default_rng(1)
    gradients = torch.tensor(rng.standard_normal((6, 4)) + 1.0)
    H = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    basis = Basis(torch.eye(4, dtype=torch.float64)[:, :2], H[:, :2].clone(), torch.tensor([4.0, 2.0]))
    whole = population_moments((H, H), gradients, 4, basis, 4).moments
    values = []
    for left in range(6):
        kept = torch.cat([gradients[:left], gradients[left + 1 :]])
        values.append(float(alignment(population_moments((H, H), kept, 4, basis, 4).moments.mean(0))))
    error = np.sqrt(5 / 6 * np.sum((np.array(values) - np.mean(values)) ** 2))
    np.testing.assert_allclose(jackknife(alignment, whole).standard_error, error, rtol=1e-9)
    assert np.all(np.isfinite(loss_thresholds(whole.mean(0)).dominant))


def test_a_loss_that_is_no_mean_over_samples_is_refused(regression):
    model, batches, X, _ = regression

    def summed(model, batch):
        return squared(model, batch) * len(batch[0])

    with pytest.raises(InvalidArgument, match="must be the mean over samples"):
        training_moments(HessianOperator(model, summed, batches), summed, exact_basis(X), B)
    with pytest.raises(InvalidArgument, match="probes: got 1"):
        training_moments(HessianOperator(model, squared, batches), squared, exact_basis(X), B, probes=1)


def test_models_that_cannot_be_vectorised_are_looped_over(regression):
    _, batches, X, y = regression

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(D, 1, bias=False).double()

        def forward(self, x):
            return self.inner(x) * (1.0 if float(x.sum()) > -1e9 else 2.0)

    model = Branching()
    operator = HessianOperator(model, squared, batches)
    produced = training_moments(operator, squared, exact_basis(X), B, probes=2)
    g = X * (X @ model.inner.weight.detach()[0] - y)[:, None]
    deviation = (g - g.mean(0)) @ exact_basis(X).vectors
    np.testing.assert_allclose(produced.moments.dominant.noise.zeroth, deviation.square().sum() / N / B, rtol=1e-9)


def cubic(module, batch):
    residual = module(batch[0])[:, 0] - batch[1]
    return (0.5 * residual.square() + residual**3 / 12).mean()


def test_beyond_the_quadratic_model_there_is_nothing_on_a_quadratic(regression):
    model, batches, X, _ = regression
    operator = HessianOperator(model, squared, batches)
    plain = training_moments(operator, squared, exact_basis(X), B, probes=4)
    bent = training_moments(operator, squared, exact_basis(X), B, probes=4, third_step=0.1)
    np.testing.assert_allclose(bent.moments.bulk.signal.second, plain.moments.bulk.signal.second, rtol=1e-9)
    assert bent.third_shift < 1e-9


def test_at_the_critical_step_of_a_cubic_loss_real_steps_leave_the_alignment_as_it_is(regression):
    """Energies after steps made by hand, with gradients written down: g is exactly quadratic in the parameters."""
    model, batches, X, y = regression
    w = model.weight.detach()[0]

    def gradient(weights):
        residual = X @ weights - y
        return X.T @ (residual + residual**2 / 4) / N

    H = X.T @ ((1 + (X @ w - y) / 2)[:, None] * X) / N
    values, vectors = torch.linalg.eigh(H)
    V = vectors[:, -K:]
    operator = HessianOperator(model, cubic, batches)
    basis = Basis(V, H @ V, values[-K:])
    produced = training_moments(operator, cubic, basis, B, probes=6, third_step=0.03, seed=3)
    step = float(critical_step_size(produced.moments.mean(0)).value)
    assert 0 < step < 1
    assert 0.005 < produced.third_shift < 0.5
    noise = sample_noise(operator, cubic, V, operator.gradient(), 6, 3).probes / B**0.5
    residual = X @ w - y
    deviation = (residual + residual**2 / 4)[:, None] * X - gradient(w)
    missing = (deviation @ H @ V).square().sum() / N / B - (noise @ H @ V).square().sum() / 6  # q2_D: exact, not probed

    def alignment_after(eta):
        after = torch.stack([gradient(w - eta * (gradient(w) + sign * z)) for z in noise for sign in (1, -1)])
        inside, whole = ((part.square().sum() / 12 + eta**2 * missing) for part in (after @ V, after))
        return float(inside / whole)

    np.testing.assert_allclose(alignment_after(step), alignment_after(0.0), rtol=1e-9)
    assert alignment_after(0.9 * step) < alignment_after(0.0) < alignment_after(1.1 * step)


def two_replicates(*second):
    """m0_D, m1_D, w_D = 1, 4, 16 and 3, 3, 3 in the bulk, with noise of zero: ηM − 2N = 45η − 18."""
    quiet = CurvatureMoments(0.0, 0.0, list(second) or [0.0, 0.0])
    return SplitMoments(
        SubspaceMoments(CurvatureMoments(1.0, 4.0, 16.0), CurvatureMoments(0.0, 0.0, 0.0)),
        SubspaceMoments(CurvatureMoments(3.0, 3.0, 3.0), quiet),
    )


def fourth(*bulk):
    """The bulk's energy grows with η⁴ at these rates, one a replicate."""
    return np.stack([np.zeros((2, len(bulk))), np.zeros((2, len(bulk))), [np.zeros(len(bulk)), bulk]])


def test_where_higher_orders_unmake_the_turn_that_is_said():
    plain, unmade = (
        with_beyond(two_replicates(), fourth(0.0, 0.0), 0.1),
        with_beyond(two_replicates(), fourth(400.0, 400.0), 0.1),
    )
    assert plain[1] < 1e-12
    assert critical_step_size(plain[0].mean(0)).value == pytest.approx(0.4)
    assert np.isnan(turn_of(two_replicates().mean(0), fourth(400.0).mean(2)))
    assert unmade[1] == np.inf
    moments, shift = with_beyond(two_replicates(), fourth(20.0, 20.0), 0.1)
    turn = float(critical_step_size(moments.mean(0)).value)
    np.testing.assert_allclose(45 * turn - 18 - 20 * turn**3, 0, atol=1e-9)
    steepness = (45 - 60 * turn**2) * turn / 18  # of the turn, 1 without higher orders
    np.testing.assert_allclose(shift, max(turn / 0.4 - 1, 1 - steepness), rtol=1e-9)
    assert with_beyond(two_replicates(), fourth(20.0, 20.0), 2.0)[1] == np.inf  # it has turned back by then
    assert with_beyond(two_replicates(), fourth(10.0, 400.0), 0.1)[1] == np.inf  # one replicate decides


def test_the_interval_of_a_turn_is_the_jackknife_of_the_turn():
    rates, seconds = np.array([10.0, 30.0, 18.0, 24.0, 21.0]), np.array([0.2, 0.1, 0.3, 0.1, 0.2])
    moments, _ = with_beyond(two_replicates(*seconds), fourth(*rates), 0.1)

    def turn(keep):
        roots = np.roots([-rates[keep].mean(), 0.0, 45 - seconds[keep].mean(), -18])
        return roots[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)].real.min()

    without = np.array([turn(np.arange(5) != left) for left in range(5)])
    error = np.sqrt(4 / 5 * np.sum((without - without.mean()) ** 2))
    found = jackknife(lambda split: critical_step_size(split).value, moments)
    assert found.value == pytest.approx(turn(np.arange(5)), rel=1e-9)
    assert found.standard_error == pytest.approx(error, rel=0.02)


def test_a_part_of_the_training_set_may_stand_for_its_curvature(regression):
    """Gradient of the whole, Hessian and noise of a part: the moments that dense algebra makes of the same."""
    model, batches, X, y = regression
    part, whole = HessianOperator(model, squared, batches[:2]), HessianOperator(model, squared, batches)
    H = X[:50].T @ X[:50] / 50
    values, vectors = torch.linalg.eigh(H)
    basis = Basis(vectors[:, -K:].flip(1), None, values[-K:].flip(0))
    produced = training_moments(part, squared, basis, B, replace=False, third_step=0.01, whole=whole)
    g = X.T @ (X @ model.weight.detach()[0] - y) / N
    P = basis.vectors @ basis.vectors.T
    moments = produced.moments
    for power, moment in enumerate(("zeroth", "first", "second")):
        images = torch.linalg.matrix_power(H, power) @ g
        np.testing.assert_allclose(getattr(moments.dominant.signal, moment), (P @ g) @ images, rtol=1e-9)
    assert produced.third_shift < 1e-6  # the loss is quadratic, whichever gradient the energies are of
    deviations = X[:50] * (X[:50] @ model.weight.detach()[0] - y[:50])[:, None] - part.gradient()
    noise = (deviations @ basis.vectors).square().sum() / 50 / B * (N - B) / (N - 1)
    np.testing.assert_allclose(moments.dominant.noise.zeroth, noise, rtol=1e-9)
