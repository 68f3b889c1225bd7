"""The two phases: when the expected alignment turns, and what the paper's bounds say of it.

A turn is where θ_{t+1} − θ_t changes sign. That sign is computed in O(blocks) from the drift of the energies,
never from differences of θ, and bisected where theory §4 proves a single turn; elsewhere turns are searched for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import single_step_size
from etastar.quadratic.exact import Decay, expected, scaled_powers
from etastar.quadratic.modes import Modes, State

__all__ = ["Phases", "find_phases"]

Array = npt.NDArray[np.float64]
Turn = tuple[int, Literal["min", "max"]]
_HORIZON = 10**15  # a run longer than this is not looked at
_CELLS = 100_000_000  # blocks × times that a search may evaluate
_DENSE = 256  # times at the start that a search looks at one by one


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


def find_phases(modes: Modes, state: State, step_size: Any, noise_max: float) -> Phases:
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
    trend = _Trend(modes, state, eta)
    complete = trend.single_turn_proved
    turns = trend.only_turn() if complete else trend.search()
    complete = complete and (bool(turns) or trend.sign(0) >= 0)  # else the turn lies beyond the horizon
    times = [0, *(t for t, _ in turns)]
    alignments = expected(modes, state, eta, np.array(sorted(set(times)))).alignment
    limit = trend.limit()
    known = [float(a) for a in alignments] + ([] if np.isnan(limit) else [limit])
    with np.errstate(all="ignore"):  # spectra so wide that λ₁⁴/λ_d² overflows satisfy no hypothesis
        assumption, t_star = _paper_t_star(modes, state, eta, noise_max)
    decay = trend.decay
    stability = "stable" if decay.stable else "unstable" if np.any(decay.loss_of_energy < 0) else "marginal"
    return Phases(
        turns=turns,
        complete=complete,
        alignment_start=known[0],
        alignment_min=min(known),
        alignment_limit=limit,
        turn_bounds=_two_level_bounds(modes, state, decay, turns),
        t_star=t_star,
        t_star_sharp=trend.falls_until(eta),
        assumption_14=assumption,
        stability=stability,
        shape=_describe(trend.first_sign(), turns, complete, stability, limit),
    )


class _Trend:
    """The sign of θ_{t+1} − θ_t: sign(E_B·ΔE_D − E_D·ΔE_B), with ΔE = ρ^t·(s² − (1 − ρ)E_0)."""

    def __init__(self, modes: Modes, state: State, eta: float) -> None:
        self.modes, self.state, self.eta = modes, state, eta
        self.decay = decay = Decay.of(modes, eta)
        lost = decay.loss_of_energy * state.energy
        # At its floor, energy stays: what differs from it by round-off only does not drift.
        drift = decay.injected - lost
        self.drift = np.where(np.abs(drift) <= 1e-14 * (decay.injected + np.abs(lost)), 0.0, drift)
        moving = self.drift != 0
        self.slowest = float(np.max(decay.log_ratio[moving])) if np.any(moving) else 0.0
        self.noisy = bool(np.any(decay.noisy))
        # The factor e^(shift·t) common to all energies is left out.
        self.shift = max(0.0, self.slowest) if self.noisy else self.slowest

    @property
    def single_turn_proved(self) -> bool:
        """The hypotheses of theory §4 for at most one turn, a minimum."""
        modes, decay = self.modes, self.decay
        top, next_top = float(modes.eigenvalues[0]), float(modes.eigenvalues[modes.cut])
        floor_dominant, floor_bulk = modes.total(decay.floor)
        return bool(
            decay.stable
            and self.eta * (top + next_top) < 2
            and np.all(self.drift <= 0)
            and np.any(self.drift[modes.cut :] < 0)
            and floor_dominant > 0
            and floor_bulk > 0
        )

    def sign(self, time: int) -> int:
        """+1 where θ rises from `time` to the next step, −1 where it falls, 0 where it stays (to round-off)."""
        decay, modes = self.decay, self.modes
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            relative = np.exp(time * np.minimum(decay.log_ratio - self.slowest, 0.0))
            change_dominant, change_bulk = modes.total(self.drift * relative)
            kept, gone = scaled_powers(decay.log_ratio, time, self.shift, self.noisy)
            energy = self.state.energy * kept
            if self.noisy:
                accrued = np.where(decay.marginal, decay.injected, 0.0) * time * np.exp(-self.shift * time)
                energy = energy + decay.floor * gone + accrued
            dominant, bulk = modes.total(energy)
            rising, falling = bulk * change_dominant, dominant * change_bulk
        difference = rising - falling
        if not np.isfinite(difference) or abs(difference) <= 1e-13 * (abs(rising) + abs(falling)):
            return 0
        return 1 if difference > 0 else -1

    def first_sign(self) -> int:
        """The sign of the first change of θ that is one."""
        return next((s for t in (0, *(2**i for i in range(50))) if (s := self.sign(t))), 0)

    def only_turn(self) -> list[Turn]:
        """The one turn there can be: a minimum, where θ falls at first."""
        if self.sign(0) >= 0:
            return []
        high = 1
        while self.sign(high) < 0:
            high *= 2
            if high > _HORIZON:
                return []
        return [(_bisect(lambda t: self.sign(t) >= 0, high // 2, high), "min")]

    def search(self) -> list[Turn]:
        """Turns seen on a grid of times that is dense at first and geometric until all drifts have died out."""
        # Energies settle at their own rates; in runs without noise, or unstable ones, at rates relative to the slowest.
        log_ratio = self.decay.log_ratio[self.drift != 0]
        rates = np.abs(log_ratio if self.shift == 0 else log_ratio - self.slowest)
        span = 60.0 + (0.0 if self.noisy else self._span())
        longest = span / float(np.min(rates[rates > 0])) if np.any(rates > 0) else 1.0
        count = int(np.clip(_CELLS // self.drift.size, 64, 2048))
        late = np.geomspace(_DENSE, max(min(longest, _HORIZON), _DENSE + 1.0), count).astype(np.int64)
        grid = np.unique(np.concatenate([np.arange(min(_DENSE, count)), late]))
        turns: list[Turn] = []
        previous, before = 0, 0
        for time in grid.tolist():
            sign = self.sign(time)
            if sign == 0:
                continue
            if before == -sign:
                at = _bisect(_has_sign(self, sign), previous, time)
                turns.append((at, "min" if sign > 0 else "max"))
            previous, before = time, sign
        return turns

    def _span(self) -> float:
        """Logarithm of the largest over the smallest energy: what the slower of two modes may have to make up."""
        energy = self.state.energy[self.state.energy > 0]
        return float(np.log(energy.max()) - np.log(energy.min()))

    def limit(self) -> float:
        """θ_∞: of the floors; without noise, of the slowest energies; in an unstable run, of the fastest."""
        decay, modes, start = self.decay, self.modes, self.state.energy
        fastest = float(np.max(decay.log_ratio[(start > 0) | decay.noisy]))
        leading = decay.log_ratio == fastest
        if fastest > 0 or not self.noisy:  # E_0 + s²/(ρ − 1), the coefficient of ρ^t
            energy = np.where(leading & (decay.contraction != 0), start - decay.floor, 0.0)
        elif np.any(decay.injected[decay.marginal] > 0):
            energy = np.where(decay.marginal, decay.injected, 0.0)
        else:
            energy = np.where(decay.loss_of_energy > 0, decay.floor, start)
        dominant, bulk = modes.total(energy)
        return float(dominant / (dominant + bulk)) if dominant + bulk > 0 else float("nan")

    def falls_until(self, eta: float) -> int | None:
        """T15 sharpened: θ falls while E_D,t > tr(PHΣH)/(gap·(2/η − λ₁ − λ_{k+1})); needs η(λ₁ + λ_{k+1}) < 2."""
        modes = self.modes
        top, upper, lower = (float(modes.eigenvalues[i]) for i in (0, modes.cut - 1, modes.cut))
        room = 2.0 / eta - top - lower
        injected = float(modes.curvature_moments(modes.variances)[0].second)
        if room <= 0 or not self.decay.stable or injected == 0 or np.any(self.drift[: modes.cut] > 0):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            level = float(np.divide(injected, upper - lower) / room)

        def above(time: int) -> bool:
            curve = expected(modes, self.state, eta, [time])
            return float(curve.split.dominant.signal.zeroth[0]) > level

        if not above(0):
            return None
        high = 1
        while above(high):
            high *= 2
            if high > _HORIZON:
                return None
        return _bisect(lambda t: not above(t), high // 2, high)


def _has_sign(trend: _Trend, sign: int) -> Callable[[int], bool]:
    return lambda time: trend.sign(time) == sign


def _bisect(reached: Callable[[int], bool], low: int, high: int) -> int:
    """The first time in (low, high] where `reached` holds, given that it holds at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


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
        middle = [f"turns again at t = {t}" for t, _ in turns[1:]]
        text = ", ".join([parts[0], *middle, parts[1]])
    else:
        text = {1: "rises throughout", -1: "falls throughout", 0: "stays as it is"}[first]
    if not np.isnan(limit):
        text += f", towards {limit:.4g}"
    if stability != "stable":
        text += f" ({stability} step: energies grow without bound)"
    return text if complete else f"{text} (turns found by search: others are not ruled out)"
