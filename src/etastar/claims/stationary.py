"""The stationary state at constant step: the stable interval, Theorem 16 with its remarks, the conclusion, B.4.

Stationary second moments are β_i = ηκ_i²/(2λ_i − ηλ_i²), so that every claim here is a rational one.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from etastar.claims.assumptions import short_step, squared_contractions
from etastar.claims.border import high_border, loss_border, low_border
from etastar.claims.claim import Claim, Comparison, at_most, equal, less
from etastar.claims.instances import Instances, Split

__all__ = ["CLAIMS"]


STABLE_INTERVAL = Claim(
    name="stable-interval",
    form="printed",
    source="section 4, the stable interval",
    statement="A constant step drives the alignment into the interval between the low and the high border.",
    formula="g_gap < θ_∞ < θ*, at the stationary moments",
    hypotheses="Σ ≻ 0, the step size of Assumption 14",
    expected="refuted",
    when=(short_step, Instances.is_noisy_throughout),
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
    hypotheses="the step size of Assumption 14, x_d ≠ 0, noise in D; d → ∞ with x_i kept and Tr Σ fixed",
    expected="refuted",
    when=(short_step, lambda s: (s.variance(0).dominant > 0) & (s.square[:, -1] > 0)),
    then=lambda s: [equal(s.stationary().alignment, 0)],
    enters=("step_size",),
    lift="state kept",
    note="With x_i of order one and Tr Σ bounded the noise vanishes from lim_d θ_t, which is then the alignment of "
    "gradient descent without noise; its odds are at most (m0_D/(λ_d²x_d²))·(max_D(1−ηλ_i)/(1−ηλ_d))^{2t} → 0, as "
    "|1−ηλ_i| < 1−ηλ_d on D. So the iterated limit is 0, shown as the right side; θ_∞ > 0 is the left.",
)


def _noise_free_odds(s: Instances) -> list[Comparison]:
    """D_t/B_t ≤ (D_0/(λ_d²x_d²))·(max_D(1−ηλ_i)²/(1−ηλ_d)²)^t without noise, and that base is below 1."""
    energy, bottom = replace(s, noise=0 * s.noise).after(s.time).signal(2), s.lambda_d**2 * s.square[:, -1]
    fast, slow = squared_contractions(s).max(-1), (1 - s.step_size * s.lambda_d) ** 2
    return [
        less(fast, slow),
        at_most(energy.dominant * bottom * slow**s.time, energy.bulk * s.signal(2).dominant * fast**s.time),
    ]


T16_LIMITS_CORRECTED = Claim(
    name="T16-limits",
    form="corrected",
    source="Theorem 16",
    statement="Time first and then dimension gives the stationary alignment (Theorem 16 at each dimension); dimension "
    "first removes the noise, and the alignment then tends to 0, geometrically.",
    formula="θ_t/(1−θ_t) ≤ (m0_D/(λ_d²x_d²))·(max_D(1−ηλ_i)/(1−ηλ_d))^{2t} → 0 without noise",
    hypotheses="the step size of Assumption 14, x_d ≠ 0",
    expected="holds",
    when=(short_step, lambda s: s.square[:, -1] > 0),
    then=_noise_free_odds,
    enters=("step_size", "time"),
)


CONCLUSION = Claim(
    name="conclusion",
    form="printed",
    source="conclusion",
    statement="The critical step size converges to a value below about 1/(λ₁+λ_d); 'about' is read as within half.",
    formula="lim η*_t ≤ (3/2)/(λ₁+λ_d)",
    hypotheses="the step size of Assumption 14, Σ ≻ 0",
    expected="refuted",
    when=(short_step, Instances.is_noisy_throughout),
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


CLAIMS = (
    STABLE_INTERVAL,
    STABLE_INTERVAL_CORRECTED,
    T16,
    T16_SMALL_STEP,
    T16_RATIO,
    T16_LIMITS,
    T16_LIMITS_CORRECTED,
    CONCLUSION,
    CONCLUSION_CORRECTED,
    B4_CORRECTED,
)
