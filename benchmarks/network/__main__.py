"""What curvature, its top subspace and the meter cost on digits-mlp: ``python -m benchmarks.network``.

Products are the primary measure: they do not depend on the machine. Seconds are medians, measured alternately.
``--peers PYTHON`` adds other libraries: the Python of an environment that has torch, hessian-eigenthings,
curvlinops-for-pytorch (with scipy) and PyHessian. ``--quick`` shortens the runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.network import whole
from benchmarks.network.setting import RANK, Krylov, Run, data, error, move, network, operator
from etastar.network import SubspaceTracker
from etastar.network.graph import HessianGraph

# Products a warm refresh may take, by (spacing in steps, tolerance): the goals of the design.
LIMITS = {(50, 1e-2): 27, (50, 1e-3): 41, (10, 1e-2): 15, (1, 1e-2): RANK + 2}


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def alternating(works: list[Callable[[], object]], rounds: int = 7) -> list[float]:
    """Median seconds of each, taking turns, after one warm-up each."""
    for work in works:
        work()
    rows = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def refreshes(console: Console, runs: dict[int, Run]) -> None:
    """Products, error and seconds of a warm refresh, beside cold Lanczos at the same points."""
    table = Table(
        "refresh every",
        "tolerance",
        "products",
        "limit",
        "error / tolerance: mean, worst",
        "cold Lanczos, fewest",
        "products, ratio",
        "seconds, ratio",
        title="A refresh of the top 10: ours stops by its own estimate, Lanczos by the truth",
    )
    for spacing, run in runs.items():
        for tolerance in (1e-2, 1e-3):
            costs, errors, times = follow(run, tolerance)
            cold, cold_times = lanczos(run, tolerance)
            mine, reference = statistics.mean(costs[1:]), statistics.mean(cold)
            limit = LIMITS.get((spacing, tolerance))
            relative = [e / tolerance for e in errors[1:]]
            table.add_row(
                f"{spacing} steps",
                f"{tolerance:g}",
                f"{mine:.1f} (cold {costs[0]})",
                "" if limit is None else f"≤ {limit} {'met' if mine <= limit else 'MISSED'}",
                f"{statistics.mean(relative):.2f}, {max(relative):.2f}",
                f"{reference:.1f}",
                f"{mine / reference:.2f}",
                f"{statistics.median(times[1:]) / statistics.median(cold_times):.2f}",
            )
    console.print(table)


def follow(run: Run, tolerance: float) -> tuple[list[int], list[float], list[float]]:
    model = network()
    tracker = SubspaceTracker(operator(model, data()), RANK)
    costs, errors, times = [], [], []
    for point, reference in zip(run.points, run.references, strict=True):
        move(model, point)
        begin = time.perf_counter()
        found = tracker.refresh(tolerance)
        times.append(time.perf_counter() - begin)
        costs.append(found.products)
        errors.append(error(found.basis, reference))
    return costs, errors, times


def lanczos(run: Run, tolerance: float) -> tuple[list[int], list[float]]:
    """The fewest steps that reach the tolerance, and the seconds of a run that long."""
    model = network()
    matrix, costs, times = operator(model, data()), [], []
    for point, reference in list(zip(run.points, run.references, strict=True))[1:5]:
        move(model, point)
        with matrix.held():
            krylov = Krylov.of(matrix, 80)
        steps = range(RANK, 81)
        costs.append(next((n for n in steps if error(krylov.top(RANK, n), reference) <= tolerance), 81))

        def again(n: int = costs[-1]) -> object:
            with matrix.held():
                return Krylov.of(matrix, n).top(RANK, n)

        times.append(seconds(again))
    return costs, times


def variants(console: Console) -> None:
    """Ways to multiply, in gradients a product, by batch size and width of the block."""
    table = Table(
        "samples", "block", "retained, loop", "retained, stacked", "fresh graph", "ours", title="Gradients a product"
    )
    x, y = data()
    for size in (16, 50, 128, 600):
        for width in (1, 4, 13):
            table.add_row(str(size), str(width), *(f"{ratio:.2f}" for ratio in measure(x[:size], y[:size], width)))
    console.print(table)


def measure(x: torch.Tensor, y: torch.Tensor, width: int) -> list[float]:
    from benchmarks.network.setting import loss_fn

    model = network()
    matrix = operator(model, (x, y))
    tensors, vectors = matrix.vector.tensors, torch.randn(width, matrix.shape[0]).mT
    columns = [matrix.vector.split(column) for column in vectors.unbind(1)]
    block = matrix.vector.split(vectors)
    graph = HessianGraph.build(loss_fn(model, (x, y)), tensors)

    def gradient() -> object:
        return torch.autograd.grad(loss_fn(model, (x, y)), tensors)

    def loop() -> object:
        return [graph.product(column, False) for column in columns]

    def fresh() -> object:
        return [HessianGraph.build(loss_fn(model, (x, y)), tensors).product(column, False) for column in columns]

    def ours() -> object:
        with matrix.held():
            return matrix @ vectors

    base, *times = alternating([gradient, loop, lambda: graph.product(block, True), fresh, ours])
    return [value / base / width for value in times]


def peers(console: Console, python: str, runs: dict[int, Run]) -> None:
    """Other libraries from cold at one checkpoint: the cheapest setting of each that reaches a tolerance."""
    x, y = data()
    point, reference = runs[50].points[1], runs[50].references[1]
    with tempfile.TemporaryDirectory() as folder:
        problem, answers = Path(folder) / "problem.npz", Path(folder) / "answers.npz"
        np.savez(problem, parameters=point.numpy(), x=x.numpy(), y=y.numpy(), k=RANK)
        subprocess.run([python, str(Path(__file__).with_name("peers.py")), problem, answers], check=True)  # noqa: S603
        with np.load(answers, allow_pickle=False) as found:
            names = sorted({key.split("|")[0] for key in found})
            errors = {name: error(torch.tensor(found[f"{name}|basis"]), reference) for name in names}
            costs = {name: found[f"{name}|cost"] for name in names}
    mine = [
        (spacing, tolerance, *follow(runs[spacing], tolerance)) for tolerance in (1e-2, 1e-3) for spacing in (50, 1)
    ]
    table = Table(
        "tolerance", "who", "products", "seconds", *(f"ours every {n}: ratio" for n in (50, 1)), title="Peers"
    )
    for tolerance in (1e-2, 1e-3):
        times = [statistics.median(row[4][1:]) for row in mine if row[1] == tolerance]
        for library in ("hessian-eigenthings", "curvlinops", "PyHessian"):
            all_of_it = [name for name in names if name.startswith(library)]
            good = [name for name in all_of_it if errors[name] <= tolerance]
            best = min(good, key=lambda n: costs[n][0]) if good else min(all_of_it, key=errors.__getitem__)
            who = best if good else f"{best}: not reached, error {errors[best]:.1e}"
            products, elapsed = costs[best]
            ratios = (f"{value / elapsed:.2f}" for value in times)
            table.add_row(f"{tolerance:g}", who, f"{products:.0f}", f"{elapsed:.3f}", *ratios)
    console.print(table)
    console.print(
        "goals at 1e-2, seconds against the cheapest that reaches it: ≤ 0.5 every 50 steps, ≤ 0.25 every step"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", metavar="PYTHON", help="Python of an environment with the peers")
    parser.add_argument("--quick", action="store_true", help="fewer checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 150)
    variants(console)
    runs = {spacing: Run.of(spacing, 4 if options.quick else 11) for spacing in (50, 10, 1)}
    refreshes(console, runs)
    if options.peers:
        peers(console, options.peers, runs)
    whole.measurement(console)
    whole.training(console)
    whole.memory(console)
    whole.loss_raising_step(console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
