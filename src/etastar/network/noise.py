"""The noise of mini-batches on a training set: covariance of per-sample gradients, as far as a subspace needs it.

With J the derivative of the per-sample losses, a probe of Σ is a backward of randomly signed losses, Jᵀs, and the
coordinates of every sample along v are one product J v, from the backward's own graph: no per-sample gradient is
ever made, and a probe or a direction costs half a gradient.
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
from etastar.network.persample import per_sample_losses

__all__ = ["SampleNoise", "noise_outside", "sample_noise"]

_MEAN_TOLERANCE = 1e-3  # how far the mean of per-sample gradients may lie from the gradient of the mean loss


@dataclass(frozen=True, slots=True, eq=False)
class SampleNoise:
    """Σ of a single sample, seen from a basis V.

    Attributes:
        dominant: Vᵀ Σ V, exact, float64 on the CPU, ``(k, k)``.
        probes: Independent rows z with E z zᵀ = Σ, ``(m, P)``. Each combines the deviations of *all* samples with
            random signs: far lighter tails than single samples have.
    """

    dominant: Tensor
    probes: Tensor


def sample_noise(
    operator: CurvatureOperator,
    loss_fn: Callable[[Any, Any], Tensor],
    vectors: Tensor,
    gradient: Tensor,
    probes: int,
    seed: int,
) -> SampleNoise:
    """Probe the covariance of the gradients of the operator's samples.

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
    vector, total = operator.vector, operator.samples
    generator = torch.Generator(device=operator.device).manual_seed(seed)
    sums = torch.zeros(1 + probes, vector.size, dtype=operator.dtype, device=operator.device)
    directions = [vector.split(column) for column in vectors.unbind(1)]
    coordinates: list[Tensor] = []
    drift = torch.zeros(probes, dtype=operator.dtype, device=operator.device)
    with operator.reading() as batches:
        for batch in batches:
            losses = per_sample_losses(operator.model, loss_fn, batch)
            signs = torch.randint(0, 2, (probes, len(losses)), generator=generator, device=operator.device)
            weights = torch.cat([torch.ones_like(signs[:1]), 2 * signs - 1]).to(losses)
            drift += weights[1:].sum(dim=1)
            for row, weight in zip(sums, weights, strict=True):
                row += _joined(_derivative(losses, vector.tensors, weight))
            dual = torch.zeros_like(losses, requires_grad=True)
            backward = torch.autograd.grad(
                losses, vector.tensors, dual, create_graph=True, allow_unused=True, materialize_grads=True
            )
            coordinates.append(torch.stack([_derivative(backward, (dual,), v)[0] for v in directions], dim=1))
    drawn = (sums[1:] - drift[:, None] * gradient) / math.sqrt(total)
    _refuse_other_mean(sums[0] / total, gradient, float(drawn.square().sum(dim=1).mean().sqrt()))
    inside = (torch.cat(coordinates) - vectors.mT @ gradient).double()
    return SampleNoise((inside.mT @ inside / total).cpu(), drawn)


def noise_outside(noise: SampleNoise, vectors: Tensor) -> Tensor:
    """‖(I − VVᵀ)z‖² of every probe, ``(m,)``: estimates of the trace of Σ that V does not see."""
    rows = noise.probes
    for _ in range(2):  # once leaves round-off of what V sees
        rows = rows - (rows @ vectors) @ vectors.mT
    return rows.double().square().sum(dim=1)


def _derivative(outputs: Any, inputs: Any, weights: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, weights, retain_graph=True, allow_unused=True, materialize_grads=True)


def _joined(pieces: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


def _refuse_other_mean(mean: Tensor, gradient: Tensor, typical: float) -> None:
    # At a minimum the gradient is round-off of the samples' own, whose `typical` size says what is small.
    off = float((mean - gradient).norm()) / max(float(gradient.norm()), _MEAN_TOLERANCE * typical, 1e-300)
    if not off <= _MEAN_TOLERANCE:
        remedy = "must be the mean over samples along the leading dimension; the population target needs no such loss"
        raise InvalidArgument("loss_fn", f"per-sample gradients off their mean by {off:.2g}", remedy)
