"""What real mini-batch steps do at a checkpoint: where the alignment turns, and where each update raises the loss.

Steps are made at a few sizes around a guess, on the same mini-batches; over η, the change of alignment and of loss
are smooth and nearly linear in η, so that their zero is interpolated. Its error is that of the mean over the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from etastar.recipes.calibration.checkpoints import Checkpoint

__all__ = ["MeasuredStep", "RealSteps", "measured_step"]

Array = npt.NDArray[np.float64]
_FACTORS = (0.6, 0.85, 1.15, 1.5)  # of the guess: the step sizes tried first
_EXTENSIONS = 3  # further ones, where no zero lies between those
_GROWTH = 1.6


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """The smallest step size at which a mean over real mini-batch steps changes sign.

    Attributes:
        value: [parameter²/loss]; NaN where it changes sign at none of the sizes tried ("no turn").
        standard_error: By the jackknife over mini-batches.
        tried: Smallest and largest step size tried.
    """

    value: float
    standard_error: float
    tried: tuple[float, float]

    @property
    def found(self) -> bool:
        """Whether there is one."""
        return bool(np.isfinite(self.value))


class RealSteps:
    """Steps of mini-batches ``(R, P)`` from a checkpoint, and what they do over all training samples."""

    def __init__(self, checkpoint: Checkpoint, batches: Tensor) -> None:
        self._at, self._batches = checkpoint, batches
        self._energy = checkpoint.sides(checkpoint.gradient[None])[:, 0]
        self._loss = checkpoint.loss_at(checkpoint.parameters)

    def alignment_change(self, step: float) -> Array:
        """(‖Pg'‖² m0_B − m0_D ‖Qg'‖²)/η of each batch, ``(R,)``: its mean has the sign of the change of alignment."""
        after = np.stack(
            [
                self._at.sides(self._at.gradient_at(self._at.parameters - step * batch)[None])[:, 0]
                for batch in self._batches
            ],
            axis=1,
        )
        return (after[0] * self._energy[1] - self._energy[0] * after[1]) / step

    def loss_change(self, name: str) -> Callable[[float], Array]:
        """Of a step η: (L(θ − ηSv) − L(θ))/η of each batch, ``(R,)``, S as named: dominant, bulk or full."""
        basis = self._at.basis
        inside = basis.coordinates(self._batches) @ basis.vectors.mT
        updates = {"dominant": inside, "bulk": self._batches - inside, "full": self._batches}[name]

        def change(step: float) -> Array:
            losses = np.array([self._at.loss_at(self._at.parameters - step * update) for update in updates])
            return (losses - self._loss) / step

        return change


def measured_step(
    change: Callable[[float], Array], guess: float, known: Mapping[float, Array] | None = None, rising: bool = True
) -> MeasuredStep:
    """The zero of the mean of ``change(η)`` ``(R,)`` over batches.

    Args:
        change: Something over η, of each mini-batch.
        guess: Where the zero is expected, [parameter²/loss].
        known: Values of `change` that are there already.
        rising: Whether it is below zero for small steps.
    """
    seen = dict(known or {}) | {guess * factor: change(guess * factor) for factor in _FACTORS}
    sign = 1.0 if rising else -1.0
    for _ in range(_EXTENSIONS):
        means = {step: sign * values.mean() for step, values in seen.items()}
        below = [step for step, mean in means.items() if mean < 0]
        if not below:
            beyond = min(seen) / _GROWTH
        elif len(below) == len(seen):
            beyond = max(seen) * _GROWTH
        else:
            break
        seen[beyond] = change(beyond)
    steps = np.array(sorted(seen))
    values = sign * np.stack([seen[step] for step in steps.tolist()])
    return _interpolated(steps, values)


def _interpolated(steps: Array, values: Array) -> MeasuredStep:
    """Through the four sizes about the first change of sign, by a cubic; `values` is ``(sizes, R)``."""
    tried = float(steps[0]), float(steps[-1])
    means = values.mean(axis=1)
    crossings = np.flatnonzero((means[:-1] < 0) & (means[1:] >= 0))
    if not len(crossings):
        return MeasuredStep(float("nan"), float("nan"), tried)
    first = int(np.clip(crossings[0] - 1, 0, len(steps) - 4))
    scale = steps[crossings[0]]
    part = slice(first, first + 4)
    coefficients = np.linalg.solve(np.vander(steps[part] / scale, 4), values[part])  # (4, R): a cubic a batch
    mean = coefficients.mean(axis=1)
    roots = np.roots(mean)
    inside = roots[np.abs(roots.imag) < 1e-9].real * scale
    inside = inside[(inside >= steps[crossings[0]] * (1 - 1e-9)) & (inside <= steps[crossings[0] + 1] * (1 + 1e-9))]
    zero = float(inside[0])
    # One Newton step from the mean's zero gives the zero without each batch.
    powers, count = np.vander(np.array([zero / scale]), 4)[0], values.shape[1]
    without = (count * mean[:, None] - coefficients) / (count - 1)
    slope = np.polyval(np.polyder(mean), zero / scale)
    moved = -scale * (powers @ without) / slope
    error = float(np.sqrt((count - 1) / count * np.sum((moved - moved.mean()) ** 2)))
    return MeasuredStep(zero, error, tried)
