"""The paper's bounds at one state: the gap g_gap, the border θ*, and bounds on η* and on the loss border.

Each is as printed where it holds, and in its corrected form where the audit refutes the printed one.
They need extremes of the spectrum and of the noise, which the moments of a step do not carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from etastar.errors import InvalidArgument
from etastar.moments import real_array
from etastar.quadratic.arguments import finite_number, whole_number
from etastar.quadratic.modes import read_state
from etastar.quadratic.problem import Quadratic

__all__ = ["PaperBounds", "guaranteed_ratio", "paper_bounds"]


@dataclass(frozen=True, slots=True)
class PaperBounds:
    """Bounds at one state of a quadratic with λ_d > 0; NaN where a bound's hypothesis fails.

    Attributes:
        gap: g_gap, below which a step above η* raises the alignment (T3).
        border: θ*, above which every step lowers the alignment (T4).
        border_low: Lower bound on θ*, from the corrected T5.
        border_high: Upper bound on θ*, from the corrected T5.
        critical_step_low: Lower bound on η* (T7 corrected: 2/(λ₁ + λ_{k+1} + ν)).
        critical_step_high: Upper bound on η* (2/(λ_k + λ_d + ν)).
        loss_border_low: Lower bound on θ_loss (T13 corrected).
        loss_border_high: Upper bound on θ_loss (T13 corrected).
    """

    gap: Any
    border: Any
    border_low: Any
    border_high: Any
    critical_step_low: Any
    critical_step_high: Any
    loss_border_low: Any
    loss_border_high: Any


def paper_bounds(problem: Quadratic, gradient: Any = None, *, energy: Any = None) -> PaperBounds:
    """The paper's bounds at a state; every field has shape ``(*batch)``.

    Example:
        >>> from etastar.quadratic import Noise, Spectrum
        >>> q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
        >>> round(float(paper_bounds(q, gradient=[1.0, 3.0]).gap), 6)
        0.941176
    """
    modes, state = problem.modes, read_state(problem.spectrum, gradient, energy)
    lam, cut = modes.eigenvalues, modes.cut
    top, upper, lower, bottom = (lam[i] for i in (0, cut - 1, cut, -1))
    noise_min, noise_max = map(np.float64, problem.additive("paper_bounds").extremes())
    k, rest = problem.spectrum.rank, problem.spectrum.dimension - problem.spectrum.rank
    E_dominant, E_bulk = modes.total(state.energy)
    G = E_dominant + E_bulk
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        psi_dominant, psi_bulk = modes.total(lam**2 * modes.multiplicities)
        gap = 1.0 / (1.0 + (noise_max / noise_min) * (rest / k) * (lower / upper) ** 2)
        A, h, m = noise_min * psi_bulk, noise_max * psi_dominant, G * (top - bottom) * (top + bottom)
        # r₀, the positive root of A r² + (A − m − h) r − h; in the form that does not cancel.
        half = A - m - h
        root = np.hypot(half, 2.0 * np.sqrt(A * h))
        ratio = np.where(half > 0, 2.0 * h / (half + root), (root - half) / (2.0 * A))
        border, most, least = ratio / (1.0 + ratio), A / (m + h), A / (m + A + h)  # θ*, and bounds on 1 − θ*
        split = modes.split_moments(state.energy)
        D, B = split.dominant, split.bulk
        a_gap = D.signal.first / D.signal.zeroth - B.signal.first / B.signal.zeroth
        nu = (D.noise.second / D.signal.zeroth - B.noise.second / B.signal.zeroth) / a_gap
        low, high = top + lower + nu, upper + bottom + nu
        lowest, highest = 2.0 / np.where(low > 0, low, np.nan), 2.0 / np.where(high > 0, high, np.nan)
        n_dominant, n_bulk = D.noise.first, B.noise.first
        n, gap_1 = n_dominant + n_bulk, upper - lower
        above = n_bulk / (G * (top - bottom) + n)
        below = np.minimum(
            np.minimum(n_bulk / (G * gap_1), n_bulk / (G * gap_1 * n_dominant / n + n)), 2.0 * n_bulk / (G * gap_1 + n)
        )
    proper = bottom > 0 and noise_min > 0

    def shown(value: Any, where: Any = True) -> Any:
        return np.where(where & np.asarray(G > 0), value, np.nan)[()]

    return PaperBounds(
        gap=shown(gap, proper),
        border=shown(border, proper),
        border_low=shown(1.0 - most, proper),
        border_high=shown(1.0 - least, proper),
        critical_step_low=shown(lowest, high > 0),
        critical_step_high=shown(highest, high > 0),
        loss_border_low=shown(1.0 - below, (n_dominant > 0) & (n_bulk > 0)),
        loss_border_high=shown(1.0 - above, (n_dominant > 0) & (n_bulk > 0)),
    )


def guaranteed_ratio(dimension: int, rank: int, variance: float, dominant: Any, bulk: Any) -> Any:
    """The ratio λ_k/λ_{k+1} above which η_D < η_B for every spectrum, with isotropic noise; tight for two levels.

    max(1, (1 + σ²(d − k)/m0_B)/(1 + σ²k/m0_D)) (theory §3); `dominant` and `bulk` are the gradient energies m0.

    Raises:
        InvalidArgument: A rank outside 1 … d − 1, or a negative variance.
    """
    size, k = whole_number("dimension", dimension), whole_number("rank", rank)
    if not 0 < k < size:
        raise InvalidArgument("rank", rank, f"must be at least 1 and less than the dimension {size}")
    noise = finite_number("variance", variance, least=0.0)
    m_dominant, m_bulk = real_array("dominant", dominant), real_array("bulk", bulk)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = (1.0 + noise * (size - k) / m_bulk) / (1.0 + noise * k / m_dominant)
    return np.maximum(1.0, ratio)[()]
