"""The decay forecast: how much loss comes back when the step is decayed here, from this checkpoint alone.

On given batches gradient and Hessian are known, so that expected losses of SGD on the quadratic model follow in
closed form from two spectral measures, the gradient's and the noise's. The point that the model predicts is then
looked at: the loss found there makes good most of what the model misses. No constant is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.batches import whole_number
from etastar.network.curvature import CurvatureOperator
from etastar.network.local_model import ForecastOutcome, LocalModel, LossForecast, Plan
from etastar.network.producer import Basis
from etastar.network.subspace import SubspaceTracker

__all__ = ["DecayForecast", "ForecastOutcome", "LossForecast", "Plan", "decay_forecast"]

LossFunction = Callable[[Any, Any], Tensor]
_SETTLED = 3.0  # e-folds of the slowest dominant mode that a plan lasts unless told otherwise
_LONGEST = 1_000_000  # steps: a plan this long is no decay that anybody means


@dataclass(frozen=True, slots=True)
class DecayForecast:
    """What decaying the step, or as much larger a batch, would give back.

    Attributes:
        loss: L(θ) at the checkpoint.
        decayed: T steps of size factor·η at the same batch size.
        larger_batch: factor·T steps of size η at batch size b/factor: as many samples, and as far along a descent.
        simple: ½ Σ_D g_i²/λ_i + ηq0_B/4 (theory §3): all dominant modes at their minimum, all bulk modes equilibrated.
        products: Products spent.
    """

    loss: float
    decayed: LossForecast
    larger_batch: LossForecast
    simple: float
    products: int


def decay_forecast(
    operator: CurvatureOperator,
    loss_fn: LossFunction,
    basis: Basis | int,
    batch_size: int,
    step_size: float,
    *,
    factor: float = 0.1,
    steps: int | None = None,
    probes: int = 4,
    replace: bool = True,
    seed: int = 0,
) -> DecayForecast:
    """Forecast the loss drop of plain SGD after a decay of its step; the model is left as it is, bit for bit.

    Costs, besides the basis, about ten products and four a probe, three passes over per-sample gradients, and for
    each of both plans four products, one gradient and three forward passes.

    Args:
        operator: Hessian of the loss that is meant: the mean over its batches.
        loss_fn: The same loss; must be the mean over samples along the leading dimension.
        basis: The dominant subspace, or its rank: then it is found first.
        batch_size: b of the run.
        step_size: η of the run, [parameter²/loss].
        factor: The step becomes factor·η.
        steps: T; unless given ⌈3/(factor·η·λ_k)⌉, after which the whole dominant subspace has settled.
        probes: Noise probes of the bulk.
        replace: Mini-batches with replacement; else the factor (N − b)/(N − 1) applies.
        seed: Of probes and basis.

    Raises:
        InvalidArgument: A number out of range; no `steps` where λ_k ≤ 0; a loss that is no mean over samples.
    """
    _check(batch_size, step_size, factor, steps, probes)
    before, smaller = operator.products, factor * step_size
    with operator.held():
        if not isinstance(basis, Basis):
            found = SubspaceTracker(operator, basis, seed=seed).refresh()
            basis = Basis(found.basis, None, found.eigenvalues.to(found.basis))
        steps = steps or _steps(float(basis.eigenvalues[-1]), smaller)
        decay = Plan(smaller, batch_size, steps, _noise(operator.samples, batch_size, replace))
        size = round(batch_size / factor)
        enlarge = Plan(step_size, size, math.ceil(factor * steps), _noise(operator.samples, size, replace))
        model = LocalModel.at(operator, loss_fn, basis, decay, probes, seed)
        decayed, larger = model.forecast(decay), model.forecast(enlarge)
    return DecayForecast(model.loss, decayed, larger, model.simple(step_size * decay.noise), operator.products - before)


def _noise(samples: int, batch_size: int, replace: bool) -> float:
    """Covariance of a mini-batch's mean gradient over that of a single sample."""
    if replace or samples == 1:
        return 1.0 / batch_size
    return max(samples - batch_size, 0) / (samples - 1) / batch_size


def _steps(smallest: float, eta: float) -> int:
    if not smallest * eta * _LONGEST >= _SETTLED:
        reason = f"a step of {eta:.3g} at a smallest dominant eigenvalue of {smallest:.3g}"
        raise InvalidArgument("steps", None, f"must be given: {reason} settles in no {_LONGEST:,} steps")
    return math.ceil(_SETTLED / (eta * smallest))


def _check(batch_size: int, step_size: float, factor: float, steps: int | None, probes: int) -> None:
    whole_number("batch_size", batch_size, 1)
    if not (math.isfinite(step_size) and step_size > 0):
        raise InvalidArgument("step_size", step_size, "must be finite and positive")
    if not 0 < factor < 1:
        raise InvalidArgument("factor", factor, "must lie between 0 and 1")
    if steps is not None:
        whole_number("steps", steps, 1)
    whole_number("probes", probes, 2)
