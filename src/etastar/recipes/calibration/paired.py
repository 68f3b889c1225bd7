"""The paired prediction: what the expansion says of the very mini-batches whose steps were really made.

No sampling error is left between the two, so that they check the expansion itself, order by order: the quadratic
model, with the third derivative's linear term alone, and with the energies through the fourth power of the step.

It shares with the measurement the mini-batches' gradients at the checkpoint, and nothing at the steps tested:
derivatives come from differences so short that they are the point's own, and the turn is an extrapolation by a factor
of about ten. So it proves that derivatives at the point carry to the turn, for updates that are known. It does not
prove that the meter knows the updates, that is, their noise: only the independent prediction does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.criteria import critical_step_size
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.network.expansion import turn_of
from etastar.recipes.calibration.checkpoints import Checkpoint

__all__ = ["PairedSteps", "paired_moments", "paired_steps"]

Array = npt.NDArray[np.float64]
# Of the predicted step. Long ones would sample the very path that is predicted, which is half a tautology; shorter ones
# drown in float32: the third difference's round-off over the gradient is eps/0.1³ = 1e-4, before the mean over batches.
_DIFFERENCE = 0.1


@dataclass(frozen=True, slots=True)
class PairedSteps:
    """The step at which the alignment turns, as predicted at three orders, [parameter²/loss]; NaN where at none.

    Attributes:
        quadratic: From ⟨Sg, Hv⟩ and ‖SHv‖².
        third: With ⟨Sg, T[v,v]⟩ beside ‖SHv‖² (theory §8).
        whole: With the energies through η⁴, the gradient through its η³: what counts as the paired prediction.
    """

    quadratic: float
    third: float
    whole: float


def paired_moments(checkpoint: Checkpoint, batches: Tensor) -> tuple[SplitMoments, Tensor]:
    """Moments of each mini-batch's own update v ``(R, P)``, replicates ``(R,)``, and the products H v ``(R, P)``."""
    images = (checkpoint.operator @ batches.mT).mT
    gradient, basis = checkpoint.gradient, checkpoint.basis
    zeroth = checkpoint.sides(gradient[None])[:, 0]
    first, second = checkpoint.sides(images, gradient[None]), checkpoint.sides(images)
    slope = checkpoint.sides(batches, gradient[None])
    inside = basis.coordinates(batches)
    inner = (inside @ basis.projected * inside).sum(dim=1).double().cpu().numpy()  # ⟨Pv, HPv⟩
    dominant, bulk = checkpoint.sides(batches, images)  # ⟨Sv, Hv⟩
    coupling = dominant - inner
    zero = np.zeros(())
    quiet = CurvatureMoments(zero, zero, zero)
    curved = inner, bulk - coupling
    parts = [
        SubspaceMoments(CurvatureMoments(zeroth[s], first[s], second[s]), quiet, Descent(slope[s], curved[s]))
        for s in range(2)
    ]
    return SplitMoments(parts[0], parts[1], Coupling(coupling, zero)), images


def paired_steps(checkpoint: Checkpoint, batches: Tensor, moments: SplitMoments, images: Tensor) -> PairedSteps:
    """The three predictions, from two gradients for each mini-batch."""
    mean = moments.mean(0)
    quadratic = float(critical_step_size(mean).value)
    step = _DIFFERENCE * (quadratic if quadratic > 0 else checkpoint.step_size)
    gradient, here = checkpoint.gradient, checkpoint.parameters
    third, fourth = torch.empty_like(batches), torch.empty_like(batches)
    for row, batch in enumerate(batches):
        ahead, behind = (checkpoint.gradient_at(here + sign * step * batch) for sign in (1.0, -1.0))
        third[row] = ((ahead - gradient) + (behind - gradient)) / step**2  # T[v, v]
        fourth[row] = (0.5 * (ahead - behind) - step * images[row]) * (6.0 / step**3)  # ∇⁴L[v, v, v]
    sides = checkpoint.sides
    bent = sides(third, gradient[None])
    orders: list[Array] = [
        bent,
        -sides(images, third) - sides(fourth, gradient[None]) / 3.0,
        sides(third) / 4.0 + sides(images, fourth) / 3.0,
    ]
    whole = np.stack(orders).mean(axis=2)
    linear = whole * np.array([1.0, 0.0, 0.0])[:, None]
    return PairedSteps(quadratic, turn_of(mean, linear), turn_of(mean, whole))
