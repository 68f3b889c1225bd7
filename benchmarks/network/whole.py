"""What the meter costs as a whole: a measurement in gradients, a run with and without it, memory, and η_full beside
the smallest step that raises the loss, found with forward passes only (Kalra et al., arXiv 2601.16979).
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.network.setting import BATCH, RANK, STEP_SIZE, checkpoints, data, loss_fn, move, network
from etastar.network import AlignmentMeter, HessianOperator, StepGauge

MEASUREMENT_LIMIT = 60  # gradients of the curvature sample
CURVATURE_SAMPLES = 500
Drawn = Callable[[], tuple[Tensor, Tensor]]


def measurement(console: Console) -> None:
    """A measurement, every 50 steps, in gradients of its own curvature sample, by what it is spent on."""
    x, y = (part[:CURVATURE_SAMPLES] for part in data())
    table = Table(
        "probes", "third derivative", "products", "gradients", "limit", title="One measurement every 50 steps"
    )
    points = list(checkpoints(50, 7))
    for probes, third in ((8, True), (8, False), (4, False)):
        model = network()
        meter = AlignmentMeter(model, loss_fn, [(x, y)], RANK, probes=probes, third_derivative=third)
        operator = HessianOperator(model, loss_fn, [(x, y)])
        spent, base, products = [], [], []
        for point in points:
            move(model, point)
            begin = time.perf_counter()
            products.append(int(meter.measure(STEP_SIZE, BATCH).cost["products"]))
            spent.append(time.perf_counter() - begin)
            for _ in range(5):
                begin = time.perf_counter()
                operator.gradient()
                base.append(time.perf_counter() - begin)
        ratio = statistics.median(spent[1:]) / statistics.median(base)
        verdict = "met" if ratio <= MEASUREMENT_LIMIT else "MISSED"
        table.add_row(
            str(probes),
            "yes" if third else "no",
            f"{statistics.mean(products[1:]):.1f}",
            f"{ratio:.1f}",
            f"≤ {MEASUREMENT_LIMIT} {verdict}",
        )
    console.print(table)


def training(console: Console, steps: int = 10_000, rounds: int = 3) -> None:
    """Seconds of a run with the gauge, with the meter, each at its defaults, and with neither."""
    x, y = data()

    def run(mode: str) -> tuple[float, int]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=STEP_SIZE)
        generator = torch.Generator().manual_seed(0)
        gauge = StepGauge(optimizer) if mode == "gauge" else None
        curvature = [(x[:CURVATURE_SAMPLES], y[:CURVATURE_SAMPLES])]
        meter = AlignmentMeter(model, loss_fn, curvature, RANK) if mode == "meter" else None
        begin = time.perf_counter()
        if meter is not None:
            meter.attach(optimizer, BATCH)
        for _ in range(steps):
            if gauge is not None and gauge.due:
                other = torch.randint(len(x), (BATCH,), generator=generator)
                gauge.second(lambda other=other: loss_fn(model, (x[other], y[other])))
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss_fn(model, (x[rows], y[rows])).backward()
            optimizer.step()
        return time.perf_counter() - begin, 0 if meter is None else len(meter.history)

    modes = ("neither", "gauge", "meter")
    found = [{mode: run(mode) for mode in modes} for _ in range(rounds)]
    table = Table("with", "time, ratio", "measurements", title=f"{steps:,} steps at batch {BATCH}")
    for mode in modes:
        ratio = statistics.median(one[mode][0] / one["neither"][0] for one in found)
        table.add_row(mode, f"{ratio:.3f}", str(found[0][mode][1]) if mode == "meter" else "")
    console.print(table)


def memory(console: Console) -> None:
    """Peak memory of a measurement beyond that of training, in vectors of P parameters (P = 2.1 million)."""
    peaks = {
        mode: int(
            subprocess.run(  # noqa: S603
                [sys.executable, "-m", "benchmarks.network.whole", mode], check=True, capture_output=True, text=True
            ).stdout
        )
        for mode in ("train", "measure")
    }
    vectors = (peaks["measure"] - peaks["train"]) / (4 * _parameters(_wide()))
    console.print(f"memory: a measurement (k = {RANK}) takes {vectors:.0f} parameter vectors beyond training\n")


def loss_raising_step(console: Console) -> None:
    """η_full from moments, and the step at which the mean loss of real steps ceases to fall, by bisection."""
    x, y = data()
    model = network()
    meter = AlignmentMeter(model, loss_fn, [(x, y)], RANK)
    generator = torch.Generator().manual_seed(1)
    table = Table("checkpoint", "η_full (90 %)", "step that raises the loss", "ratio", "forward passes")
    table.title = "Loss threshold of the whole update, beside forward passes only (64 mini-batches, all samples)"
    for index, point in enumerate(checkpoints(100, 5)):
        move(model, point)
        threshold = meter.measure(STEP_SIZE, BATCH).loss_thresholds.full
        rows = torch.randint(len(x), (64, BATCH), generator=generator)
        updates = [torch.autograd.grad(loss_fn(model, (x[r], y[r])), list(model.parameters())) for r in rows]
        flat = [nn.utils.parameters_to_vector(update) for update in updates]
        found, passes = _bisect(model, point, flat, (x, y))
        interval = f"{threshold.value:.4f} ({threshold.low:.4f} to {threshold.high:.4f})"
        table.add_row(
            str(1000 + 100 * index), interval, f"{found:.4f}", f"{threshold.value / found:.3f}", f"{passes:,}"
        )
    console.print(table)


def _bisect(
    model: nn.Module, point: Tensor, updates: list[Tensor], batch: tuple[Tensor, Tensor], rounds: int = 8
) -> tuple[float, int]:
    passes = 0

    @torch.no_grad()
    def change(step: float) -> float:
        nonlocal passes
        losses = []
        for update in updates:
            move(model, point - step * update)
            losses.append(float(loss_fn(model, batch)))
        move(model, point)
        passes += len(updates) + 1
        return statistics.mean(losses) - float(loss_fn(model, batch))

    low, high = 0.0, STEP_SIZE / 8
    while change(high) < 0:
        low, high = high, 2 * high
    for _ in range(rounds):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if change(middle) < 0 else (low, middle)
    return 0.5 * (low + high), passes


def _wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 1400), nn.Tanh(), nn.Linear(1400, 1400), nn.Tanh(), nn.Linear(1400, 10))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _peak(mode: str) -> int:
    """Peak resident bytes of one step, or of a measurement after it, at batches of 50."""
    x, y = (part[:BATCH] for part in data())
    model = _wide()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss_fn(model, (x, y)).backward()
    optimizer.step()
    if mode == "measure":
        AlignmentMeter(model, loss_fn, [(x, y)], RANK).measure(1e-3, BATCH)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(_peak(sys.argv[1]))
