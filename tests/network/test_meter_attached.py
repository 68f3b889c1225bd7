"""The meter in a training loop: when it measures, what it writes, what it refuses, and what it survives."""

import json
import logging
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from etastar import History, InvalidArgument, InvalidFile
from etastar.measurement import encode
from etastar.network import AlignmentMeter, HessianOperator
from etastar.network.attachment import MeterHandle
from etastar.quantities import ESTIMATES, NUMBERS, metrics


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(count=60):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return x, torch.randn(count, 3, dtype=torch.float64, generator=generator)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batches():
    x, y = data()
    return [(x[:40], y[:40]), (x[40:], y[40:])]


def meter_of(model, loss=squared, **options):
    return AlignmentMeter(model, loss, batches(), **{"rank": 2, "overhead": None, "probes": 3, **options})


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def train(model, optimizer, steps, first=0):
    x, y = data()
    for number in range(first, first + steps):
        drawn = torch.randint(0, len(x), (8,), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        squared(model, (x[drawn], y[drawn])).backward()
        optimizer.step()


def without_times(rows):
    return [{**json.loads(encode(row)), "cost": row.cost["products"]} for row in rows]


class Tracker:
    def __init__(self):
        self.seen = []

    def log(self, metrics, step):
        self.seen.append((step, metrics))


# When it measures


def test_it_measures_before_the_first_step_at_multiples_of_every_and_where_the_run_ends():
    model = make_model()
    optimizer, meter = sgd(model), meter_of(model, every=4)
    handle = meter.attach(optimizer, 8)
    assert meter.preflight.ok
    assert len(meter.history) == 0
    train(model, optimizer, 12)
    assert [row.step for row in meter.history] == [0, 4, 8]
    handle.remove()
    handle.remove()
    assert [row.step for row in meter.history] == [0, 4, 8, 12]
    train(model, optimizer, 4)
    assert meter.step == 12
    handle = meter.attach(optimizer, 8)  # goes on counting, and does not measure step 12 again
    train(model, optimizer, 5)
    handle.remove(measure=False)
    assert [row.step for row in meter.history] == [0, 4, 8, 12, 16]


def test_what_is_measured_is_the_step_about_to_be_made():
    """Parameters, step size and momentum: with closures and schedulers, each measurement foretells the update."""
    model, (x, y) = make_model(), data()
    optimizer = sgd(model, momentum=0.9, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    meter = meter_of(model)
    handle = meter.attach(optimizer, 60)
    slopes, sizes = [], []
    for _ in range(4):
        operator = HessianOperator(model, squared, batches())
        gradient, before = operator.gradient(), operator.vector.current()

        def closure():
            optimizer.zero_grad()
            loss = squared(model, (x, y))
            loss.backward()
            return loss

        sizes.append(optimizer.param_groups[0]["lr"])
        optimizer.step(closure)  # the whole data: the very update that the moments describe
        slopes.append(float(gradient @ (before - operator.vector.current())) / sizes[-1])
        scheduler.step()
    handle.remove(measure=False)
    assert [row.step_size for row in meter.history] == sizes
    sides = [(row.moments.mean(0).dominant.descent, row.moments.mean(0).bulk.descent) for row in meter.history]
    np.testing.assert_allclose([d.slope + b.slope for d, b in sides], slopes, rtol=1e-9)


def test_the_overhead_decides_when_to_measure():
    """A clock by which every step takes 1 and every measurement 10: a tenth means every 100 steps at least."""
    model, now = make_model(), [0.0]
    meter = meter_of(model, every=3, overhead=0.1)
    measure = meter.measure

    def slow(*arguments):
        now[0] += 10.0
        return measure(*arguments)

    meter.measure = slow
    optimizer = sgd(model)
    MeterHandle(meter, optimizer, 8, None, None, clock=lambda: now[0])
    for _ in range(500):
        optimizer.step()
        now[0] += 1.0
        measured = 10.0 * len(meter.history)
        assert measured <= max(10.0, 0.1 * (now[0] - measured))
    assert [row.step for row in meter.history] == [0, 201, 300, 402]  # the first is free, and paid for afterwards


def test_a_skipped_or_failing_step_does_not_count():
    model = make_model()
    optimizer, meter = sgd(model), meter_of(model)
    meter.attach(optimizer, 8)
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(squared(model, data()) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    def broken():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(broken)
    assert meter.step == 2
    train(model, optimizer, 1)
    assert [row.step for row in meter.history] == [0, 1, 2]


# What it refuses


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.AdamW(p, lr=1e-3), "optimizer: got 'AdamW'"),
        (lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]), "optimizer lr"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "optimizer maximize"),
        (lambda p: torch.optim.SGD(p[1:], lr=0.1), "optimizer: got '1 parameters not in it, 0.weight first'"),
    ],
)
def test_optimizers_that_moments_do_not_describe_are_refused_by_name(make, message):
    model = make_model()
    with pytest.raises(InvalidArgument, match=message):
        meter_of(model).attach(make(list(model.parameters())), 8)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}])
def test_the_population_target_refuses_what_is_not_plain_descent(options):
    model = make_model()
    meter = meter_of(model, target="population", gradient_batches=[batches()[1]] * 3)
    with pytest.raises(InvalidArgument, match="optimizer: got 'momentum or weight decay'"):
        meter.attach(sgd(model, **options), 8)
    with pytest.raises(InvalidArgument, match="optimizer: got 'momentum or weight decay'"):
        meter.measure(0.1, 8, sgd(model, **options))
    assert meter.measure(0.1, 8, sgd(model)).cost["products"] > 2


def test_preflight_refuses_by_name_before_training_and_before_any_file(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    meter, path = meter_of(model), tmp_path / "run.jsonl"
    with pytest.raises(InvalidArgument, match="dropout in training mode"):
        meter.attach(sgd(model), 8, path=path)
    assert not path.exists()
    kinked = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    meter = meter_of(kinked)
    meter.attach(sgd(kinked), 8)
    assert "kinked functions" in meter.preflight  # a note stays readable


def test_bad_arguments_are_refused():
    model = make_model()
    meter, optimizer = meter_of(model), sgd(model)
    for wrong in (0, 8.0, True):
        with pytest.raises(InvalidArgument, match="batch_size"):
            meter.attach(optimizer, wrong)
    with pytest.raises(InvalidArgument, match=r"log: .* must have a method log\(metrics, step\)"):
        meter.attach(optimizer, 8, log=print)
    assert not optimizer._optimizer_step_pre_hooks
    meter.attach(optimizer, 8)
    with pytest.raises(InvalidArgument, match="the meter is attached"):
        meter.attach(optimizer, 8)
    for name, value in (("every", 0), ("overhead", 0), ("target", "test")):
        with pytest.raises(InvalidArgument, match=f"{name}: got"):
            meter_of(model, **{name: value})


# What it survives


def test_failures_are_recorded_once_told_and_end_with_their_cause(caplog):
    model, broken = make_model(), [False]

    def loss(module, batch):
        return squared(module, batch) * (float("nan") if broken[0] else 1.0)

    meter = meter_of(model, loss, every=2)
    optimizer = sgd(model)
    meter.attach(optimizer, 8)
    with caplog.at_level(logging.WARNING):
        train(model, optimizer, 2)
        broken[0] = True
        train(model, optimizer, 4)
        broken[0] = False
        train(model, optimizer, 2)
    assert [row.step for row in meter.history] == [0, 6]
    assert [step for step, _ in meter.skipped] == [2, 4]
    assert "not finite" in meter.skipped[0][1]
    assert len(caplog.records) == 1


def test_parameters_frozen_unfrozen_and_all_frozen_are_followed():
    model = make_model()
    optimizer, meter = sgd(model), meter_of(model)
    meter.attach(optimizer, 8)
    train(model, optimizer, 1)
    model[0].requires_grad_(False)
    train(model, optimizer, 1)
    frozen = [(p, p.requires_grad_(False)) for p in model.parameters()]
    optimizer.step()
    for parameter, _ in frozen:
        parameter.requires_grad_(True)
    train(model, optimizer, 1)
    assert [row.provenance["parameters"] for row in meter.history] == [57, 21, 57]
    assert [step for step, _ in meter.skipped] == [2]
    assert "all frozen" in meter.skipped[0][1]
    fresh = meter_of(model)
    fresh.measure(0.1, 8)  # from cold, as after a change


def test_parameters_outside_the_optimizer_are_a_reason_to_skip():
    model = make_model()
    for p in model[0].parameters():
        p.requires_grad_(False)
    optimizer, meter = torch.optim.SGD(model[2].parameters(), lr=0.1), meter_of(model)
    meter.attach(optimizer, 8)
    train(model, optimizer, 1)
    model[0].requires_grad_(True)
    train(model, optimizer, 1)
    optimizer.add_param_group({"params": model[0].parameters()})
    train(model, optimizer, 1)
    assert [row.provenance["parameters"] for row in meter.history] == [21, 57]
    assert [step for step, _ in meter.skipped] == [1]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
    train(model, optimizer, 1)
    assert "optimizer lr" in meter.skipped[-1][1]


# What it writes


def test_the_file_holds_every_measurement_as_soon_as_it_is_made(tmp_path):
    model, path = make_model(), tmp_path / "new" / "run.jsonl"
    optimizer, meter = sgd(model), meter_of(model)
    handle = meter.attach(optimizer, 8, path=path)
    assert len(History.load(path)) == 0  # the header is there
    for number in range(3):
        train(model, optimizer, 1, number)
        assert [encode(row) for row in History.load(path)] == [encode(row) for row in meter.history]
        assert len(meter.history) == number + 1
    handle.remove()
    assert len(History.load(path)) == 4
    with pytest.raises(InvalidFile, match="exists and holds another history"):
        meter_of(model).attach(optimizer, 8, path=path)
    assert len(History.load(path)) == 4


@contextmanager
def disk_full_at(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_neither_the_run_nor_the_file(tmp_path):
    model, path = make_model(), tmp_path / "run.jsonl"
    optimizer, meter = sgd(model), meter_of(model)
    handle = meter.attach(optimizer, 8, path=path)
    train(model, optimizer, 1)
    with disk_full_at(path.stat().st_size + 100):  # room for a part of a line
        train(model, optimizer, 2)
    assert len(History.load(path)) == 1
    assert "cannot be written" in meter.skipped[0][1]
    train(model, optimizer, 1)
    handle.remove(measure=False)
    assert [row.step for row in History.load(path)] == [0, 1, 2, 3]  # what failed went out with the next


def test_a_resumed_run_is_as_if_it_had_never_stopped(tmp_path):
    whole_model = make_model()
    whole_optimizer, whole = sgd(whole_model, momentum=0.9), meter_of(whole_model, every=3)
    handle = whole.attach(whole_optimizer, 8, path=tmp_path / "whole.jsonl")
    train(whole_model, whole_optimizer, 14)
    handle.remove()

    model, path = make_model(), tmp_path / "run.jsonl"
    optimizer, meter = sgd(model, momentum=0.9), meter_of(model, every=3)
    meter.attach(optimizer, 8, path=path)
    train(model, optimizer, 6)
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "meter": meter.state_dict()}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    train(model, optimizer, 4)  # lost: the run is killed while it writes
    with path.open("a") as file:
        file.write('{"step": 9, "step')

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model = make_model()
    optimizer, meter = sgd(model, momentum=0.9), meter_of(model, every=3)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    meter.load_state_dict(state["meter"])
    assert meter.step == 6
    handle = meter.attach(optimizer, 8, path=path)
    assert [row.step for row in History.load(path)] == [0, 3]
    train(model, optimizer, 8, first=6)
    handle.remove()
    assert [row.step for row in meter.history] == [0, 3, 6, 9, 12]
    assert without_times(meter.history) == without_times(whole.history)
    assert without_times(History.load(path)) == without_times(History.load(tmp_path / "whole.jsonl"))
    with pytest.raises(InvalidFile, match="exists and holds another history"):
        whole.attach(whole_optimizer, 8, path=path)  # of another run, by its times


@pytest.mark.parametrize("state", [{}, {"history": ["{}"]}, {"history": [], "step": "x"}, None])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(InvalidArgument, match="state: got"):
        meter_of(make_model()).load_state_dict(state)


# What a tracker gets


def test_a_tracker_gets_finite_numbers_under_the_names_of_the_columns():
    model, tracker = make_model(), Tracker()
    optimizer, meter = sgd(model), meter_of(model, probes=12)
    meter.attach(optimizer, 8, log=tracker)
    train(model, optimizer, 3)
    assert [step for step, _ in tracker.seen] == [0, 1, 2]
    columns = meter.history.columns()
    for index, (_, seen) in enumerate(tracker.seen):
        row = meter.history[index]
        assert seen == metrics(row)
        assert {"alignment", "alignment_low", "step_over_full", "largest_eigenvalue", "step_size"} <= set(seen)
        assert set(seen) <= set(columns)
        for name, value in seen.items():
            assert value == columns[name][index]
            assert type(value) is (str if name == "regime" else float)
            assert name == "regime" or np.isfinite(value)
        assert ("regime" in seen) == bool(columns["regime_resolved"][index])
        assert ("critical_step_size" in seen) == (row.critical_step_size.resolved and row.expansion_holds)
    assert set(columns) == {*NUMBERS, *(name + end for name in ESTIMATES for end in ("", "_low", "_high"))}


def test_a_mistake_in_the_tracker_ends_the_run():
    model = make_model()
    optimizer, meter = sgd(model), meter_of(model)
    meter.attach(optimizer, 8, log=type("Wrong", (), {"log": lambda self: None})())
    with pytest.raises(TypeError):
        train(model, optimizer, 1)
