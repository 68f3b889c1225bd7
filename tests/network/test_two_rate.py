"""Two measured rates: the rule, what one step does, and where it is plain momentum bit for bit."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from etastar import CurvatureMoments, InvalidArgument, SplitMoments, SubspaceMoments, loss_thresholds
from etastar.history import Measurement
from etastar.network import AlignmentMeter, RateOutcome, TwoRateSGD


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(dim=1).mean()


class Run:
    """Regression with ten samples steep in two directions, trained on mini-batches of its own stream."""

    def __init__(self, make=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        scales = torch.tensor([4.0, 3.0, 0.3, 0.3, 0.2, 0.2], dtype=torch.float64)
        self.data = torch.randn(60, 6, dtype=torch.float64) * scales, torch.randn(60, 2, dtype=torch.float64)
        self.meter = AlignmentMeter(
            self.model, squared, [self.data], 2, every=4, overhead=None, third_derivative=False, probes=3
        )
        settings = {"lr": 0.02, "momentum": 0.9, **options}
        self.optimizer = make(self) if make else two_rates(self, **settings)
        self.stream = torch.Generator().manual_seed(1)

    def backward(self):
        drawn = torch.randint(60, (5,), generator=self.stream)
        self.optimizer.zero_grad()
        loss = squared(self.model, tuple(part[drawn] for part in self.data))
        loss.backward()
        return loss

    def step(self):
        self.backward()
        self.optimizer.step()

    def flat(self):
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.model.parameters()])


def two_rates(run, **settings):
    return TwoRateSGD(run.model.parameters(), meter=run.meter, batch_size=5, **settings)


def exact(step, eta_D, eta_B, largest=4.0, smallest=2.0):
    """A measurement without error whose thresholds are η_D and η_B: curvature 1, the rest noise."""

    def part(threshold):
        return SubspaceMoments(CurvatureMoments(1.0, 1.0, 1.0), CurvatureMoments(1.0, 2.0 / threshold - 1.0, 1.0))

    moments = SplitMoments(part(eta_D), part(eta_B))
    np.testing.assert_allclose(loss_thresholds(moments).dominant, eta_D if eta_D > 0 else np.nan)
    certificate = {"largest_eigenvalue": largest, "smallest_dominant_eigenvalue": smallest}
    return Measurement(step=step, step_size=0.1, moments=moments, batch_size=5, certificate=certificate)


@pytest.mark.parametrize(
    ("seen", "lr", "outcome", "dominant"),
    [
        ({"eta_D": 0.2, "eta_B": 1.5}, 0.2, RateOutcome.THRESHOLD, 0.1),
        ({"eta_D": 1.0, "eta_B": 1.5}, 0.2, RateOutcome.STABILITY, 0.25),  # 1/λ₁ is less than η_D/2
        ({"eta_D": 1.5, "eta_B": 0.2}, 0.2, RateOutcome.TOGETHER, None),
        ({"eta_D": 0.2, "eta_B": 1.5}, 0.009, RateOutcome.BELOW, None),  # lr/(1 − β) < η_D/2
        ({"eta_D": 0.08, "eta_B": 1.5}, 0.2, RateOutcome.SLOW, None),  # η_D/2·λ_k = 0.08 < 1 − β = 0.1
        ({"eta_D": 0.08, "eta_B": 1.5}, 0.96, RateOutcome.THRESHOLD, 0.04),  # lr·λ₁ ≥ 2(1 + β): momentum diverges
        ({"eta_D": 0.2, "eta_B": 1.5, "largest": 0.0, "smallest": 0.0}, 0.2, RateOutcome.UNRESOLVED, None),
        ({"eta_D": -0.2, "eta_B": 1.5}, 0.2, RateOutcome.UNRESOLVED, None),
        ({"eta_D": 0.2, "eta_B": 1.5}, 0.0, RateOutcome.BELOW, None),
    ],
)
def test_the_rule(seen, lr, outcome, dominant):
    run = Run(lr=lr)
    assert run.optimizer.rates.outcome is RateOutcome.UNMEASURED
    run.meter.history.append(exact(0, **seen))
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    rates = run.optimizer.rates
    assert rates.outcome is outcome
    assert rates.bulk == lr
    assert rates.dominant == pytest.approx(dominant)


@pytest.mark.parametrize(
    ("eta_D", "loss", "bulk", "norm"),
    [
        (0.2, 2.0, 0.2, 0.25),  # two rates: K of the bulk, 0.2/0.1·1/(4·2), up to ½
        (0.2, 0.5, 0.1, 1.0),
        (2.0, 1.25, 0.2, 0.8),  # momentum in both: K of both, whose noise is twice that, up to 1
        (2.0, 0.5, 0.1, 2.0),
        (0.2, -0.5, 0.2, None),  # such a loss has no known floor
    ],
)
def test_noise_that_feeds_on_itself_holds_the_rate(eta_D, loss, bulk, norm):
    run = Run(lr=0.2)
    run.meter.history.append(exact(0, eta_D, 1.5))
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "losses": {0: loss}})
    rates = run.optimizer.rates
    assert rates.outcome is (RateOutcome.THRESHOLD if eta_D < 1 else RateOutcome.TOGETHER)
    assert rates.bulk == pytest.approx(bulk)
    assert rates.kernel_norm == pytest.approx(norm)


@pytest.mark.parametrize(
    ("eta_D", "curvature", "bulk"),
    [(0.2, 4.0, 0.2), (0.2, 9.5, 0.1), (2.0, 9.5, 0.2)],  # a quarter of 2·1.9/9.5 is 0.1; both with momentum: its own
)
def test_curvature_that_the_basis_lost_holds_the_bulk(eta_D, curvature, bulk):
    run = Run(lr=0.2)
    run.meter.history.append(exact(0, eta_D, 1.5))
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "curvature": curvature})
    assert run.optimizer.rates.bulk == pytest.approx(bulk)
    assert run.optimizer.rates.curvature == curvature


def test_the_curvature_outside_the_basis_before_is_that_of_the_dense_matrices():
    run = Run(lr=0.01)
    run.step()
    np.testing.assert_allclose(run.optimizer.rates.curvature, run.meter.history[0].certificate["largest_eigenvalue"])
    seen = []
    for _ in range(8):
        old = run.meter.tracker.basis
        count = len(run.meter.history)
        run.step()
        if len(run.meter.history) > count:
            new, values = run.meter.tracker.basis, run.meter.tracker.eigenvalues
            complement = torch.eye(len(old), dtype=torch.float64) - old @ old.T
            dense = torch.linalg.eigvalsh(complement @ (new * values) @ new.T @ complement)[-1]
            np.testing.assert_allclose(run.optimizer.rates.curvature, float(dense), rtol=1e-8, atol=1e-10)
            seen.append(float(dense))
    assert len(seen) == 4
    assert max(seen) > 1e-3


def test_the_kernel_norm_is_a_mean_over_the_measurements_that_have_a_loss():
    run = Run(lr=0.2)
    for step in range(6):
        run.meter.history.append(exact(step, 0.2, 1.5))
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "losses": {0: 1e-9, 3: 1.0, 5: 4.0}})
    assert run.optimizer.rates.kernel_norm == pytest.approx(np.mean([0.5, 0.125]))


def test_the_measured_kernel_norm_of_least_squares_is_its_trace_formula():
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    X = torch.randn(4000, 6, dtype=torch.float64) * torch.tensor([3.0, 2.0, 0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    data = X, torch.randn(4000, 1, dtype=torch.float64)
    meter = AlignmentMeter(model, squared, [data], 2, overhead=None, third_derivative=False, probes=200)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(*data).solution.T)
    optimizer = TwoRateSGD(model.parameters(), meter=meter, batch_size=5, lr=0.001, momentum=0.9)
    squared(model, data).backward()
    optimizer.step()
    hessian = 2 * X.T @ X / len(X)
    kept = (
        float(hessian.trace()) if optimizer.rates.dominant is None else float(hessian.trace() - hessian[:2, :2].trace())
    )
    np.testing.assert_allclose(optimizer.rates.kernel_norm, 0.001 * kept / (2 * 5 * 0.1), rtol=0.05)


def test_both_rates_of_a_linear_regression_are_those_of_its_dense_matrices():
    torch.manual_seed(3)
    model = nn.Linear(8, 1, bias=False).double()
    scales = torch.tensor([4.0, 3.0, 2.0, 0.6, 0.5, 0.4, 0.3, 0.2], dtype=torch.float64)
    X = torch.randn(500, 8, dtype=torch.float64) * scales
    Y = X @ torch.ones(8, 1, dtype=torch.float64) + 0.5 * torch.randn(500, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(X, Y).solution.T + 0.02)
    options = {"overhead": None, "third_derivative": False, "probes": 400, "tolerance": 1e-8}
    meter = AlignmentMeter(model, squared, [(X, Y)], 3, **options)
    optimizer = TwoRateSGD(model.parameters(), meter=meter, batch_size=10, lr=0.04, momentum=0.98)
    residuals = (X @ model.weight.T - Y).detach()
    squared(model, (X, Y)).backward()
    optimizer.step()
    hessian, rows = 2 * X.T @ X / 500, 2 * residuals * X
    gradient = rows.mean(0)
    covariance = (rows - gradient).T @ (rows - gradient) / 500 / 10
    top = torch.linalg.eigh(hessian)[1][:, -3:]
    P = top @ top.T
    inside = P @ gradient
    eta_D = 2 * inside @ inside / (inside @ hessian @ inside + torch.trace(P @ hessian @ P @ covariance))
    norm = 0.04 / 0.02 * (covariance.trace() - (P @ covariance).trace()) / (4 * residuals.square().mean())
    rates = optimizer.rates
    assert rates.outcome is RateOutcome.THRESHOLD
    np.testing.assert_allclose(rates.dominant, float(eta_D) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates.kernel_norm, float(norm), rtol=0.1)  # the bulk's noise is probed


def test_the_rule_reads_a_window_of_moments_not_the_last_state():
    run = Run(lr=0.2)
    for step in range(6):
        run.meter.history.append(exact(step, 0.2 if step % 2 else 0.3, 1.5))
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    # of moments: 2/η_D is averaged
    assert run.optimizer.rates.dominant == pytest.approx(0.5 * 2 / np.mean([2 / 0.2, 2 / 0.3]))


def test_a_later_failure_leaves_the_update_to_momentum():
    run = Run(lr=0.2)
    run.meter.history.append(exact(0, 0.2, 1.5))
    run.meter.skipped.append((4, "a loss that is not finite"))
    run.optimizer.load_state_dict(run.optimizer.state_dict())
    assert run.optimizer.rates.outcome is RateOutcome.UNMEASURED


def reference_step(run, buffers, rate, weight_decay):
    """What one step should do, with a dense projector; buffers are those before."""
    basis = run.meter.tracker.basis
    P = basis @ basis.T
    g = torch.cat([p.grad.reshape(-1) for p in run.model.parameters()]) + weight_decay * run.flat()
    old = buffers - P @ buffers
    new = 0.9 * old + g
    return run.flat() - run.optimizer.rates.bulk * (new - P @ new) - rate * (P @ g), new


@pytest.mark.parametrize(("weight_decay", "lr"), [(0.0, 0.02), (0.1, 0.02), (0.0, 0.1)])
def test_a_step_with_two_rates_against_the_dense_formula(weight_decay, lr):
    run = Run(weight_decay=weight_decay, lr=lr)
    apart = held = 0
    for _ in range(12):
        states = [run.optimizer.state[p].get("momentum_buffer") for p in run.model.parameters()]
        buffers = None if states[0] is None else torch.cat([state.reshape(-1) for state in states])
        run.backward()
        before = run.flat()
        twin = copy.copy(run)
        run.optimizer.step()
        rate = run.optimizer.rates.dominant
        if rate is None or buffers is None:
            continue
        apart += 1
        held += run.optimizer.rates.bulk < lr
        after = run.flat()
        for parameter, piece in zip(run.model.parameters(), run.meter.operator.vector.split(before), strict=True):
            parameter.data.copy_(piece)
        expected, new = reference_step(twin, buffers, rate, weight_decay)
        for parameter, piece in zip(run.model.parameters(), run.meter.operator.vector.split(after), strict=True):
            parameter.data.copy_(piece)
        torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-12)
        states = [run.optimizer.state[p]["momentum_buffer"] for p in run.model.parameters()]
        torch.testing.assert_close(torch.cat([s.reshape(-1) for s in states]), new, rtol=1e-10, atol=1e-12)
    assert apart >= 4
    assert (held > 0) == (lr > 0.02)


def test_where_both_have_momentum_the_whole_step_is_held():
    run = Run(lr=0.02)
    run.backward()
    before = run.flat()
    run.meter.history.append(exact(0, 2.0, 1.5))
    run.meter.tracker.refresh()
    run.meter.step = 3
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "losses": {0: 0.01}})
    assert run.optimizer.rates.outcome is RateOutcome.TOGETHER
    run.optimizer.step()
    gradient = torch.cat([p.grad.reshape(-1) for p in run.model.parameters()])
    # K = 0.02/0.1·2/(4·0.01) = 10
    torch.testing.assert_close(run.flat(), before - 0.002 * gradient, rtol=1e-10, atol=1e-12)


def test_where_thresholds_do_not_separate_it_is_momentum_bit_for_bit(monkeypatch):
    monkeypatch.setattr("etastar.network.two_rate.loss_thresholds", lambda split: _together(split))
    run = Run(lr=0.001, weight_decay=0.01)
    twin = Run(lambda run: torch.optim.SGD(run.model.parameters(), 0.001, 0.9, weight_decay=0.01))
    for _ in range(12):
        run.step()
        twin.step()
        assert run.optimizer.rates.outcome is RateOutcome.TOGETHER
        assert run.optimizer.rates.kernel_norm <= 1
    assert torch.equal(run.flat(), twin.flat())
    assert [row.step for row in run.meter.history] == [0, 1, 2, 4, 8]


def _together(split):
    bounds = loss_thresholds(split)
    return type(bounds)(*(getattr(bounds, name) if name != "bulk_only" else False for name in bounds.__slots__))


def test_a_resumed_run_is_the_run_that_never_stopped():
    whole, first, seen = Run(), Run(), set()
    for _ in range(10):
        whole.step()
        first.step()
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Run()
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.stream.set_state(first.stream.get_state())
    assert second.optimizer.rates == first.optimizer.rates
    for _ in range(10):
        whole.step()
        second.step()
        seen.add(second.optimizer.rates.outcome)
    assert torch.equal(whole.flat(), second.flat())
    assert [row.step for row in second.meter.history] == [0, 1, 2, 4, 8, 12, 16]
    assert seen & {RateOutcome.THRESHOLD, RateOutcome.STABILITY}


def test_the_same_seed_gives_the_same_run_and_a_closure_changes_nothing():
    runs = [Run(), Run(), Run()]
    for _ in range(9):
        runs[0].step()
        runs[1].step()
        assert runs[2].optimizer.step(runs[2].backward).requires_grad
    assert torch.equal(runs[0].flat(), runs[1].flat())
    assert torch.equal(runs[0].flat(), runs[2].flat())


def test_tensor_rates_and_schedulers_set_both():
    runs = [Run(), Run(lr=torch.tensor(0.02, dtype=torch.float64))]
    for run in runs:
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 5, gamma=0.5)
        for _ in range(9):
            run.step()
            scheduler.step()
    assert runs[0].optimizer.rates.bulk == pytest.approx(0.01)
    torch.testing.assert_close(runs[0].flat(), runs[1].flat())


def test_groups_may_differ_in_weight_decay_only():
    def make(run):
        groups = [{"params": run.model[0].parameters(), "weight_decay": 0.1}, {"params": run.model[2].parameters()}]
        return TwoRateSGD(groups, meter=run.meter, batch_size=5, lr=0.02, momentum=0.9)

    run = Run(make)
    for _ in range(5):
        run.step()
    run.optimizer.param_groups[1]["lr"] = 0.5
    with pytest.raises(InvalidArgument, match=r"optimizer lr: got \[0.02, 0.5\]"):
        run.step()


def test_parameters_frozen_and_thawed_on_the_way_are_followed():
    run = Run()
    for _ in range(5):
        run.step()
    run.model[0].bias.requires_grad_(False)
    held = run.model[0].bias.clone()
    for _ in range(5):
        run.step()
    assert torch.equal(run.model[0].bias, held)
    assert run.meter.tracker.basis.shape[0] == run.flat().numel() - 5
    run.model[0].bias.requires_grad_(True)
    for _ in range(5):
        run.step()
    assert run.meter.tracker.basis.shape[0] == run.flat().numel()
    assert not torch.equal(run.model[0].bias, held)


def test_a_measurement_that_fails_is_recorded_and_the_run_goes_on():
    run = Run()
    run.step()
    run.data[1][0] = float("nan")
    for _ in range(4):
        run.optimizer.step()
    assert [step for step, _ in run.meter.skipped] == [1, 2, 4]
    assert run.optimizer.rates.outcome is RateOutcome.UNMEASURED


@pytest.mark.parametrize(("setting", "value"), [("nesterov", True), ("dampening", 0.5), ("maximize", True)])
def test_groups_with_another_update_are_refused(setting, value):
    groups = lambda run: [{"params": run.model.parameters(), setting: value}]  # noqa: E731
    run = Run(lambda run: TwoRateSGD(groups(run), meter=run.meter, batch_size=5, lr=0.02))
    with pytest.raises(InvalidArgument, match=f"optimizer {setting}"):
        run.step()


def test_a_model_without_sound_curvature_is_refused_when_the_optimizer_is_made():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    meter = AlignmentMeter(model, squared, [(torch.randn(9, 6), torch.randn(9, 2))], 2, overhead=None)
    with pytest.raises(InvalidArgument, match="batch norm in training mode"):
        TwoRateSGD(model.parameters(), meter=meter, batch_size=5, lr=0.1)


class Kinked(nn.Module):
    """Its products are not finite where the norm is 0."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(3, 1), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.linear(x) + self.shift.norm()


@pytest.mark.parametrize("warm", [False, True])
def test_a_measurement_that_is_not_finite_leaves_the_update_to_momentum(warm):
    torch.manual_seed(0)
    model, data = Kinked(), (torch.randn(20, 3), torch.randn(20, 1))
    meter = AlignmentMeter(model, squared, [data], 2, every=4, overhead=None, third_derivative=False, probes=3)
    optimizer = TwoRateSGD(model.parameters(), meter=meter, batch_size=5, lr=0.01)
    for step in range(9):
        if step == 4 * warm:
            model.shift.data.zero_()
        optimizer.zero_grad()
        squared(model, data).backward()
        model.shift.grad.zero_()
        optimizer.step()
        if step == 4 * warm:
            assert optimizer.rates.outcome is RateOutcome.UNMEASURED
            assert meter.skipped[-1][0] == step
            kept = optimizer.rates.curvature
    assert (kept > 0) == warm
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def per_sample_variance(run):
    """tr Σ by a loop over single samples."""
    rows = []
    for inputs, targets in zip(*run.data, strict=True):
        loss = squared(run.model, (inputs[None], targets[None]))
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(run.model.parameters()))]))
    return float(torch.stack(rows).var(dim=0, correction=0).sum())


def test_an_unused_parameter_is_measured_as_flat():
    run = Run()
    run.model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    run.meter = AlignmentMeter(
        run.model, squared, [run.data], 2, every=4, overhead=None, third_derivative=False, probes=3
    )
    run.optimizer, twin = two_rates(run, lr=0.02), Run()
    for _ in range(6):
        run.step()
    assert not run.meter.skipped
    split = run.meter.history[0].moments.mean(0)
    energy = float(split.dominant.noise.zeroth + split.bulk.noise.zeroth)
    assert energy == pytest.approx(per_sample_variance(twin) / 5, rel=0.1)  # of probes; exact within the basis
    torch.testing.assert_close(run.model.unused.detach(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_copy_goes_on_by_itself():
    run = Run()
    for _ in range(5):
        run.step()
    twin, held = copy.deepcopy(run), run.flat()
    for _ in range(5):
        twin.step()
    assert torch.equal(run.flat(), held)
    for _ in range(5):
        run.step()
    assert torch.equal(run.flat(), twin.flat())


def test_refusals_name_the_remedy():
    with pytest.raises(InvalidArgument, match=r"meter\.overhead.*None"):
        Run(
            lambda run: TwoRateSGD(
                run.model.parameters(), meter=AlignmentMeter(run.model, squared, [run.data], 2), batch_size=5, lr=0.1
            )
        )
    with pytest.raises(InvalidArgument, match="2 parameters not in it"):
        Run(lambda run: TwoRateSGD(run.model[0].parameters(), meter=run.meter, batch_size=5, lr=0.1))
    for momentum in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="momentum"):
            Run(momentum=momentum)
    with pytest.raises(InvalidArgument, match="batch_size"):
        Run(lambda run: TwoRateSGD(run.model.parameters(), meter=run.meter, batch_size=0, lr=0.1))


def excess_loss(two):
    """Above the minimum, over the second half of a run of linear regression with additive noise."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    scales = torch.tensor([2.0, 2.0, 0.2, 0.2, 0.2, 0.2], dtype=torch.float64)
    X = torch.randn(200, 6, dtype=torch.float64) * scales
    Y = X @ torch.ones(6, 1, dtype=torch.float64) + torch.randn(200, 1, dtype=torch.float64)
    meter = AlignmentMeter(model, squared, [(X, Y)], 2, every=10, overhead=None, third_derivative=False, probes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9)
    if two:
        optimizer = TwoRateSGD(model.parameters(), meter=meter, batch_size=5, lr=0.02, momentum=0.9)
    best = float((X @ torch.linalg.lstsq(X, Y).solution - Y).square().mean())
    stream, excess = torch.Generator().manual_seed(2), []
    for _ in range(300):
        drawn = torch.randint(200, (5,), generator=stream)
        optimizer.zero_grad()
        squared(model, (X[drawn], Y[drawn])).backward()
        optimizer.step()
        with torch.no_grad():
            excess.append(float(squared(model, (X, Y))) - best)
    return np.mean(excess[150:])


def test_it_lowers_the_noise_floor_of_a_linear_regression():
    """Two steep directions: momentum's floor there is what the dominant rate takes away."""
    assert excess_loss(two=True) < 0.5 * excess_loss(two=False)


def final_loss(two):
    """Least squares without label noise in 42 directions, batch 2, each step far below 2(1 + β)/λ₁."""
    torch.manual_seed(0)
    model = nn.Linear(42, 1, bias=False).double()
    X = torch.randn(400, 42, dtype=torch.float64)
    X[:, :2] *= 2
    Y = X @ torch.ones(42, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9)
    if two:
        meter = AlignmentMeter(model, squared, [(X, Y)], 2, every=20, overhead=None, third_derivative=False, probes=3)
        optimizer = TwoRateSGD(model.parameters(), meter=meter, batch_size=2, lr=0.02, momentum=0.9)
    stream = torch.Generator().manual_seed(2)
    for _ in range(1000):
        drawn = torch.randint(400, (2,), generator=stream)
        optimizer.zero_grad()
        squared(model, (X[drawn], Y[drawn])).backward()
        optimizer.step()
    return float(squared(model, (X, Y)).detach())


def test_it_converges_where_momentum_diverges_by_its_noise():
    """K = 0.02·tr(H)/(2·2·0.1) is about 5, lr·λ₁ is 0.2: no curvature forbids the step."""
    assert final_loss(two=True) < 0.1 < 1e3 < final_loss(two=False)
