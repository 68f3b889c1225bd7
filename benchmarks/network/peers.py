"""Cold top-k eigenvectors by other libraries: run by *their* Python, which needs nothing of ours.

Usage: ``PYTHON peers.py problem.npz answers.npz``. Reads the weights of a 64-100-100-10 tanh network, its data and k;
writes for every library and setting the basis, the products and the seconds.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

LANCZOS_STEPS = (36, 40, 44, 48, 52, 60)
EIGSH_TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
POWER_TOLERANCES = (1e-3, 1e-4, 1e-5)
REPEATS = 3

Answer = tuple[np.ndarray, int]


def hessian_eigenthings(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, k: int
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.operators.hessian import HessianOperator

    def run(steps: int) -> Answer:
        operator = HessianOperator(model, [(x, y)], lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]))
        found = lanczos(operator, k=k, max_iter=steps, which="LA", reorthogonalize=True, seed=0)
        vectors = found.eigenvectors
        return np.asarray(vectors.T if vectors.shape[0] == k else vectors), steps

    for steps in LANCZOS_STEPS:
        yield f"hessian-eigenthings, Lanczos {steps}", lambda steps=steps: run(steps)


def curvlinops_eigsh(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, k: int
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    def run(tolerance: float) -> Answer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        inner = HessianLinearOperator(model, nn.MSELoss(), parameters, [(x, y)], check_deterministic=False).to_scipy()
        count = 0

        def product(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return inner @ v.astype(np.float32).ravel()

        counted = LinearOperator(inner.shape, matvec=product, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(inner.shape[0])
        return eigsh(counted, k=k, which="LA", tol=tolerance, v0=start)[1], count

    for tolerance in EIGSH_TOLERANCES:
        yield f"curvlinops + eigsh, tol {tolerance:g}", lambda tolerance=tolerance: run(tolerance)


def pyhessian_power(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, k: int
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    library = importlib.import_module("pyhessian.hessian")  # the package hides its module behind a class

    def run(tolerance: float) -> Answer:
        count, plain = 0, library.hessian_vector_product

        def product(*arguments: object) -> object:
            nonlocal count
            count += 1
            return plain(*arguments)

        library.hessian_vector_product = product
        try:
            torch.manual_seed(0)
            computer = library.hessian(model, nn.MSELoss(), data=(x, y), cuda=False)
            _, vectors = computer.eigenvalues(maxIter=500, tol=tolerance, top_n=k)
        finally:
            library.hessian_vector_product = plain
        return np.stack([torch.cat([part.reshape(-1) for part in v]).detach().numpy() for v in vectors], 1), count

    for tolerance in POWER_TOLERANCES:
        yield f"PyHessian, tol {tolerance:g}", lambda tolerance=tolerance: run(tolerance)


def main() -> None:
    torch.set_num_threads(1)
    problem = np.load(sys.argv[1], allow_pickle=False)
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    nn.utils.vector_to_parameters(torch.tensor(problem["parameters"]), model.parameters())
    x, y, k = torch.tensor(problem["x"]), torch.tensor(problem["y"]), int(problem["k"])
    answers: dict[str, np.ndarray] = {}
    for library in (hessian_eigenthings, curvlinops_eigsh, pyhessian_power):
        for name, run in library(model, x, y, k):
            seconds = []
            for _ in range(1 if library is pyhessian_power else REPEATS):
                begin = time.perf_counter()
                basis, products = run()
                seconds.append(time.perf_counter() - begin)
            answers[f"{name}|basis"] = np.linalg.qr(np.asarray(basis, dtype=np.float64))[0]
            answers[f"{name}|cost"] = np.array([products, np.median(seconds)])
    np.savez(sys.argv[2], **answers)


if __name__ == "__main__":
    main()
