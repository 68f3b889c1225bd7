"""Claims of our own, beyond the paper: proved on paper and put to the same test as the paper's.

Where a claim needs a momentum or a batch size, the instance's time, which it has no other use for, picks one.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial

from etastar.claims.assumptions import above_floor
from etastar.claims.border import loss_border, regime_border
from etastar.claims.claim import Claim, Comparison, at_most, equal, less
from etastar.claims.draw import draw_above_floors, draw_two_levels_above_floors
from etastar.claims.instances import Instances, Split
from etastar.claims.number import Number, Truth

__all__ = ["CLAIMS"]

_MOMENTA = (Fraction(1, 4), Fraction(1, 2), Fraction(9, 10))
_BATCHES = (2, 8, 64)
_LABEL_VARIANCES = (Fraction(1, 100), Fraction(7))


def _cross(now: Split, then: Split) -> tuple[Number, Number]:
    """θ of `then` and of `now`, cross-multiplied: the first is the larger exactly where the alignment rises."""
    return then.dominant * now.bulk, now.dominant * then.bulk


def _rises(s: Instances, time: int) -> Truth:
    at = s.after(time)
    then, now = _cross(at.signal(2), at.next_energy())
    return then >= now


def _still_rises(s: Instances) -> list[Comparison]:
    at = s.after(s.time + 1)
    then, now = _cross(at.signal(2), at.next_energy())
    return [at_most(now, then)]


def _above_floor_everywhere(s: Instances) -> Truth:
    return (s.square - s.floor).min(-1) >= 0


def _is_noisy_floor(s: Instances) -> Truth:
    floor = s.stationary().signal(2)
    return (floor.dominant > 0) & (floor.bulk > 0)


ONE_TURN = Claim(
    name="one-turn",
    form="own",
    source="the curve of a constant step",
    statement="From energies above their floors the alignment turns at most once: having risen, it rises for ever.",
    formula="θ_{t+1} ≥ θ_t ⇒ θ_{t+2} ≥ θ_{t+1}",
    hypotheses="η(λ₁+λ_{k+1}) < 2, x_{i,0}² ≥ β_i, floors in both blocks, a bulk mode above its floor, θ_{t+1} ≥ θ_t",
    expected="holds",
    draw=draw_above_floors,
    when=(
        Instances.is_stable,
        lambda s: s.step_size * (s.lambda_1 + s.lambda_k1) < 2,
        _above_floor_everywhere,
        _is_noisy_floor,
        lambda s: (s.square - s.floor)[:, s.rank :].max(-1) > 0,
        lambda s: _rises(s, s.time),
    ),
    then=_still_rises,
    enters=("step_size", "time"),
)


BORDERS = Claim(
    name="borders",
    form="own",
    source="the two borders of the alignment",
    statement="The loss border lies below the regime border: an alignment up to θ_loss is below θ†.",
    formula="θ ≤ θ_loss ⇒ θ < θ†, at every θ (neither border depends on the alignment itself)",
    hypotheses="noise and gradient in both blocks, θ ≤ θ_loss",
    expected="holds",
    when=(
        Instances.is_moving_in_both,
        Instances.is_noisy_in_both,
        lambda s: loss_border(s).balance(s.signal(2)) >= 0,
    ),
    then=lambda s: [less(0, regime_border(s).balance(s.signal(2)))],
)


def _is_two_level(s: Instances) -> Truth:
    return (s.lambda_1 <= s.lambda_k) & (s.lambda_k1 <= s.lambda_d)


def _two_level_identity(s: Instances) -> list[Comparison]:
    """M(λ_D − λ_B) = 2N(λ_D/η_D − λ_B/η_B), with η_S = 2 m0/(m1 + q1)."""
    m0, m1, q1 = s.signal(2), s.signal(3), s.variance(1)
    inside = s.lambda_1 * (m1.dominant + q1.dominant) / (2 * m0.dominant)
    outside = s.lambda_d * (m1.bulk + q1.bulk) / (2 * m0.bulk)
    return [equal(s.kick * (s.lambda_1 - s.lambda_d), 2 * s.drift * (inside - outside))]


TWO_LEVEL = Claim(
    name="two-level",
    form="own",
    source="two levels",
    statement="With two eigenvalues the critical step size follows from the two loss thresholds.",
    formula="1/η* = (λ_D/η_D − λ_B/η_B)/(λ_D − λ_B)",
    hypotheses="two levels, gradient in both blocks",
    expected="holds",
    when=(_is_two_level, Instances.is_moving_in_both),
    then=_two_level_identity,
)


def _ratios(s: Instances) -> tuple[Split, Number, Number, Number]:
    """R_S = m0_S/floor_S, ρ_D, ρ_B and K = (1−ρ_D)/(1−ρ_B)."""
    floor, m0 = s.stationary().signal(2), s.signal(2)
    rho_d, rho_b = (1 - s.step_size * s.lambda_1) ** 2, (1 - s.step_size * s.lambda_d) ** 2
    return Split(m0.dominant / floor.dominant, m0.bulk / floor.bulk), rho_d, rho_b, (1 - rho_d) / (1 - rho_b)


def _before_the_turn(s: Instances) -> Truth:
    R, rho_d, _, K = _ratios(s)
    return (R.dominant - 1) * (K - 1) * rho_d**s.time > 1


def _after_the_turn(s: Instances) -> Truth:
    R, rho_d, rho_b, K = _ratios(s)
    return (R.dominant - 1) * (K / (R.bulk - 1) + K - 1) * rho_d**s.time <= rho_b**s.time


def _is_slow_enough(s: Instances) -> Truth:
    return s.step_size * (s.lambda_1 + s.lambda_d) < 2


def _bulk_is_above_floor(s: Instances) -> Truth:
    return _ratios(s)[0].bulk > 1


_TURNING = (_is_two_level, _is_slow_enough, _is_noisy_floor, above_floor, _bulk_is_above_floor)


def _direction(s: Instances, rises: bool) -> list[Comparison]:
    at = s.after(s.time)
    then, now = _cross(at.signal(2), at.next_energy())
    return [at_most(now, then)] if rises else [less(then, now)]


TURN_NOT_BEFORE = Claim(
    name="turning-time",
    form="own",
    source="two levels, the turning time from below",
    statement="With two levels the alignment falls at least until the dominant energy nears its floor; the dimension "
    "does not enter.",
    formula="(R_D − 1)(K − 1) ρ_D^t > 1 ⇒ θ_{t+1} < θ_t",
    hypotheses="two levels, η(λ_D+λ_B) < 2, R_D, R_B > 1",
    expected="holds",
    draw=draw_two_levels_above_floors,
    when=(*_TURNING, _before_the_turn),
    then=partial(_direction, rises=False),
    enters=("step_size", "time"),
)


TURN_NOT_AFTER = replace(
    TURN_NOT_BEFORE,
    name="turning-time-upper",
    source="two levels, the turning time from above",
    statement="With two levels the alignment has turned by a time that does not depend on the dimension.",
    formula="(R_D − 1)(K/(R_B − 1) + K − 1)(ρ_D/ρ_B)^t ≤ 1 ⇒ θ_{t+1} ≥ θ_t",
    when=(*_TURNING, _after_the_turn),
    then=partial(_direction, rises=True),
)


def _heavy_ball(s: Instances) -> list[Comparison]:
    """X = E g², Y = E gm, Z = E m² as stated are a fixed point, and X has the alignment of SGD at η/(1+β)."""
    alpha, noise = s.step_size[:, None] * s.eigenvalues, s.noise
    beta = _MOMENTA[s.time % len(_MOMENTA)]
    c = (1 - beta) * (2 * (1 + beta) - alpha)
    X, Y, Z = alpha * noise * (1 + beta) / c, -alpha * noise / c, 2 * noise / c
    kept = 1 - alpha
    momentum, plain = s.split(X), replace(s, step_size=s.step_size / (1 + beta)).stationary().signal(2)
    return [
        _all_equal(kept**2 * X - 2 * alpha * kept * beta * Y + alpha**2 * (beta**2 * Z + noise), X),
        _all_equal(kept * X + beta * (1 - 2 * alpha) * Y - alpha * (beta**2 * Z + noise), Y),
        _all_equal(X + 2 * beta * Y + beta**2 * Z + noise, Z),
        equal(momentum.dominant * plain.bulk, momentum.bulk * plain.dominant),
    ]


def _all_equal(left: Number, right: Number) -> Comparison:
    return equal(abs(left - right).max(-1), 0)


HEAVY_BALL = Claim(
    name="heavy-ball",
    form="own",
    source="heavy ball at constant step",
    statement="Heavy ball has the stationary alignment of SGD at the step η/(1+β).",
    formula="θ_∞(η, β) = θ_∞^SGD(η/(1+β)), for β = 1/4, 1/2, 9/10",
    hypotheses="0 < ηλ₁ < 2, noise in both blocks",
    expected="holds",
    when=(Instances.is_stable, Instances.is_noisy_in_both),
    then=_heavy_ball,
    enters=("step_size", "time"),
    largest=4,
)


def _label_variance(s: Instances) -> list[Comparison]:
    """At two label variances the formula is the fixed point of mini-batch least squares, of one alignment."""
    step, spectrum, b = s.step_size[:, None], s.eigenvalues, _BATCHES[s.time % len(_BATCHES)]
    slack = 2 - step * spectrum * (1 + Fraction(1, b))
    K = (step * spectrum / slack).sum(-1) / b
    facts: list[Comparison] = []
    energies: list[Split] = []
    for variance in _LABEL_VARIANCES:
        labels = (variance / (1 - K))[:, None]  # τ + σ²
        e = step * labels / (b * slack)
        noise = (spectrum**2 * e + spectrum * labels) / b
        facts += [
            equal((spectrum * e).sum(-1) + variance, labels[:, 0]),
            _all_equal((1 - step * spectrum) ** 2 * e + step**2 * noise, e),
        ]
        energies.append(s.split(spectrum**2 * e))
    return [*facts, equal(energies[0].dominant * energies[1].bulk, energies[0].bulk * energies[1].dominant)]


def _is_stable_in_mean_square(s: Instances) -> Truth:
    """ηλ₁(b+1) < 2b and K(η) < 1 at the smallest batch, hence at all."""
    b, product = _BATCHES[0], s.step_size[:, None] * s.eigenvalues
    room = 2 * b - (product * (b + 1))
    return (room.min(-1) > 0) & ((product / room).sum(-1) < 1)


LABEL_VARIANCE = Claim(
    name="label-variance",
    form="own",
    source="mini-batch least squares, Gaussian inputs",
    statement="The stationary alignment of mini-batch least squares does not depend on the variance of the labels.",
    formula="e_i = (η/b)(τ+σ²)/(2 − ηλ_i(1+1/b)), τ = Kσ²/(1−K), is stationary, and Σ_Dλ²e/Σλ²e is free of σ²",
    hypotheses="ηλ₁(b+1) < 2b, K(η) = Σ ηλ_i/(2b − ηλ_i(b+1)) < 1, for b = 2, 8, 64",
    expected="holds",
    when=(_is_stable_in_mean_square,),
    then=_label_variance,
    enters=("step_size", "time"),
    largest=4,
)


CLAIMS = (ONE_TURN, BORDERS, TWO_LEVEL, TURN_NOT_BEFORE, TURN_NOT_AFTER, HEAVY_BALL, LABEL_VARIANCE)
