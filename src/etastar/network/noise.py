"""The noise of mini-batches on a training set: covariance of per-sample gradients, as far as a subspace needs it.

With J the derivative of the per-sample losses, a probe of Σ is a backward of randomly signed losses, Jᵀs, and the
coordinates of every sample along v are one product J v, from the backward's own graph: no per-sample gradient is
ever made, and a probe or a direction costs a third of a gradient, several of them in one backward where that pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.curvature import CurvatureOperator
from etastar.network.graph import is_unstackable
from etastar.network.persample import per_sample_losses

__all__ = ["SampleNoise", "noise_outside", "sample_noise"]

_STACK_BYTES = 8 << 20  # more directions than fit in one backward gain nothing
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
    directions = vector.split(vectors.mT.contiguous().mT)  # strided ones would be copied at every layer
    coordinates: list[Tensor] = []
    drift = torch.zeros(probes, dtype=operator.dtype, device=operator.device)
    with operator.reading() as batches:
        for batch in batches:
            losses = per_sample_losses(operator.model, loss_fn, batch)
            signs = torch.randint(0, 2, (probes, len(losses)), generator=generator, device=operator.device)
            weights = torch.cat([torch.ones_like(signs[:1]), 2 * signs - 1]).to(losses)
            drift += weights[1:].sum(dim=1)
            width = _stack_width(operator, len(losses))
            for row, found in _derivatives(losses, vector.tensors, [weights], width):
                sums[row : row + len(found)] += found
            dual = torch.zeros_like(losses, requires_grad=True)
            backward = torch.autograd.grad(
                losses, vector.tensors, dual, create_graph=True, allow_unused=True, materialize_grads=True
            )
            coordinates.append(torch.cat([v for _, v in _derivatives(backward, (dual,), directions, width)]))
    drawn = (sums[1:] - drift[:, None] * gradient) / math.sqrt(total)
    _refuse_other_mean(sums[0] / total, gradient, float(drawn.square().sum(dim=1).mean().sqrt()))
    inside = (torch.cat(coordinates, dim=1).mT - vectors.mT @ gradient).double()
    return SampleNoise((inside.mT @ inside / total).cpu(), drawn)


def noise_outside(noise: SampleNoise, vectors: Tensor) -> Tensor:
    """‖(I − VVᵀ)z‖² of every probe, ``(m,)``: estimates of the trace of Σ that V does not see."""
    rows = noise.probes
    for _ in range(2):  # once leaves round-off of what V sees
        rows = rows - (rows @ vectors) @ vectors.mT
    return rows.double().square().sum(dim=1)


def _derivatives(
    outputs: Any, inputs: Sequence[Tensor], along: Sequence[Tensor], width: int
) -> Iterator[tuple[int, Tensor]]:
    """Derivatives along every entry of `along`, ``(m, …)`` each: from which entry on, and rows ``(≤ width, P)``."""
    count = len(along[0])
    while count:
        begin = len(along[0]) - count
        width = min(width, count)
        part = [tensor[begin : begin + width] if width > 1 else tensor[begin] for tensor in along]
        try:
            pieces = torch.autograd.grad(
                outputs,
                inputs,
                part,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
                is_grads_batched=width > 1,
            )
        except RuntimeError as error:
            if width == 1 or not is_unstackable(error):
                raise
            width = 1
            continue
        # What is unused comes without the leading dimension.
        rows = [piece.detach().expand(width, *x.shape) for piece, x in zip(pieces, inputs, strict=True)]
        yield begin, torch.cat([row.reshape(width, -1) for row in rows], dim=1)
        count -= width


def _stack_width(operator: CurvatureOperator, samples: int) -> int:
    """How many directions one backward takes: as many as stay in the cache with all that the backward keeps."""
    vector = operator.vector
    each = max(samples * operator.bytes_per_sample, vector.size * vector.tensors[0].element_size())
    return max(1, int(_STACK_BYTES // each))


def _refuse_other_mean(mean: Tensor, gradient: Tensor, typical: float) -> None:
    # At a minimum the gradient is round-off of the samples' own, whose `typical` size says what is small.
    off = float((mean - gradient).norm()) / max(float(gradient.norm()), _MEAN_TOLERANCE * typical, 1e-300)
    if not off <= _MEAN_TOLERANCE:
        remedy = "must be the mean over samples along the leading dimension; the population target needs no such loss"
        raise InvalidArgument("loss_fn", f"per-sample gradients off their mean by {off:.2g}", remedy)
