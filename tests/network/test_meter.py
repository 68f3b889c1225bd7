"""The meter: numbers on a real network against dense algebra, cadence, refusals, and a run that does not notice it."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from etastar import InvalidArgument, Outcome, alignment, critical_step_size, loss_thresholds
from etastar.network import HessianOperator
from etastar.network.meter import AlignmentMeter


def digits(count, dtype=torch.float64):
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:count] / 16, dtype=dtype), torch.tensor(np.eye(10)[y[:count]], dtype=dtype)


def small_net(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 10)]
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


def trained(model, steps, data, lr=0.2, momentum=0.0, meter=None, seed=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    handle = None if meter is None else meter.attach(optimizer, batch_size=16)
    generator = torch.Generator().manual_seed(seed)
    X, Y = data
    for _ in range(steps):
        drawn = torch.randint(0, len(X), (16,), generator=generator)
        optimizer.zero_grad()
        squared(model, (X[drawn], Y[drawn])).backward()
        optimizer.step()
    if handle is not None:
        handle.remove()
    return optimizer


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


def test_the_run_is_bit_identical_with_and_without_the_meter():
    data = digits(300, torch.float32)
    runs = []
    for metered in (False, True):
        torch.manual_seed(5)
        model = small_net(torch.float32, dropout=0.2).train()
        meter = None
        if metered:
            parts = batches(120, 60, torch.float32)
            meter = AlignmentMeter(model, squared, parts, rank=2, every=5, overhead=None, training=False)
        optimizer = trained(model, 40, data, momentum=0.9, meter=meter)
        runs.append((model, optimizer, torch.get_rng_state(), meter))
    (plain, optimizer, state, _), (watched, watched_optimizer, watched_state, meter) = runs
    assert len(meter.history) == 9
    assert not meter.skipped
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    for a, b in zip(optimizer.state.values(), watched_optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert torch.equal(state, watched_state)
    assert all(module.training for module in watched.modules())


def test_an_exception_inside_a_measurement_leaves_the_run_as_it_was():
    model = small_net().train()
    before = copy.deepcopy(model.state_dict())

    def interrupted(module, batch):
        raise KeyboardInterrupt

    meter = AlignmentMeter(model, interrupted, batches(60, 30), rank=2, training=False)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        meter.measure(0.1, 16)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_failed_measurement_is_recorded_and_the_run_goes_on():
    model = small_net()

    def broken(module, batch):
        return squared(module, batch) * float("nan")

    meter = AlignmentMeter(model, broken, batches(60, 30), rank=2, every=2, overhead=None, training=False)
    trained(model, 4, digits(60), meter=meter)
    assert len(meter.history) == 0
    assert [step for step, _ in meter.skipped] == [0, 2, 4]
    assert "not finite" in meter.skipped[0][1]


def test_the_update_of_heavy_ball_is_the_one_measured():
    model, parts = small_net().eval(), batches(120, 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    trained_gradient = None
    for _ in range(3):
        optimizer.zero_grad()
        squared(model, parts[0]).backward()
        trained_gradient = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    assert trained_gradient is not None
    meter = AlignmentMeter(model, squared, parts, rank=2, tolerance=1e-6, training=False)
    seen = meter.measure(0.05, 16, optimizer)
    # The step the optimizer would make from the mean gradient, made on a copy.
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.AdamW(p, lr=1e-3), "optimizer: got 'AdamW'"),
        (lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]), "optimizer lr"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "optimizer maximize"),
    ],
)
def test_optimizers_that_moments_do_not_describe_are_refused_by_name(make, message):
    model = small_net()
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, training=False)
    with pytest.raises(InvalidArgument, match=message):
        meter.attach(make(list(model.parameters())), batch_size=16)


def test_the_overhead_decides_when_to_measure():
    model = small_net()
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, overhead=1e-9, training=False)
    trained(model, 20, digits(60), meter=meter)
    assert len(meter.history) == 1  # the first; the rest would cost more than the run
    with pytest.raises(InvalidArgument, match="every: got 0"):
        AlignmentMeter(model, squared, batches(60, 30), every=0)
    with pytest.raises(InvalidArgument, match="overhead: got 0"):
        AlignmentMeter(model, squared, batches(60, 30), overhead=0)


def test_a_window_averages_moments_before_ratios_are_formed():
    model = small_net()
    meter = AlignmentMeter(model, squared, batches(60, 30), rank=2, every=2, overhead=None, training=False)
    trained(model, 10, digits(60), meter=meter)
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
