"""The sign of θ_{t+1} − θ_t along an expected curve, from the drift of the energies, and the turns it has.

E_{t+1} − E_t evolves like the energies without noise, so that its sign is known to round-off where differences of
θ are not. One trend is of plain SGD, the other of every other linear update; the search is common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from etastar.criteria import alignment
from etastar.quadratic.curve import expected
from etastar.quadratic.exact import Decay, scaled_powers
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.optimizers.frame import Frame
from etastar.quadratic.optimizers.rules import Update, room_below
from etastar.quadratic.optimizers.sums import expected_sums
from etastar.quadratic.stationary import stationary

__all__ = ["LinearTrend", "PlainTrend", "Trend", "Turn"]

Array = npt.NDArray[np.float64]
Turn = tuple[int, Literal["min", "max"]]
Stability = Literal["stable", "marginal", "unstable"]
_HORIZON = 10**15  # a run longer than this is not looked at
_CELLS = 100_000_000  # blocks × times that a search may evaluate
_DENSE = 256  # times at the start that a search looks at one by one
_DENSEST = 16_384  # the same, where modes oscillate for long
_LATE = 16  # turns between far apart times that a search pursues: more are an oscillation seen at too few of its times


class Trend(ABC):
    """What both trends share.

    Attributes:
        modes: The blocks.
        state: The start.
        log_ratio: Log of what a step multiplies the energy of each block by in the long run.
        moving: The blocks whose energy drifts.
        noisy: Whether any block gets noise.
        slowest: The largest log_ratio of a moving block.
        shift: The factor e^(shift·t) common to all energies is left out.
    """

    def __init__(
        self, modes: Modes, state: State, log_ratio: Array, moving: npt.NDArray[np.bool_], noisy: bool
    ) -> None:
        self.modes, self.state, self.log_ratio, self.moving, self.noisy = modes, state, log_ratio, moving, noisy
        self.slowest = float(np.max(log_ratio[moving])) if np.any(moving) else 0.0
        self.shift = max(0.0, self.slowest) if self.noisy else self.slowest

    @abstractmethod
    def changes(self, times: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """E_B·ΔE_D and E_D·ΔE_B at each time, up to one positive factor: θ rises by their difference."""

    @property
    @abstractmethod
    def stability(self) -> Stability:
        """Whether energies settle, accumulate or explode."""

    @abstractmethod
    def limit(self) -> float:
        """θ_∞; NaN where there is none or no formula."""

    def signs(self, times: npt.NDArray[np.int64]) -> list[int]:
        """+1 where θ rises from a time to the next step, −1 where it falls, 0 where it stays (to round-off)."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rising, falling = self.changes(times)
            difference = rising - falling
            clear = np.isfinite(difference) & (np.abs(difference) > 1e-13 * (np.abs(rising) + np.abs(falling)))
        return np.where(clear, np.sign(difference), 0.0).astype(int).tolist()

    def sign(self, time: int) -> int:
        """The sign at one time."""
        return self.signs(np.array([time]))[0]

    @property
    def dense(self) -> int:
        """Steps at the start that a search looks at one by one."""
        return _DENSE

    def first_sign(self) -> int:
        """The sign of the first change of θ that is one."""
        return self.sign(0) or next(filter(None, self.signs(2 ** np.arange(50))), 0)

    def search(self) -> list[Turn]:
        """Turns seen on a grid of times that is dense at first and geometric until all drifts have died out."""
        # Energies settle at their own rates; in runs without noise, or unstable ones, at rates relative to the slowest.
        log_ratio = self.log_ratio[self.moving]
        rates = np.abs(log_ratio if self.shift == 0 else log_ratio - self.slowest)
        longest = self.settling / float(np.min(rates[rates > 0])) if np.any(rates > 0) else 1.0
        count = int(np.clip(_CELLS // self.moving.size, 64, 2048))
        dense = min(self.dense, max(count, _CELLS // self.moving.size))
        late = np.geomspace(dense, max(min(longest, _HORIZON), dense + 1.0), count).astype(np.int64)
        grid = np.unique(np.concatenate([np.arange(dense), late]))
        turns: list[Turn] = []
        previous, before, late = 0, 0, 0
        for time, sign in zip(grid.tolist(), self.signs(grid), strict=True):
            if sign == 0:
                continue
            if before == -sign:
                late += time - previous > 1
                if late > _LATE:
                    break
                at = _bisect(_has_sign(self, sign), previous, time)
                turns.append((at, "min" if sign > 0 else "max"))
            previous, before = time, sign
        return turns

    @property
    def settling(self) -> float:
        """Decay, in exponents, after which nothing happens: without noise with what slower modes have to make up."""
        energy = self.state.energy[self.state.energy > 0]
        return 60.0 + (0.0 if self.noisy else float(np.log(energy.max()) - np.log(energy.min())))


class PlainTrend(Trend):
    """Of SGD: ΔE = ρ^t·(s² − (1 − ρ)E_0)."""

    def __init__(self, modes: Modes, state: State, eta: float) -> None:
        self.eta = eta
        self.decay = decay = Decay.of(modes, eta)
        lost = decay.loss_of_energy * state.energy
        # At its floor, energy stays: what differs from it by round-off only does not drift.
        drift = decay.injected - lost
        self.drift = np.where(np.abs(drift) <= 1e-14 * (decay.injected + np.abs(lost)), 0.0, drift)
        super().__init__(modes, state, decay.log_ratio, self.drift != 0, bool(np.any(decay.noisy)))

    @property
    def stability(self) -> Stability:
        """From ηλ(2 − ηλ)."""
        decay = self.decay
        return "stable" if decay.stable else "unstable" if np.any(decay.loss_of_energy < 0) else "marginal"

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

    def changes(self, times: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """One time after another."""
        terms = [self._change(time) for time in times.tolist()]
        return np.array([rising for rising, _ in terms]), np.array([falling for _, falling in terms])

    def _change(self, time: int) -> tuple[Array, Array]:
        decay, modes = self.decay, self.modes
        relative = np.exp(time * np.minimum(decay.log_ratio - self.slowest, 0.0))
        change_dominant, change_bulk = modes.total(self.drift * relative)
        kept, gone = scaled_powers(decay.log_ratio, time, self.shift, self.noisy)
        energy = self.state.energy * kept
        if self.noisy:
            accrued = np.where(decay.marginal, decay.injected, 0.0) * time * np.exp(-self.shift * time)
            energy = energy + decay.floor * gone + accrued
        dominant, bulk = modes.total(energy)
        return bulk * change_dominant, dominant * change_bulk

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


class LinearTrend(Trend):
    """Of an update with a state of several vectors: Δs_t = P_t·Δs_0·P_tᵀ for its second moments s."""

    def __init__(self, modes: Modes, state: State, eta: float, update: Update) -> None:
        self.eta, self.update = eta, update
        self.frame = frame = Frame.of(update, eta, modes.eigenvalues)
        noise = np.where(frame.injection[0] == 0, 0.0, modes.variances)
        start = frame.moments(state.energy)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            turned = np.einsum("ijb,jkb->ikb", frame.lag, start)
            twice = np.einsum("ijb,kjb->ikb", turned, frame.lag)
            injected = frame.injection[:, None] * frame.injection * noise
            drift = turned + turned.swapaxes(0, 1) + twice + injected
        self.start, self.drift = start[:, :, None], drift[:, :, None]
        moving = np.any(drift != 0, axis=(0, 1)) & (frame.injection[0] != 0)
        super().__init__(modes, state, frame.log_ratio, moving, bool(np.any(noise > 0)))

    @property
    def stability(self) -> Stability:
        """From 2 + 2β − (2a − 1)ηλ."""
        room = room_below(self.update, self.eta, self.modes.eigenvalues)
        if np.any(room < 0) or self.modes.eigenvalues[-1] < 0:
            return "unstable"
        return "marginal" if np.any(room == 0) else "stable"

    @property
    def dense(self) -> int:
        """As long as energies oscillate; without noise nothing covers that up."""
        lasting = float(
            np.max(self.update.oscillation(self.eta * self.modes.eigenvalues[self.moving]), initial=-np.inf)
        )
        if lasting > -np.inf and not self.noisy:
            return _DENSEST
        return int(np.clip(self.settling / max(-lasting, 1e-3), _DENSE, _DENSEST))

    def changes(self, times: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """All times together."""
        energy = expected_sums(self.modes, self.frame, self.start, times, self.shift)[:, 0, 0]
        change = expected_sums(self._quiet, self.frame, self.drift, times, self.slowest)[:, 0, 0]
        return energy[1] * change[0], energy[0] * change[1]

    @property
    def _quiet(self) -> Modes:
        return replace(self.modes, variances=np.zeros_like(self.modes.variances))

    def limit(self) -> float:
        """θ_∞ in closed form, or 0 or 1 where the modes that last are all in one subspace."""
        if self.stability == "stable" and self.noisy:
            return float(alignment(stationary(self.modes, self.eta, self.update)))
        holding = (self.state.energy > 0) | (self.noisy & (self.modes.variances > 0) & (self.modes.eigenvalues != 0))
        fastest = np.flatnonzero(holding & (self.log_ratio >= np.max(self.log_ratio[holding])))
        if np.all(fastest < self.modes.cut):
            return 1.0
        return 0.0 if np.all(fastest >= self.modes.cut) else float("nan")


def _has_sign(trend: Trend, sign: int) -> Callable[[int], bool]:
    return lambda time: trend.sign(time) == sign


def _bisect(reached: Callable[[int], bool], low: int, high: int) -> int:
    """The first time in (low, high] where `reached` holds, given that it holds at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
