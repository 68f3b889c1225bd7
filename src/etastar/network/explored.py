"""What is known of a symmetric H after some products, in the coordinates of one orthonormal basis.

The basis B holds the vectors carried over from the last refresh, every direction explored since, and the images of
those. So H Z = B W exactly for the explored directions Z, and what is not known is H on the complement of Z. There a
model stands in, diagonal in the basis: a carried vector keeps the value θ it had; what came with the image of an
explored direction is taken to have that direction's Rayleigh quotient (0 where that was a carried vector: most of
a Hessian's spectrum is there),

    H ≈ B Θ Bᵀ   on Z⊥.

The coupling between Z and its complement is exact, so eigenvectors of the model are correct to first order in what
Z misses, at no further product; a carried vector serves without being multiplied. What the model's eigenvectors have
outside Z is the correction: where to look next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ExploredSpace", "Model", "SymmetricOperator"]

_MARGIN = 0.4  # of |λ_k| that a guess stays below λ_k: or a new direction would turn into a top eigenvector itself


class SymmetricOperator(Protocol):
    """A symmetric matrix known by its products; a square tensor is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, P)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its vectors live."""
        ...

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """The product with ``(P, m)``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Eigenpairs of the model and of its explored part, largest first; coordinates, float64 on the CPU.

    Attributes:
        values: Eigenvalues of the model on span B, ``(b,)``.
        vectors: Its eigenvectors in coordinates, ``(b, b)``.
        ritz_values: Ritz values of the explored space, ``(n,)``: lower bounds of H's own.
        ritz_vectors: In coordinates, ``(b, n)``.
        residuals: H z − μ z of each Ritz pair, exact, in coordinates, ``(b, n)``.
    """

    values: Tensor
    vectors: Tensor
    ritz_values: Tensor
    ritz_vectors: Tensor
    residuals: Tensor


class ExploredSpace:
    """The basis, the explored directions and their images; grows by `explore`.

    Args:
        operator: H.
        carried: Orthonormal vectors to start from, ``(P, c)``.
        values: What H's Rayleigh quotients along them were, ``(c,)``; empty if nothing is known of them.
    """

    def __init__(self, operator: SymmetricOperator, carried: Tensor, values: Tensor) -> None:
        count = carried.shape[1]
        self._operator = operator
        self._storage = _room(carried, count)  # one basis vector per row; more room is made when it is needed
        self._storage[:count] = carried.mT
        self._count = count
        self.kinds = torch.full((count,), 0 if values.numel() else 2)  # of each basis vector, see `parts`
        self._values = torch.nn.functional.pad(values, (0, count - values.numel()))
        self._explored = torch.zeros(count, 0, dtype=torch.float64)
        self._images = self._explored
        self._scale = 0.0
        self.finite = True

    @property
    def size(self) -> int:
        """b, the vectors of the basis."""
        return self._count

    @property
    def _rows(self) -> Tensor:
        return self._storage[: self._count]

    @property
    def explored(self) -> Tensor:
        """Z in coordinates, orthonormal, ``(b, n)``."""
        return self._explored

    @property
    def products(self) -> int:
        """n, the products spent; one more where the last was not finite."""
        return self._explored.shape[1] + (not self.finite)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Coordinates ``(b, m)`` as vectors ``(P, m)``."""
        weights = coordinates.to(self._rows)
        return (weights.mT @ self._rows[: coordinates.shape[0]]).mT

    def extended(self, coordinates: Tensor) -> Tensor:
        """Coordinates found when the basis was smaller, padded to its present size."""
        return torch.nn.functional.pad(coordinates, (0, 0, 0, self.size - coordinates.shape[0]))

    def outside(self, coordinates: Tensor) -> Tensor:
        """What lies outside the explored directions."""
        return coordinates - self._explored @ (self._explored.mT @ coordinates)

    @property
    def complete(self) -> bool:
        """Whether every direction there is has been explored."""
        return self.products == self._rows.shape[1]

    @property
    def resolution(self) -> float:
        """The size below which a coordinate is round-off."""
        return 64 * torch.finfo(self._rows.dtype).eps

    def parts(self, coordinates: Tensor) -> Tensor:
        """Squared norms of the parts along carried vectors, images of carried vectors, and the rest, ``(3,)``."""
        squares = coordinates.square().sum(1)
        return torch.zeros(3, dtype=torch.float64).index_add(0, self.kinds, squares)

    def explore(self, directions: Tensor) -> None:
        """Multiply `directions`, ``(b, m)`` in coordinates, orthonormal and outside Z; the basis takes in the images.

        One host synchronisation. Where the product is not finite, `finite` turns False and nothing else changes.
        """
        images = self._operator @ self.vectors(directions)
        inside, leftover = self._reduce(images)
        new, mixing = torch.linalg.qr(leftover)
        known = torch.cat([inside, mixing]).to("cpu", torch.float64)
        if not bool(torch.isfinite(known).all()):
            self.finite = False
            return
        self._scale = max(self._scale, float(known.norm(dim=0).max()))
        turn, coupling = self._significant(known[self.size :])
        kind = int(self.parts(directions).argmax())
        quotient = 0.0 if kind == 0 else float((directions * known[: self.size]).sum()) / directions.shape[1]
        coordinates = torch.cat([known[: self.size], coupling])
        self._append(new @ turn.to(new), quotient, 1 if kind == 0 else 2)
        self._explored = torch.cat([self.extended(self._explored), self.extended(directions)], 1)
        self._images = torch.cat([self.extended(self._images), coordinates], 1)

    def widen(self, vector: Tensor) -> bool:
        """Take a vector ``(P,)`` into the basis, without a product; False where the basis spans all there is."""
        if self.size == self._rows.shape[1]:
            return False
        _, leftover = self._reduce(vector[:, None])
        self._append(leftover / leftover.norm(), 0.0, 2)
        self._explored, self._images = self.extended(self._explored), self.extended(self._images)
        return True

    def model(self, rank: int) -> Model:
        """Eigenpairs of the model of H; `rank` says which eigenvalue a guess must stay below."""
        explored, images = self._explored, self._images
        count = explored.shape[1]
        known = explored.mT @ images
        ritz_values, mixing = _descending(known)
        ritz_vectors = explored @ mixing
        least = float(ritz_values[min(rank, count) - 1])
        guesses = torch.where(self.kinds == 0, self._values, self._values.clamp(max=least - _MARGIN * abs(least)))
        rest = torch.linalg.qr(explored, mode="complete")[0][:, count:]
        guess = rest.mT @ (guesses[:, None] * rest)
        coupling = rest.mT @ images
        values, vectors = _descending(torch.cat([torch.cat([known, coupling.mT], 1), torch.cat([coupling, guess], 1)]))
        residuals = images @ mixing - ritz_vectors * ritz_values
        return Model(values, torch.cat([explored, rest], 1) @ vectors, ritz_values, ritz_vectors, residuals)

    def _reduce(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in the basis and what is orthogonal to it, by Gram-Schmidt done twice."""
        first = self._rows @ vectors
        leftover = vectors - self._rows.mT @ first
        second = self._rows @ leftover
        return first + second, leftover - self._rows.mT @ second

    def _significant(self, mixing: Tensor) -> tuple[Tensor, Tensor]:
        """Which directions of what is left are no round-off, and the images' coordinates along them."""
        left, sizes, right = torch.linalg.svd(mixing)
        keep = sizes > self.resolution * self._scale
        return left[:, keep], sizes[keep, None] * right[keep]

    def _append(self, vectors: Tensor, value: float, kind: int) -> None:
        if (
            vectors.shape[1] > 1
        ):  # normalising magnified, in the smaller ones, what round-off of the larger ones had left
            vectors = vectors - self._rows.mT @ (self._rows @ vectors)
        unit = vectors / vectors.norm(dim=0, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
        added = unit.shape[1]
        if self._count + added > len(self._storage):
            grown = _room(unit, self._count + added)
            grown[: self._count] = self._rows
            self._storage = grown
        self._storage[self._count : self._count + added] = unit.mT
        self._count += added
        self._values = torch.nn.functional.pad(self._values, (0, unit.shape[1]), value=value)
        self.kinds = torch.nn.functional.pad(self.kinds, (0, unit.shape[1]), value=kind)


def _room(vectors: Tensor, count: int) -> Tensor:
    """Rows, not yet written, for `count` vectors like these ``(P, …)`` and as many again."""
    return torch.empty(count + max(count, 16), len(vectors), dtype=vectors.dtype, device=vectors.device)


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return values.flip(0), vectors.flip(1)
