"""Plain SGD at a constant step in closed form: expected energies at any times, and the stationary state.

With ρ = (1 − ηλ)², expected gradient energies are E_t = ρ^t E_0 + s²·(1 − ρ^t)/(1 − ρ), s² = (ηλ)²κ²
(theory §4; T16 for the floor s²/(1 − ρ) = ηλκ²/(2 − ηλ)). Any time costs one exponential per block: no stepping.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import dot
from etastar.criteria import CriticalStep, LossThresholds, as_step_size, critical_step_size, loss_thresholds
from etastar.errors import InvalidArgument, UnstableStep
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.quadratic.arguments import Times, read_times, single_step_size
from etastar.quadratic.modes import Modes, State

__all__ = ["Curve", "Decay", "expected", "stationary"]

Array = npt.NDArray[np.float64]
_TILE_BLOCKS, _TILE_TIMES = 2048, 32  # a tile of exponentials stays in the second-level cache
_VANISHED = -1.0e4  # log ρ where ρ = 0: exp of it times any t ≥ 1 is zero, and times 0 is one
_UNDERFLOW = -700.0  # exponents below it are as good as this one
_HEADROOM = 300  # binary exponent that the largest weight of a tile is raised to
_NEAR = -0.7  # above this exponent 1 − ρ^t needs expm1, below it exp is enough


@dataclass(frozen=True)
class Decay:
    """How energies evolve at one step size, per block.

    Attributes:
        contraction: 1 − ηλ, compensated, ``(blocks,)``.
        log_ratio: log ρ = 2·log|1 − ηλ|; −1e4 stands for −∞.
        loss_of_energy: 1 − ρ = ηλ(2 − ηλ), free of cancellation.
        injected: s² = (ηλ)²·κ² summed over the block: noise energy added by a step.
    """

    contraction: Array
    log_ratio: Array
    loss_of_energy: Array
    injected: Array

    @classmethod
    def of(cls, modes: Modes, step_size: float) -> Decay:
        """At a step size η > 0; exact at and around ηλ = 1 and ηλ = 2."""
        with np.errstate(over="ignore", under="ignore"):
            product = step_size * modes.eigenvalues
            contraction = dot((1.0, 1.0), (-step_size, modes.eigenvalues)).to_float()
            headroom = dot((2.0, 1.0), (-step_size, modes.eigenvalues)).to_float()
            injected = product * product * modes.variances
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_modulus = np.select(
                [product < 0.5, product > 1.5],
                [np.log1p(-np.minimum(product, 0.5)), np.log1p(-np.minimum(headroom, 0.5))],
                np.log(np.abs(contraction)),
            )
        log_ratio = np.where(np.isneginf(log_modulus), _VANISHED, 2.0 * log_modulus)
        return cls(contraction, log_ratio, product * headroom, injected)

    @property
    def stable(self) -> bool:
        """Whether 0 < ηλ < 2 for every eigenvalue that is not zero, so that a stationary state exists."""
        return bool(np.all(self.loss_of_energy >= 0) and not np.any(self.marginal))

    @property
    def marginal(self) -> npt.NDArray[np.bool_]:
        """Blocks at ηλ = 2, where noise accumulates linearly."""
        return (self.loss_of_energy == 0) & (self.contraction < 0)

    @cached_property
    def floor(self) -> Array:
        """Stationary energy per block, s²/(1 − ρ); zero where λ = 0 and at ηλ = 2 (which has none)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.loss_of_energy == 0, 0.0, self.injected / self.loss_of_energy)


@dataclass(frozen=True, eq=False)
class Curve:
    """The exact expected run of SGD from one state, or a batch of them, at recorded times.

    Attributes:
        times: Steps, ``(T,)``.
        step_size: η, [parameter²/loss].
        alignment: θ of expected energies, ``(*batch, T)``; right even where energies overflow.
        loss: Expected loss above the minimum, ``(*batch, T)``, [loss]; inf beyond float64.
        split: Expected moments at each time, batch shape ``(*batch, T)``.
    """

    times: Times
    step_size: float
    alignment: Array
    loss: Array
    split: SplitMoments

    @cached_property
    def critical_step_size(self) -> CriticalStep:
        """η*_t at each time, from the expected moments."""
        return critical_step_size(self.split)

    @cached_property
    def loss_thresholds(self) -> LossThresholds:
        """Loss thresholds at each time, from the expected moments."""
        return loss_thresholds(self.split)

    def to_csv(self, path: str | Path) -> None:
        """Write time, alignment, loss, critical step size, regime and thresholds of a single (unbatched) curve.

        Raises:
            InvalidArgument: The curve is batched.
        """
        if self.alignment.ndim != 1:
            raise InvalidArgument("curve", self.alignment.shape, "must be a single curve; index its batch first")
        step, bounds = self.critical_step_size, self.loss_thresholds
        rows = zip(
            self.times.tolist(),
            self.alignment.tolist(),
            self.loss.tolist(),
            step.value.tolist(),
            [regime.name for regime in step.regime],
            bounds.dominant.tolist(),
            bounds.bulk.tolist(),
            bounds.full.tolist(),
            strict=True,
        )
        header = "time,alignment,loss,critical_step_size,regime,threshold_dominant,threshold_bulk,threshold_full\n"
        lines = [",".join(map(str, row)) + "\n" for row in rows]
        Path(path).write_text(header + "".join(lines), encoding="utf-8")


def expected(modes: Modes, state: State, step_size: Any, times: Any) -> Curve:
    """The curve from `state` at a constant step size, at strictly increasing whole times ≥ 0; O(blocks) a time."""
    eta, when = single_step_size(step_size), read_times(times)
    decay = Decay.of(modes, eta)
    growth = _common_growth(decay, state.energy)
    powers = np.stack([modes.loss_weights, *(modes.eigenvalues**p for p in range(3))], axis=1)
    sums = [
        _weighted_energies(decay, state.energy, powers, when, part, growth)
        for part in (slice(None, modes.cut), slice(modes.cut, None))
    ]  # (4, *batch, T): loss, then the moments
    with np.errstate(over="ignore", invalid="ignore"):
        total = sums[0][1] + sums[1][1]
        alignment = np.where(total > 0, sums[0][1] / np.where(total > 0, total, 1.0), np.nan)
        scale = np.exp(growth * when)
        sums = [np.where(part == 0, 0.0, part * scale) for part in sums]
        loss = sums[0][0] + sums[1][0]
    noise_dominant, noise_bulk = modes.curvature_moments(modes.variances)
    split = SplitMoments(
        SubspaceMoments(CurvatureMoments(*sums[0][1:]), noise_dominant),
        SubspaceMoments(CurvatureMoments(*sums[1][1:]), noise_bulk),
    )
    return Curve(when, eta, alignment, loss, split)


def stationary(modes: Modes, step_size: Any) -> SplitMoments:
    """Moments of the stationary state at step sizes ``(*batch)`` (T16: energies ηλκ²/(2 − ηλ)).

    Raises:
        UnstableStep: A step size outside (0, 2/λ₁), or a negative eigenvalue.
    """
    eta = as_step_size(step_size)
    top, bottom = float(modes.eigenvalues[0]), float(modes.eigenvalues[-1])
    if bottom < 0:
        raise UnstableStep(f"eigenvalues: got λ_d = {bottom:g}; no stationary state exists on an indefinite quadratic")
    headroom = dot((2.0, 1.0), (-eta, top)).to_float()
    if np.any(eta <= 0) or np.any(headroom <= 0):
        bad = float(eta[(eta <= 0) | (headroom <= 0)].flat[0]) if eta.ndim else float(eta)
        limit = 2.0 / top if top > 0 else float("inf")
        raise UnstableStep(f"step_size: got {bad:g}; a stationary state needs 0 < step_size < 2/λ₁ = {limit:g}")
    product = eta[..., None] * modes.eigenvalues
    room = dot((2.0, 1.0), (-eta[..., None], modes.eigenvalues)).to_float()
    return modes.split_moments(product * modes.variances / room)


def _common_growth(decay: Decay, energy: Array) -> float:
    """The exponent γ such that energies divided by e^(γt) neither overflow nor all vanish.

    Zero for a stable step with noise; the fastest growth where the step is unstable; and without any noise the
    slowest decay among blocks that carry energy, so that the alignment stays defined however long the run.
    """
    if np.any(decay.injected > 0):
        return max(0.0, float(np.max(decay.log_ratio)))
    carrying = np.any(energy > 0, axis=tuple(range(energy.ndim - 1)))
    return float(np.max(decay.log_ratio[carrying], initial=_VANISHED)) if np.any(carrying) else 0.0


def _weighted_energies(decay: Decay, energy: Array, powers: Array, times: Times, part: slice, growth: float) -> Array:
    """Σ over the blocks of `part` of powers·E_t/e^(growth·t), shape ``(powers, *batch, T)``.

    E_t = ρ^t E_0 + f(1 − ρ^t) without cancellation: f + (E_0 − f)·ρ^t where ρ^t is small, and
    E_0 + (E_0 − f)·expm1(t·log ρ) where it is near one. Memory does not grow with the blocks times the times.
    """
    log_ratio, floor, weights = decay.log_ratio[part], decay.floor[part], powers[part]
    batch, width = energy.shape[:-1], powers.shape[1]
    rows = energy[..., part].reshape(-1, log_ratio.size)
    count = rows.shape[0]

    result = np.zeros((times.size, count * width))
    for start in range(0, log_ratio.size, _TILE_BLOCKS):
        blocks = slice(start, start + _TILE_BLOCKS)
        weight = weights[blocks]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            begin = (rows[:, blocks, None] * weight).transpose(1, 0, 2).reshape(-1, count * width)
            limit = np.tile(floor[blocks, None] * weight, count)
            result += (_chunk if growth == 0 else _scaled_chunk)(
                times.astype(np.float64), log_ratio[blocks], begin, limit, growth
            )
    marginal = decay.marginal[part]
    if np.any(marginal):
        accrued = (decay.injected[part][marginal, None] * weights[marginal]).sum(axis=0)
        result += np.tile(np.outer(times * np.exp(-growth * times), accrued), count)
    return np.moveaxis(result.reshape(times.size, *batch, width), (0, -1), (-1, 0))


def _chunk(times: Array, log_ratio: Array, begin: Array, limit: Array, _growth: float) -> Array:
    """One chunk of blocks at all times: Σ begin·ρ^t + limit·(1 − ρ^t), shape ``(T, columns)``."""
    # Raised so that products with vanishing exponentials stay normal numbers: subnormal ones are slow.
    _, exponent = np.frexp(max(np.max(np.abs(begin)), np.max(np.abs(limit))))
    raised = _HEADROOM - int(exponent)
    begin, limit = np.ldexp(begin, raised), np.ldexp(limit, raised)
    excess, at_start, at_end = begin - limit, begin.sum(axis=0), limit.sum(axis=0)
    fastest, slowest = float(log_ratio.min()), float(log_ratio.max())
    scratch = np.empty((_TILE_TIMES, log_ratio.size))  # once: fresh memory costs as much as the exponentials
    result = np.empty((times.size, begin.shape[1]))
    for first in range(0, times.size, _TILE_TIMES):
        window = slice(first, first + _TILE_TIMES)
        when = times[window]
        low, high = when[-1] * fastest, when[0] * slowest
        if high < _UNDERFLOW:
            result[window] = at_end
            continue
        x = np.einsum("i,j->ij", when, log_ratio, out=scratch[: when.size])
        if low < _UNDERFLOW:  # the exponential of a number that underflows is several times slower
            np.maximum(x, _UNDERFLOW, out=x)
        if high < _NEAR:
            result[window] = np.exp(x, out=x) @ excess + at_end
        elif low >= _NEAR:
            result[window] = np.expm1(x, out=x) @ excess + at_start
        else:
            result[window] = np.exp(x) @ begin - np.expm1(x, out=x) @ limit
    return np.ldexp(result, -raised)


def _scaled_chunk(times: Array, log_ratio: Array, begin: Array, limit: Array, growth: float) -> Array:
    """The same with the common factor e^(−growth·t) drawn into every term (unstable or noise-free runs)."""
    result = np.empty((times.size, begin.shape[1]))
    for first in range(0, times.size, _TILE_TIMES):
        window = slice(first, first + _TILE_TIMES)
        when = times[window, None]
        shifted = np.exp(when * np.minimum(log_ratio - growth, 0.0))  # blocks above it carry no energy
        result[window] = shifted @ begin
        if np.any(limit):
            scale, exponent = np.exp(-growth * when), when * log_ratio
            near = np.abs(exponent) < -_NEAR
            gone = np.where(near, -np.expm1(np.clip(exponent, -1.0, 1.0)) * scale, scale - shifted)
            result[window] += gone @ limit
    return result
