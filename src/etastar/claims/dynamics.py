"""The dynamics at constant step: Theorem 15, DSGD in the paper's dynamics, and the rate of phase I.

Second moments follow E x_i² ← (1−ηλ_i)² E x_i² + η²κ_i² exactly, so that every claim about expected energies at a time
is a rational one.
"""

from __future__ import annotations

from fractions import Fraction

from etastar.claims.assumptions import above_floor, short_step, squared_contractions
from etastar.claims.claim import Claim, Comparison, at_most, less
from etastar.claims.instances import Instances
from etastar.claims.number import Number, Truth

__all__ = ["CLAIMS"]


def _falls(s: Instances, time: int) -> Comparison:
    """The alignment of expected energies falls from `time` to the next step."""
    at = s.after(time)
    now, then = at.signal(2), at.next_energy()
    return less(now.bulk * then.dominant, now.dominant * then.bulk)


def _holds_bulk(s: Instances) -> Truth:
    """The bulk holds gradient or noise: else θ = 1 for ever."""
    return (s.signal(2).bulk + s.variance(2).bulk) > 0


_ASSUMPTION_14 = (short_step, above_floor, _holds_bulk)


def _delta(s: Instances) -> Number:
    """δ of Assumption 14."""
    psi = s.split(s.eigenvalues**2)
    room = 2 * s.gap / s.step_size - (s.lambda_1**2 - s.lambda_d**2)
    return s.noise.max(-1) * psi.dominant * s.lambda_1**2 / (s.lambda_d**2 * s.lambda_k**2 * room)


def _large_start(s: Instances, contraction: Number) -> Truth:
    """The start of Assumption 14 and t < t*, for energies above the floor that shrink by `contraction` a step.

    t + 1 ≤ ⌊log(ϱ_D/Δ)/(−log contraction)⌋ ⇔ ϱ_D contraction^(t+1) ≥ Δ, with Δ = δ − Σ_Dβ_i > 0.
    """
    excess, floor = s.split(s.square - s.floor).dominant, s.split(s.floor).dominant
    needed = _delta(s) - floor
    return (needed > 0) & (excess > needed) & (excess * contraction ** (s.time + 1) >= needed)


T15 = Claim(
    name="T15",
    form="printed",
    source="Theorem 15",
    statement="From a large start the alignment of expected energies falls until t*.",
    formula="θ falls for t < t* = ⌊log(ϱ_D/(δ−Σ_Dβ_i))/(−2 log(1−ηλ₁))⌋",
    hypotheses="Assumption 14, ηλ₁ < 1, t < t*, and δ > Σ_Dβ_i (else t* is undefined)",
    expected="holds",
    when=(
        *_ASSUMPTION_14,
        lambda s: s.step_size * s.lambda_1 < 1,
        lambda s: _large_start(s, (1 - s.step_size * s.lambda_1) ** 2),
    ),
    then=lambda s: [_falls(s, s.time)],
    enters=("step_size", "time"),
)


T15_CORRECTED = Claim(
    name="T15",
    form="corrected",
    source="Theorem 15",
    statement="From a large start the alignment of expected energies falls until t*, for every step of Assumption 14.",
    formula="θ falls for t < t* = ⌊log(ϱ_D/(δ−Σ_Dβ_i))/(−log min_D(1−ηλ_i)²)⌋",
    hypotheses="Assumption 14, t < t*, δ > Σ_Dβ_i",
    expected="holds",
    when=(*_ASSUMPTION_14, lambda s: _large_start(s, squared_contractions(s).min(-1))),
    then=lambda s: [_falls(s, s.time)],
    enters=("step_size", "time"),
)


def _room(s: Instances) -> Number:
    """Gap (2/η − λ₁ − λ_{k+1})."""
    return s.gap * (2 / s.step_size - s.lambda_1 - s.lambda_k1)


T15_SHARP = Claim(
    name="T15-sharp",
    form="corrected",
    source="Theorem 15",
    statement="The alignment of expected energies falls while the dominant energy stays above a noise level.",
    formula="m0_D,t > e_D/(gap(2/η−λ₁−λ_{k+1})) ⇒ θ falls at t",
    hypotheses="η < 2/(λ₁+λ_{k+1}), the bulk holds gradient or noise",
    expected="holds",
    when=(
        _holds_bulk,
        lambda s: s.step_size * (s.lambda_1 + s.lambda_k1) < 2,
        lambda s: s.after(s.time).signal(2).dominant * _room(s) > s.variance(2).dominant,
    ),
    then=lambda s: [_falls(s, s.time)],
    enters=("step_size", "time"),
)


DSGD = Claim(
    name="DSGD",
    form="printed",
    source="section 5, on Song et al. (2025)",
    statement="In the paper's dynamics at high alignment the projected update DSGD raises the expected loss.",
    formula="θ_t > 1/2 ⇒ E[L(x') − L(x)] > 0 for the dominant update",
    hypotheses="Assumption 14's step size and start, Σ ≻ 0, θ_t > 1/2",
    expected="refuted",
    when=(*_ASSUMPTION_14, Instances.is_noisy_throughout, lambda s: s.after(s.time).alignment > Fraction(1, 2)),
    then=lambda s: [less(0, s.after(s.time).loss_change().dominant)],
    enters=("step_size", "time"),
    note="It is true of single states between the thresholds, η_D < η < η_B (T10), not of the expected energies.",
)


DSGD_CORRECTED = Claim(
    name="DSGD",
    form="corrected",
    source="section 5, on Song et al. (2025)",
    statement="In the paper's dynamics the dominant update never raises the expected loss: the step is never above the "
    "dominant threshold of the moments, and reaches it only at the floor.",
    formula="E[L(x') − L(x)] ≤ 0 for the dominant update, that is η ≤ η_D,t",
    hypotheses="Assumption 14's step size and start",
    expected="holds",
    when=(short_step, above_floor),
    then=lambda s: [at_most(s.after(s.time).loss_change().dominant, 0)],
    enters=("step_size", "time"),
)


def _between_rates(s: Instances) -> list[Comparison]:
    inside = squared_contractions(s)
    floor = s.stationary().signal(2).dominant
    start = s.signal(2).dominant - floor
    now = s.after(s.time).signal(2).dominant - floor
    return [at_most(inside.min(-1) ** s.time * start, now), at_most(now, inside.max(-1) ** s.time * start)]


B3_RATES = Claim(
    name="B.3-rates",
    form="corrected",
    source="appendix B.3",
    statement="The dominant energy above its floor falls exponentially, between the fastest and the slowest dominant "
    "rate.",
    formula="min_D(1−ηλ_i)^{2t} ≤ (m0_D,t − f_D)/(m0_D,0 − f_D) ≤ max_D(1−ηλ_i)^{2t}",
    hypotheses="0 < ηλ₁ < 2, x_{i,0}² > β_i on D",
    expected="holds",
    when=(Instances.is_stable, above_floor),
    then=_between_rates,
    enters=("step_size", "time"),
)


CLAIMS = (
    T15,
    T15_CORRECTED,
    T15_SHARP,
    DSGD,
    DSGD_CORRECTED,
    B3_RATES,
)
