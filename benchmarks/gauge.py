"""What the gauge costs on digits-mlp (64-100-100-10 tanh, batch 50): ``python -m benchmarks.gauge``.

Ratios within one run, alternating runs so that the machine's moods fall on both sides. Gradient evaluations are
counted; the gauge's own vector work is what the step takes longer beyond them.
"""

from __future__ import annotations

import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from etastar.network.gauge.step_gauge import StepGauge

STEPS, REPEATS, BATCH = 512, 9, 50
MODES = ("none", "shuffled", "independent")


def train(mode: str, optimizer_name: str, data: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Seconds per step, second gradients per step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    optimizer = makers[optimizer_name](model.parameters())
    loss_fn = nn.CrossEntropyLoss()
    gauge = None if mode == "none" else StepGauge(optimizer, sampling=mode)
    x, y = data
    start = time.perf_counter()
    for _ in range(STEPS):
        if gauge is not None and gauge.due:
            other = torch.randint(0, len(x), (BATCH,))
            gauge.second(lambda other=other: loss_fn(model(x[other]), y[other]))
        batch = torch.randint(0, len(x), (BATCH,))
        optimizer.zero_grad()
        loss_fn(model(x[batch]), y[batch]).backward()
        optimizer.step()
    if gauge is not None:
        gauge.summary()
    return (time.perf_counter() - start) / STEPS, 0.0 if gauge is None else gauge.overhead


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    digits = load_digits()
    data = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    print(f"{'optimizer':10s} {'gauge':12s} {'µs per step':>12s} {'time':>8s} {'extra gradients':>16s}")
    for optimizer in ("sgd", "momentum", "adamw"):
        runs = [{mode: train(mode, optimizer, data) for mode in MODES} for _ in range(REPEATS)]
        for mode in MODES:
            seconds = statistics.median(run[mode][0] for run in runs)
            ratio = statistics.median(run[mode][0] / run["none"][0] for run in runs)
            extra = runs[0][mode][1]
            print(f"{optimizer:10s} {mode:12s} {1e6 * seconds:12.0f} {ratio - 1:+8.1%} {extra:16.2%}")


if __name__ == "__main__":
    main()
