"""What a batch sees of the curvature, in closed form, and four edges of stability on one axis.

Batch sharpness E⟨g_B, H_B g_B⟩/E‖g_B‖² (arXiv 2412.20553) is the curvature of a batch's own loss along its own
gradient. For b rows N(0, H) and residual T = xᵀHx + s², by Isserlis' theorem with h_p = tr H^p, G_p = gᵀH^p g:

    E⟨g_B, H_B g_B⟩ = [T(h₁² + (b + 1)h₂) + 2(b + 1)h₁G₀ + (b² + 3b + 4)G₁]/b²
    E‖g_B‖²         = [(b + 1)G₀ + Th₁]/b

Both are linear in second moments of the state, so that expectations over states are exact too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import loss_thresholds
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import single_step_size
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.one_step import blocks_of
from etastar.quadratic.minibatch.stability import conditions, stationary, stationary_residual
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.spectrum import Spectrum

__all__ = ["Edges", "batch_sharpness", "edges"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Four curvatures against 2/η, at the stationary state of each batch size; ``(B,)``, [loss/parameter²].

    NaN where the step has no stationary state. The label variance scales every energy alike and drops out.

    Attributes:
        batch_size: b.
        limit: 2/η, what each is to be held against.
        largest_eigenvalue: λ₁ of the whole loss: full-batch descent diverges above the limit.
        batch_sharpness: E⟨g_B, H_B g_B⟩/E‖g_B‖²: a step raises its own batch's loss above the limit.
        loss_sharpness: 2/η_full, of the expected loss along mini-batch steps: at the limit, by stationarity.
        critical_sharpness: gᵀHg/‖g‖², two over the smallest step along the mean gradient that raises the loss
            (arXiv 2601.16979); energies averaged before the ratio.
        kernel: K(η); stable below 1.
    """

    batch_size: npt.NDArray[np.int64]
    limit: float
    largest_eigenvalue: float
    batch_sharpness: Array
    loss_sharpness: Array
    critical_sharpness: Array
    kernel: Array


def batch_sharpness(modes: Modes, noise: MinibatchNoise, state: State) -> Any:
    """Batch sharpness at states of given gradients or energies, ``(*batch)``, [loss/parameter²].

    Expected energies give the ratio of expectations. NaN where every batch gradient is zero.
    """
    noise.check(modes.eigenvalues)
    residual = noise.residual(modes.eigenvalues, state.energy)[..., 0]
    parts = modes.curvature_moments(state.energy)
    return _sharpness(
        modes, noise.batch_size, residual, parts[0].zeroth + parts[1].zeroth, parts[0].first + parts[1].first
    )[()]


def edges(spectrum: Spectrum, step_size: float, batch_sizes: Any) -> Edges:
    """Four edges of plain SGD at one step over batch sizes ≥ 1, at each one's stationary state.

    Raises:
        InvalidArgument: A step that is not positive, no batch size, or one that is no whole number ≥ 1.
    """
    eta, modes = single_step_size(step_size), blocks_of(spectrum)
    noises = [MinibatchNoise(size, 1.0) for size in np.atleast_1d(batch_sizes).tolist()]
    if not noises:
        raise InvalidArgument("batch_sizes", batch_sizes, "give at least one")
    top = float(modes.eigenvalues[0])
    rows = [_edges_of(modes, noise, eta) for noise in noises]
    columns = np.array(rows).T
    return Edges(np.array([noise.batch_size for noise in noises]), 2.0 / eta, top, *columns)


def _edges_of(modes: Modes, noise: MinibatchNoise, eta: float) -> tuple[float, float, float, float]:
    kernel = float(conditions(modes, noise, np.array(eta))[1])
    if kernel >= 1:
        return float("nan"), float("nan"), float("nan"), kernel
    split = stationary(modes, noise, eta)
    zeroth, first = _whole(split, "zeroth"), _whole(split, "first")
    sharpness = _sharpness(modes, noise.batch_size, stationary_residual(modes, noise, eta), zeroth, first)
    return float(sharpness), 2.0 / float(loss_thresholds(split).full), float(first / zeroth), kernel


def _whole(split: SplitMoments, power: str) -> Any:
    return getattr(split.dominant.signal, power) + getattr(split.bulk.signal, power)


def _sharpness(modes: Modes, b: int, residual: Any, zeroth: Any, first: Any) -> Any:
    weight = modes.multiplicities * modes.eigenvalues
    trace, square = weight.sum(), (weight * modes.eigenvalues).sum()
    with np.errstate(over="ignore", invalid="ignore"):
        curved = (
            residual * (trace * trace + (b + 1.0) * square)
            + 2.0 * (b + 1.0) * trace * zeroth
            + (b * b + 3.0 * b + 4.0) * first
        )
        length = b * ((b + 1.0) * zeroth + residual * trace)
        return curved / np.where(length == 0, np.nan, length)
