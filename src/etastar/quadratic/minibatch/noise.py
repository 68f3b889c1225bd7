"""Gradient noise of least squares on fresh batches of Gaussian rows: it grows with the loss, unlike an additive one.

Rows a ~ N(0, H) and labels aᵀw* + ε give, at a distance x from w*, the covariance (ggᵀ + (xᵀHx + s²)H)/b of a
batch of b (theory §7).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import finite_number, whole_number

__all__ = ["MinibatchNoise"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MinibatchNoise:
    """Mini-batches of fresh rows N(0, H) whose labels have independent noise of variance s².

    Attributes:
        batch_size: b ≥ 1, rows in a batch.
        label_variance: s² ≥ 0, [loss]. Without it the run ends at the minimum.

    Raises:
        InvalidArgument: A batch size that is no whole number ≥ 1, or a negative variance.
    """

    batch_size: int
    label_variance: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size, least=1))
        object.__setattr__(self, "label_variance", finite_number("label_variance", self.label_variance, least=0.0))

    def check(self, eigenvalues: Array, averaging: float | None = None) -> None:
        """InvalidArgument unless H ⪰ 0, as a covariance is, and what is observed is the iterate, not an average."""
        if averaging is not None:
            raise InvalidArgument("optimizer", "Averaged", "mini-batch noise runs under SGD(), HeavyBall or Nesterov")
        if eigenvalues[-1] < 0:
            raise InvalidArgument(
                "eigenvalues", float(eigenvalues[-1]), "H is the covariance of the rows: none below 0"
            )

    def residual(self, eigenvalues: Array, energy: Array) -> Array:
        """Mean squared residual xᵀHx + s² at block energies ``(*batch, blocks)``, shape ``(*batch, 1)``."""
        with np.errstate(divide="ignore", over="ignore"):
            weights = np.where(eigenvalues == 0, 0.0, 1.0 / eigenvalues)
        return (energy * weights).sum(axis=-1, keepdims=True) + self.label_variance

    def variances_at(self, eigenvalues: Array, multiplicities: npt.NDArray[np.int64], energy: Array) -> Array:
        """Trace of the noise covariance over each block at gradient energies ``(*batch, blocks)``, same shape."""
        with np.errstate(over="ignore"):
            spread = multiplicities * eigenvalues * self.residual(eigenvalues, energy)
            return (energy + spread) / self.batch_size
