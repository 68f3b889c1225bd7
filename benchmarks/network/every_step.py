"""A basis at every step of digits-mlp, on 256 samples: ``python -m benchmarks.network.every_step --peers PYTHON``.

Ours follows the run; the reference is curvlinops + eigsh at the same points, from cold and from the last basis, at the
loosest tolerance of its own that reaches the same error. PYTHON: of an environment that has torch, scipy and
curvlinops-for-pytorch; without it only our own columns are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

SAMPLES, POINTS, TOLERANCE, GOAL = 256, 6, 1e-2, 0.25
EIGSH_TOLERANCES = (3e-1, 1e-1, 1e-2)


def peer(problem: str, answers: str) -> None:
    """By their Python: products, seconds and bases of eigsh at every point, for every tolerance and start."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    given = np.load(problem, allow_pickle=False)
    x, y, k = torch.tensor(given["x"]), torch.tensor(given["y"]), int(given["k"])
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    parameters = list(model.parameters())
    found: dict[str, np.ndarray] = {}
    for tolerance in EIGSH_TOLERANCES:
        for start in ("cold", "last basis"):
            rows, bases = [], []
            vector = np.random.default_rng(0).standard_normal(given["points"].shape[1])
            for point in given["points"]:
                with torch.no_grad():
                    nn.utils.vector_to_parameters(torch.tensor(point), parameters)
                count = 0
                begin = time.perf_counter()
                inner = HessianLinearOperator(
                    model, nn.MSELoss(), parameters, [(x, y)], check_deterministic=False
                ).to_scipy()

                def product(v: np.ndarray, inner: LinearOperator = inner) -> np.ndarray:
                    nonlocal count
                    count += 1
                    return inner @ v.astype(np.float32).ravel()

                counted = LinearOperator(inner.shape, matvec=product, dtype=np.float32)
                basis = eigsh(counted, k=k, which="LA", tol=tolerance, v0=vector)[1]
                rows.append((count, time.perf_counter() - begin))
                bases.append(basis)
                vector = basis.sum(axis=1) if start == "last basis" else vector
            found[f"{start}, tol {tolerance:g}|cost"] = np.array(rows)
            found[f"{start}, tol {tolerance:g}|bases"] = np.array(bases)
    np.savez(answers, **found)


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.network.setting import RANK, Krylov, checkpoints, data, error, move, network, operator
    from etastar.network import SubspaceTracker

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", metavar="PYTHON", help="Python of an environment with curvlinops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = list(checkpoints(1, POINTS))
    batch, exact = (tuple(part[:SAMPLES] for part in data(kind)) for kind in (torch.float32, torch.float64))
    double, references = network(torch.float64), []
    matrix = operator(double, exact)
    for point in points:
        move(double, point.double())
        with matrix.held():
            references.append(Krylov.of(matrix, 110).top(RANK, 110))
    model = network()
    tracker, rows, errors = SubspaceTracker(operator(model, batch), RANK), [], []
    for point, reference in zip(points, references, strict=True):
        move(model, point)
        begin = time.perf_counter()
        refreshed = tracker.refresh(TOLERANCE)
        rows.append((refreshed.products, time.perf_counter() - begin))
        errors.append(error(refreshed.basis, reference))
    own = statistics.median(seconds for _, seconds in rows[1:])
    table = Table("who", "products", "ms", "error: mean, worst", "ours/theirs in time", title="A basis at every step")
    table.add_row("ours", *_costs(rows[1:]), _told(errors[1:]), "")
    if options.peers:
        theirs = _theirs(options.peers, points, batch, RANK)
        for name in sorted({key.split("|")[0] for key in theirs}):
            found = [error(torch.tensor(b), r) for b, r in zip(theirs[f"{name}|bases"], references, strict=True)][1:]
            costs = [tuple(row) for row in theirs[f"{name}|cost"][1:]]
            ratio = own / statistics.median(seconds for _, seconds in costs)
            reached = float(np.mean(found)) <= TOLERANCE
            verdict = f"{ratio:.2f} {'met' if ratio <= GOAL else 'MISSED'}" if reached else "error not reached"
            table.add_row(f"curvlinops + eigsh, {name}", *_costs(costs), _told(found), verdict)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(f"goal: at most {GOAL} of the cheapest that reaches an error of {TOLERANCE:g}")
    return 0


def _theirs(
    python: str, points: list[torch.Tensor], batch: tuple[torch.Tensor, ...], rank: int
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        problem, answers = Path(folder) / "problem.npz", Path(folder) / "answers.npz"
        np.savez(problem, points=torch.stack(points).numpy(), x=batch[0].numpy(), y=batch[1].numpy(), k=rank)
        subprocess.run([python, __file__, "--peer", problem, answers], check=True)  # noqa: S603
        with np.load(answers, allow_pickle=False) as found:
            return dict(found)


def _costs(rows: list[tuple[float, ...]]) -> tuple[str, str]:
    products, seconds = zip(*rows, strict=True)
    return f"{statistics.mean(products):.1f}", f"{1e3 * statistics.median(seconds):.1f}"


def _told(errors: list[float]) -> str:
    return f"{np.mean(errors):.1e}, {max(errors):.1e}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        torch.set_num_threads(1)
        peer(*sys.argv[2:])
        sys.exit(0)
    sys.exit(main())
