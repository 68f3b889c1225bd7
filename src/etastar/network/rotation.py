"""What the rest of a basis's error makes of the numbers: half-widths for θ, η_D and η_B, to first order.

Residuals r_i = (H − μ_i)v_i turn each v_i by (μ_i − H)⁻¹r_i in the bulk (theory §8, coupling of the inexact basis).
What that does to a moment depends on ⟨r_i, g⟩ alone, which the product Hg tells: far less than the angle to the true
subspace, since the gradient seldom lies where the basis is wrong.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etastar.criteria import loss_thresholds
from etastar.moments import SplitMoments

__all__ = ["basis_errors"]

Array = npt.NDArray[np.float64]
_NO_BOUND = 1e3  # stands for an error without bound, where the gap to λ_{k+1} is not resolved


def basis_errors(
    moments: SplitMoments,
    eigenvalues: Array,
    next_eigenvalue: float,
    gradient: tuple[Array, Array],
    update: tuple[Array, Array],
    noise: Array,
) -> dict[str, float]:
    """Half-widths that the error of the basis leaves: of θ, and of η_D and η_B as shares of them.

    Estimates, not bounds: contributions of single eigenvectors add up by their sizes, each with the smallest
    distance μ_i − λ_{k+1} that a bulk direction can have.

    Args:
        moments: Exact ones, or the mean of the replicates.
        eigenvalues: Ritz values μ, ``(k,)``.
        next_eigenvalue: λ_{k+1}, as estimated.
        gradient: Vᵀg and what Vᵀ H g has beyond M Vᵀg, M = VᵀHV: ⟨r_i, g⟩; ``(k,)`` each.
        update: The same for the update h.
        noise: The mean of their product, for the noise of a mini-batch, ``(k,)``.

    Returns:
        ``alignment_error``, and ``threshold_dominant_error`` and ``threshold_bulk_error`` where there are thresholds.
    """
    (g, turned_g), (h, turned_h) = gradient, update
    gaps = np.where(eigenvalues > next_eigenvalue, eigenvalues - next_eigenvalue, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = float(moments.dominant.signal.zeroth + moments.bulk.signal.zeroth)
        theta = np.sum(np.abs(2.0 * g * turned_g / gaps) + (turned_g / gaps) ** 2) / energy
        slope, bend = (g * turned_h + h * turned_g) / gaps, 2.0 * (h * turned_h + noise) / gaps
        bounds = loss_thresholds(moments)
        # A threshold is 2·slope/bend, of either subspace.
        inner, outer = moments.dominant.slope, moments.bulk.slope
        by_inner, by_outer = bounds.dominant / (2.0 * inner), bounds.bulk / (2.0 * outer)
        dominant = np.sum(np.abs(slope / inner - eigenvalues * bend * by_inner))
        bulk = np.sum(np.abs(slope / outer) + np.abs(next_eigenvalue * bend * by_outer))
    found = {"alignment": theta}
    found |= {} if np.isnan(bounds.dominant) else {"threshold_dominant": dominant}
    found |= {} if np.isnan(bounds.bulk) else {"threshold_bulk": bulk}
    return {
        f"{name}_error": float(np.nan_to_num(min(value, _NO_BOUND), nan=_NO_BOUND)) for name, value in found.items()
    }
