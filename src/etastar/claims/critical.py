"""Theorems 7 and 8 and Corollary 9: how small and how large the critical step size η* = 2N/M can be.

Bounds are compared as they are printed where η* exists, and multiplied out in the corrected forms.
"""

from __future__ import annotations

from etastar.claims.claim import Claim, Comparison, at_most, less
from etastar.claims.instances import Instances, Split
from etastar.claims.number import Number, Truth

__all__ = ["CLAIMS"]


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


T7_CORRECTED = Claim(
    name="T7",
    form="corrected",
    source="Theorem 7",
    statement="The reciprocal of the critical step lies between two sums of eigenvalues, shifted by the noise.",
    formula="λ_k+λ_d+ν ≤ 2/η* := M/N ≤ λ₁+λ_{k+1}+ν,  ν = (e_D/s_D − e_B/s_B)/(a_D−a_B);  T7 with ≥ if M > 0",
    hypotheses="0 < θ < 1",
    expected="holds",
    when=(Instances.is_moving_in_both,),
    then=_reciprocal_bounds,
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


T7_REMARK_CORRECTED = Claim(
    name="T7-remark",
    form="corrected",
    source="remark after Theorem 7",
    statement="The bound of Theorem 7 with the dominant part of the state, where a critical step exists.",
    formula="M > 0 ⇒ η* ≥ 2(λ_k−λ_{k+1})/((λ₁²−λ_d²) + s_max ψ_D λ₁²/(λ_d²λ_k²‖P_D x‖²))",
    hypotheses="M > 0, 0 < θ < 1",
    expected="holds",
    when=(Instances.is_moving_in_both, lambda s: s.kick > 0),
    then=lambda s: [at_most(s.gap * s.kick, s.drift * (_curvature(s) + _worst_noise_projected(s)))],
)


def _bulk_noise_share(s: Instances) -> Truth:
    """θ ≥ e_B/(e_B + e_D), the hypothesis of T8 as printed."""
    e = s.variance(2)
    return Split(e.bulk, e.dominant).at_most(s.signal(2))


def _dominant_noise_share(s: Instances) -> Truth:
    """θ ≤ e_D/(e_D + e_B), the hypothesis that T8 needs."""
    return s.signal(2).at_most(s.variance(2))


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


def _reachable(s: Instances) -> Number:
    """min(λ₁, λ_k + λ_d)."""
    other = s.lambda_k + s.lambda_d
    return (s.lambda_1 + other - abs(s.lambda_1 - other)) / 2


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


CLAIMS = (
    T7,
    T7_CORRECTED,
    T7_REMARK,
    T7_REMARK_CORRECTED,
    T8,
    T8_APPENDIX,
    T8_CORRECTED,
    C9,
    C9_CORRECTED,
)
