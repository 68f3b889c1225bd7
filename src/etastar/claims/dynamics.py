"""Constant step: the stable interval, Theorems 15 and 16, the conclusion, and DSGD in the paper's dynamics.

Second moments follow E x_i² ← (1−ηλ_i)² E x_i² + η²κ_i² exactly, so that every claim about expected energies at a time
or at stationarity is a rational one.
"""

from __future__ import annotations

from fractions import Fraction

from etastar.claims.border import high_border, loss_border, low_border
from etastar.claims.claim import Claim, Comparison, at_most, equal, less
from etastar.claims.instance import Instances, Split
from etastar.claims.number import Number, Truth

__all__ = ["CLAIMS"]


def _short_step(s: Instances) -> Truth:
    """The step size of Assumption 14."""
    return s.is_stable() & (s.step_size * (s.lambda_1**2 - s.lambda_d**2) < 2 * s.gap)


def _above_floor(s: Instances) -> Truth:
    """x_{i,0}² > β_i on D, as Assumption 14 asks."""
    return (s.square - s.floor)[:, : s.rank].min(-1) > 0


def _falls(s: Instances, time: int) -> Comparison:
    """The alignment of expected energies falls from `time` to the next step."""
    at = s.after(time)
    now, then = at.signal(2), at.next_energy()
    return less(now.bulk * then.dominant, now.dominant * then.bulk)


def _bulk_energy(s: Instances) -> Truth:
    """The bulk holds gradient or noise: else θ = 1 for ever."""
    return (s.signal(2).bulk + s.variance(2).bulk) > 0


def _squared_contractions(s: Instances) -> Number:
    """(1−ηλ_i)² on D."""
    return (1 - s.step_size[:, None] * s.eigenvalues[:, : s.rank]) ** 2


def _room(s: Instances) -> Number:
    """Gap (2/η − λ₁ − λ_{k+1})."""
    return s.gap * (2 / s.step_size - s.lambda_1 - s.lambda_k1)


_ASSUMPTION_14 = (_short_step, _above_floor, _bulk_energy)

STABLE_INTERVAL = Claim(
    name="stable-interval",
    form="printed",
    source="section 4, the stable interval",
    statement="A constant step drives the alignment into the interval between the low and the high border.",
    formula="g_gap < θ_∞ < θ*, at the stationary moments",
    hypotheses="Σ ≻ 0, the step size of Assumption 14",
    expected="refuted",
    when=(_short_step, Instances.is_noisy_throughout),
    then=lambda s: [
        less(low_border(s).share, s.stationary().alignment),
        less(0, high_border(s.stationary()).balance(s.stationary().signal(2))),
    ],
    enters=("step_size",),
    note="For two levels and isotropic noise θ_∞ > g_gap needs η > 2/(λ_D+λ_B), which Assumption 14 forbids.",
)

STABLE_INTERVAL_CORRECTED = Claim(
    name="stable-interval",
    form="corrected",
    source="section 4, the stable interval",
    statement="A constant step drives the alignment to the loss border of the stationary moments.",
    formula="θ_∞ = θ_loss at the stationary moments",
    hypotheses="n_D, n_B > 0, 0 < ηλ₁ < 2",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy_in_both),
    then=lambda s: [equal(loss_border(s.stationary()).balance(s.stationary().signal(2)), 0)],
    enters=("step_size",),
)


def _delta(s: Instances) -> Number:
    """δ of Assumption 14."""
    psi = s.split(s.eigenvalues**2)
    room = 2 * s.gap / s.step_size - (s.lambda_1**2 - s.lambda_d**2)
    return s.noise.max(-1) * psi.dominant * s.lambda_1**2 / (s.lambda_d**2 * s.lambda_k**2 * room)


def _large_start(s: Instances, contraction: Number) -> Truth:
    """The start of Assumption 14, and t < t* when energies above the floor shrink by `contraction` a step, without logarithms.

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
    when=(*_ASSUMPTION_14, lambda s: _large_start(s, _squared_contractions(s).min(-1))),
    then=lambda s: [_falls(s, s.time)],
    enters=("step_size", "time"),
)

T15_SHARP = Claim(
    name="T15-sharp",
    form="corrected",
    source="Theorem 15",
    statement="The alignment of expected energies falls while the dominant energy stays above a noise level.",
    formula="m0_D,t > e_D/(gap(2/η−λ₁−λ_{k+1})) ⇒ θ falls at t",
    hypotheses="η < 2/(λ₁+λ_{k+1}), the bulk holds gradient or noise",
    expected="holds",
    when=(
        _bulk_energy,
        lambda s: s.step_size * (s.lambda_1 + s.lambda_k1) < 2,
        lambda s: s.after(s.time).signal(2).dominant * _room(s) > s.variance(2).dominant,
    ),
    then=lambda s: [_falls(s, s.time)],
    enters=("step_size", "time"),
)


def _distance_to_limit(s: Instances) -> list[Comparison]:
    """|θ_t − θ_∞| ≤ max(1−ηλ_i)^{2t} Σλ²|x_0²−β|/Σλ²E x_t², with E x_t² by recursion and θ_∞ by the formula."""
    at, contraction = s.after(s.time), ((1 - s.step_size[:, None] * s.eigenvalues) ** 2).max(-1)
    above = (s.eigenvalues**2 * abs(s.square - s.floor)).sum(-1)
    distance = abs(at.alignment - s.stationary().alignment)
    return [at_most(distance * at.signal(2).total, contraction**s.time * above)]


T16 = Claim(
    name="T16",
    form="printed",
    source="Theorem 16",
    statement="The alignment of expected energies converges to that of the stationary moments.",
    formula="|θ_t − θ_∞| ≤ max_i(1−ηλ_i)^{2t} Σλ²|x_0²−β|/E‖g_t‖² → 0,  θ_∞ = Σ_Dλ²β/Σλ²β",
    hypotheses="0 < ηλ₁ < 2, Σ ≠ 0, g ≠ 0",
    expected="holds",
    when=(Instances.is_stable, Instances.is_moving, Instances.is_noisy),
    then=_distance_to_limit,
    enters=("step_size", "time"),
)


def _small_step_limit(s: Instances) -> list[Comparison]:
    """Σ_Dλ/Σ_Bλ ≤ θ_∞/(1−θ_∞) ≤ (Σ_Dλ/Σ_Bλ)·2/(2−ηλ₁), which closes as η → 0."""
    trace, energy = s.split(s.eigenvalues), s.stationary().signal(2)
    left, right = energy.dominant * trace.bulk, energy.bulk * trace.dominant
    return [at_most(right, left), at_most(left * (2 - s.step_size * s.lambda_1), 2 * right)]


T16_SMALL_STEP = Claim(
    name="T16-small-step",
    form="printed",
    source="remark after Theorem 16",
    statement="For isotropic noise and a small step the limit is the dominant share of the trace.",
    formula="Σ_Dλ/Σ_Bλ ≤ θ_∞/(1−θ_∞) ≤ (Σ_Dλ/Σ_Bλ)·2/(2−ηλ₁) → Σ_Dλ/Σ_Bλ as η → 0",
    hypotheses="Σ = σ²I, 0 < ηλ₁ < 2",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy, Instances.is_isotropic),
    then=_small_step_limit,
    enters=("step_size",),
)


def _order_one_over_r(s: Instances) -> list[Comparison]:
    """(λ_d(2−ηλ₁)/(λ₁(2−ηλ_d)))·Tr_B/Tr_D ≤ (1−θ_∞)/θ_∞ ≤ (1/r)·Tr_B/Tr_D."""
    energy, trace, step = s.stationary().signal(2), s.variance(0), s.step_size
    odds = energy.bulk / energy.dominant
    noise = trace.bulk / trace.dominant
    lower = s.lambda_d * (2 - step * s.lambda_1) / (s.lambda_1 * (2 - step * s.lambda_d))
    return [at_most(lower * noise, odds), at_most(odds, noise / s.ratio)]


T16_RATIO = Claim(
    name="T16-ratio",
    form="printed",
    source="remark after Theorem 16",
    statement="The limit tends to 1 as the ratio grows.",
    formula="(1−θ_∞)/θ_∞ ≤ Tr_B/(r Tr_D) → 0 as r → ∞",
    hypotheses="0 < ηλ₁ < 2, noise in both blocks",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy_in_both),
    then=lambda s: _order_one_over_r(s)[1:],
    enters=("step_size",),
)

B4_CORRECTED = Claim(
    name="B.4",
    form="corrected",
    source="appendix B.4",
    statement="The distance of the stationary alignment from 1 is of the exact order 1/r.",
    formula="λ_d(2−ηλ₁)/(λ₁(2−ηλ_d))·Tr_B/Tr_D ≤ (1−θ_∞)/θ_∞ ≤ (1/r)·Tr_B/Tr_D",
    hypotheses="0 < ηλ₁ < 2, noise in both blocks",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy_in_both),
    then=_order_one_over_r,
    enters=("step_size",),
)


T16_LIMITS = Claim(
    name="T16-limits",
    form="printed",
    source="Theorem 16",
    statement="Letting the dimension grow first and then the time gives the stationary alignment.",
    formula="lim_t lim_d E θ_t = Σ_Dλ²β/Σλ²β",
    hypotheses="the step size of Assumption 14, x_d ≠ 0, noise in D; d grows with x_i kept and Tr Σ fixed (Assumption 1)",
    expected="refuted",
    when=(_short_step, lambda s: (s.variance(0).dominant > 0) & (s.square[:, -1] > 0)),
    then=lambda s: [equal(s.stationary().alignment, 0)],
    enters=("step_size",),
    lift="state kept",
    note="With x_i of order one and Tr Σ bounded the noise vanishes from lim_d θ_t, which is then the alignment of "
    "gradient descent without noise; its odds are at most (m0_D/(λ_d²x_d²))·(max_D(1−ηλ_i)/(1−ηλ_d))^{2t} → 0, as "
    "|1−ηλ_i| < 1−ηλ_d on D. So the iterated limit is 0, shown as the right side; θ_∞ > 0 is the left.",
)

CONCLUSION = Claim(
    name="conclusion",
    form="printed",
    source="conclusion",
    statement="The critical step size converges to a value below about 1/(λ₁+λ_d); 'about' is read as within half.",
    formula="lim η*_t ≤ (3/2)/(λ₁+λ_d)",
    hypotheses="the step size of Assumption 14, Σ ≻ 0",
    expected="refuted",
    when=(_short_step, Instances.is_noisy_throughout),
    then=lambda s: [at_most(s.stationary().critical_step_size, Fraction(3, 2) / (s.lambda_1 + s.lambda_d))],
    enters=("step_size",),
    note="At a constant step η*_t → η, whatever η.",
)


def _loss_threshold_numerators(s: Instances) -> tuple[Split, Split]:
    at = s.stationary()
    m0, m1, q1 = at.signal(2), at.signal(3), at.variance(1)
    return m0, Split(m1.dominant + q1.dominant, m1.bulk + q1.bulk)


def _all_equal_the_step(s: Instances) -> list[Comparison]:
    m0, weight = _loss_threshold_numerators(s)
    at, step = s.stationary(), s.step_size
    return [
        equal(2 * at.drift, step * at.kick),
        equal(2 * m0.dominant, step * weight.dominant),
        equal(2 * m0.bulk, step * weight.bulk),
    ]


CONCLUSION_CORRECTED = Claim(
    name="conclusion",
    form="corrected",
    source="conclusion",
    statement="At the stationary moments the critical step size and both loss thresholds equal the step in use.",
    formula="η* = η_D = η_B = η",
    hypotheses="0 < ηλ₁ < 2, noise in both blocks",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy_in_both),
    then=_all_equal_the_step,
    enters=("step_size",),
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
    when=(_short_step, _above_floor),
    then=lambda s: [at_most(s.after(s.time).loss_change().dominant, 0)],
    enters=("step_size", "time"),
)


def _between_rates(s: Instances) -> list[Comparison]:
    inside = _squared_contractions(s)
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
    when=(Instances.is_stable, _above_floor),
    then=_between_rates,
    enters=("step_size", "time"),
)

CLAIMS = (
    STABLE_INTERVAL,
    STABLE_INTERVAL_CORRECTED,
    T15,
    T15_CORRECTED,
    T15_SHARP,
    T16,
    T16_SMALL_STEP,
    T16_RATIO,
    T16_LIMITS,
    CONCLUSION,
    CONCLUSION_CORRECTED,
    DSGD,
    DSGD_CORRECTED,
    B3_RATES,
    B4_CORRECTED,
)
