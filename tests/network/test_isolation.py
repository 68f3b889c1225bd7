"""Measuring leaves no trace: bit for bit, also when it is interrupted in the middle."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etastar.network import GaussNewtonOperator, HessianOperator, StepGauge, SubspaceTracker, preflight
from etastar.network.isolation import aside


class Net(nn.Module):
    """Everything that keeps state: running statistics, dropout, a buffer replaced in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.body(x)


def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    random.random()  # noqa: S311
    np.random.rand()  # noqa: NPY002  # the global stream is the one to keep
    torch.rand(1)
    return (model(batch[0]) - batch[1]).square().mean()


def trace(model: nn.Module, loader: DataLoader) -> list[object]:
    """Everything of a run that measuring could disturb."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    copies = [t.detach().clone() for t in tensors]
    identities = [id(t) for t in tensors]
    flags = [m.training for m in model.modules()]
    streams = [torch.get_rng_state(), loader.generator.get_state(), torch.tensor(np.random.get_state()[1].astype(int))]  # noqa: NPY002
    return [copies, identities, flags, streams, random.getstate(), torch.is_grad_enabled()]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(params=["training", "evaluation", "mixed"])
def run(request: pytest.FixtureRequest) -> tuple[nn.Module, DataLoader]:
    torch.manual_seed(0)
    model = Net().double()
    model.train(request.param != "evaluation")
    if request.param == "mixed":
        model.body[1].eval()
    data = TensorDataset(torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64))
    loader = DataLoader(data, batch_size=8, generator=torch.Generator().manual_seed(3))
    model(data.tensors[0]).sum().backward()
    return model, loader


def measurements(model: nn.Module, loader: DataLoader) -> list[object]:
    H = HessianOperator(model, loss_fn, loader)
    G = GaussNewtonOperator(
        model, lambda m, b: m(b[0]), lambda z, b: (z - b[1]).square().mean(), loader, training=False
    )
    v = torch.ones(H.shape[0], dtype=torch.float64)
    return [
        lambda: H @ v,
        H.gradient,
        H.loss,
        lambda: G @ torch.stack([v, v], 1),
        lambda: SubspaceTracker(HessianOperator(model, loss_fn, loader, training=False), rank=3).refresh(),
        lambda: preflight(model, loss_fn, loader),
        lambda: preflight(model, loss_fn, loader, training=False),
    ]


def test_nothing_changes(run: tuple[nn.Module, DataLoader]) -> None:
    before = trace(*run)
    for measure in measurements(*run):
        measure()
        assert same(trace(*run), before)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("after", [0, 4])
def test_nothing_changes_when_interrupted(
    run: tuple[nn.Module, DataLoader], interruption: type[BaseException], after: int
) -> None:
    model, loader = run
    before = trace(model, loader)
    for index in range(len(measurements(model, loader))):
        measure = measurements(model, loader)[index]
        seen = 0

        def stop(*_: object) -> None:
            nonlocal seen
            seen += 1
            if seen > after:
                raise interruption

        handle = model.body[4].register_forward_hook(stop)
        with pytest.raises(interruption):
            list(map(lambda _: measure(), range(10)))  # noqa: C417
        handle.remove()
        assert same(trace(model, loader), before)


def test_an_interrupted_backward_leaves_the_operator_usable() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1, dtype=torch.float64)
    stop = [False]

    class Fuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            if stop[0]:
                raise KeyboardInterrupt
            return g.clone()

    batch = torch.randn(5, 3, dtype=torch.float64)
    operator = HessianOperator(model, lambda m, b: Fuse.apply(m(b)).square().mean(), [batch])
    v = torch.ones(4, dtype=torch.float64)
    expected = operator @ v
    weight = model.weight.detach().clone()
    with operator.held():
        operator @ v
        stop[0] = True
        with pytest.raises(KeyboardInterrupt):
            operator @ v
        stop[0] = False
        assert torch.equal(operator @ v, expected)
    assert torch.equal(model.weight, weight)
    assert model.weight.grad is None


def test_training_with_and_without_measuring_is_bit_identical() -> None:
    def train(measure: bool) -> list[torch.Tensor]:
        torch.manual_seed(7)
        model = Net()
        data = TensorDataset(torch.randn(24, 6), torch.randn(24, 2))
        loader = DataLoader(data, batch_size=8, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        fixed = [list(data.tensors)]
        tracker = SubspaceTracker(HessianOperator(model, loss_fn, fixed, training=False), rank=2)
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                if measure:
                    tracker.refresh()
                    HessianOperator(model, loss_fn, loader, training=False).gradient()
                optimizer.step()
        return [p.detach().clone() for p in model.parameters()] + [b.clone() for b in model.buffers()]

    for a, b in zip(train(True), train(False), strict=True):
        assert torch.equal(a, b)


class Lazy(nn.Module):
    """A buffer filled at the first forward pass, another one registered there, and a mode that it switches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 2)
        self.register_buffer("cache", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cache is None:
            self.cache = torch.ones(())
            self.register_buffer("late", torch.zeros(3))
        self.inner.eval()
        return self.inner(x) * self.cache


def test_buffers_born_inside_a_measurement_are_gone_after_it() -> None:
    model = Lazy()
    before = list(model.state_dict())
    batch = (torch.ones(4, 6), torch.ones(4, 2))
    HessianOperator(model, loss_fn, [batch]).gradient()
    assert model.cache is None
    assert list(model.state_dict()) == before
    assert model.inner.training
    gauge = StepGauge(torch.optim.SGD(model.parameters(), lr=0.1), every=2)
    gauge.second(lambda: loss_fn(model, batch), model=model)
    assert list(model.state_dict()) == before
    assert model.inner.training


def test_aside_the_streams_are_ones_own() -> None:
    """Two evaluations draw the same, not what the run draws next; a generator of its own is the caller's affair."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with aside(None, [torch.device("cpu")], 17):
            drawn.append((torch.rand(3), random.random(), np.random.rand()))  # noqa: S311, NPY002
            assert torch.is_grad_enabled()
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1:] == drawn[1][1:]
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(torch.rand(3), drawn[0][0])
