"""Batch sharpness: the curvature that mini-batch SGD itself sees along its steps.

E⟨g_B, H_B g_B⟩ / E‖g_B‖² over mini-batches B, each with its *own* gradient and Hessian (arXiv 2412.20553); at a
stationary edge of stability it settles near 2/η, where λ₁ of the whole loss lies below. One product a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etastar.errors import InvalidArgument
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.network.batches import Batches
from etastar.network.graph import HessianGraph, named_errors
from etastar.network.isolation import refuse_distributed, undisturbed
from etastar.network.parameters import ParameterVector
from etastar.uncertainty import Estimate, jackknife

__all__ = ["batch_sharpness"]


def batch_sharpness(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    parameters: Sequence[str] | str | None = None,
    *,
    training: bool | None = None,
) -> Estimate:
    """The ratio of means with its jackknife interval, [loss/parameter²]; NaN where every gradient is zero.

    Args:
        model: The network; left as it is, bit for bit.
        loss_fn: ``loss_fn(model, batch)`` → the mean loss over the samples of the batch, a scalar tensor.
        batches: Two or more mini-batches of the run's size, drawn as the run draws them.
        parameters: Names or prefixes to restrict to.
        training: Mode to evaluate in: False for evaluation mode, None for each module as it is.

    Raises:
        InvalidArgument: Fewer than two batches, batches of several sizes, a loss without second derivatives.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> batches = [(torch.full((1, 1), x), torch.ones(1, 1)) for x in (1.0, 1.0, 1.0)]
        >>> round(float(batch_sharpness(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), batches).value), 6)
        2.0
    """
    refuse_distributed()
    vector = ParameterVector.of(model, parameters)
    rows: list[Tensor] = []
    with undisturbed(model, vector.device, batches, training), named_errors("loss_fn"):
        given = Batches.of(batches)
        if len(given.counts) < 2 or len(set(given.counts)) > 1:
            raise InvalidArgument("batches", list(given.counts), "must be two or more of one size: drop a ragged last")
        for batch in given:
            graph = HessianGraph.build(loss_fn(model, batch), vector.tensors)
            pairs = zip(graph.gradient, vector.tensors, strict=True)
            gradient = [torch.zeros_like(t) if g is None else g.detach() for g, t in pairs]
            product = graph.product(gradient, False)
            curvature = [(g * h).sum() for g, h in zip(gradient, product, strict=True) if h is not None]
            rows.append(torch.stack([sum(curvature, torch.zeros_like(graph.loss)), _energy(gradient)]).double())
    curvature, energy = torch.stack(rows).cpu().numpy().T
    # The jackknife takes moments: zeroth ‖g‖², first ⟨g, Hg⟩.
    zero = np.zeros_like(energy)
    none = CurvatureMoments(zero, zero, zero)
    moments = CurvatureMoments(energy, curvature, zero)
    split = SplitMoments(SubspaceMoments(moments, none), SubspaceMoments(none, none))
    with np.errstate(invalid="ignore", divide="ignore"):
        return jackknife(lambda s: np.divide(s.dominant.signal.first, s.dominant.signal.zeroth), split)


def _energy(gradient: Sequence[Tensor]) -> Tensor:
    return torch.stack([piece.square().sum() for piece in gradient]).sum()
