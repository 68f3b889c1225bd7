"""How far a subspace may be from the true one: an estimate to stop by, and a bound to rely on.

Both are about the angle to the span of H's own top k eigenvectors. Error means ‖(I − V Vᵀ) V*‖_F / √k, the root mean
square of the sines of the principal angles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etastar.network.explored import Model

__all__ = ["ErrorEstimate", "angle_bound", "eigenvalue_shift"]

_LARGEST = 2.0  # a response: more is a direction that changed sides, which says nothing about the rest
_MEMORY = 3  # products of a kind that its response is taken from
_SAFETY = 4.0  # on the squared error


class ErrorEstimate:
    """The error that is left, from how the subspace has answered to products so far.

    The correction E is what the model says the explored space misses. A product with one direction of E replaces
    the model there by the truth, and the subspace moves: the squared move per squared correction explored is the
    response κ, and what is still unexplored will move it by √κ‖E‖_F. Directions of different kinds (carried ones, a
    small gap away; images of those, mostly of little curvature; images of images) answer differently, so each kind
    has its own κ, from its last few products. An estimate, no bound; meant to err on the large side.

    Args:
        rank: k.
        responses: κ of each kind to assume before its first product, ``(3,)``.
    """

    def __init__(self, rank: int, responses: Tensor) -> None:
        self._rank = rank
        self._before = responses
        self._answers: list[list[tuple[float, float]]] = [[] for _ in responses]
        self.value = math.inf

    @property
    def responses(self) -> Tensor:
        """κ of each kind as things stand."""
        ratios = self._ratios(slice(-_MEMORY, None))
        ratios[-1] = torch.maximum(ratios[-1], 0.5 * self._before[-1])  # quiet images of images may have loud ones
        return ratios

    @property
    def first_responses(self) -> Tensor:
        """κ of the first products of each kind, mixed with what was assumed: for the next refresh to begin with."""
        return 0.5 * (self._before + self._ratios(slice(_MEMORY)))

    def answered(self, kind: int, explored: float, move: float) -> None:
        """One direction was explored.

        Args:
            kind: Of which kind it was.
            explored: Its share ‖xᵀE‖² of the correction.
            move: ‖(I − V Vᵀ) V'‖_F² between the subspaces before and after.
        """
        self._answers[kind].append((explored, move))

    def update(self, parts: Tensor) -> None:
        """The parts of ‖E‖_F² of each kind that are still unexplored, ``(3,)``."""
        self.value = math.sqrt(_SAFETY * float(self.responses @ parts) / self._rank)

    def _ratios(self, which: slice) -> Tensor:
        ratios = self._before.clone()
        for kind, answers in enumerate(self._answers):
            explored, move = (sum(part) for part in zip(*answers[which], strict=True)) if answers else (0.0, 0.0)
            if explored > 0:
                ratios[kind] = min(move / explored, _LARGEST)
        return ratios


def eigenvalue_shift(model: Model, rank: int) -> float:
    """By how much an eigenvalue near λ_k may exceed its Ritz value, to second order: max ‖r_i‖²/μ_k."""
    residuals = model.residuals[:, : rank + 1].norm(dim=0)
    distance = float(model.ritz_values[rank - 1])
    largest = float(residuals.max())
    return min(largest, largest**2 / distance) if distance > 0 else largest


def angle_bound(model: Model, rank: int, next_bound: float, roundoff: float) -> float:
    """The largest principal angle [rad] between the model's and H's top k eigenvectors, if λ_{k+1} ≤ `next_bound`.

    Davis and Kahan (doi:10.1137/0707001) for the Ritz vectors V of the explored space, whose residuals R are known
    exactly: sin∠ ≤ ‖R‖₂/(μ_k − λ_{k+1}), or column by column √Σ(‖r_i‖/(μ_i − λ_{k+1}))²; plus the angle, also known,
    between V and the model's eigenvectors. π/2 where the gap is not resolved.
    """
    if model.ritz_values.numel() < rank:
        return math.pi / 2
    gaps = model.ritz_values[:rank] - next_bound
    if float(gaps[-1]) <= 0:
        return math.pi / 2
    residuals = model.residuals[:, :rank]
    together = (float(torch.linalg.matrix_norm(residuals, 2)) + roundoff) / float(gaps[-1])
    apart = float(((residuals.norm(dim=0) + roundoff) / gaps).norm())
    ritz, chosen = model.ritz_vectors[:, :rank], model.vectors[:, :rank]
    moved = float(torch.linalg.matrix_norm(chosen - ritz @ (ritz.mT @ chosen), 2))
    return min(math.asin(min(together, apart, 1.0)) + math.asin(min(moved, 1.0)), math.pi / 2)
