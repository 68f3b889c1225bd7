"""Numerical probes of an operator: symmetric, linear, the derivative of its gradient, and that the loss's derivative?

Each returns a relative discrepancy, and leaves the model as it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etastar.network.curvature import HessianOperator
from etastar.network.isolation import moved

__all__ = ["asymmetry", "difference", "nonlinearity", "probe_vectors", "slope"]


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


def difference(operator: HessianOperator, vector: Tensor, product: Tensor, enough: float) -> float:
    """‖(∇L(θ+εv) − ∇L(θ−εv))/2ε − Hv‖ over ‖Hv‖, the best of up to three steps ε.

    The step balances round-off, eps·‖∇L‖/ε, against the third derivative, ε²; where the balance lies depends on
    the model, hence the three. The first that is no more than `enough` is taken.
    """
    size = max(float(product.double().norm()), 1e-300)

    def found(step: float) -> float:
        ahead, behind = (_displaced(operator, sign * step * vector, operator.gradient).double() for sign in (1, -1))
        roundoff = torch.finfo(operator.dtype).eps * float(ahead.norm() + behind.norm()) / step
        return max(float(((ahead - behind) / (2 * step) - product.double()).norm()) - roundoff, 0.0) / size

    return _best(operator, found, enough)


def slope(operator: HessianOperator, vector: Tensor, gradient: Tensor, enough: float) -> float:
    """|(L(θ+εv) − L(θ−εv))/2ε − ⟨∇L, v⟩| over ‖∇L‖ for a unit vector v, as `difference`.

    Where ‖∇L‖ is smaller than its change within the step, as at a minimum, over that change.
    """
    expected, here = float(gradient.double() @ vector.double()), float(gradient.double().norm())

    def found(step: float) -> float:
        ahead, behind = (_displaced(operator, sign * step * vector, operator.loss) for sign in (1, -1))
        size = max(here, float(_displaced(operator, step * vector, operator.gradient).double().norm()), 1e-300)
        roundoff = 4 * torch.finfo(operator.dtype).eps * (abs(ahead) + abs(behind)) / step
        return max(abs((ahead - behind) / (2 * step) - expected) - roundoff, 0.0) / size

    return _best(operator, found, enough)


def _displaced(operator: HessianOperator, by: Tensor, read: Callable[[], Any]) -> Any:
    with moved(operator.vector.tensors, operator.vector.split(by)):
        return read()


def _best(operator: HessianOperator, found: Callable[[float], float], enough: float) -> float:
    step = (1.0 + float(operator.vector.current().norm())) * torch.finfo(operator.dtype).eps ** (1 / 3)
    best = float("inf")
    for factor in (1.0, 8.0, 0.125):
        best = min(best, found(factor * step))
        if best <= enough:
            break
    return best


def _relative(discrepancy: Tensor, products: Tensor) -> float:
    return float(discrepancy.double().norm()) / max(float(products.double().norm(dim=0).sum()), 1e-300)
