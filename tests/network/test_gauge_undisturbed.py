"""The gauge never changes the run: parameters, gradients, optimizer state, buffers and random streams, bit for bit."""

import random
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from etastar.network.gauge.step_gauge import StepGauge

torch.set_num_threads(1)

STEPS = 23
OPTIMIZERS = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw loop": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
LOOPS = ("plain", "clipped", "accumulated", "scaled", "scaled skipping", "closure", "lbfgs")


def _model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))


def _batch():
    return torch.randn(10, 6), torch.randint(0, 2, (10,))


def _second(gauge, model, loss_fn):
    """On a batch drawn within, from every global stream."""
    if gauge is not None and gauge.due:
        x = torch.from_numpy(np.random.default_rng(gauge.steps).normal(size=(10, 6))).float()

        def loss():
            np.random.rand(random.randrange(1, 5))  # noqa: NPY002, S311
            return loss_fn(model(x), torch.randint(0, 2, (10,)))

        gauge.second(loss, model=model)


def _run(make, loop, sampling):
    """One run, with a gauge unless `sampling` is None; returns everything that may not differ."""
    model, loss_fn = _model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3) if loop == "lbfgs" else make(model.parameters())
    gauge = None
    if sampling is not None:
        gauge = StepGauge(optimizer, parameters=model.named_parameters(), every=4, sampling=sampling)
    scaler = torch.amp.GradScaler("cpu", enabled=loop.startswith("scaled"), init_scale=2.0**10, growth_interval=3)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        _second(gauge, model, loss_fn)
        if loop in ("closure", "lbfgs"):
            x, y = _batch()

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            continue
        for _ in range(3 if loop == "accumulated" else 1):
            x, y = _batch()
            if loop == "scaled skipping" and step in (5, 9, 10):
                x = x * torch.inf
            scaler.scale(loss_fn(model(x), y)).backward()
            if loop == "accumulated" and gauge is not None:
                gauge.accumulate()
        if gauge is not None and loop in ("clipped", "scaled skipping"):
            gauge.observe(scale=scaler.get_scale())
        if loop == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    if gauge is not None:
        gauge.summary()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = [v for s in optimizer.state_dict()["state"].values() for v in s.values()]
    streams = [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))]  # noqa: NPY002
    return [*model.state_dict().values(), *grads, *_flat(state), *streams, hash(random.getstate())], gauge


def _flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat(value.values())
        else:
            yield value


def _same(a, b):
    return torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("sampling", ["shuffled", "independent"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_identical(name, loop, sampling):
    without, _ = _run(OPTIMIZERS[name], loop, None)
    with_gauge, gauge = _run(OPTIMIZERS[name], loop, sampling)
    assert len(without) == len(with_gauge)
    assert all(_same(a, b) for a, b in zip(without, with_gauge, strict=True))
    assert gauge.overhead > 0
    assert gauge.steps == STEPS or loop == "scaled skipping"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_inside_a_second_gradient_leaves_no_trace(failure, at):
    """At the first call (in `second`) and at the second one (within the step)."""
    model, calls = _model(), count(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gauge = StepGauge(optimizer, every=2)
    before = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()]  # noqa: NPY002
    buffers = [b.clone() for b in model.buffers()]
    x = torch.ones(4, 6)

    def loss():
        value = model(x).square().mean()
        random.random()  # noqa: S311
        np.random.rand()  # noqa: NPY002
        if next(calls) == at:
            raise failure
        return value

    def step():
        gauge.second(loss, model=model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()

    with pytest.raises(failure):
        step()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # and the gauge goes on


def test_detached_it_is_gone():
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gauge = StepGauge(optimizer, every=2)
    gauge.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert gauge.steps == 0
    gauge.detach()  # twice is once
