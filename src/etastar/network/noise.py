"""The noise of mini-batches on a training set: covariance of per-sample gradients, as far as a subspace needs it.

One pass over the per-sample gradients gives the dominant block exactly, the bulk's trace, and probes of the whole
for everything that needs a product with the Hessian. Nothing of the size samples × parameters is kept or copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.curvature import CurvatureOperator
from etastar.network.persample import per_sample_pieces

__all__ = ["SampleNoise", "sample_noise"]

_MEAN_TOLERANCE = 1e-3  # how far the mean of per-sample gradients may lie from the gradient of the mean loss


@dataclass(frozen=True, slots=True, eq=False)
class SampleNoise:
    """Σ of a single sample, seen from a basis V.

    Attributes:
        dominant: Vᵀ Σ V, exact, float64 on the CPU, ``(k, k)``.
        bulk: tr(Q Σ), float64; what is left of the trace, to about 1e-6 of the whole in float32.
        probes: Independent rows z with E z zᵀ = Σ, ``(m, P)``. Each combines the deviations of *all* samples with
            random signs: far lighter tails than single samples have.
    """

    dominant: Tensor
    bulk: float
    probes: Tensor


def sample_noise(
    operator: CurvatureOperator,
    loss_fn: Callable[[Any, Any], Tensor],
    vectors: Tensor,
    gradient: Tensor,
    probes: int,
    seed: int,
) -> SampleNoise:
    """Read the per-sample gradients of the operator's batches once.

    Args:
        operator: Its batches are the training set.
        loss_fn: The mean over samples along the leading dimension.
        vectors: V, orthonormal, ``(P, k)``.
        gradient: ∇L over all batches, ``(P,)``.
        probes: m.
        seed: Of the signs.

    Raises:
        InvalidArgument: A loss that is no mean over samples.
    """
    split, total = operator.vector.split, operator.samples
    generator = torch.Generator(device=operator.device).manual_seed(seed)
    sums = torch.zeros(1 + probes, operator.vector.size, dtype=operator.dtype, device=operator.device)
    parts = [split(row) for row in sums]
    onto = [torch.stack(pieces, 1) for pieces in zip(*map(_flat(split), [*vectors.unbind(1), gradient]), strict=True)]
    coordinates: list[Tensor] = []
    squares: list[Tensor] = []
    signs_sum = torch.zeros(probes, dtype=operator.dtype, device=operator.device)
    with operator.reading() as batches:
        for batch in batches:
            for pieces in per_sample_pieces(operator.model, loss_fn, operator.vector, batch):
                height = len(pieces[0])
                signs = torch.randint(0, 2, (probes, height), generator=generator, device=operator.device)
                weights = torch.cat([torch.ones_like(signs[:1]), 2 * signs - 1]).to(operator.dtype)
                signs_sum += weights[1:].sum(dim=1)
                flat = [piece.reshape(height, -1) for piece in pieces]
                for index, piece in enumerate(flat):
                    for row, part in zip(weights @ piece, parts, strict=True):
                        part[index].view(-1).add_(row)
                coordinates.append(sum(piece @ side for piece, side in zip(flat, onto, strict=True)))  # pyright: ignore[reportArgumentType]
                squares.append(sum(torch.linalg.vector_norm(piece, dim=1).double() ** 2 for piece in flat))  # pyright: ignore[reportArgumentType]
    _refuse_other_mean(sums[0] / total, gradient, float(torch.cat(squares).mean().sqrt()))
    seen = torch.cat(coordinates).double()
    inside = seen[:, :-1] - (vectors.mT @ gradient).double()
    energy = gradient.double() @ gradient.double()
    deviation = torch.cat(squares) - 2.0 * seen[:, -1] + energy  # ‖∇ℓ_i − ∇L‖²
    bulk = float((deviation.sum() - inside.square().sum()) / total)
    drawn = (sums[1:] - signs_sum[:, None] * gradient) / math.sqrt(total)
    return SampleNoise((inside.mT @ inside / total).cpu(), max(bulk, 0.0), drawn)


def _flat(split: Callable[[Tensor], list[Tensor]]) -> Callable[[Tensor], list[Tensor]]:
    return lambda vector: [piece.reshape(-1) for piece in split(vector)]


def _refuse_other_mean(mean: Tensor, gradient: Tensor, typical: float) -> None:
    # At a minimum the gradient is round-off of the samples' own, whose `typical` size says what is small.
    off = float((mean - gradient).norm()) / max(float(gradient.norm()), _MEAN_TOLERANCE * typical, 1e-300)
    if not off <= _MEAN_TOLERANCE:
        remedy = "must be the mean over samples along the leading dimension; the population target needs no such loss"
        raise InvalidArgument("loss_fn", f"per-sample gradients off their mean by {off:.2g}", remedy)
