"""The decay forecast: kernels and quadrature against brute force and dense algebra, then forecasts against real runs.

On least squares the quadratic model is exact, so that expected losses must come out to the last digits where the
noise is taken as constant, and within standard errors of brute force with the noise of real mini-batches.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from etastar import InvalidArgument
from etastar.network import HessianOperator
from etastar.network.forecast import ForecastOutcome, decay_forecast
from etastar.network.krylov import quadrature, ritz_space
from etastar.network.producer import Basis
from etastar.network.relaxation import path_drop, put_back, response
from etastar.quadratic import Noise, Quadratic, Spectrum

ETA, RANK = 0.2, 3
DIMENSION = 12


def squared(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


def regression(dtype=torch.float64):
    """Least squares with a steep spectrum, whose labels no weights fit, and weights off their optimum."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, DIMENSION)) * np.geomspace(2.0, 0.1, DIMENSION)
    y = X @ rng.standard_normal(DIMENSION) + 2.0 * rng.standard_normal(300)
    w = np.linalg.lstsq(X, y, rcond=None)[0] + 0.3 * rng.standard_normal(DIMENSION)
    model = nn.Linear(DIMENSION, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w)[None])
    return model, X, y, w


def operator_of(model, X, y, parts=2):
    dtype = next(model.parameters()).dtype
    edges = np.array_split(np.arange(len(X)), parts)
    batches = [(torch.tensor(X[part], dtype=dtype), torch.tensor(y[part, None], dtype=dtype)) for part in edges]
    return HessianOperator(model, squared, batches)


@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("value", [-0.4, 0.0, 1e-9, 0.3, 1 / ETA, 1.7 / ETA, 2 / ETA])
def test_the_closed_forms_are_those_of_stepping(value, steps):
    position, variance = 0.0, 0.0
    for _ in range(steps):
        position -= ETA * (1.0 + value * position)
        variance = (1 - ETA * value) ** 2 * variance + ETA**2
    at = np.array([value])
    np.testing.assert_allclose(-response(ETA, at, steps), position, rtol=1e-12)
    np.testing.assert_allclose(
        path_drop(ETA, at, steps), -(position + 0.5 * value * position**2), rtol=1e-7, atol=1e-14
    )
    np.testing.assert_allclose(put_back(ETA, at, steps), 0.5 * value * variance, rtol=1e-12)


def random_symmetric(size, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.sort(rng.standard_normal(size) * np.geomspace(5.0, 0.05, size))[::-1].copy()
    return (vectors * values) @ vectors.T, values, vectors


def test_the_quadrature_is_exact_below_twice_its_depth():
    H, _, _ = random_symmetric(30)
    rows = np.random.default_rng(2).standard_normal((3, 30))
    nodes, weights = quadrature(torch.tensor(H), torch.tensor(rows), 4)
    assert nodes.shape == (3, 4)
    for power in range(8):
        dense = np.einsum("mi,ij,mj->m", rows, np.linalg.matrix_power(H, power), rows)
        np.testing.assert_allclose((weights * nodes**power).sum(axis=1), dense, rtol=1e-9)


def test_a_vector_in_a_small_invariant_space_needs_no_more_than_that():
    H, values, vectors = random_symmetric(20)
    rows = torch.tensor(vectors[:, [2, 9]].sum(axis=1)[None])
    nodes, weights = quadrature(torch.tensor(H), rows, 6)
    expected = math.exp(values[2]) + math.exp(values[9])
    np.testing.assert_allclose((weights * np.exp(nodes)).sum(), expected, rtol=1e-9)
    nodes, weights = quadrature(torch.tensor(H), torch.zeros(2, 20, dtype=torch.float64), 3)
    assert np.all(weights == 0)
    assert np.all(np.isfinite(nodes))


@pytest.mark.parametrize("stale", [0.0, 0.01])
def test_the_drop_of_a_gradient_agrees_with_dense_algebra(stale):
    H, values, vectors = random_symmetric(60)
    rng = np.random.default_rng(3)
    gradient = rng.standard_normal(60)
    V = np.linalg.qr(vectors[:, :4] + stale * rng.standard_normal((60, 4)) / math.sqrt(60))[0]
    basis = Basis(torch.tensor(V), torch.tensor(H @ V), torch.tensor(values[:4]))

    def drop(at, coordinates):
        return float(np.sum(path_drop(0.05, at, 40) * coordinates**2))

    space = ritz_space(torch.tensor(H), basis, torch.tensor(gradient), drop, 1e-6)
    assert space.vectors.shape[1] < 35
    dense = drop(values, vectors.T @ gradient)
    np.testing.assert_allclose(drop(space.values, space.gradient), dense, rtol=1e-5 + 10 * stale**2)
    np.testing.assert_allclose(space.lift(space.gradient).numpy(), gradient, rtol=1e-9, atol=1e-12)
    gram = space.vectors.mT @ space.vectors
    np.testing.assert_allclose(gram.numpy(), np.eye(gram.shape[0]), atol=1e-12)


def test_the_space_may_be_all_there_is_or_the_gradient_inside_the_basis():
    H, values, vectors = random_symmetric(6)
    basis = Basis(torch.tensor(vectors[:, :2]), None, torch.tensor(values[:2]))
    whole = ritz_space(torch.tensor(H), basis, torch.ones(6, dtype=torch.float64), lambda *_: math.nan, 1e-9)
    np.testing.assert_allclose(whole.values, values, atol=1e-12)
    inside = ritz_space(torch.tensor(H), basis, torch.tensor(vectors[:, 0]), lambda *_: 1.0, 1e-9)
    np.testing.assert_allclose(inside.values, values[:2])


def test_on_least_squares_the_forecast_is_the_closed_form():
    """Σ as it is at the checkpoint: the laboratory's expected curve, from the dense eigen-decomposition."""
    model, X, y, w = regression()
    batch, steps = 10, 30
    found = decay_forecast(operator_of(model, X, y), squared, RANK, batch, ETA, steps=steps, probes=400)
    noise = Noise.from_least_squares(X, y, at=w, batch_size=batch)
    problem = Quadratic(Spectrum.from_least_squares(X, RANK), noise)
    gradient = problem.spectrum.to_eigenbasis(X.T @ (X @ w - y) / len(X))
    curve = problem.expected(gradient=gradient, step_size=0.1 * ETA, times=[0, steps])
    decayed = found.decayed
    assert abs(decayed.quadratic - (curve.loss[0] - curve.loss[1])) < 4 * decayed.drop.standard_error + 1e-9
    silent = Quadratic(problem.spectrum, Noise.isotropic(0.0))
    curve = silent.expected(gradient=gradient, step_size=0.1 * ETA, times=[0, steps])
    np.testing.assert_allclose(decayed.drop.value + decayed.noise, curve.loss[0] - curve.loss[1], rtol=1e-5)
    np.testing.assert_allclose(decayed.dominant.value + decayed.bulk.value, decayed.drop.value)
    g, values = gradient[:RANK], problem.spectrum.eigenvalues[:RANK]
    simple = 0.5 * np.sum(g**2 / values) + ETA * noise.variances[RANK:].sum() / 4
    np.testing.assert_allclose(found.simple, simple, rtol=1e-2)  # the trace of the unseen noise is probed


def brute_force(X, y, w, plan, runs, seed):
    """Final losses of many runs with real mini-batches, drawn with replacement."""
    rng = np.random.default_rng(seed)
    at = np.tile(w, (runs, 1))
    for _ in range(plan.steps):
        drawn = rng.integers(len(X), size=(runs, plan.batch_size))
        rows, labels = X[drawn], y[drawn]
        residual = np.einsum("rbi,ri->rb", rows, at) - labels
        at -= plan.step_size * np.einsum("rb,rbi->ri", residual, rows) / plan.batch_size
    return 0.5 * ((at @ X.T - y) ** 2).mean(axis=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_on_least_squares_real_runs_drop_as_forecast(dtype):
    model, X, y, w = regression(dtype)
    found = decay_forecast(operator_of(model, X, y), squared, RANK, 5, ETA, probes=64)
    before = 0.5 * ((X @ w - y) ** 2).mean()
    np.testing.assert_allclose(found.loss, before, rtol=1e-5)
    assert found.decayed.plan.steps == math.ceil(3 / (0.1 * ETA * Spectrum.from_least_squares(X, RANK).eigenvalues[2]))
    assert (found.larger_batch.plan.batch_size, found.larger_batch.plan.step_size) == (50, ETA)
    for forecast in (found.decayed, found.larger_batch):
        drops = before - brute_force(X, y, w, forecast.plan, 4000, seed=7)
        error = drops.std() / math.sqrt(len(drops))
        assert forecast.outcome is ForecastOutcome.FORECAST
        assert forecast.noise > 20 * error  # so that the noise is really put to the test
        # Beyond sampling errors, H of a mini-batch differs from H: a few percent of the noise at η'λ₁ up to 0.8.
        assert abs(forecast.drop.value - drops.mean()) < 4 * error + 0.08 * forecast.noise
        np.testing.assert_allclose(forecast.run_deviation, drops.std(), rtol=0.15)


def test_without_replacement_a_full_batch_has_no_noise():
    model, X, y, _ = regression()
    operator = operator_of(model, X, y)
    some = decay_forecast(operator, squared, RANK, 30, ETA, steps=20)
    finite = decay_forecast(operator, squared, RANK, 30, ETA, steps=20, replace=False)
    np.testing.assert_allclose(finite.decayed.noise, some.decayed.noise * 270 / 299, rtol=1e-9)
    assert finite.larger_batch.noise == 0
    assert finite.larger_batch.run_deviation == 0


def test_at_a_minimum_decay_gives_nothing_back():
    model, X, y, _ = regression()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(np.linalg.lstsq(X, y, rcond=None)[0])[None])
    found = decay_forecast(operator_of(model, X, y), squared, RANK, 10, ETA)
    assert found.decayed.drop.value < 0
    np.testing.assert_allclose(found.decayed.drop.value, -found.decayed.noise, rtol=1e-9)


def test_a_step_over_the_limit_is_named_unstable():
    model, X, y, _ = regression()
    found = decay_forecast(operator_of(model, X, y), squared, RANK, 10, 0.7)
    assert found.decayed.outcome is ForecastOutcome.FORECAST
    assert found.larger_batch.outcome is ForecastOutcome.UNSTABLE
    assert not found.larger_batch.drop.resolved
    assert math.isnan(found.larger_batch.quadratic)


def test_a_prediction_outside_the_domain_of_the_loss_is_no_forecast():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()

    def barrier(shown, batch):
        pulled = shown(batch)
        return (-5.0 * pulled - 0.1 * torch.log(1.0 - pulled)).mean()

    X = torch.tensor([[1.0, 0.0], [0.8, 0.1], [1.0, 0.5]], dtype=torch.float64)
    found = decay_forecast(HessianOperator(model, barrier, [X]), barrier, 1, 3, 0.1).decayed
    assert found.outcome is ForecastOutcome.UNSTABLE
    assert not found.drop.resolved


def test_where_the_curvature_changes_the_truth_lies_inside_the_interval():
    """Noise-free descent on a small tanh net, so that nothing but the change of curvature is at stake."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    X = torch.randn(40, 4, dtype=torch.float64)
    Y = 3 * torch.sin(X[:, :2] * 3)
    operator = HessianOperator(model, squared, [(X, Y)])
    missed = []
    for step in range(101):
        if step in (10, 30, 100):
            forecast = decay_forecast(operator, squared, 4, 10**9, 0.5, seed=step).decayed
            copied = copy.deepcopy(model)
            descend(copied, X, Y, forecast.plan.step_size, forecast.plan.steps)
            drop = operator.loss() - float(squared(copied, (X, Y)).detach())
            assert forecast.drop.low < drop < forecast.drop.high
            missed.append([abs(forecast.drop.value / drop - 1), abs(forecast.quadratic / drop - 1)])
        descend(model, X, Y, 0.5, 1)
    looked, quadratic = np.array(missed).max(axis=0)
    assert looked < 0.06
    assert quadratic > 0.2


def descend(model, X, Y, eta, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    for _ in range(steps):
        optimizer.zero_grad()
        squared(model, (X, Y)).backward()
        optimizer.step()


def test_the_model_is_left_as_it_was():
    """Also by an interruption at any evaluation of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double().eval()
    X, Y = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    squared(model, (X, Y)).backward()
    operator = HessianOperator(model, squared, [(X[:25], Y[:25]), (X[25:], Y[25:])])
    calls, fails_at = 0, 0

    def failing(shown, batch):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise KeyboardInterrupt
        return squared(shown, batch)

    def everything():
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        return [*(value.clone() for value in model.state_dict().values()), *gradients, torch.get_rng_state()]

    versions = [parameter._version for parameter in model.parameters()]
    before = everything()
    undisturbed = decay_forecast(operator, failing, 2, 8, 0.1)
    evaluations = calls
    for fails_at in range(1, evaluations + 1):  # read by `failing`
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            decay_forecast(operator, failing, 2, 8, 0.1)
        assert all(torch.equal(one, other) for one, other in zip(everything(), before, strict=True)), fails_at
    assert versions == [parameter._version for parameter in model.parameters()]
    fails_at = 0
    assert decay_forecast(operator, failing, 2, 8, 0.1).decayed == undisturbed.decayed


def test_the_seed_alone_decides():
    model, X, y, _ = regression()
    first, second, other = (decay_forecast(operator_of(model, X, y), squared, RANK, 10, ETA, seed=s) for s in (1, 1, 2))
    assert first.decayed == second.decayed
    assert first.decayed.noise != other.decayed.noise


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"step_size": math.nan}, "step_size: got nan"),
        ({"factor": 1.0}, "factor: got 1.0"),
        ({"steps": 0}, "steps: got 0"),
        ({"probes": 1}, "probes: got 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(wrong, message):
    model, X, y, _ = regression()
    given = {"basis": 2, "batch_size": 10, "step_size": 0.1, **wrong}
    with pytest.raises(InvalidArgument, match=message):
        decay_forecast(operator_of(model, X, y), squared, **given)


def test_without_positive_curvature_the_steps_must_be_given():
    model, X, y, _ = regression()
    operator = HessianOperator(
        model, lambda m, b: -squared(m, b), [(torch.tensor(X, dtype=torch.float64), torch.tensor(y[:, None]))]
    )

    def upside_down(m, b):
        return -squared(m, b)

    with pytest.raises(InvalidArgument, match="smallest dominant eigenvalue of -"):
        decay_forecast(operator, upside_down, 2, 10, 0.01)
    found = decay_forecast(operator, upside_down, 2, 10, 0.01, steps=10).decayed
    assert found.outcome is ForecastOutcome.FORECAST
    assert found.drop.value > 0
