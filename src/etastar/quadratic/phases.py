"""The two phases: when the expected alignment turns, and what the paper's bounds say of it.

A turn is where θ_{t+1} − θ_t changes sign. That sign is computed in O(blocks) from the drift of the energies,
never from differences of θ, and bisected where theory §4 proves a single turn; elsewhere turns are searched for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import single_step_size
from etastar.quadratic.curve import expected
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.trend import LinearTrend, PlainTrend, Trend, Turn

__all__ = ["Phases", "find_phases"]

_SPELT = 4  # more turns than these are only counted


@dataclass(frozen=True, slots=True)
class Phases:
    """The course of the expected alignment from one state at a constant step.

    Attributes:
        turns: Times and kinds, [(t, "min" | "max"), …]: θ_t is the extremum.
        complete: True where theory proves that there are no other turns.
        alignment_start: θ_0.
        alignment_min: The least θ_t over the whole run; the limit counts.
        alignment_limit: θ_∞ (T16); NaN where the run has none.
        turn_bounds: Two-sided bounds on the turning time, for two-level spectra above their floor; else None.
        t_star: The paper's t*, before which θ falls (T15); None where its hypotheses or its logarithm fail.
        t_star_sharp: θ falls up to here by the sharper form of T15; None where that says nothing.
        assumption_14: Whether the hypotheses of T15 hold.
        stability: "stable", "marginal" (ηλ₁ = 2) or "unstable".
        shape: The course in words.
    """

    turns: list[Turn]
    complete: bool
    alignment_start: float
    alignment_min: float
    alignment_limit: float
    turn_bounds: tuple[float, float] | None
    t_star: int | None
    t_star_sharp: int | None
    assumption_14: bool
    stability: Literal["stable", "marginal", "unstable"]
    shape: str


def find_phases(modes: Modes, state: State, step_size: Any, noise_max: float, update: Update = PLAIN) -> Phases:
    """See `Quadratic.phases`. `noise_max` is the largest eigenvalue of Σ.

    Raises:
        InvalidArgument: A batch of states, or a zero gradient, whose alignment is undefined.
    """
    if state.batch:
        raise InvalidArgument("gradient", state.energy.shape, "phases take one state; loop over a batch")
    eta = single_step_size(step_size)
    if not np.any(state.energy > 0):
        raise InvalidArgument("gradient", 0.0, "is zero: the alignment is undefined")
    # In units of the largest energy or variance: the course of θ does not depend on them.
    _, unit = np.frexp(max(state.energy.max(), modes.variances.max()))
    modes = replace(modes, variances=np.ldexp(modes.variances, -unit))
    state, noise_max = State(np.ldexp(state.energy, -unit), None), float(np.ldexp(noise_max, -unit))
    trend = PlainTrend(modes, state, eta) if update.plain else LinearTrend(modes, state, eta, update)
    complete, turns = _turns(trend)
    times = [0, *(t for t, _ in turns)]
    alignments = expected(modes, state, eta, np.array(sorted(set(times))), update).alignment
    limit = trend.limit()
    known = [float(a) for a in alignments] + ([] if np.isnan(limit) else [limit])
    assumption, t_star, t_star_sharp, bounds = False, None, None, None
    if isinstance(trend, PlainTrend):
        with np.errstate(all="ignore"):  # spectra so wide that λ₁⁴/λ_d² overflows satisfy no hypothesis
            assumption, t_star = _paper_t_star(modes, state, eta, noise_max)
        t_star_sharp, bounds = trend.falls_until(eta), _two_level_bounds(modes, state, trend.decay, turns)
    return Phases(
        turns=turns,
        complete=complete,
        alignment_start=known[0],
        alignment_min=min(known),
        alignment_limit=limit,
        turn_bounds=bounds,
        t_star=t_star,
        t_star_sharp=t_star_sharp,
        assumption_14=assumption,
        stability=trend.stability,
        shape=_describe(trend.first_sign(), turns, complete, trend.stability, limit),
    )


def _turns(trend: Trend) -> tuple[bool, list[Turn]]:
    """Whether theory proves that the turns are all there are, and the turns."""
    if not (isinstance(trend, PlainTrend) and trend.single_turn_proved):
        return False, trend.search()
    turns = trend.only_turn()
    return bool(turns) or trend.sign(0) >= 0, turns  # else the turn lies beyond the horizon


def _paper_t_star(modes: Modes, state: State, eta: float, noise_max: float) -> tuple[bool, int | None]:
    """Assumption 14, and t* = ⌊log(ϱ_D/(δ − Σ_D β_i))/(−2·log(1 − ηλ₁))⌋ as printed (T15)."""
    eigenvalues, cut = modes.eigenvalues, modes.cut
    top, bottom = eigenvalues[0], eigenvalues[-1]
    gap = eigenvalues[cut - 1] - eigenvalues[cut]
    width = (top - bottom) * (top + bottom)
    if bottom <= 0 or width <= 0 or eta >= min(2.0 / top, 2.0 * gap / width):
        return False, None
    dominant, counts = eigenvalues[:cut], modes.multiplicities[:cut]
    per_mode = modes.variances[:cut] / counts
    excess_floor = eta * per_mode / (2.0 * dominant - eta * dominant**2)  # β_i
    squares = state.energy[:cut] / dominant**2  # Σ x_i² over each block
    above = bool(np.all(squares > excess_floor * counts))
    floors = float(np.sum(excess_floor * counts))
    spread = float(np.sum(dominant**2 * counts))  # ψ_D
    room = 2.0 * gap / eta - width
    delta = noise_max * spread * top**2 / (bottom**2 * float(dominant[-1]) ** 2 * room)
    excess = float(np.sum(squares)) - floors  # ϱ_D
    holds = above and excess > delta - floors
    if not holds or eta * top >= 1 or delta <= floors:
        return holds, None
    t_star = np.log(excess / (delta - floors)) / (-2.0 * np.log1p(-eta * top))
    return True, int(np.floor(t_star)) if np.isfinite(t_star) else None


def _two_level_bounds(modes: Modes, state: State, decay: Decay, turns: list[Turn]) -> tuple[float, float] | None:
    """log[(R_D−1)(K−1)]/log(1/ρ_D) ≤ t ≤ ⌈log[(R_D−1)(K/(R_B−1)+K−1)]/log(ρ_B/ρ_D)⌉, R = E_0/floor (theory §4)."""
    if modes.eigenvalues.size != 2 or len(turns) != 1 or np.any(decay.floor <= 0):
        return None
    excess = state.energy / decay.floor - 1.0
    K = decay.loss_of_energy[0] / decay.loss_of_energy[1]
    fast, slow = decay.log_ratio
    if np.any(excess <= 0) or K <= 1 or fast >= slow:
        return None
    low = np.log(excess[0] * (K - 1.0)) / -fast
    high = np.ceil(np.log(excess[0] * (K / excess[1] + K - 1.0)) / (slow - fast))
    return max(0.0, float(low)), float(high)


def _describe(first: int, turns: list[Turn], complete: bool, stability: str, limit: float) -> str:
    if turns:
        start = "falls" if turns[0][1] == "min" else "rises"
        parts = [f"{start} until t = {turns[0][0]}"]
        parts += [f"then {'rises' if kind == 'min' else 'falls'}" for _, kind in turns[-1:]]
        later = [f"turns again at t = {t}" for t, _ in turns[1:]]
        middle = later if len(later) <= _SPELT else [f"turns {len(later)} times more, last at t = {turns[-1][0]}"]
        text = ", ".join([parts[0], *middle, parts[1]])
    else:
        text = {1: "rises throughout", -1: "falls throughout", 0: "stays as it is"}[first]
    if not np.isnan(limit):
        text += f", towards {limit:.4g}"
    if stability != "stable":
        text += f" ({stability} step: energies grow without bound)"
    return text if complete else f"{text} (turns found by search: others are not ruled out)"
