"""Eigen-decomposition of a diagonal matrix less a rank-one one, D − vvᵀ, each component to its own digits.

A dense eigensolver is right to ε‖D‖ only, which is nothing for the slow modes of a wide spectrum. Here eigenvalues
come as distances from the nearest pole of the secular equation 1 = Σ v_i²/(d_i − x), by bisection over floats, and
eigenvectors from the v that has exactly these eigenvalues (Gu & Eisenstat 1994, doi:10.1137/S089547989223924X).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RankOne", "decompose"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RankOne:
    """D − vvᵀ as a function can use it: Σ_k f(x_k)·(left·vector_k)(vector_k·right).

    Attributes:
        eigenvalues: x ascending, ``(groups,)``: those that couple.
        vectors: Orthonormal, as columns over the given entries, ``(size, groups)``.
        poles: d of the given entries, ``(size,)``; what is orthogonal to v within equal ones keeps them.
        tied: True for entries that share their pole with another, ``(size,)``.
    """

    eigenvalues: Array
    vectors: Array
    poles: Array
    tied: npt.NDArray[np.bool_]

    def remainder(self, z: Array) -> Array:
        """What the vectors do not span of ``(rows, size)``: the parts within ties that do not couple."""
        if not np.any(self.tied):
            return np.zeros_like(z)
        return np.where(self.tied, z - (z @ self.vectors) @ self.vectors.T, 0.0)


def decompose(d: Array, v: Array) -> RankOne:
    """Decompose diag(d) − vvᵀ, all v > 0; O(size²)."""
    poles, group, counts = np.unique(d, return_inverse=True, return_counts=True)
    weight = np.sqrt(np.bincount(group, v * v))
    origin, offset = _roots(poles, weight)
    # Distances d_i − x_k: from a pole first, so that nothing cancels.
    distance = (poles[:, None] - poles[origin]) - offset
    fitted = _fitted_weights(poles, distance)
    vectors = fitted[:, None] / distance
    vectors /= np.sqrt(np.einsum("ij,ij->j", vectors, vectors))
    share = v / weight[group]
    return RankOne(poles[origin] + offset, vectors[group] * share[:, None], d, counts[group] > 1)


def _roots(poles: Array, weight: Array) -> tuple[npt.NDArray[np.intp], Array]:
    """Per root its nearest pole and the signed offset from it: x_k lies between the poles k − 1 and k."""
    size, squares = poles.size, weight * weight
    below = np.diff(poles, prepend=poles[0] - squares.sum())
    index = np.arange(size)
    half = 0.5 * below
    right = _secular(poles[:, None] - poles, squares, -half) > 0
    right[0] = True
    origin = np.where(right, index, index - 1)
    sign = np.where(right, -1.0, 1.0)
    widest = np.where(index == 0, np.maximum(below[0], squares.sum()), half)
    from_origin = poles[:, None] - poles[origin]
    # Positive floats are ordered as the integers that they are: this bisection ends at neighbours of any size.
    low, high = np.zeros(size, dtype=np.int64), widest.view(np.int64)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        value = _secular(from_origin, squares, sign * middle.view(np.float64))
        # It falls from +∞ above the lower pole to −∞ below the upper one.
        outwards = np.where(right, value < 0, value > 0)
        low, high = np.where(outwards, middle, low), np.where(outwards, high, middle)
    return origin, sign * high.view(np.float64)


def _secular(from_origin: Array, squares: Array, offset: Array) -> Array:
    """1 − Σ_i v_i²/(d_i − x_k), all k at once."""
    with np.errstate(divide="ignore", over="ignore"):
        return 1.0 - squares @ (1.0 / (from_origin - offset))


def _fitted_weights(poles: Array, distance: Array) -> Array:
    """The v for which the computed roots are exact: v_i² = (d_i − x_i)·Π_k (d_i − x_k)/(d_i − d_k), k ≠ i."""
    gaps = poles[:, None] - poles
    np.fill_diagonal(gaps, 1.0)
    return np.sqrt(np.prod(distance / gaps, axis=1))
