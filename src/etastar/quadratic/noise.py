"""Gradient noise of a quadratic: its covariance in the eigenbasis, isotropic, diagonal or full.

Only the diagonal enters expectations; sampling uses all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import design_matrix, real_vector, symmetric_matrix, whole_number
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.spectrum import design_eigenbasis

__all__ = ["Noise"]

Array = npt.NDArray[np.float64]
_NEGATIVE_TOLERANCE = 1e-10  # eigenvalues above −tolerance·‖Σ‖ are round-off and count as zero


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Covariance Σ of the gradient noise ξ in the eigenbasis of the Hessian; make it with the class methods.

    Attributes:
        variances: Diagonal κ²_i, shape ``()`` when isotropic, else ``(d,)``, [loss²/parameter²].
        matrix: Full covariance ``(d, d)``, or None where it is diagonal.
    """

    variances: Array
    matrix: Array | None = None

    @classmethod
    def isotropic(cls, variance: float) -> Noise:
        """Σ = variance·I; variance ≥ 0. The paper's σ = 0.5 is a variance of 0.25."""
        return cls(_variances("variance", [variance])[0])

    @classmethod
    def diagonal(cls, variances: Any) -> Noise:
        """Independent noise of the given variances κ²_i ≥ 0 along each eigenvector, shape ``(d,)``."""
        return cls(_variances("variances", variances))

    @classmethod
    def covariance(cls, matrix: Any) -> Noise:
        """Any covariance, in the eigenbasis, shape ``(d, d)``; symmetrised, and clipped at round-off below zero.

        Raises:
            InvalidArgument: Not square, not finite, asymmetric, or with an eigenvalue below −1e-10·‖Σ‖.
        """
        sigma = symmetric_matrix("matrix", matrix)
        values, vectors = np.linalg.eigh(sigma)
        largest = float(np.max(np.abs(values)))
        if values[0] < -_NEGATIVE_TOLERANCE * largest:
            raise InvalidArgument("matrix", f"eigenvalue {values[0]:.3g}", "must be positive semi-definite")
        if values[0] < 0:
            sigma = (vectors * np.maximum(values, 0.0)) @ vectors.T
        return cls(np.maximum(np.diag(sigma), 0.0), sigma)

    @classmethod
    def from_least_squares(cls, X: Any, y: Any, *, at: Any, batch_size: int, replace: bool = True) -> Noise:
        """Mini-batch gradient noise of ½·mean((Xw − y)²) at the weights w = `at`, in the eigenbasis of XᵀX/n.

        Args:
            X: Data, shape ``(n, d)``.
            y: Targets, shape ``(n,)``.
            at: Weights in the coordinates of X, shape ``(d,)``. A ridge term carries no noise.
            batch_size: Samples in a mini-batch, 1 ≤ b ≤ n.
            replace: Drawn with replacement; else the factor (n − b)/(n − 1) of one step applies.
        """
        data, target, weights = design_matrix(X), real_vector("y", y), real_vector("at", at)
        n = data.shape[0]
        if target.size != n:
            raise InvalidArgument("y", target.shape, f"must have one target for each of {n} samples")
        if weights.size != data.shape[1]:
            raise InvalidArgument("at", weights.shape, f"must have one weight for each of {data.shape[1]} features")
        if not 1 <= whole_number("batch_size", batch_size) <= n:
            raise InvalidArgument("batch_size", batch_size, f"must be between 1 and the number of samples, {n}")
        _, basis = design_eigenbasis(data)
        scale = 1.0 if replace or n == 1 else (n - batch_size) / (n - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            gradients = (data @ basis) * (data @ weights - target)[:, None]
            centred = gradients - gradients.mean(axis=0)
            return cls.covariance(centred.T @ centred * (scale / n / batch_size))

    @classmethod
    def minibatch_least_squares(cls, batch_size: int, label_variance: float) -> MinibatchNoise:
        """Noise of least squares on fresh batches of Gaussian rows N(0, H): it depends on the state (theory §7)."""
        return MinibatchNoise(batch_size, label_variance)

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of Σ."""
        if self.matrix is not None:
            values = np.linalg.eigvalsh(self.matrix)
            return max(0.0, float(values[0])), float(values[-1])
        return float(np.min(self.variances)), float(np.max(self.variances))


def _variances(name: str, value: Any) -> Array:
    vector = real_vector(name, value)
    if np.any(vector < 0):
        raise InvalidArgument(name, float(vector.min()), "a variance must not be negative")
    return vector
