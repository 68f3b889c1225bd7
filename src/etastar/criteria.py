"""Criteria: what one step of SGD does to alignment and loss, from its moments alone.

Every function takes a ``SplitMoments``, broadcasts over its batch shape, and returns float64. Formulas are
cross-multiplied, so that an empty subspace needs no division: with w = ‖SHg‖² + tr(SHΣH) per subspace,
N = m0_B·m1_D − m0_D·m1_B and M = m0_B·w_D − m0_D·w_B, the alignment after a step η changes with the sign of
ηM − 2N, and the critical step size is η* = 2N/M ("the paper" is arXiv 2601.11789: eq. 2, Lemma 22).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import Scaled, aligned, dot, share
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments, SubspaceMoments, real_array
from etastar.outcomes import Outcome, Regime, outcome_of, regime_of

__all__ = [
    "CriticalStep",
    "LossChange",
    "LossThresholds",
    "Outcome",
    "Regime",
    "alignment",
    "alignment_after",
    "alignment_change",
    "chi",
    "critical_step_size",
    "loss_border",
    "loss_change",
    "loss_thresholds",
    "neutrality",
    "regime_border",
]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CriticalStep:
    """The critical step size η*, at which the alignment neither rises nor falls.

    Attributes:
        value: η*, shape ``(*batch)``, [parameter²/loss]; NaN where the regime has none.
        regime: ``Regime`` of each element. A critical step outside float64's range counts as absent.
        condition: The worse cancellation of N and M, ≥ 1; relative error ≤ 32·ε·condition.
    """

    value: Any
    regime: Any
    condition: Any


@dataclass(frozen=True, slots=True)
class LossThresholds:
    """The step sizes below which an update lowers the expected loss (T10).

    Attributes:
        dominant: η_D, of the update projected on the dominant subspace, ``(*batch)``, [parameter²/loss].
        bulk: η_B, of the update projected on the bulk.
        full: η_full, of the whole update.
        bulk_only: True where some step lowers the loss in the bulk and raises it in the dominant subspace;
            the interval is (dominant, bulk), open-ended where a threshold does not exist.
        dominant_outcome: ``Outcome`` of each element; the threshold is NaN unless it is BELOW or ABOVE.
        bulk_outcome: As above.
        full_outcome: As above.
    """

    dominant: Any
    bulk: Any
    full: Any
    bulk_only: Any
    dominant_outcome: Any
    bulk_outcome: Any
    full_outcome: Any


@dataclass(frozen=True, slots=True)
class LossChange:
    """Expected change of the loss by the update projected on each subspace, and by the whole; ``(*batch)``, [loss]."""

    dominant: Any
    bulk: Any
    full: Any


def alignment(split: SplitMoments) -> Any:
    """Alignment θ = ‖Pg‖²/‖g‖², ``(*batch)``; NaN where the gradient is zero.

    Example:
        >>> from etastar import CurvatureMoments, SplitMoments, SubspaceMoments, alignment
        >>> def part(energy, curvature):
        ...     signal = CurvatureMoments(energy, curvature * energy, curvature**2 * energy)
        ...     return SubspaceMoments(signal, CurvatureMoments(0.0, 0.0, 0.0))
        >>> float(alignment(SplitMoments(part(1.0, 4.0), part(3.0, 1.0))))
        0.25
    """
    return share(_one(split.dominant.signal.zeroth), _one(split.bulk.signal.zeroth))[()]


def chi(split: SplitMoments) -> Any:
    """χ = √θ, the fraction of the gradient's norm that is dominant (Song et al., arXiv 2405.16002).

    NaN where the gradient is zero, or where an unbiased estimate of θ came out negative.
    """
    with np.errstate(invalid="ignore"):
        return np.sqrt(alignment(split))


def critical_step_size(split: SplitMoments) -> CriticalStep:
    """Critical step size η* = 2N/M with its regime and conditioning (paper eq. 2; T2, T3, T4).

    Example:
        >>> from etastar.quadratic import Noise, Quadratic, Spectrum
        >>> q = Quadratic(Spectrum([4.0, 1.0], rank=1), Noise.isotropic(0.1))
        >>> step = critical_step_size(q.moments(gradient=[1.0, 3.0]))
        >>> step.regime.name, round(float(step.value), 6)
        ('LOW', 0.361688)
    """
    N, M = _neutrality(split)
    with np.errstate(over="ignore", invalid="ignore"):
        value = 2.0 * (N / M).to_float()
    sign_N, sign_M = _sign(N.mantissa), _sign(M.mantissa)
    # A ratio outside the range of float64 leaves every representable step on one side of it.
    sign_M = np.where(np.isinf(value) & (sign_N == sign_M), 0, sign_M)
    sign_N = np.where((value == 0) & (sign_N == sign_M), 0, sign_N)
    dead = (split.dominant.signal.zeroth == 0) & (split.bulk.signal.zeroth == 0)
    undefined = np.isnan(N.mantissa) | np.isnan(M.mantissa) | dead
    regime = regime_of(sign_N, sign_M, undefined)
    exists = ~undefined & (sign_N == sign_M) & (sign_N != 0)
    condition = np.where(undefined, np.nan, np.maximum(N.condition, M.condition))
    return CriticalStep(np.where(exists, value, np.nan)[()], regime[()], condition[()])


def alignment_after(split: SplitMoments, step_size: Any) -> Any:
    """Ratio of expected energies after one step, E‖Pg'‖²/E‖g'‖², ``(*batch)``; NaN where nothing is left."""
    eta = as_step_size(step_size, split.shape)
    return share(_energy_after(split.dominant, eta), _energy_after(split.bulk, eta))[()]


def alignment_change(split: SplitMoments, step_size: Any) -> Any:
    """Change of the alignment by one step, θ' − θ = η(ηM − 2N)/(‖g‖²·E‖g'‖²), free of cancellation between the two."""
    eta, (N, M) = as_step_size(step_size, split.shape), _neutrality(split)
    fraction, power = np.frexp(eta)
    drift = dot((fraction, M.mantissa), (-2.0, N.mantissa), shifts=(power + M.exponent, N.exponent))
    before = dot((split.dominant.signal.zeroth, 1.0), (split.bulk.signal.zeroth, 1.0))
    D, B = _energy_after(split.dominant, eta), _energy_after(split.bulk, eta)
    after = dot((D.mantissa, 1.0), (B.mantissa, 1.0), shifts=(D.exponent, B.exponent))
    return (_one(eta) * drift / (before * after)).to_float()[()]


def loss_thresholds(split: SplitMoments) -> LossThresholds:
    """Loss thresholds η_S = 2·slope/(curvature + noise) per subspace and whole, with outcomes (T10)."""
    dominant, dominant_outcome = _threshold(split.dominant.slope, _projected_bend(split, split.dominant))
    bulk, bulk_outcome = _threshold(split.bulk.slope, _projected_bend(split, split.bulk))
    full, full_outcome = _threshold(split.dominant.slope, _full_bend(split), split.bulk.slope)
    raised_from, raised_to = _steps(dominant, dominant_outcome, Outcome.NEVER, Outcome.ABOVE, Outcome.BELOW)
    lowered_from, lowered_to = _steps(bulk, bulk_outcome, Outcome.ALWAYS, Outcome.BELOW, Outcome.ABOVE)
    bulk_only = np.maximum(raised_from, lowered_from) < np.minimum(raised_to, lowered_to)
    return LossThresholds(
        dominant[()],
        bulk[()],
        full[()],
        bulk_only[()],
        dominant_outcome[()],
        bulk_outcome[()],
        full_outcome[()],
    )


def loss_change(split: SplitMoments, step_size: Any) -> LossChange:
    """Expected loss change −η·slope + ½η²(curvature + noise) of each projected update and of the whole (T10)."""
    eta = as_step_size(step_size, split.shape)

    fraction, power = np.frexp(eta)

    def change(bend: Scaled, *slopes: Array) -> Any:
        fall = [(-1.0, slope) for slope in slopes]
        rate = dot((0.5 * fraction, bend.mantissa), *fall, shifts=(power + bend.exponent, *(0 for _ in slopes)))
        return (_one(eta) * rate).to_float()[()]

    return LossChange(
        change(_projected_bend(split, split.dominant), split.dominant.slope),
        change(_projected_bend(split, split.bulk), split.bulk.slope),
        change(_full_bend(split), split.dominant.slope, split.bulk.slope),
    )


def regime_border(split: SplitMoments) -> Any:
    """Alignment θ† below which the regime is LOW, at these moments' shapes (sharper than the paper's θ*, T4).

    With b = ‖SHg‖²/‖Sg‖² per subspace: θ† = F(tr(PHΣH), tr(QHΣH), (b_D − b_B)‖g‖²), the root in [0, 1] of
    −sθ² + (s − t − u)θ + t. NaN where a subspace carries no gradient (b is undefined there) or t = u = s = 0.
    """
    return _border(split, "second")


def loss_border(split: SplitMoments) -> Any:
    """Alignment θ_loss below which η_D < η_B: the paper's θ_crit (T11); as `regime_border`, one power of H lower.

    Of the plain gradient update; the coupling of an inexact subspace is taken out, as the thresholds do.
    """
    return _border(split, "first")


def as_step_size(step_size: Any, shape: tuple[int, ...] = ()) -> Array:
    """The step size as float64, ``(*batch)``; InvalidArgument unless finite, ≥ 0 and fit for the batch `shape`."""
    eta = real_array("step_size", step_size, "must be a number or an array of them")
    if not np.all(np.isfinite(eta) & (eta >= 0)):
        raise InvalidArgument("step_size", step_size, "must be finite and not negative")
    try:
        np.broadcast_shapes(eta.shape, shape)
    except ValueError:
        raise InvalidArgument("step_size", eta.shape, f"must broadcast against the batch shape {shape}") from None
    return eta


def neutrality(split: SplitMoments) -> tuple[Array, Array]:
    """N and M themselves, ``(*batch)``: ηM − 2N is what intervals of η* invert. They overflow where moments do."""
    N, M = _neutrality(split)
    return N.to_float(), M.to_float()


def _neutrality(split: SplitMoments) -> tuple[Scaled, Scaled]:
    """N and M of the module's docstring."""
    D, B = split.dominant, split.bulk
    d0, b0 = D.signal.zeroth, B.signal.zeroth
    N = dot((b0, D.signal.first), (-d0, B.signal.first))
    M = dot((b0, D.signal.second), (b0, D.noise.second), (-d0, B.signal.second), (-d0, B.noise.second))
    return N, M


def _projected_bend(split: SplitMoments, part: SubspaceMoments) -> Scaled:
    """Second-order coefficient of the loss along the projected update: m1 − γ + q1 − γ_noise.

    The curvature of a given update direction, ⟨Sh, H S h⟩, holds no coupling to begin with.
    """
    terms: list[tuple[Any, Any]] = [(part.bend, 1.0), (part.noise.first, 1.0)]
    if split.coupling is not None:
        terms.append((split.coupling.noise, -1.0))
        if part.descent is None:
            terms.append((split.coupling.signal, -1.0))
    return dot(*terms)


def _full_bend(split: SplitMoments) -> Scaled:
    """Second-order coefficient along the whole update: ⟨h, Hh⟩ + tr(HΣ)."""
    D, B = split.dominant, split.bulk
    terms: list[tuple[Any, Any]] = [(D.bend, 1.0), (B.bend, 1.0), (D.noise.first, 1.0), (B.noise.first, 1.0)]
    if split.coupling is not None and D.descent is not None:
        terms.append((split.coupling.signal, 2.0))
    return dot(*terms)


def _threshold(slope: Array, bend: Scaled, more: Array | float = 0.0) -> tuple[Array, npt.NDArray[Any]]:
    total = dot((slope, 1.0), (more, 1.0))
    with np.errstate(over="ignore", invalid="ignore"):
        value = 2.0 * (total / bend).to_float()
    undefined = np.isnan(total.mantissa) | np.isnan(bend.mantissa)
    sign_slope, sign_bend = _sign(total.mantissa), _sign(bend.mantissa)
    sign_bend = np.where(np.isinf(value) & (sign_slope == sign_bend), 0, sign_bend)
    outcome = outcome_of(sign_slope, sign_bend, undefined)
    exists = (outcome == Outcome.BELOW) | (outcome == Outcome.ABOVE)
    return np.where(exists, value, np.nan), outcome


def _steps(
    threshold: Array, outcome: npt.NDArray[Any], every: Outcome, up_to: Outcome, beyond: Outcome
) -> tuple[Array, Array]:
    """The open interval of steps that is all, (0, threshold) or (threshold, ∞) at these outcomes; else empty."""
    known = [outcome == every, outcome == up_to, outcome == beyond]
    return np.select(known, [0.0, 0.0, threshold], np.inf), np.select(known, [np.inf, threshold, np.inf], 0.0)


def _energy_after(part: SubspaceMoments, eta: Array) -> Scaled:
    """E‖S g'‖² = m0 − 2η·m1 + η²(m2 + q2), exact for any S and Σ."""
    fraction, power = np.frexp(eta)
    square = fraction * fraction
    return dot(
        (part.signal.zeroth, 1.0),
        (-2.0 * fraction, part.signal.first),
        (square, part.signal.second),
        (square, part.noise.second),
        shifts=(0, power, 2 * power, 2 * power),
    )


def _border(split: SplitMoments, power: str) -> Any:
    D, B = split.dominant, split.bulk
    d0, b0 = D.signal.zeroth, B.signal.zeroth
    signal: list[tuple[Any, Any]] = [(b0, getattr(D.signal, power)), (-d0, getattr(B.signal, power))]
    noise = [[(getattr(part.noise, power), 1.0)] for part in (D, B)]
    if power == "first" and split.coupling is not None:  # the projected updates do not feel it
        signal += [(d0, split.coupling.signal), (-b0, split.coupling.signal)]
        noise = [[*terms, (split.coupling.noise, -1.0)] for terms in noise]
    t, u = (dot(*terms) for terms in noise)
    spread = dot(*signal) / dot((d0, b0)) * dot((d0, 1.0), (b0, 1.0))
    root = quadratic_border(*aligned(t, u, spread))
    return np.where((t.mantissa >= 0) & (u.mantissa >= 0), root, np.nan)[()]


def quadratic_border(t: Array, u: Array, s: Array) -> Array:
    """F(t, u, s): the root in [0, 1] of −sθ² + (s − t − u)θ + t, for t, u ≥ 0; NaN otherwise or when all are zero.

    The discriminant (s − t − u)² + 4st equals (s + t − u)² + 4tu, a sum of squares, so that nothing cancels.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        root = np.hypot(s + t - u, 2.0 * np.sqrt(t) * np.sqrt(u))
        below = s <= t + u
        return np.where(below, 2.0 * t / ((t + u - s) + root), ((s - t - u) + root) / (2.0 * s))


def _one(value: Array) -> Scaled:
    return dot((value, 1.0))


def _sign(value: Array) -> npt.NDArray[np.int64]:
    return np.nan_to_num(np.sign(value)).astype(np.int64)
