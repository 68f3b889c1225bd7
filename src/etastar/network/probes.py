"""Numerical probes of an operator: is it repeatable, symmetric, linear, and the derivative of its own gradient?

Each returns a relative discrepancy, and leaves the model as it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from etastar.network.curvature import HessianOperator
from etastar.network.parameters import ParameterVector

__all__ = ["asymmetry", "difference", "nonlinearity", "probe_vectors"]


def probe_vectors(operator: HessianOperator, gradient: Tensor, seed: int = 0) -> Tensor:
    """Two unit vectors ``(P, 2)`` with all parameters in them, the first along the gradient too, where curvature is."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(operator.shape[0], 2, generator=generator, dtype=torch.float64)
    vectors = (noise / noise.norm(dim=0)).to(operator.device, operator.dtype)
    size = gradient.norm()
    if bool(size > 0):
        vectors[:, 0] += gradient / size
    return vectors / vectors.norm(dim=0)


def asymmetry(vectors: Tensor, products: Tensor) -> float:
    """|uᵀHv − vᵀHu| over ‖Hu‖ + ‖Hv‖."""
    cross = (vectors.mT @ products).double()
    return _relative(cross[0, 1] - cross[1, 0], products)


def nonlinearity(operator: HessianOperator, vectors: Tensor, products: Tensor) -> float:
    """‖H(3u − 2v) − 3Hu + 2Hv‖ over ‖Hu‖ + ‖Hv‖."""
    weights = torch.tensor([3.0, -2.0], dtype=vectors.dtype, device=vectors.device)
    return _relative(operator @ (vectors @ weights) - products @ weights, products)


def difference(operator: HessianOperator, vector: Tensor, product: Tensor) -> float:
    """‖(∇L(θ+εv) − ∇L(θ−εv))/2ε − Hv‖ over ‖Hv‖, the best of three steps ε.

    The step balances round-off, eps·‖∇L‖/ε, against the third derivative, ε²; where the balance lies depends on
    the model, hence the three.
    """
    scale = 1.0 + float(operator.vector.current().norm())
    best = float("inf")
    for factor in (1.0, 8.0, 0.125):
        step = factor * scale * torch.finfo(operator.dtype).eps ** (1 / 3)
        with moved(operator.vector, step * vector):
            ahead = operator.gradient()
        with moved(operator.vector, -step * vector):
            behind = operator.gradient()
        found = ((ahead.double() - behind.double()) / (2 * step) - product.double()).norm()
        roundoff = torch.finfo(operator.dtype).eps * float(ahead.norm() + behind.norm()) / step
        best = min(best, max(float(found) - roundoff, 0.0) / max(float(product.double().norm()), 1e-300))
    return best


@contextmanager
def moved(vector: ParameterVector, by: Tensor) -> Generator[None]:
    """The parameters displaced by `by`, ``(P,)``; put back bit for bit, and as versions go never touched."""
    before = [tensor.detach().clone() for tensor in vector.tensors]
    try:
        for tensor, part in zip(vector.tensors, vector.split(by), strict=True):
            tensor.data.add_(part)
        yield
    finally:
        for tensor, value in zip(vector.tensors, before, strict=True):
            tensor.data.copy_(value)


def _relative(discrepancy: Tensor, products: Tensor) -> float:
    return float(discrepancy.double().norm()) / max(float(products.double().norm(dim=0).sum()), 1e-300)
