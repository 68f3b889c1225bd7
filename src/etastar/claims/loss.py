"""The introduction's threshold and Theorems 10 to 13: when a projected update lowers the expected loss.

Only squares and sums enter, so every claim here is decided in fractions; θ_crit is compared by polynomial sign.
"""

from __future__ import annotations

from fractions import Fraction

from etastar.claims.border import high_border, loss_border
from etastar.claims.claim import Claim, Comparison, at_most, less, same_sign
from etastar.claims.instances import Instances
from etastar.claims.number import Number

__all__ = ["CLAIMS"]


_NOISE_AND_SIGNAL = (Instances.is_moving_in_both, Instances.is_noisy_in_both)


def _threshold_signs(s: Instances, power: int) -> list[Comparison]:
    """E ΔL has the sign of η − 2m0/(Σ λ^power x² + q1), in each block; cross-multiplied."""
    change, m0, m1, q1 = s.loss_change(), s.signal(2), s.signal(power), s.variance(1)
    return [
        same_sign(change.dominant, s.step_size * (m1.dominant + q1.dominant) - 2 * m0.dominant),
        same_sign(change.bulk, s.step_size * (m1.bulk + q1.bulk) - 2 * m0.bulk),
    ]


INTRODUCTION = Claim(
    name="intro",
    form="printed",
    source="introduction",
    statement="The projected update lowers the expected loss exactly below a threshold with λ⁴ in its denominator.",
    formula="E[L(x')−L(x)] < 0 ⇔ 0 < η < η_S = 2Σ_Sλ²x²/(Σ_Sλ⁴x² + Σ_Sλκ²)",
    hypotheses="η > 0",
    expected="refuted",
    when=(Instances.is_moving,),
    then=lambda s: _threshold_signs(s, 4),
    enters=("step_size",),
    note="λ⁴ is a misprint for λ³, as Theorem 10 has it.",
)

INTRODUCTION_CORRECTED = Claim(
    name="intro",
    form="corrected",
    source="introduction",
    statement="The projected update lowers the expected loss exactly below a threshold with λ³ in its denominator.",
    formula="E[L(x')−L(x)] < 0 ⇔ 0 < η < η_S = 2Σ_Sλ²x²/(Σ_Sλ³x² + Σ_Sλκ²)",
    hypotheses="η > 0",
    expected="holds",
    when=(Instances.is_moving,),
    then=lambda s: _threshold_signs(s, 3),
    enters=("step_size",),
)

T10 = Claim(
    name="T10",
    form="printed",
    source="Theorem 10; updates 3 and 4",
    statement="Each projected update lowers the expected loss exactly below its own threshold.",
    formula="E[L(x')−L(x)] < 0 ⇔ 0 < η < η_S = 2 s_S/(τ_S + n_S)",
    hypotheses="η > 0",
    expected="holds",
    when=(Instances.is_moving,),
    then=lambda s: _threshold_signs(s, 3),
    enters=("step_size",),
)


def _threshold_order(s: Instances) -> Number:
    """Positive where η_D < η_B, from the two thresholds, multiplied out."""
    m0, m1, n = s.signal(2), s.signal(3), s.variance(1)
    return m0.bulk * (m1.dominant + n.dominant) - m0.dominant * (m1.bulk + n.bulk)


T11 = Claim(
    name="T11",
    form="printed",
    source="Theorem 11",
    statement="The dominant threshold is below the bulk threshold exactly below the alignment θ_crit.",
    formula="θ < θ_crit ⇔ η_D < η_B;  θ_crit the root in (0,1) of αθ² + βθ + γ",
    hypotheses="n_D, n_B > 0, both blocks hold gradient",
    expected="holds",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: [same_sign(loss_border(s).balance(s.signal(2)), _threshold_order(s))],
)


def _closer_than(s: Instances, distance: int) -> list[Comparison]:
    """1 − θ_crit ≤ 1/distance once the dominant eigenvalues are stretched far enough."""
    trace = s.split(s.noise)
    far = s.stretched((1 + distance * trace.bulk / trace.dominant)[:, None])
    return [loss_border(far).below_one_by_at_most(Fraction(1, distance))]


T12 = Claim(
    name="T12",
    form="printed",
    source="Theorem 12",
    statement="For a fixed Σ the border θ_crit tends to 1 as the ratio grows.",
    formula="θ_crit → 1 as r → ∞",
    hypotheses="n_D, n_B > 0, both blocks hold gradient; Σ fixed",
    expected="holds",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: _closer_than(s, 10) + _closer_than(s, 1000),
    note="Tested as: for ε = 1/10 and 1/1000, stretching the dominant eigenvalues by 1 + Tr_B/(ε Tr_D) brings θ_crit "
    "within ε of 1.",
)

T12_CORRECTED = Claim(
    name="T12",
    form="corrected",
    source="Theorem 12",
    statement="The distance of θ_crit from 1 is at most of the order 1/r, with its constant.",
    formula="1−θ_crit ≤ min{Tr_B/(r Tr_D), Tr_B/(s(r−1))}",
    hypotheses="n_D, n_B > 0, both blocks hold gradient",
    expected="holds",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: _trace_bounds(s),
)


def _trace_bounds(s: Instances) -> list[Comparison]:
    border, trace = loss_border(s), s.split(s.noise)
    return [
        border.below_one_by_at_most(trace.bulk / (s.ratio * trace.dominant)),
        border.below_one_by_at_most(trace.bulk / (s.signal(2).total * (s.ratio - 1))),
    ]


def _printed_rate(s: Instances) -> Number:
    """S λ_{k+1}(r − 1), the printed rate."""
    return s.signal(2).total * s.lambda_k1 * (s.ratio - 1)


T13 = Claim(
    name="T13",
    form="printed",
    source="Theorem 13",
    statement="The distance of θ_crit from 1 lies between two bounds of the order 1/(s(r−1)).",
    formula="n_B/(sλ_{k+1}(r−1)+n_B+n_D) ≤ 1−θ_crit ≤ n_B/(sλ_{k+1}(r−1))",
    hypotheses="n_D, n_B > 0, both blocks hold gradient",
    expected="refuted",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: [
        loss_border(s).below_one_by_at_least(s.variance(1).bulk / (_printed_rate(s) + s.variance(1).total)),
        loss_border(s).below_one_by_at_most(s.variance(1).bulk / _printed_rate(s)),
    ],
    note="The lower half fails beyond two levels, and with it the rate; the upper half is true.",
)

T13_UPPER = Claim(
    name="T13-upper",
    form="printed",
    source="Theorem 13, upper half",
    statement="The distance of θ_crit from 1 is at most of the order 1/(s(r−1)).",
    formula="1−θ_crit ≤ n_B/(sλ_{k+1}(r−1))",
    hypotheses="n_D, n_B > 0, both blocks hold gradient",
    expected="holds",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: [loss_border(s).below_one_by_at_most(s.variance(1).bulk / _printed_rate(s))],
)

T13_CORRECTED = Claim(
    name="T13",
    form="corrected",
    source="Theorem 13",
    statement="The distance of θ_crit from 1 lies between bounds with the whole width of the spectrum below and the "
    "gap above.",
    formula="n_B/(s(λ₁−λ_d)+n) ≤ 1−θ_crit ≤ min{n_B/(s gap), n_B/(s gap n_D/n + n), 2n_B/(s gap + n)},  n = n_D+n_B",
    hypotheses="n_D, n_B > 0, both blocks hold gradient",
    expected="holds",
    when=_NOISE_AND_SIGNAL,
    then=lambda s: _two_sided(s),
)


def _two_sided(s: Instances) -> list[Comparison]:
    border, n, energy = loss_border(s), s.variance(1), s.signal(2).total
    pull = energy * s.gap
    return [
        border.below_one_by_at_least(n.bulk / (energy * (s.lambda_1 - s.lambda_d) + n.total)),
        border.below_one_by_at_most(n.bulk / pull),
        border.below_one_by_at_most(n.bulk / (pull * n.dominant / n.total + n.total)),
        border.below_one_by_at_most(2 * n.bulk / (pull + n.total)),
    ]


T13_REMARK = Claim(
    name="T13-remark",
    form="printed",
    source="remark after Theorem 13",
    statement="The border of high alignment lies above θ_crit, for every ratio.",
    formula="θ ≤ θ_crit ⇒ θ < θ*",
    hypotheses="Σ ≻ 0, both blocks hold gradient, θ ≤ θ_crit",
    expected="holds",
    when=(
        Instances.is_moving_in_both,
        Instances.is_noisy_throughout,
        lambda s: loss_border(s).balance(s.signal(2)) >= 0,
    ),
    then=lambda s: [less(0, high_border(s).balance(s.signal(2)))],
    note="Neither border depends on θ at a given ‖g‖² and given directions inside the blocks, so that testing θ up to "
    "θ_crit compares the borders.",
)

CONDITIONING = Claim(
    name="T12-conditioning",
    form="corrected",
    source="beside Theorem 12; ours",
    statement="With isotropic noise a large enough ratio guarantees η_D < η_B for every spectrum with this ratio.",
    formula="r > max(1, (1+σ²(d−k)/m0_B)/(1+σ²k/m0_D)) ⇒ η_D < η_B",
    hypotheses="Σ = σ²I, both blocks hold gradient, r above that ratio",
    expected="holds",
    when=(*_NOISE_AND_SIGNAL, Instances.is_isotropic, lambda s: _needed_ratio(s) < s.ratio),
    then=lambda s: [less(0, _threshold_order(s))],
)


def _needed_ratio(s: Instances) -> Number:
    m0, trace = s.signal(2), s.split(s.noise)
    return (1 + trace.bulk / m0.bulk) / (1 + trace.dominant / m0.dominant)


ORDER = Claim(
    name="T10-order",
    form="corrected",
    source="beside Theorem 10; ours",
    statement="The dominant threshold stays below 2/λ_k, and where it is the smaller one a critical step exists.",
    formula="η_D ≤ 2/λ_k, and η_D ≤ η_B ⇒ M > 0",
    hypotheses="both blocks hold gradient, η_D ≤ η_B",
    expected="holds",
    when=(Instances.is_moving_in_both, lambda s: _threshold_order(s) >= 0),
    then=lambda s: [
        at_most(s.signal(2).dominant * s.lambda_k, s.signal(3).dominant + s.variance(1).dominant),
        less(0, s.kick),
    ],
)

CLAIMS = (
    INTRODUCTION,
    INTRODUCTION_CORRECTED,
    T10,
    ORDER,
    T11,
    T12,
    T12_CORRECTED,
    CONDITIONING,
    T13,
    T13_UPPER,
    T13_CORRECTED,
    T13_REMARK,
)
