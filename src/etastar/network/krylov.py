"""Spectral measures of a curvature from a few products: what a quadratic model does to a vector needs no more of H.

What t steps of descent do to a gradient is a polynomial in H. A handful of Lanczos vectors beside a dominant basis
already known integrate it to many digits, where the eigenvectors themselves would take hundreds of products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.network.explored import SymmetricOperator
from etastar.network.producer import Basis

__all__ = ["RitzSpace", "quadrature", "ritz_space"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RitzSpace:
    """H and a gradient, seen from the dominant basis and the Krylov space of the gradient's bulk part.

    Attributes:
        vectors: Ritz vectors, orthonormal, ``(P, n)``.
        values: Ritz values, largest first, ``(n,)``, [loss/parameter²].
        gradient: The gradient's coordinates; it lies in the space, ``(n,)``.
        rank: k; the first k Ritz vectors are the dominant ones.
    """

    vectors: Tensor
    values: Array
    gradient: Array
    rank: int

    def lift(self, coordinates: Array) -> Tensor:
        """Coordinates ``(n,)`` as a vector ``(P,)``."""
        return self.vectors @ torch.as_tensor(coordinates).to(self.vectors)

    def coordinates(self, vector: Tensor) -> Array:
        """Coordinates of a vector ``(P,)``, ``(n,)``."""
        return (self.vectors.mT @ vector).double().cpu().numpy()


def ritz_space(
    operator: SymmetricOperator,
    basis: Basis,
    gradient: Tensor,
    watched: Callable[[Array, Array], float],
    tolerance: float,
    most: int = 40,
) -> RitzSpace:
    """Extend `basis` by Lanczos, full re-orthogonalisation, from the gradient's bulk part; one product a vector.

    Args:
        operator: H.
        basis: Orthonormal, not multiplied again: coupling to the rest comes with the rest's own products.
        gradient: g, ``(P,)``.
        watched: From Ritz values and the gradient's coordinates, ``(n,)`` each, to what is wanted.
        tolerance: Stop when a product changed that by no more than this share.
        most: Products to spend at most.
    """
    rows = basis.vectors.mT
    matrix = basis.projected.double().cpu().numpy()
    left = basis.bulk(gradient)
    inside = np.append(basis.coordinates(gradient).double().cpu().numpy(), float(left.norm()))
    least = 64 * torch.finfo(gradient.dtype).eps
    before, scale = np.inf, float(gradient.norm())
    size, mixing = float(left.norm()), np.eye(len(rows))
    while size > least * scale and len(rows) < min(basis.vectors.shape[1] + most, operator.shape[0]):
        rows = torch.cat([rows, (left / size)[None]])
        left, known = _reduced(operator @ rows[-1], rows)
        size, scale = float(left.norm()), float(np.linalg.norm(known))
        matrix = np.block([[matrix, known[:-1, None]], [known[None]]])
        values, mixing = np.linalg.eigh(matrix)
        found = watched(values, mixing.T @ np.pad(inside, (0, len(rows) - len(inside))))
        if abs(found - before) <= tolerance * abs(found):
            break
        before = found
    values, mixing = np.linalg.eigh(matrix)
    order = np.argsort(values)[::-1]
    inside = np.pad(inside, (0, max(0, len(rows) - len(inside))))[: len(rows)]
    vectors = (torch.as_tensor(mixing[:, order].T).to(rows) @ rows).mT
    return RitzSpace(vectors, values[order], mixing[:, order].T @ inside, basis.vectors.shape[1])


def quadrature(operator: SymmetricOperator, rows: Tensor, depth: int) -> tuple[Array, Array]:
    """Gauss nodes and weights of the spectral measure of each row ``(m, P)``: zᵀf(H)z ≈ Σ weight·f(node).

    Exact for polynomials f below degree 2·depth; `depth` products a row, in blocks. Shapes ``(m, depth)``.
    """
    tiny = torch.finfo(rows.dtype).tiny
    size = rows.norm(dim=1)
    basis = (rows / size.clamp_min(tiny)[:, None])[:, None]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(depth, rows.shape[1])):
        images = (operator @ basis[:, -1].mT).mT
        diagonal.append((basis[:, -1] * images).sum(dim=1))
        for _ in range(2):
            images = images - ((basis @ images[..., None]).mT @ basis)[:, 0]
        beside.append(images.norm(dim=1))
        basis = torch.cat([basis, (images / beside[-1].clamp_min(tiny)[:, None])[:, None]], dim=1)
    off = torch.stack(beside, 1)[:, :-1]
    matrix = torch.diag_embed(torch.stack(diagonal, 1)) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(matrix.double().cpu())
    weights = vectors[:, 0].square() * size.double().cpu().square()[:, None]
    return nodes.numpy(), weights.numpy()


def _reduced(vector: Tensor, rows: Tensor) -> tuple[Tensor, Array]:
    """What is orthogonal to the rows, by Gram-Schmidt done twice, and the coordinates taken out."""
    first = rows @ vector
    left = vector - rows.mT @ first
    second = rows @ left
    return left - rows.mT @ second, (first + second).double().cpu().numpy()
