"""The scheduler: what it advises and does, beside other schedulers, resumed, refused; and its log on disk."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from etastar import CurvatureMoments, InvalidArgument, InvalidFile, Measurement, SplitMoments, SubspaceMoments
from etastar.network import AlignmentMeter, ScaledOptimizer, StepGauge
from etastar.network.decisions import Decision, DecisionOutcome, load_decisions
from etastar.network.schedule import CriticalStepSizeLR


def squared(model, batch):
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


class Run:
    """Linear regression on 100 samples, steep in two directions, by mini-batches of its own stream.

    Its true minimum and noise are known; it starts far away, and equilibrates after some 1/(ηλ_6) = 50 steps.
    """

    def __init__(self, mode="act", wrap=None, lr=0.1, source="meter", **options):
        torch.manual_seed(0)
        self.model = nn.Linear(6, 1, bias=False).double()
        scales = torch.tensor([2.0, 1.5, 0.6, 0.6, 0.5, 0.5], dtype=torch.float64)
        X = torch.randn(100, 6, dtype=torch.float64) * scales
        y = X @ torch.full((6,), 3.0, dtype=torch.float64) + torch.randn(100, dtype=torch.float64)
        self.data = X, y
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr)
        if source == "meter":
            cheap = {"third_derivative": False, "probes": 2, "tolerance": 1e-3}
            self.source = AlignmentMeter(self.model, squared, [self.data], 2, every=10, overhead=None, **cheap)
        else:
            self.source = StepGauge(self.optimizer, every=16, sampling="independent", batch_size=4)
        self.before, self.scheduler = None, None
        self.scheduler = CriticalStepSizeLR(self.optimizer, self.source, mode=mode, **options)
        self.outer = wrap(self) if wrap else self.scheduler
        self.stream = torch.Generator().manual_seed(1)
        self.attach()

    def attach(self):
        if isinstance(self.source, AlignmentMeter):
            self.handle = self.source.attach(self.optimizer, 4)

    def batch(self):
        drawn = torch.randint(100, (4,), generator=self.stream)
        return tuple(part[drawn] for part in self.data)

    def train(self, steps):
        rates = []
        for _ in range(steps):
            rates.append(float(self.optimizer.param_groups[0]["lr"]))
            if isinstance(self.source, StepGauge) and self.source.due:
                batch = self.batch()
                self.source.second(lambda batch=batch: squared(self.model, batch))
            self.optimizer.zero_grad()
            squared(self.model, self.batch()).backward()
            self.optimizer.step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SequentialLR of old PyTorch passes the epoch
                self.outer.step()
        return rates

    @property
    def weight(self):
        return self.model.weight.detach().clone()


def still(step, eta, fraction=1.0):
    """An exact measurement with η/η_D = η/η_B = `fraction`, times a little noise by step."""
    m0 = 1.0 + 0.01 * (-1) ** step
    curved = CurvatureMoments(m0, 0.5, 0.5)
    side = SubspaceMoments(curved, CurvatureMoments(1.0, 2 * fraction * m0 / eta - 0.5, 1.0))
    return Measurement(step, eta, SplitMoments(side, side), 4, recoverable=0.1)


def fed(scheduler, optimizer, meter, steps, fraction=1.1):
    """Steps without a model: the history is fed by hand."""
    rates = []
    for _ in range(steps):
        rate = float(optimizer.param_groups[0]["lr"])
        rates.append(rate)
        meter.history.append(still(meter.step, 0.1, fraction))
        optimizer.step()
        meter.step += 1
        scheduler.step()
    return rates


def parts(lr=0.1, **options):
    model = nn.Linear(2, 1, bias=False)
    options = {"overhead": None, **options}
    meter = AlignmentMeter(model, squared, [(torch.randn(4, 2), torch.randn(4))], 1, **options)
    return torch.optim.SGD(model.parameters(), lr), meter


def test_advice_leaves_the_run_as_it_is_and_says_what_it_would_do():
    advised = Run("advise")
    twin = Run("advise")
    twin.scheduler.step = lambda: None
    advised.train(500)
    twin.train(500)
    assert torch.equal(advised.weight, twin.weight)
    assert advised.optimizer.param_groups[0]["lr"] == 0.1
    outcomes = [decision.outcome for decision in advised.scheduler.decisions]
    assert DecisionOutcome.EQUILIBRATED in outcomes
    would = next(d for d in advised.scheduler.decisions if d.outcome is DecisionOutcome.EQUILIBRATED)
    assert (would.step_size, would.proposed, would.acted) == (0.1, pytest.approx(0.03), False)
    assert would.reason.startswith("decay: at this step size no part")
    assert would.evidence["dominant η/η_S"][1] > 0.8


def test_acting_decays_once_the_regression_has_equilibrated_and_lowers_its_floor():
    acting, constant = Run("act"), Run("advise")
    rates = acting.train(600)
    constant.train(600)
    first = next(d for d in acting.scheduler.decisions if d.acted)
    assert 80 < first.step < 500
    assert rates[first.step - 1] == 0.1
    assert rates[first.step] == pytest.approx(0.03)
    best = torch.linalg.lstsq(acting.data[0], acting.data[1]).solution

    def excess(run):
        run.handle.remove()
        last = []
        for _ in range(200):
            run.train(1)
            off = run.weight[0] - best
            last.append(float(0.5 * (run.data[0] @ off).square().mean()))
        return np.mean(last)

    assert excess(acting) < 0.5 * excess(constant)


def test_far_from_equilibrium_nothing_is_decided():
    run = Run("act", lr=0.01)
    assert set(run.train(600)) == {0.01}
    assert not any(decision.outcome.decays for decision in run.scheduler.decisions)
    assert DecisionOutcome.DESCENDS in [decision.outcome for decision in run.scheduler.decisions]


def test_after_a_decay_the_window_begins_anew():
    optimizer, meter = parts()
    scheduler = CriticalStepSizeLR(optimizer, meter, mode="act", factor=0.5)
    rates = fed(scheduler, optimizer, meter, 48)
    assert [d.step for d in scheduler.decisions if d.acted] == [15, 30, 45]
    np.testing.assert_allclose(rates, np.repeat([0.1, 0.05, 0.025, 0.0125], [15, 15, 15, 3]))


@pytest.mark.parametrize(("fraction", "outcome"), [(0.5, "DESCENDS"), (0.97, "DESCENDS"), (1.02, "EQUILIBRATED")])
def test_what_is_seen_to_descend_is_kept(fraction, outcome):
    optimizer, meter = parts()
    scheduler = CriticalStepSizeLR(optimizer, meter)
    fed(scheduler, optimizer, meter, 20, fraction)
    assert {decision.outcome.name for decision in scheduler.decisions} == {outcome}


def chained(make):
    return lambda run: lr_scheduler.ChainedScheduler([make(run.optimizer), run.scheduler])


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.99),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 100),
        lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.8),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 30),
    ],
)
def test_in_a_chain_the_decays_multiply_what_the_other_scheduler_sets(make):
    alone, _ = parts()
    other, expected = make(alone), []
    for _ in range(48):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        other.step()
    optimizer, meter = parts()
    first = make(optimizer)
    scheduler = CriticalStepSizeLR(optimizer, meter, mode="act", factor=0.5)
    rates = fed(lr_scheduler.ChainedScheduler([first, scheduler]), optimizer, meter, 48)
    np.testing.assert_allclose(rates, np.array(expected) * np.repeat([1, 0.5, 0.25, 0.125], [15, 15, 15, 3]))


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_in_a_sequence_it_follows_a_warm_up_and_starts_from_the_first_step_size():
    optimizer, meter = parts()
    warm = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 10)
    scheduler = CriticalStepSizeLR(optimizer, meter, mode="act", factor=0.5)
    sequence = lr_scheduler.SequentialLR(optimizer, [warm, scheduler], milestones=[10])
    rates = fed(sequence, optimizer, meter, 48)
    np.testing.assert_allclose(rates[:11], np.linspace(0.01, 0.1, 11))
    acted = [d.step for d in scheduler.decisions if d.acted]
    assert acted[0] == 15
    assert rates[15] == pytest.approx(0.05)


def test_every_group_and_tensor_rates_are_multiplied():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[0], "lr": torch.tensor(0.2)}, {"params": weights[1]}], lr=0.1)
    _, meter = parts()
    scheduler = CriticalStepSizeLR(optimizer, meter, mode="act", factor=0.5)
    held = optimizer.param_groups[0]["lr"]
    fed(scheduler, optimizer, meter, 15)
    assert optimizer.param_groups[0]["lr"] is held
    assert (float(held), optimizer.param_groups[1]["lr"]) == (pytest.approx(0.1), 0.05)
    assert [float(rate) for rate in scheduler.get_last_lr()] == [pytest.approx(0.1), 0.05]


def saved(run):
    file = io.BytesIO()
    state = {name: getattr(run, name).state_dict() for name in ("model", "optimizer", "source", "scheduler")}
    torch.save({**state, "stream": run.stream.get_state()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Resumed(Run):
    def __init__(self, state, **options):
        self.state = state
        super().__init__(**options)

    def attach(self):
        for name in ("model", "optimizer", "source", "scheduler"):
            getattr(self, name).load_state_dict(self.state[name])
        self.stream.set_state(self.state["stream"])
        super().attach()


@pytest.mark.parametrize("source", ["meter", "gauge"])
@pytest.mark.parametrize("at", [123, 405])
def test_a_resumed_run_is_the_run_that_never_stopped(at, source, tmp_path):
    whole = Run(source=source, path=tmp_path / "whole.jsonl")
    first = Run(source=source, path=tmp_path / "parts.jsonl")
    rates = whole.train(600)
    assert first.train(at) == rates[:at]
    state = saved(first)
    first.train(90)  # beyond the checkpoint, and killed
    with (tmp_path / "parts.jsonl").open("a") as file:
        file.write('{"step": 49')
    second = Resumed(state, source=source, path=tmp_path / "parts.jsonl")
    assert second.train(600 - at) == rates[at:]
    assert torch.equal(second.weight, whole.weight)
    assert second.scheduler.decisions == whole.scheduler.decisions
    assert len(set(rates)) > 1 or source == "gauge"
    assert len(whole.scheduler.decisions) > 10
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert load_decisions(tmp_path / "whole.jsonl") == whole.scheduler.decisions


def test_a_gauge_without_basis_judges_the_whole_update():
    run = Run(source="gauge", mode="advise")
    run.train(1600)
    assert {name for d in run.scheduler.decisions for name in d.evidence} == {"total η/η_S"}
    assert any(decision.outcome is DecisionOutcome.EQUILIBRATED for decision in run.scheduler.decisions)


def test_a_gauge_with_a_basis_judges_both_subspaces():
    run = Run(source="gauge", mode="advise")
    run.source.basis = torch.eye(6, dtype=torch.float64)[:, :2]
    run.train(400)
    assert {name for d in run.scheduler.decisions for name in d.evidence} == {"dominant η/η_S", "bulk η/η_S"}


def test_the_forecast_acts_too():
    optimizer, meter = parts()
    scheduler = CriticalStepSizeLR(optimizer, meter, "forecast", "act", horizon=1)
    fed(scheduler, optimizer, meter, 20)
    assert scheduler.decisions[0].outcome is DecisionOutcome.GIVES_BACK
    assert scheduler.decisions[0].evidence["recoverable loss"][0] == pytest.approx(0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"policy": "greedy"}, "policy"), ({"mode": "do"}, "mode"), ({"factor": 1.0}, "factor"), ({"factor": 0}, "factor"),
     ({"factor": "0.1"}, "factor"), ({"horizon": 0}, "horizon"), ({"horizon": 1.5}, "horizon")],
)  # fmt: skip
def test_bad_arguments_are_named(options, name):
    optimizer, meter = parts()
    with pytest.raises(InvalidArgument, match=f"^{name}: got"):
        CriticalStepSizeLR(optimizer, meter, **options)


def test_the_clock_must_not_steer_and_a_forecast_needs_a_meter():
    optimizer, meter = parts(overhead=0.1)
    CriticalStepSizeLR(optimizer, meter)
    with pytest.raises(InvalidArgument, match=r"source\.overhead.*None"):
        CriticalStepSizeLR(optimizer, meter, mode="act")
    with pytest.raises(InvalidArgument, match="needs eigenvalues"):
        CriticalStepSizeLR(optimizer, StepGauge(optimizer), "forecast")
    with pytest.raises(InvalidArgument, match="source: got 'Linear'"):
        CriticalStepSizeLR(optimizer, nn.Linear(1, 1))


def test_a_meter_does_not_describe_a_corrected_update():
    model = nn.Linear(2, 1, bias=False)
    meter = AlignmentMeter(model, squared, [(torch.randn(4, 2), torch.randn(4))], 1, overhead=None)
    optimizer = ScaledOptimizer(torch.optim.SGD(model.parameters()), meter.tracker, dominant=0.1, bulk=1.0)
    with pytest.raises(InvalidArgument, match=r"optimizer: got 'ScaledOptimizer'.*StepGauge"):
        CriticalStepSizeLR(optimizer, meter)
    CriticalStepSizeLR(optimizer, StepGauge(optimizer))


def test_a_foreign_state_is_refused():
    optimizer, meter = parts()
    with pytest.raises(InvalidArgument, match="state_dict"):
        CriticalStepSizeLR(optimizer, meter).load_state_dict(lr_scheduler.StepLR(optimizer, 3).state_dict())


def test_a_log_of_another_run_is_never_overwritten(tmp_path):
    for content in ("something else\n", written_log(tmp_path)):
        path = tmp_path / "taken.jsonl"
        path.write_text(content, encoding="utf-8")
        optimizer, meter = parts()
        scheduler = CriticalStepSizeLR(optimizer, meter, path=path)
        with pytest.raises(InvalidFile, match="exists and holds another log"):
            fed(scheduler, optimizer, meter, 16)
        assert path.read_text(encoding="utf-8") == content


def written_log(tmp_path):
    optimizer, meter = parts()
    fed(CriticalStepSizeLR(optimizer, meter, path=tmp_path / "log.jsonl"), optimizer, meter, 16, 0.5)
    return (tmp_path / "log.jsonl").read_text(encoding="utf-8")


def test_damaged_logs_are_named(tmp_path):
    whole, path = written_log(tmp_path), tmp_path / "damaged.jsonl"
    assert all(decision == Decision.decode(decision.encode()) for decision in load_decisions(tmp_path / "log.jsonl"))
    path.write_text(whole[:-20], encoding="utf-8")
    assert len(load_decisions(path)) == whole.count("\n") - 2
    for damaged, told in (
        (whole.replace("DESCENDS", "SOMETHING"), "line 2 is damaged"),
        (whole.replace('"acted": false', '"acted": 0'), "line 2 is damaged"),
        ("{}\n" + whole, "must begin with"),
    ):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(InvalidFile, match=told):
            load_decisions(path)


def test_unresolved_evidence_survives_the_file():
    decision = Decision(3, 0.1, 0.1, False, DecisionOutcome.UNRESOLVED, {"a": (1.0, float("nan"), float("nan"))})
    value, low, high = Decision.decode(decision.encode()).evidence["a"]
    assert value == 1.0
    assert np.isnan([low, high]).all()
