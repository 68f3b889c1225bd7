"""Theorems 2 to 8 and Corollary 9: one step of SGD in the ratio model, and the size of the critical step.

The ratio model is the alignment of the expected energies, E s_D'/(E s_D' + E s_B'), exact at every dimension.
"""

from __future__ import annotations

from etastar.claims.border import high_border, low_border, regime_border
from etastar.claims.claim import Claim, Comparison, at_most, less, same_sign
from etastar.claims.instance import Instances, Split
from etastar.claims.number import Number, Truth

__all__ = ["CLAIMS"]


def _turns(s: Instances) -> Number:
    """The sign of the change of θ, from the energies after the step."""
    now, then = s.signal(2), s.next_energy()
    return now.bulk * then.dominant - now.dominant * then.bulk


_NOISY = (Instances.is_moving, Instances.is_noisy_throughout)


def _bulk_noise_share(s: Instances) -> Truth:
    """θ ≥ e_B/(e_B + e_D), the hypothesis of T8 as printed."""
    e = s.variance(2)
    return Split(e.bulk, e.dominant).at_most(s.signal(2))


def _dominant_noise_share(s: Instances) -> Truth:
    """θ ≤ e_D/(e_D + e_B), the hypothesis that T8 needs."""
    return s.signal(2).at_most(s.variance(2))


T2 = Claim(
    name="T2",
    form="corrected",
    source="Theorem 2; equation 2, Lemma 22",
    statement="The alignment of expected energies falls below the critical step size and rises above it, at every "
    "dimension; without a critical step the same sign tells.",
    formula="sign(m0_B E s_D' − m0_D E s_B') = sign(ηM − 2N)",
    hypotheses="η > 0, g ≠ 0",
    expected="holds",
    when=(Instances.is_moving,),
    then=lambda s: [same_sign(_turns(s), s.step_size * s.kick - 2 * s.drift)],
    enters=("step_size",),
)

T3 = Claim(
    name="T3",
    form="corrected",
    source="Theorem 3",
    statement="At low alignment a step above the critical one raises the alignment of expected energies.",
    formula="θ ≤ g_gap and η > η* ⇒ E s_D'/(E s_D' + E s_B') > θ",
    hypotheses="Σ ≻ 0, θ ≤ g_gap, η > η*",
    expected="holds",
    when=(*_NOISY, lambda s: s.signal(2).at_most(low_border(s)), lambda s: s.step_size * s.kick > 2 * s.drift),
    then=lambda s: [less(0, s.kick), less(0, _turns(s))],
    enters=("step_size",),
)

T4 = Claim(
    name="T4",
    form="printed",
    source="Theorem 4",
    statement="At high alignment the alignment of expected energies falls whatever the step size.",
    formula="θ ≥ θ* ⇒ M ≤ 0 ≤ N, not both 0, and so θ falls for every η > 0",
    hypotheses="Σ ≻ 0, θ ≥ θ*",
    expected="holds",
    when=(*_NOISY, lambda s: high_border(s).balance(s.signal(2)) <= 0),
    then=lambda s: [at_most(s.kick, 0), at_most(0, s.drift), less(s.kick, s.drift), less(_turns(s), 0)],
    enters=("step_size",),
)

T4_SHARP = Claim(
    name="T4",
    form="corrected",
    source="Theorem 4",
    statement="A critical step size exists exactly below θ†, which is never above θ*.",
    formula="sign(M) = sign(θ† − θ), and θ ≥ θ* ⇒ θ ≥ θ†;  θ† = F(q2_D, q2_B, (b_D − b_B)G)",
    hypotheses="both blocks hold gradient, Σ ≠ 0",
    expected="holds",
    when=(Instances.is_moving_in_both, Instances.is_noisy),
    then=lambda s: [
        same_sign(s.kick, regime_border(s).balance(s.signal(2))),
        at_most(regime_border(s).balance(s.signal(2)), high_border(s).balance(s.signal(2))),
    ],
)


def _shrinking_constant(s: Instances) -> list[Comparison]:
    """If 1 − θ* ≥ α/r² for all r, then (1 − θ*)r² at 16 times the ratio is not 16 times below a lower bound here."""
    far, border = s.stretched(16), high_border(s)
    here = s.ratio**2 * border.u / (border.s + border.t + border.u)
    return [high_border(far).below_one_by_at_least(here / 16 / far.ratio**2)]


T5 = Claim(
    name="T5",
    form="printed",
    source="Theorem 5",
    statement="1 − θ* is of the exact order 1/r²: bounded below as well as above by constants over r², for a state "
    "that is held while the dominant eigenvalues grow.",
    formula="1 − β/r² ≤ θ* ≤ 1 − α/r²",
    hypotheses="Σ ≻ 0; the dominant eigenvalues multiplied by 16",
    expected="refuted",
    when=(*_NOISY, lambda s: s.signal(2).dominant > 0),
    then=_shrinking_constant,
    note="Tested as: a constant α that serves both at r and at 16 r cannot have to fall by more than 16. It must "
    "fall for ever: with dominant eigenvalues multiplied by τ, (1−θ*)r² ≤ A r²/m ≤ c/τ² (T5 corrected), "
    "because m = s(λ₁²−λ_d²) grows as τ⁴ when the state has a dominant part. The lower half of T5 is true.",
)

T5_CORRECTED = Claim(
    name="T5",
    form="corrected",
    source="Theorem 5",
    statement="θ* is within a factor known from the noise of 1 − A/(m + h), and 1 − θ* is at most of the order 1/r².",
    formula="A/(m+A+h) ≤ 1−θ* ≤ A/(m+h) ≤ s_min/(ρ s_max r²)",
    hypotheses="Σ ≻ 0, g ≠ 0",
    expected="holds",
    when=_NOISY,
    then=lambda s: _border_bounds(s),
)


def _border_bounds(s: Instances) -> list[Comparison]:
    border, rho = high_border(s), s.odds_of_dimensions
    upper = border.u / (border.s + border.t)
    noise = s.noise.min(-1) / s.noise.max(-1)
    return [
        border.below_one_by_at_least(border.u / (border.s + border.u + border.t)),
        border.below_one_by_at_most(upper),
        at_most(upper, noise * rho.denominator / (rho.numerator * s.ratio**2)),
    ]


T6 = Claim(
    name="T6",
    form="printed",
    source="Theorem 6",
    statement="The border of low alignment lies below the border of high alignment.",
    formula="g_gap < θ*",
    hypotheses="Σ ≻ 0, g ≠ 0",
    expected="holds",
    when=_NOISY,
    then=lambda s: [less(0, high_border(s).balance(low_border(s)))],
)


def _worst_noise(s: Instances) -> Number:
    """s_max ψ_D/(λ_d² ‖x‖² θ), the noise term of T7."""
    psi = s.split(s.eigenvalues**2)
    return s.noise.max(-1) * psi.dominant / (s.lambda_d**2 * s.square.sum(-1) * s.alignment)


def _worst_noise_projected(s: Instances) -> Number:
    """s_max ψ_D λ₁²/(λ_d² λ_k² ‖P_D x‖²), the noise term of the remark, as in the δ of Assumption 14."""
    psi, size = s.split(s.eigenvalues**2), s.split(s.square).dominant
    return s.noise.max(-1) * psi.dominant * s.lambda_1**2 / (s.lambda_d**2 * s.lambda_k**2 * size)


def _curvature(s: Instances) -> Number:
    return s.lambda_1**2 - s.lambda_d**2


T7 = Claim(
    name="T7",
    form="printed",
    source="Theorem 7",
    statement="The critical step size is bounded below, whatever the state.",
    formula="η* = 2N/M ≥ 2(λ_k−λ_{k+1})/((λ₁²−λ_d²) + s_max ψ_D/(λ_d²‖x‖²θ))",
    hypotheses="M ≠ 0, 0 < θ < 1",
    expected="refuted",
    when=(Instances.is_moving_in_both, lambda s: (s.kick > 0) | (s.kick < 0)),
    then=lambda s: [at_most(2 * s.gap / (_curvature(s) + _worst_noise(s)), s.critical_step_size)],
    note="Fails only where M < 0: there the formula gives a negative number and no critical step exists.",
)

T7_REMARK = Claim(
    name="T7-remark",
    form="printed",
    source="remark after Theorem 7",
    statement="The bound of Theorem 7 in strict form, with the dominant part of the state.",
    formula="η* > 2(λ_k−λ_{k+1})/((λ₁²−λ_d²) + s_max ψ_D λ₁²/(λ_d²λ_k²‖P_D x‖²))",
    hypotheses="M > 0, 0 < θ < 1",
    expected="refuted",
    when=(Instances.is_moving_in_both, lambda s: s.kick > 0),
    then=lambda s: [less(2 * s.gap / (_curvature(s) + _worst_noise_projected(s)), s.critical_step_size)],
    note="Only the strictness fails: two levels without noise give equality.",
)

T7_CORRECTED = Claim(
    name="T7",
    form="corrected",
    source="Theorem 7",
    statement="The reciprocal of the critical step lies between two sums of eigenvalues, shifted by the noise.",
    formula="λ_k+λ_d+ν ≤ 2/η* := M/N ≤ λ₁+λ_{k+1}+ν,  ν = (e_D/s_D − e_B/s_B)/(a_D−a_B);  T7 with ≥ if M > 0",
    hypotheses="0 < θ < 1",
    expected="holds",
    when=(Instances.is_moving_in_both,),
    then=lambda s: _reciprocal_bounds(s),
)


def _reciprocal_bounds(s: Instances) -> list[Comparison]:
    m0, m1, e = s.signal(2), s.signal(3), s.variance(2)
    reciprocal = s.kick / s.drift
    tilt = e.dominant / m0.dominant - e.bulk / m0.bulk
    shift = tilt / (m1.dominant / m0.dominant - m1.bulk / m0.bulk)
    return [
        at_most(s.lambda_k + s.lambda_d + shift, reciprocal),
        at_most(reciprocal, s.lambda_1 + s.lambda_k1 + shift),
        at_most(reciprocal * s.gap, _curvature(s) + _worst_noise(s)),
        at_most(reciprocal * s.gap, _curvature(s) + _worst_noise_projected(s)),
    ]


def _t8_bound(s: Instances) -> Number:
    return (s.lambda_1 - s.lambda_d) / (s.lambda_k * s.lambda_1 - s.lambda_k1 * s.lambda_d)


T8 = Claim(
    name="T8",
    form="printed",
    source="Theorem 8, main text",
    statement="Where the alignment is at least the bulk's share of the noise energy, the critical step is small.",
    formula="θ ≥ e_B/(e_B+e_D) ⇒ η* ≤ (λ₁−λ_d)/(λ_kλ₁−λ_{k+1}λ_d)",
    hypotheses="N, M > 0, θ ≥ e_B/(e_B+e_D)",
    expected="refuted",
    when=(Instances.is_low, Instances.is_noisy, _bulk_noise_share),
    then=lambda s: [at_most(s.critical_step_size, _t8_bound(s))],
)

T8_APPENDIX = Claim(
    name="T8",
    form="printed-appendix",
    source="Theorem 8, appendix",
    statement="Where the alignment is at least the bulk's share of the noise energy, the critical step is small.",
    formula="θ ≥ e_B/(e_B+e_D) ⇒ η* ≤ 2(λ₁−λ_d)/(λ_kλ₁−λ_{k+1}λ_d)",
    hypotheses="N, M > 0, θ ≥ e_B/(e_B+e_D)",
    expected="refuted",
    when=(Instances.is_low, Instances.is_noisy, _bulk_noise_share),
    then=lambda s: [at_most(s.critical_step_size, 2 * _t8_bound(s))],
)

T8_CORRECTED = Claim(
    name="T8",
    form="corrected",
    source="Theorem 8",
    statement="Where the alignment is at most the dominant share of the noise energy, the critical step exists and "
    "is at most that of the two nearest levels.",
    formula="θ ≤ e_D/(e_D+e_B) ⇒ 0 < η* ≤ 2/(λ_k+λ_d)",
    hypotheses="0 < θ < 1, θ ≤ e_D/(e_D+e_B)",
    expected="holds",
    when=(Instances.is_moving_in_both, _dominant_noise_share),
    then=lambda s: [less(0, s.kick), at_most(2 * s.drift * (s.lambda_k + s.lambda_d), 2 * s.kick)],
)

C9 = Claim(
    name="C9",
    form="printed",
    source="Corollary 9",
    statement="Under Theorem 8 the critical step does not exceed the stability limit.",
    formula="θ ≥ e_B/(e_B+e_D) ⇒ η* ≤ 2/λ₁",
    hypotheses="N, M > 0, θ ≥ e_B/(e_B+e_D)",
    expected="refuted",
    when=(Instances.is_low, Instances.is_noisy, _bulk_noise_share),
    then=lambda s: [at_most(s.critical_step_size, 2 / s.lambda_1)],
)

C9_CORRECTED = Claim(
    name="C9",
    form="corrected",
    source="Corollary 9",
    statement="Where the alignment is at most the dominant share of the noise energy, the critical step is below the "
    "limit of the smallest dominant eigenvalue, and below the stability limit if λ_k + λ_d ≥ λ₁.",
    formula="θ ≤ e_D/(e_D+e_B) ⇒ η* < 2/λ_k, and η* ≤ 2/λ₁ if λ_k+λ_d ≥ λ₁",
    hypotheses="0 < θ < 1, θ ≤ e_D/(e_D+e_B)",
    expected="holds",
    when=(Instances.is_moving_in_both, _dominant_noise_share),
    # min(λ₁, λ_k + λ_d) is λ₁ exactly where the second half applies, and T8 as corrected elsewhere.
    then=lambda s: [
        less(s.drift * s.lambda_k, s.kick),
        at_most(s.drift * _reachable(s), s.kick),
    ],
)


def _reachable(s: Instances) -> Number:
    """min(λ₁, λ_k + λ_d)."""
    other = s.lambda_k + s.lambda_d
    return (s.lambda_1 + other - abs(s.lambda_1 - other)) / 2


CLAIMS = (
    T2,
    T3,
    T4,
    T4_SHARP,
    T5,
    T5_CORRECTED,
    T6,
    T7,
    T7_REMARK,
    T7_CORRECTED,
    T8,
    T8_APPENDIX,
    T8_CORRECTED,
    C9,
    C9_CORRECTED,
)
