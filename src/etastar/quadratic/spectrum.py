"""The spectrum of a quadratic: eigenvalues with multiplicities, cut at a rank into dominant and bulk.

A repeated eigenvalue is one block and costs what a single one does, so that a dimension of 10⁹ is no harder
than two. A spectrum that came from a matrix or a data set also keeps its eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import real_array
from etastar.quadratic.arguments import design_matrix, finite_number, real_vector, symmetric_matrix, whole_number

__all__ = ["Spectrum"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Eigenvalues λ₁ ≥ … ≥ λ_d of a symmetric Hessian, as blocks, with the rank k of the dominant subspace.

    Attributes:
        eigenvalues: One per block, non-increasing, shape ``(blocks,)``, [loss/parameter²]. May be zero or negative.
        rank: k, the dimension of the dominant subspace; 1 ≤ k < d and λ_k > λ_{k+1}.
        multiplicities: How often each eigenvalue occurs, shape ``(blocks,)``; all one unless given.
        basis: Orthonormal eigenvectors as columns, shape ``(d, d)``; None where the coordinates are the eigenbasis.

    Raises:
        InvalidArgument: Empty, not finite, not sorted, a rank outside 1 … d − 1 or inside a block of equal ones.

    Example:
        >>> Spectrum([4.0, 1.0], rank=2, multiplicities=[2, 98]).dimension
        100
    """

    eigenvalues: Array
    rank: int
    multiplicities: npt.NDArray[np.int64] = None  # pyright: ignore[reportAssignmentType]
    basis: Array | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        eigenvalues = real_vector("eigenvalues", self.eigenvalues)
        rising = eigenvalues[1:] > eigenvalues[:-1]
        if np.any(rising):
            where = int(np.argmax(rising))
            given = float(eigenvalues[where + 1])
            raise InvalidArgument(f"eigenvalues[{where + 1}]", given, "eigenvalues must be sorted, largest first")
        counts = np.ones(eigenvalues.size, dtype=np.int64)
        if self.multiplicities is not None:  # pyright: ignore[reportUnnecessaryComparison]
            counts = _counts(self.multiplicities, eigenvalues.size)
        rank = whole_number("rank", self.rank)
        _check_cut(eigenvalues, counts, rank)
        size = int(counts.sum())
        if self.basis is not None and np.shape(self.basis) != (size, size):
            raise InvalidArgument("basis", np.shape(self.basis), f"must hold {size} eigenvectors as columns")
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "multiplicities", counts)
        object.__setattr__(self, "rank", rank)

    @property
    def dimension(self) -> int:
        """d, counted with multiplicity."""
        return int(self.multiplicities.sum())

    @property
    def cut(self) -> int:
        """The number of blocks that are dominant: ``eigenvalues[:cut]`` is dominant, the rest bulk."""
        return int(np.searchsorted(np.cumsum(self.multiplicities), self.rank)) + 1

    @property
    def ratio(self) -> float:
        """λ_k/λ_{k+1}; inf where λ_{k+1} = 0, NaN where it is negative."""
        upper, lower = float(self.eigenvalues[self.cut - 1]), float(self.eigenvalues[self.cut])
        if lower == 0:
            return float("inf")
        return upper / lower if lower > 0 else float("nan")

    @classmethod
    def two_level(cls, dimension: int, rank: int, dominant: float, bulk: float) -> Spectrum:
        """Two distinct eigenvalues: `dominant` `rank` times, `bulk` for the rest."""
        size, k = whole_number("dimension", dimension, least=2), whole_number("rank", rank)
        if not 0 < k < size:
            raise InvalidArgument("rank", rank, f"must be at least 1 and less than the dimension {size}")
        return cls(np.array([dominant, bulk]), k, np.array([k, size - k]))

    @classmethod
    def power_law(cls, dimension: int, rank: int, exponent: float = 1.0, largest: float = 1.0) -> Spectrum:
        """λ_i = largest · i^(−exponent), i = 1 … dimension."""
        size = whole_number("dimension", dimension, least=2)
        scale, power = finite_number("largest", largest, least=0.0), finite_number("exponent", exponent, least=0.0)
        return cls(scale * np.arange(1.0, size + 1) ** -power, rank)

    @classmethod
    def paper(cls, ratio: float = 100.0, dimension: int = 500, rank: int = 50) -> Spectrum:
        """The paper's spectrum at its parameter r: the eigenvalue ratio λ_k/λ_{k+1} comes out as r + 0.1.

        ``linspace(100, 80, k)`` above ``linspace(7, 1, d − k)``, the latter rescaled (Section 7; d = 500, k = 50).

        Example:
            >>> round(Spectrum.paper(ratio=5).ratio, 9)
            5.1
        """
        size, k = whole_number("dimension", dimension, least=2), whole_number("rank", rank)
        if not 0 < k < size:
            raise InvalidArgument("rank", rank, f"must be at least 1 and less than the dimension {size}")
        if finite_number("ratio", ratio) + 0.1 <= 1.0:
            raise InvalidArgument("ratio", ratio, "must be above 0.9, so that dominant exceeds bulk")
        dominant = np.linspace(100.0, 80.0, k)
        bulk = np.linspace(7.0, 1.0, size - k)
        return cls(np.concatenate([dominant, bulk * (dominant[-1] / (ratio + 0.1) / bulk[0])]), k)

    @classmethod
    def from_matrix(cls, H: Any, rank: int) -> Spectrum:
        """Eigen-decomposition of a symmetric matrix, shape ``(d, d)``; symmetrised where asymmetric by round-off."""
        eigenvalues, basis = np.linalg.eigh(symmetric_matrix("H", H))
        return cls(eigenvalues[::-1].copy(), rank, basis=basis[:, ::-1].copy())

    @classmethod
    def from_least_squares(cls, X: Any, rank: int, ridge: float = 0.0) -> Spectrum:
        """Spectrum of the loss ½·mean((Xw − y)²) + ½·ridge·‖w‖², X of shape ``(n, d)``: H = XᵀX/n + ridge·I."""
        added = finite_number("ridge", ridge, least=0.0)
        eigenvalues, basis = design_eigenbasis(design_matrix(X))
        return cls(eigenvalues + added, rank, basis=basis)

    def to_eigenbasis(self, v: Any) -> Array:
        """Coordinates of parameter-space vectors ``(*batch, d)`` in the eigenbasis."""
        vectors = self._vectors(v)
        return vectors if self.basis is None else vectors @ self.basis

    def from_eigenbasis(self, v: Any) -> Array:
        """Inverse of `to_eigenbasis`."""
        vectors = self._vectors(v)
        return vectors if self.basis is None else vectors @ self.basis.T

    def _vectors(self, v: Any) -> Array:
        vectors = real_array("v", v, "must be real numbers")
        if vectors.ndim == 0 or vectors.shape[-1] != self.dimension:
            raise InvalidArgument("v", vectors.shape, f"the last axis must have the dimension {self.dimension}")
        return vectors


def design_eigenbasis(X: Array) -> tuple[Array, Array]:
    """Eigenvalues (non-increasing, ≥ 0) and eigenvectors (columns) of XᵀX/n, by SVD: nothing is squared first."""
    triangle = np.linalg.qr(X, mode="r")
    _, singular, rows = np.linalg.svd(triangle, full_matrices=True)
    eigenvalues = np.zeros(X.shape[1])
    with np.errstate(over="ignore"):
        eigenvalues[: singular.size] = singular**2 / X.shape[0]
    return eigenvalues, rows.T


def _counts(value: Any, blocks: int) -> npt.NDArray[np.int64]:
    counts = real_vector("multiplicities", value)
    if counts.size != blocks:
        raise InvalidArgument("multiplicities", counts.shape, f"must have one entry for each of {blocks} eigenvalues")
    if np.any(counts < 1) or np.any(counts != np.floor(counts)) or counts.sum() > 2**62:
        raise InvalidArgument("multiplicities", value, "must be whole numbers of at least 1")
    return counts.astype(np.int64)


def _check_cut(eigenvalues: Array, counts: npt.NDArray[np.int64], rank: int) -> None:
    ends = np.cumsum(counts)
    if not 0 < rank < ends[-1]:
        raise InvalidArgument("rank", rank, f"must be at least 1 and less than the dimension {ends[-1]}")
    # Clean cuts: between blocks whose eigenvalues differ.
    clean = ends[:-1][eigenvalues[1:] < eigenvalues[:-1]]
    if rank not in clean:
        below, above = clean[clean < rank], clean[clean > rank]
        nearest = [str(int(cut)) for cut in (*below[-1:], *above[:1])]
        remedy = f"nearest clean ranks: {' and '.join(nearest)}" if nearest else "this spectrum has no gap at all"
        raise InvalidArgument("rank", rank, f"cuts through equal eigenvalues (λ_k = λ_(k+1)); {remedy}")
