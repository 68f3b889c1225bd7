"""The meter: its numbers on a real network against dense algebra."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from etastar import InvalidArgument, Outcome, Regime, alignment, critical_step_size, loss_thresholds
from etastar.network import HessianOperator
from etastar.network.meter import AlignmentMeter
from etastar.quantities import metrics


def digits(count, dtype=torch.float64):
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:count] / 16, dtype=dtype), torch.tensor(np.eye(10)[y[:count]], dtype=dtype)


def small_net(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10)]
    return nn.Sequential(*layers).to(dtype)


def squared(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


def batches(count, size, dtype=torch.float64):
    X, Y = digits(count, dtype)
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, count, size)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(model, steps, data, meter):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    handle = meter.attach(optimizer, batch_size=16)
    generator = torch.Generator().manual_seed(3)
    X, Y = data
    for _ in range(steps):
        drawn = torch.randint(0, len(X), (16,), generator=generator)
        optimizer.zero_grad()
        squared(model, (X[drawn], Y[drawn])).backward()
        optimizer.step()
    handle.remove()


def test_a_measurement_meets_dense_algebra():
    model, parts = small_net().eval(), batches(120, 50)
    meter = AlignmentMeter(
        model, squared, parts, rank=3, tolerance=1e-8, probes=300, training=False, third_derivative=False
    )
    seen = meter.measure(step_size=0.1, batch_size=16)
    operator = HessianOperator(model, squared, parts, training=False)
    H = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(H)
    P = vectors[:, -3:] @ vectors[:, -3:].T
    Q = torch.eye(len(P), dtype=torch.float64) - P
    g = operator.gradient()
    rows = []
    for X, Y in parts:
        for x, y in zip(X, Y, strict=True):
            loss = squared(model, (x[None], y[None]))
            rows.append(torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(model.parameters()))]))
    deviation = torch.stack(rows) - g
    sigma = deviation.T @ deviation / len(deviation) / 16
    mean = seen.moments.mean(0)
    for side, S in ((mean.dominant, P), (mean.bulk, Q)):
        expected = (g @ S @ g, g @ S @ H @ g, (S @ H @ g).square().sum())
        for name, value in zip(("zeroth", "first", "second"), expected, strict=True):
            np.testing.assert_allclose(getattr(side.signal, name), value, rtol=1e-6)
    np.testing.assert_allclose(mean.dominant.noise.first, torch.trace(P @ H @ sigma), rtol=1e-6)
    np.testing.assert_allclose(mean.dominant.noise.second, torch.trace(P @ H @ sigma @ H), rtol=1e-6)
    second = seen.estimate(lambda split: split.bulk.noise.second)
    assert abs(second.value - float(torch.trace(Q @ H @ sigma @ H))) < 4 * second.standard_error
    recoverable = 0.5 * ((vectors[:, -3:].T @ g) ** 2 / values[-3:]).sum()
    np.testing.assert_allclose(seen.recoverable_loss.value, recoverable, rtol=1e-5)
    assert seen.certificate["outcome"] == "CONVERGED"
    np.testing.assert_allclose(seen.certificate["largest_eigenvalue"], values[-1], rtol=1e-6)
    assert seen.cost["products"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_update_measured_is_the_one_the_optimizer_makes(settings, steps):
    model, parts = small_net().eval(), batches(120, 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        squared(model, parts[0]).backward()
        optimizer.step()
    meter = AlignmentMeter(model, squared, parts, rank=2, tolerance=1e-6, training=False)
    seen = meter.measure(0.05, 16, optimizer)
    # The step the optimizer would make from the mean gradient, made on a copy.
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.05, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    operator = HessianOperator(model, squared, parts, training=False)
    g = operator.gradient()
    for parameter, piece in zip(twin.parameters(), operator.vector.split(g), strict=True):
        parameter.grad = piece.clone()
    other.step()
    moved = operator.vector.current() - torch.cat([p.detach().reshape(-1) for p in twin.parameters()])
    slope = seen.moments.dominant.descent.slope + seen.moments.bulk.descent.slope
    np.testing.assert_allclose(slope, float(g @ moved) / 0.05, rtol=1e-9)


def test_the_population_target_needs_its_batches_and_gives_intervals():
    X, Y = digits(1000)
    model = small_net().eval()
    curvature, gradient = batches(240, 60), [(X[i : i + 40], Y[i : i + 40]) for i in range(300, 700, 40)]
    meter = AlignmentMeter(
        model, squared, curvature, rank=2, target="population", gradient_batches=gradient, training=False
    )
    seen = meter.measure(0.1, 16)
    assert seen.moments.shape == (10,)
    assert 0 < seen.alignment.low < seen.alignment.value < seen.alignment.high
    for wrong, message in (
        ({"gradient_batches": gradient[:2]}, "gradient_batches: got 2"),
        ({"gradient_batches": [*gradient, (X[:7], Y[:7])]}, "must all have one size"),
        ({"target": "test"}, 'must be "training" or "population"'),
    ):
        options = {"target": "population", "gradient_batches": gradient, **wrong}
        with pytest.raises(InvalidArgument, match=message):
            AlignmentMeter(model, squared, curvature, rank=2, training=False, **options)
    with pytest.raises(InvalidArgument, match="curvature_batches: got 1"):
        AlignmentMeter(model, squared, curvature[:1], rank=2, target="population", gradient_batches=gradient)


def test_a_window_averages_moments_before_ratios_are_formed():
    model = small_net()
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, every=2, overhead=None, training=False)
    trained(model, 10, digits(60), meter)
    window = meter.history.window(4)
    means = [meter.history[i].moments.mean(0) for i in range(2, 6)]
    zeroth = np.mean([m.dominant.signal.zeroth for m in means])
    total = zeroth + np.mean([m.bulk.signal.zeroth for m in means])
    np.testing.assert_allclose(window.alignment.value, zeroth / total, rtol=1e-12)
    assert window.provenance["window"] == 4
    with pytest.raises(InvalidArgument, match="count: got 7"):
        meter.history.window(7)


def test_criteria_of_a_measurement_are_those_of_its_mean_moments():
    model = small_net()
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, training=False)
    seen = meter.measure(0.1, 16)
    mean = seen.moments.mean(0)
    assert seen.alignment.value == alignment(mean)
    assert seen.critical_step_size.value == critical_step_size(mean).value
    if loss_thresholds(mean).dominant_outcome is Outcome.BELOW:
        assert seen.loss_thresholds.dominant.value == loss_thresholds(mean).dominant


def test_batch_sharpness_is_the_ratio_of_dense_means():
    model, parts = small_net().eval(), batches(120, 20)
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, training=False)
    seen = meter.batch_sharpness(parts)
    curvature, energy = [], []
    for batch in parts:
        operator = HessianOperator(model, squared, [batch], training=False)
        H, g = operator @ torch.eye(operator.shape[0], dtype=torch.float64), operator.gradient()
        curvature.append(float(g @ H @ g))
        energy.append(float(g @ g))
    np.testing.assert_allclose(seen.value, np.sum(curvature) / np.sum(energy), rtol=1e-10)
    left_out = [np.delete(curvature, i).sum() / np.delete(energy, i).sum() for i in range(6)]
    np.testing.assert_allclose(seen.standard_error, np.sqrt(5) * np.std(left_out), rtol=1e-8)
    assert seen.low < seen.value < seen.high
    assert seen.resolved
    for wrong in (parts[:1], [*parts, (parts[0][0][:7], parts[0][1][:7])]):
        with pytest.raises(InvalidArgument, match="two or more of one size"):
            meter.batch_sharpness(wrong)


def test_batch_sharpness_takes_named_parameters_and_leaves_the_model_as_it_was():
    model, parts = small_net().train(), batches(120, 20)
    before = copy.deepcopy(model.state_dict())
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, parameters="3", training=False)
    seen = meter.batch_sharpness(parts)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # A linear layer under a squared loss, with inputs A augmented by 1: H G = G AᵀA/n.
    weight, total = torch.cat([model[3].weight, model[3].bias[:, None]], dim=1).detach(), [0.0, 0.0]
    for X, Y in parts:
        A = model.eval()[:3](X).detach()
        A = torch.cat([A, torch.ones(len(A), 1, dtype=A.dtype)], dim=1)
        G = (A @ weight.T - Y).T @ A / len(A)
        total[0] += float((G * (G @ (A.T @ A / len(A)))).sum())
        total[1] += float(G.square().sum())
    np.testing.assert_allclose(seen.value, total[0] / total[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tolerance", 0), ("tolerance", "fine"), ("seed", -1), ("seed", "a"), ("curvature_batches", None)],
)
def test_what_would_fail_at_every_measurement_is_refused_when_the_meter_is_made(name, value):
    given = {"curvature_batches": [(torch.ones(4, 2), torch.ones(4))], "rank": 1, name: value}
    with pytest.raises(InvalidArgument) as caught:
        AlignmentMeter(torch.nn.Linear(2, 1), lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean(), **given)
    assert caught.value.name == name


def test_a_loss_without_curvature_is_refused_and_offline_named():
    torch.manual_seed(0)
    model, batch = torch.nn.Linear(3, 1), (torch.randn(20, 3), torch.randn(20))
    meter = AlignmentMeter(model, lambda m, b: (m(b[0])[:, 0] - b[1]).abs().mean(), [batch], 2)
    with pytest.raises(InvalidArgument, match=r"no curvature: .* StepGauge needs none"):
        meter.attach(torch.optim.SGD(model.parameters(), lr=0.1), 4)
    row = meter.measure(0.1, 4)
    assert row.verdict == "no curvature: the Hessian is zero here, and no subspace is dominant"
    assert row.regime is Regime.UNDEFINED
    assert not row.alignment.resolved
    assert not {"regime", "alignment", "threshold_dominant", "threshold_bulk"} & set(metrics(row))
    with pytest.raises(InvalidArgument, match=r"step_size: got '0\.1'"):
        meter.measure("0.1", 4)
