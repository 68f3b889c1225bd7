"""The step budget: how well a step uses each subspace, and whether noise or curvature limits it.

All of it follows from the moments that the loss thresholds need (theory: "what the same moments give besides").
Noise scales as in McCandlish et al., arXiv 1812.06162.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import as_step_size
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments, real_array

__all__ = ["StepBudget", "SubspaceBudget", "step_budget"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SubspaceBudget:
    """How well one step of a given size and batch uses one subspace; every field ``(*batch)``.

    Attributes:
        efficiency: Loss decrease over the best possible one along this update, 1 − (1 − 2η/η_S)²; 1 at η_S/2,
            0 at η_S, negative beyond; NaN where there is no descent to be had.
        noise_share: q1/(m1 + q1): 1 where noise limits the step (a larger batch or a decay helps), 0 where
            curvature does.
        noise_scale: Simple noise scale b·q0/m0, [samples].
        curvature_noise_scale: Curvature-weighted noise scale b·q1/m1, [samples].
        batch_at_threshold: The batch size at which the threshold equals this step, [samples]; NaN where none does.
        curvature_limited: True where no batch size brings the threshold up to this step: only a smaller step does.
    """

    efficiency: Any
    noise_share: Any
    noise_scale: Any
    curvature_noise_scale: Any
    batch_at_threshold: Any
    curvature_limited: Any


@dataclass(frozen=True, slots=True)
class StepBudget:
    """The budget of one step in the dominant subspace, in the bulk, and of the whole update."""

    dominant: SubspaceBudget
    bulk: SubspaceBudget
    full: SubspaceBudget


def step_budget(split: SplitMoments, step_size: Any, batch_size: Any) -> StepBudget:
    """The step budget at a step size η and the batch size b behind the noise moments.

    Args:
        split: The moments of one step, ``(*batch)``.
        step_size: η ≥ 0, broadcast against the moments, [parameter²/loss].
        batch_size: b > 0, [samples].

    Raises:
        InvalidArgument: A step size that is negative or not finite, a batch size that is not positive.

    Example:
        >>> from etastar.quadratic import Noise, Quadratic, Spectrum
        >>> q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.25))
        >>> budget = step_budget(q.moments(gradient=[1.0, 3.0]), step_size=0.25, batch_size=8)
        >>> float(budget.dominant.noise_scale), float(budget.dominant.efficiency)
        (2.0, 0.9375)
    """
    eta = as_step_size(step_size, split.shape)
    batch = real_array("batch_size", batch_size, "must be a positive number of samples")
    if not np.all(np.isfinite(batch) & (batch > 0)):
        raise InvalidArgument("batch_size", batch_size, "must be a positive number of samples")
    D, B = split.dominant, split.bulk
    gamma = 0.0 if split.coupling is None else split.coupling.signal
    gamma_noise = 0.0 if split.coupling is None else split.coupling.noise
    # Coupling leaves the projected updates (for h ≠ g it never entered), and joins the two in the whole one.
    own = gamma if D.descent is None else 0.0

    def budget(energy: Array, slope: Array, bend: Array, q0: Array, q1: Array) -> SubspaceBudget:
        return _budget(eta, batch, energy, slope, bend, q0, q1)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return StepBudget(
            dominant=budget(D.signal.zeroth, D.slope, D.bend - own, D.noise.zeroth, D.noise.first - gamma_noise),
            bulk=budget(B.signal.zeroth, B.slope, B.bend - own, B.noise.zeroth, B.noise.first - gamma_noise),
            full=budget(
                D.signal.zeroth + B.signal.zeroth,
                D.slope + B.slope,
                D.bend + B.bend + (0.0 if D.descent is None else 2.0 * gamma),
                D.noise.zeroth + B.noise.zeroth,
                D.noise.first + B.noise.first,
            ),
        )


def _budget(eta: Array, batch: Array, energy: Array, slope: Array, bend: Array, q0: Array, q1: Array) -> SubspaceBudget:
    total = bend + q1
    used = eta * (total / (2.0 * slope))  # η/η_S
    descends = slope > 0
    target = 2.0 * slope / eta - bend
    return SubspaceBudget(
        efficiency=np.where(descends, 4.0 * used * (1.0 - used), np.nan)[()],
        noise_share=np.where(total != 0, q1 / total, np.nan)[()],
        noise_scale=np.where(energy != 0, batch * (q0 / energy), np.nan)[()],
        curvature_noise_scale=np.where(bend != 0, batch * (q1 / bend), np.nan)[()],
        batch_at_threshold=np.where(descends & (target > 0), batch * (q1 / target), np.nan)[()],
        curvature_limited=(target <= 0)[()],
    )
