"""An attached meter never changes the run, bit for bit: weights, buffers, gradients, optimizer, streams and modes."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from etastar.network import AlignmentMeter

STEPS, EVERY = 8, 3
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1),
    "nesterov decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
}
LOOPS = (
    "plain",
    "clipped",
    "accumulated",
    "scaled",
    "scaled skipping",
    "scaled fused skipping",
    "autocast",
    "closure",
    "closure twice",
    "scheduled",
    "unfrozen",
    "group added",
    "not a number",
)


def make_model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def curvature_batches():
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(n, 6, generator=generator), torch.randint(0, 2, (n,), generator=generator)) for n in (12, 12, 5)
    ]


def drawn():
    """From every global stream."""
    x = torch.randn(10, 6) + random.random() + float(np.random.rand())  # noqa: NPY002, S311
    return x, torch.randint(0, 2, (10,))


def seeded():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def state_of(model, optimizer):
    found = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    found += [value for s in optimizer.state_dict()["state"].values() for value in s.values()]
    found += [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
    found += [hash(random.getstate()), *(m.training for m in model.modules()), torch.is_grad_enabled()]
    return [value.detach().clone() if isinstance(value, torch.Tensor) else value for value in found]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        else:
            assert a == b


class Run:
    """One training run, step by step, in a loop of some kind."""

    def __init__(self, name, loop, model=None):
        self.model, self.loop, self.made = model or make_model(), loop, 0
        parts = list(self.model.parameters())
        if loop in ("unfrozen", "group added"):
            for p in parts[:2]:
                p.requires_grad_(False)
        self.optimizer = OPTIMIZERS[name](parts[2:] if loop == "group added" else parts)
        if "fused" in loop:
            settings = {"momentum": 0.9, "fused": True} if name == "momentum" else {"fused": True}
            self.optimizer = torch.optim.SGD(parts, lr=0.05, **settings)
        self.scaler = torch.amp.GradScaler("cpu", enabled=loop.startswith("scaled"), init_scale=2.0**10)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5) if loop == "scheduled" else None
        seeded()

    def step(self, number):
        model, optimizer, loop = self.model, self.optimizer, self.loop
        if number == STEPS // 2 and loop in ("unfrozen", "group added"):
            first = list(model.parameters())[:2]
            for p in first:
                p.requires_grad_(True)
            if loop == "group added":
                optimizer.add_param_group({"params": first})
        optimizer.zero_grad(set_to_none=number % 2 == 0)
        if loop.startswith("closure"):
            x, y = drawn()

            def closure():
                optimizer.zero_grad()
                loss = loss_fn(model, (x, y))
                loss.backward()
                return loss

            if loop == "closure twice":
                closure()
            optimizer.step(closure)
            self.made += 1
            return
        for _ in range(3 if loop == "accumulated" else 1):
            x, y = drawn()
            with torch.autocast("cpu", torch.bfloat16, enabled=loop == "autocast"):
                loss = loss_fn(model, (x, y))
            if (loop == "not a number" and number == 3) or (loop.endswith("skipping") and number in (2, 5)):
                loss = loss * torch.nan
            self.scaler.scale(loss).backward()
        if loop == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        before = self.scaler.get_scale()
        with torch.autocast("cpu", torch.bfloat16, enabled=loop == "autocast"):  # as Lightning's manual optimization
            self.scaler.step(optimizer)
        self.scaler.update()
        self.made += self.scaler.get_scale() >= before
        if self.scheduler is not None:
            self.scheduler.step()


def meter_of(model, loss=loss_fn, **options):
    options = {"rank": 2, "overhead": None, "training": False, "probes": 2, **options}
    return AlignmentMeter(model, loss, curvature_batches(), **options)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_identical(name, loop, tmp_path):
    plain = Run(name, loop)
    for number in range(STEPS):
        plain.step(number)
    expected = state_of(plain.model, plain.optimizer)
    watched, seen = Run(name, loop), []
    meter = meter_of(watched.model, every=EVERY)
    tracker = type("Tracker", (), {"log": lambda self, metrics, step: seen.append((step, metrics))})()
    handle = meter.attach(watched.optimizer, 10, path=tmp_path / "run.jsonl", log=tracker)
    for number in range(STEPS):
        watched.step(number)
    handle.remove()
    assert_same(expected, state_of(watched.model, watched.optimizer))
    assert meter.step == watched.made == (STEPS - 2 if loop.endswith("skipping") else STEPS)
    measured = [step for step in range(0, meter.step + 1, EVERY) if loop != "not a number" or step < 4]
    assert [row.step for row in meter.history] == [step for step, _ in seen] == measured
    assert not meter.skipped or loop == "not a number"
    assert not watched.optimizer._optimizer_step_pre_hooks
    assert not watched.optimizer._optimizer_step_post_hooks


class Interrupting:
    """A loss that fails at its n-th evaluation since it was armed; unarmed it only counts."""

    def __init__(self, failure=KeyboardInterrupt):
        self.failure, self.left, self.calls = failure, None, 0

    def __call__(self, model, batch):
        self.calls += 1
        loss = loss_fn(model, batch)
        random.random()  # noqa: S311
        np.random.rand()  # noqa: NPY002
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.failure("stop")
        return loss


def interrupted(failure, at):
    """A run whose third step's measurement raises at its `at`-th evaluation; None where it has fewer."""
    run, failing = Run("momentum", "plain"), Interrupting(failure)
    meter = meter_of(run.model, failing)
    handle = meter.attach(run.optimizer, 10)
    for number in range(2):
        run.step(number)
    run.optimizer.zero_grad()
    loss_fn(run.model, drawn()).backward()
    before, failing.left = state_of(run.model, run.optimizer), at
    try:
        run.optimizer.step()
    except failure:
        pass
    else:
        return None
    assert_same(before, state_of(run.model, run.optimizer))
    assert meter.step == 2
    failing.left = None
    run.optimizer.step()  # the run may go on, and so does the meter
    state = state_of(run.model, run.optimizer)
    handle.remove()
    assert [row.step for row in meter.history] == [0, 1, 3]
    return state


@pytest.mark.parametrize("failure", [KeyboardInterrupt, TypeError])
def test_whatever_is_raised_inside_a_measurement_propagates_and_leaves_the_run_as_it_was(failure):
    plain = Run("momentum", "plain")
    for number in range(3):
        plain.step(number)
    expected = state_of(plain.model, plain.optimizer)
    tried = 0
    while (state := interrupted(failure, at=5 * tried)) is not None:
        assert_same(expected, state)
        tried += 1
    assert tried > 3


def test_a_compiled_model_trains_as_it_would_and_is_measured_as_the_plain_one():
    states, rows = [], []
    for compiled, metered in ((True, False), (True, True), (False, True)):
        torch.compiler.reset()
        network = make_model()
        model = torch.compile(network, backend="aot_eager") if compiled else network
        run = Run("momentum", "plain", model)
        meter = meter_of(model) if metered else None
        if meter is not None:
            meter.attach(run.optimizer, 10)
        for number in range(3):
            run.step(number)
        states.append(state_of(network, run.optimizer))
        rows.append(meter and list(meter.history))
        assert meter is None or not meter.skipped
    assert_same(states[0], states[1])
    assert len(rows[1]) == 3
    assert rows[1][0].alignment.value == pytest.approx(rows[2][0].alignment.value, rel=1e-5)
    torch.compiler.reset()
