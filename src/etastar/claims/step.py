"""Theorems 2 to 6: one step of SGD in the ratio model, and the borders of the alignment.

The ratio model is the alignment of the expected energies, E s_D'/(E s_D' + E s_B'), exact at every dimension.
"""

from __future__ import annotations

from etastar.claims.border import high_border, low_border, regime_border
from etastar.claims.claim import Claim, Comparison, at_most, less, same_sign
from etastar.claims.instances import Instances
from etastar.claims.number import Number

__all__ = ["CLAIMS"]

_NOISY = (Instances.is_moving, Instances.is_noisy_throughout)


def _turns(s: Instances) -> Number:
    """The sign of the change of θ, from the energies after the step."""
    now, then = s.signal(2), s.next_energy()
    return now.bulk * then.dominant - now.dominant * then.bulk


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


def _border_bounds(s: Instances) -> list[Comparison]:
    border, rho = high_border(s), s.odds_of_dimensions
    upper = border.u / (border.s + border.t)
    noise = s.noise.min(-1) / s.noise.max(-1)
    return [
        border.below_one_by_at_least(border.u / (border.s + border.u + border.t)),
        border.below_one_by_at_most(upper),
        at_most(upper, noise * rho.denominator / (rho.numerator * s.ratio**2)),
    ]


T5_CORRECTED = Claim(
    name="T5",
    form="corrected",
    source="Theorem 5",
    statement="θ* is within a factor known from the noise of 1 − A/(m + h), and 1 − θ* is at most of the order 1/r².",
    formula="A/(m+A+h) ≤ 1−θ* ≤ A/(m+h) ≤ s_min/(ρ s_max r²)",
    hypotheses="Σ ≻ 0, g ≠ 0",
    expected="holds",
    when=_NOISY,
    then=_border_bounds,
)


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


CLAIMS = (
    T2,
    T3,
    T4,
    T4_SHARP,
    T5,
    T5_CORRECTED,
    T6,
)
