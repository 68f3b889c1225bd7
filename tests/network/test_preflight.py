"""Every seeded defect is caught, one by one, under its own name; clean models raise no alarm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from etastar import InvalidArgument
from etastar.network import HessianOperator, Severity, preflight

BATCH = torch.manual_seed(0) and (torch.randn(12, 6), torch.randn(12, 2))


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def mlp(activation: nn.Module | None = None, *extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), *extra, activation or nn.Tanh(), nn.Linear(8, 2))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.project, self.out = nn.Linear(2, 4), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.project(x.reshape(len(x), 3, 2))[:, None]
        return self.out(nn.functional.scaled_dot_product_attention(q, q, q).flatten(1))


class WrongTwice(torch.autograd.Function):
    """x² with a right gradient, whose own derivative is wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0].detach() * g


class Skewed(torch.autograd.Function):
    """Σx² with a right gradient and a skew derivative of it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, g):
        return Turned.apply(ctx.saved_tensors[0]) * g


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g + g.cumsum(0)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


class Noisy(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return BATCH[0][index] + 0.1 * torch.randn(6), BATCH[1][index]


class Counting(nn.Module):
    """A loss that changes from call to call without any random number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(x) * self.calls


TOKENS = torch.randint(0, 11, (8, 5), generator=torch.Generator().manual_seed(4))


class Language(nn.Module):
    """A tiny transformer over tokens, its embedding tied to its head, attention by its mathematical kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return self.head(self.block(self.embed(tokens)))


def words(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )
        self.body(torch.randn(20, 1, 4, 4))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Recurrent(nn.Module):
    """Time first: samples lie along the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.out = nn.GRU(3, 6, num_layers=2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x)[0][-1])


def autocast(model: nn.Module, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (model(batch[0]).float() - batch[1]).square().mean()


def scaled() -> nn.Module:
    model = mlp()
    model[1].register_full_backward_hook(lambda module, inward, outward: (2 * inward[0],))
    return model


def straight_through(x: torch.Tensor) -> torch.Tensor:
    return x + (torch.round(3 * x) / 3 - x).detach()


def sparse() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(24, 2))


def hooked() -> nn.Module:
    model = mlp()
    model[0].weight.register_hook(lambda g: g.clamp(-1, 1))
    return model


def indices(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0].abs().long() % 9) - batch[1]).square().mean()


def frozen() -> nn.Module:
    model = mlp()
    model.requires_grad_(False)
    return model


def insisting() -> tuple[nn.Module, Any, Any]:
    """A loss that turns the compiler back on."""
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager")

    def loss(_: nn.Module, batch: Any) -> torch.Tensor:
        with torch.compiler.set_stance("default"):
            return loss_fn(compiled, batch)

    return model, loss, [BATCH]


def zeros() -> nn.Module:
    model = nn.Linear(6, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def dataset() -> TensorDataset:
    return TensorDataset(*BATCH)


REFUSED: dict[str, tuple[str, Callable[[], tuple[nn.Module, Any, Any]]]] = {
    "batch norm": ("batch norm in training mode", lambda: (mlp(None, nn.BatchNorm1d(8)), loss_fn, [BATCH])),
    "batch norm without statistics": (
        "batch norm without statistics",
        lambda: (mlp(None, nn.BatchNorm1d(8, track_running_stats=False)).eval(), loss_fn, [BATCH]),
    ),
    "linear loss": ("no curvature", lambda: (nn.Linear(6, 2), lambda m, b: m(b[0]).mean(), [BATCH])),
    "dead network": ("flat loss", lambda: (mlp(nn.ReLU()), lambda m, b: (m(b[0]) * 0.0).square().mean(), [BATCH])),
    "dropout": ("dropout in training mode", lambda: (mlp(None, nn.Dropout(0.5)), loss_fn, [BATCH])),
    "functional dropout": (
        "random loss",
        lambda: (mlp(), lambda m, b: loss_fn(m, (nn.functional.dropout(b[0], 0.5), b[1])), [BATCH]),
    ),
    "attention dropout": (
        "dropout in training mode",
        lambda: (
            nn.ModuleDict({"a": nn.MultiheadAttention(6, 2, dropout=0.1)}),
            lambda m, b: m["a"](b[0], b[0], b[0])[0].mean(),
            [BATCH],
        ),
    ),
    "a loss that counts": ("random loss", lambda: (Counting(), loss_fn, [BATCH])),
    "shuffling": ("shuffled batches", lambda: (mlp(), loss_fn, DataLoader(dataset(), 4, shuffle=True))),
    "augmentation": ("changing batches", lambda: (mlp(), loss_fn, DataLoader(Noisy(), 4))),
    "subsampling": (
        "changing batches",
        lambda: (mlp(), loss_fn, DataLoader(dataset(), 4, sampler=torch.utils.data.RandomSampler(dataset(), True, 8))),
    ),
    "sparse gradients": ("loss_fn", lambda: (sparse(), indices, [BATCH])),
    "data parallel": ("parallel wrapper", lambda: (nn.DataParallel(mlp()), loss_fn, [BATCH])),
    "gradient hooks": ("gradient hooks", lambda: (hooked(), loss_fn, [BATCH])),
    "wrong double backward": (
        "products off differences",
        lambda: (mlp(), lambda m, b: WrongTwice.apply(m(b[0]) - b[1]).mean(), [BATCH]),
    ),
    "asymmetric double backward": (
        "asymmetric products",
        lambda: (nn.Linear(6, 2), lambda m, b: Skewed.apply(m.weight), [BATCH]),
    ),
    "a hidden part": (
        "gradient off differences",
        lambda: (mlp(), lambda m, b: (m(b[0]).exp() * m(b[0]).detach()).mean(), [BATCH]),
    ),
    "a module hook that scales": ("gradient off differences", lambda: (scaled(), loss_fn, [BATCH])),
    "straight through": (
        "gradient off differences",
        lambda: (mlp(), lambda m, b: loss_fn(lambda x: straight_through(m(x)), b), [BATCH]),
    ),
    "a sum over samples": (
        "summed loss",
        lambda: (mlp(), lambda m, b: (m(b[0]) - b[1]).square().sum(), [BATCH]),
    ),
    "a sum over tokens": (
        "summed loss",
        lambda: (
            Language(),
            lambda m, b: nn.functional.cross_entropy(m(b).flatten(0, 1), b.flatten(), reduction="sum"),
            [TOKENS, TOKENS[:3]],
        ),
    ),
    "a NaN in the second batch": (
        "loss_fn",
        lambda: (mlp(), loss_fn, [BATCH, (BATCH[0], BATCH[1] * float("nan"))]),
    ),
    "random depth": ("random loss", lambda: (mlp(), lambda m, b: loss_fn(m, b) * float(torch.rand(())), [BATCH])),
    "random leak": ("random loss", lambda: (mlp(nn.RReLU()).train(), loss_fn, [BATCH])),
    "no double backward": ("loss_fn", lambda: (mlp(), lambda m, b: Once.apply(m(b[0])).square().mean(), [BATCH])),
    "compiled code insisted on": ("loss_fn", insisting),
    "frozen": ("model", lambda: (frozen(), loss_fn, [BATCH])),
    "autocast": ("reduced precision", lambda: (mlp(), autocast, [BATCH])),
    "half precision": ("0.weight", lambda: (mlp().half(), loss_fn, [BATCH])),
    "empty": ("batches", lambda: (mlp(), loss_fn, [])),
    "read once": ("batches", lambda: (mlp(), loss_fn, iter([BATCH]))),
    "NaN loss": ("loss_fn", lambda: (mlp(), lambda m, b: loss_fn(m, b) * float("nan"), [BATCH])),
    "vector loss": ("loss_fn", lambda: (mlp(), lambda m, b: m(b[0]).square().mean(0), [BATCH])),
    "detached loss": ("loss_fn", lambda: (mlp(), lambda m, b: loss_fn(m, b).detach(), [BATCH])),
    "infinite curvature": (
        "infinite curvature",
        lambda: (
            nn.Linear(6, 2),
            lambda m, b: (
                m.weight.sum() * 0
                + 1e-60 * m.bias.sum().double() ** 2
                + (m.weight - m.weight.detach()).abs().pow(1.5).sum()
            ).float(),
            [BATCH],
        ),
    ),
}


@pytest.mark.parametrize("defect", REFUSED)
def test_each_defect_is_refused_under_its_name(defect: str) -> None:
    name, make = REFUSED[defect]
    report = preflight(*make())
    assert not report.ok, report
    assert report.refused[0].name == name, report
    assert {finding.name for finding in report.refused} <= {name, "products off differences"}, report
    finding = report.refused[0]
    assert finding.cause
    assert finding.remedy
    assert f"refused: {name}: " in str(report)
    with pytest.raises(InvalidArgument) as caught:
        report.require()
    assert caught.value.name == name


CLEAN: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "tanh": lambda: (mlp(), loss_fn, [BATCH]),
    "float64": lambda: (mlp().double(), loss_fn, [tuple(t.double() for t in BATCH)]),
    "gelu": lambda: (mlp(nn.GELU()), loss_fn, [BATCH]),
    "softplus": lambda: (mlp(nn.Softplus()), loss_fn, [BATCH]),
    "linear": lambda: (nn.Linear(6, 2), loss_fn, [BATCH]),
    "layer norm": lambda: (mlp(None, nn.LayerNorm(8)), loss_fn, [BATCH]),
    "group norm": lambda: (mlp(None, nn.GroupNorm(2, 8)), loss_fn, [BATCH]),
    "batch norm in evaluation": lambda: (mlp(None, nn.BatchNorm1d(8)).eval(), loss_fn, [BATCH]),
    "dropout in evaluation": lambda: (mlp(None, nn.Dropout(0.5)).eval(), loss_fn, [BATCH]),
    "dropout of nothing": lambda: (mlp(None, nn.Dropout(0.0)), loss_fn, [BATCH]),
    "plain loader": lambda: (mlp(), loss_fn, DataLoader(dataset(), 5)),
    "convolution": lambda: (
        nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        loss_fn,
        [BATCH],
    ),
    "recurrent": lambda: (
        nn.ModuleDict({"rnn": nn.LSTM(2, 4, batch_first=True), "out": nn.Linear(4, 2)}),
        lambda m, b: (m["out"](m["rnn"](b[0].reshape(-1, 3, 2))[0][:, -1]) - b[1]).square().mean(),
        [BATCH],
    ),
    "cross-entropy": lambda: (mlp(), lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1].argmax(1)), [BATCH]),
    "far from a minimum": lambda: (mlp(), lambda m, b: 1e6 * loss_fn(m, b), [BATCH]),
    "zero gradient": lambda: (zeros(), lambda m, b: m(b[0]).square().mean(), [BATCH]),
}


IMAGES = (torch.randn(10, 1, 4, 4), torch.arange(10) % 3)
SEQUENCES = (torch.randn(7, 6, 3), torch.randn(6, 2))
CLEAN |= {
    "convolution with batch norm": lambda: (
        Convolutional(),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
        [IMAGES, tuple(t[:7] for t in IMAGES)],
    ),
    "recurrent, time first": lambda: (
        Recurrent(),
        lambda m, b: (m(b[0].transpose(0, 1)) - b[1]).square().mean(),
        [(SEQUENCES[0].transpose(0, 1), SEQUENCES[1])],
    ),
    "one sample": lambda: (mlp(), loss_fn, [tuple(t[:1] for t in BATCH)]),
    "an odd number of samples": lambda: (mlp(), loss_fn, [tuple(t[:7] for t in BATCH), tuple(t[7:] for t in BATCH)]),
    "weight decay in the loss": lambda: (
        mlp(),
        lambda m, b: loss_fn(m, b) + 0.01 * sum(p.square().sum() for p in m.parameters()),
        [BATCH],
    ),
    "digits, cross-entropy, tiny loss": lambda: (mlp(), lambda m, b: 1e-6 * loss_fn(m, b), [BATCH]),
    "named batches": lambda: (
        mlp(),
        lambda m, b: loss_fn(m, (b["x"], b["y"])),
        [{"x": BATCH[0], "y": BATCH[1], "name": "first"}],
    ),
}


@pytest.mark.parametrize("case", CLEAN)
def test_no_false_alarm(case: str) -> None:
    model, loss, batches = CLEAN[case]()
    report = preflight(model, loss, batches)
    assert report.ok, report
    assert not [finding for finding in report.findings if finding.name != "unused parameters"], report
    assert str(report).splitlines()[0] == "preflight: sound"
    report.require()


def compiled_in_place() -> nn.Module:
    model = mlp()
    model.compile(backend="aot_eager")
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    return model


def partly_frozen() -> nn.Module:
    model = mlp()
    model[0].bias.requires_grad_(False)
    return model


MENTIONED: dict[str, tuple[str, Severity, Callable[[], tuple[nn.Module, Any, Any]]]] = {
    "compiled": (
        "compiled module",
        Severity.HANDLED,
        lambda: (torch.compile(mlp(), backend="aot_eager"), loss_fn, [BATCH]),
    ),
    "compiled in place": ("compiled module", Severity.HANDLED, lambda: (compiled_in_place(), loss_fn, [BATCH])),
    "fused attention": ("fused attention", Severity.HANDLED, lambda: (Attention(), loss_fn, [BATCH])),
    "tied": ("tied parameters", Severity.HANDLED, lambda: (tied(), loss_fn, [BATCH])),
    "tied embedding": ("tied parameters", Severity.HANDLED, lambda: (Language(), words, [TOKENS, TOKENS[:5]])),
    "contrastive": (
        "coupled samples",
        Severity.NOTE,
        lambda: (mlp(), lambda m, b: (m(b[0]) @ m(b[0]).T).logsumexp(1).mean(), [BATCH]),
    ),
    "mean over tokens that count": (
        "coupled samples",
        Severity.NOTE,
        lambda: (
            mlp(),
            lambda m, b: ((m(b[0]) - b[1]).square().sum(1) * b[2]).sum() / b[2].sum(),
            [(*BATCH, torch.arange(12.0))],
        ),
    ),
    "frozen in part": ("frozen parameters", Severity.NOTE, lambda: (partly_frozen(), loss_fn, [BATCH])),
    "unused": (
        "unused parameters",
        Severity.NOTE,
        lambda: (nn.ModuleDict({"a": mlp(), "b": nn.Linear(2, 2)}), lambda m, b: loss_fn(m["a"], b), [BATCH]),
    ),
    "relu": ("kinked functions", Severity.NOTE, lambda: (mlp(nn.ReLU()), loss_fn, [BATCH])),
    "functional relu": (
        "kinked functions",
        Severity.NOTE,
        lambda: (mlp(), lambda m, b: m(b[0]).relu().mean(), [BATCH]),
    ),
    "leaky relu": ("kinked functions", Severity.NOTE, lambda: (mlp(nn.LeakyReLU()), loss_fn, [BATCH])),
    "max pooling": (
        "kinked functions",
        Severity.NOTE,
        lambda: (mlp(None, nn.Unflatten(1, (1, 8)), nn.MaxPool1d(1), nn.Flatten()), loss_fn, [BATCH]),
    ),
    "absolute loss": (
        "kinked functions",
        Severity.NOTE,
        lambda: (mlp(), lambda m, b: (m(b[0]) - b[1]).abs().mean(), [BATCH]),
    ),
}


@pytest.mark.parametrize("case", MENTIONED)
def test_what_is_handled_or_noted_is_mentioned_and_no_alarm(case: str) -> None:
    name, severity, make = MENTIONED[case]
    report = preflight(*make())
    assert report.ok, report
    assert name in report
    assert {finding.severity for finding in report.findings if finding.name == name} == {severity}
    assert {finding.name for finding in report.findings} <= {name, "products off differences"}, report


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_network_at_a_minimum_of_its_loss_can_be_measured(scale: float) -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        batch = BATCH[0], model(BATCH[0])
    assert preflight(model, loss_fn, [batch]).ok


def test_the_remedy_of_training_mode_works() -> None:
    model = mlp(None, nn.BatchNorm1d(8), nn.Dropout(0.5))
    assert not preflight(model, loss_fn, [BATCH]).ok
    assert preflight(model, loss_fn, [BATCH], training=False).ok
    assert preflight(model.eval(), loss_fn, [BATCH], training=True).refused
    operator = HessianOperator(model.train(), loss_fn, [BATCH], training=False)
    evaluated = HessianOperator(mlp(None, nn.BatchNorm1d(8), nn.Dropout(0.5)).eval(), loss_fn, [BATCH])
    assert torch.allclose(operator.gradient(), evaluated.gradient())
    assert model[1].training


def test_several_defects_are_reported_together_refusals_first() -> None:
    model = mlp(nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.2))
    report = preflight(model, loss_fn, DataLoader(dataset(), 4, shuffle=True))
    names = [finding.name for finding in report.findings]
    assert {"batch norm in training mode", "dropout in training mode", "shuffled batches", "kinked functions"} <= set(
        names
    )
    assert report.findings[-1].severity is Severity.NOTE
    assert "preflight: 3 refused" in str(report)


def test_distributed_is_refused_by_name(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/rendezvous")
    try:
        wrapped = nn.parallel.DistributedDataParallel(mlp())
        names = [finding.name for finding in preflight(wrapped, loss_fn, [BATCH]).refused]
        assert set(names) == {"parallel wrapper", "torch.distributed"}
    finally:
        torch.distributed.destroy_process_group()


def test_restriction_and_counting_are_the_operators_own() -> None:
    assert preflight(mlp(), loss_fn, [BATCH], "0", count=lambda batch: 3).ok
    counted = preflight(Language(), words, [TOKENS, TOKENS[:3]], count=lambda batch: 4 * len(batch))
    assert {finding.name for finding in counted.findings} == {"tied parameters"}
    assert preflight(mlp(), loss_fn, [BATCH], "nowhere").refused[0].name == "parameters"
