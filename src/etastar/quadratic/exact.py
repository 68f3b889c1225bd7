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

__all__ = ["Curve", "Decay", "expected", "scaled_powers", "stationary"]

Array = npt.NDArray[np.float64]
_TILE_BLOCKS, _TILE_TIMES = 2048, 32  # a tile of exponentials stays in the second-level cache
_VANISHED = -1.0e4  # log ρ where ρ = 0: exp of it times any t ≥ 1 is zero, and times 0 is one
_UNDERFLOW = -700.0  # exponents below it are as good as this one
_LEAST = float(np.exp(np.full(16, _UNDERFLOW))[0])  # as the vectorised exponential has it
_HEADROOM = 300  # binary exponent that the largest weight of a tile is raised to
_NEAR = -0.7  # above this exponent 1 − ρ^t needs expm1, below it exp is enough
_LARGEST = 1.0e150  # ηλ beyond it: its square leaves float64's range


@dataclass(frozen=True)
class Decay:
    """How energies evolve at one step size, per block.

    Attributes:
        product: ηλ, ``(blocks,)``.
        contraction: 1 − ηλ, compensated.
        log_ratio: log ρ = 2·log|1 − ηλ|; −1e4 stands for −∞.
        loss_of_energy: 1 − ρ = ηλ(2 − ηλ), free of cancellation.
        injected: s² = (ηλ)²·κ² summed over the block: noise energy added by a step.
        floor: Stationary energy s²/(1 − ρ), negative where unstable; zero where λ = 0 and at ηλ = 2 (which has none).
    """

    product: Array
    contraction: Array
    log_ratio: Array
    loss_of_energy: Array
    injected: Array
    floor: Array

    @classmethod
    def of(cls, modes: Modes, step_size: float) -> Decay:
        """At a step size η > 0; exact at and around ηλ = 1 and ηλ = 2.

        Raises:
            InvalidArgument: A step so long that the square of ηλ overflows.
        """
        with np.errstate(over="ignore", under="ignore"):
            product = step_size * modes.eigenvalues
            if np.any(np.abs(product) > _LARGEST):
                raise InvalidArgument("step_size", step_size, f"times an eigenvalue must stay below {_LARGEST:g}")
            contraction = dot((1.0, 1.0), (-step_size, modes.eigenvalues)).to_float()
            headroom = dot((2.0, 1.0), (-step_size, modes.eigenvalues)).to_float()
            injected = product * product * modes.variances
            floor = product * modes.variances / np.where(headroom == 0, np.inf, headroom)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_modulus = np.select(
                [product < 0.5, product > 1.5],
                [np.log1p(-np.minimum(product, 0.5)), np.log1p(-np.minimum(headroom, 0.5))],
                np.log(np.abs(contraction)),
            )
        log_ratio = np.where(np.isneginf(log_modulus), _VANISHED, 2.0 * log_modulus)
        return cls(product, contraction, log_ratio, product * headroom, injected, floor)

    @property
    def stable(self) -> bool:
        """Whether 0 < ηλ < 2 for every eigenvalue that is not zero, so that a stationary state exists."""
        return bool(np.all(self.loss_of_energy >= 0) and not np.any(self.marginal))

    @property
    def marginal(self) -> npt.NDArray[np.bool_]:
        """Blocks at ηλ = 2, where noise accumulates linearly."""
        return (self.loss_of_energy == 0) & (self.contraction < 0)

    @property
    def noisy(self) -> npt.NDArray[np.bool_]:
        """Blocks that a step adds noise to."""
        return (self.injected > 0) | (self.floor != 0)


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
    rows = state.energy.reshape(-1, state.energy.shape[-1])
    growth = _growth(decay, rows)
    sums = np.empty((2, 4, rows.shape[0], when.size))  # subspace; loss and the moments
    for value in np.unique(growth):
        group = growth == value
        for index, part in enumerate((slice(None, modes.cut), slice(modes.cut, None))):
            sums[index][:, group] = _weighted_energies(modes, decay, rows[group], when, part, float(value))
    with np.errstate(over="ignore", invalid="ignore"):
        total = sums[0, 1] + sums[1, 1]
        alignment = np.where(total > 0, sums[0, 1] / np.where(total > 0, total, 1.0), np.nan)
        scale = np.exp(np.multiply.outer(growth, when))
        sums = np.where(sums == 0, 0.0, sums * scale).reshape(2, 4, *state.batch, when.size)
        loss = sums[0, 0] + sums[1, 0]
    noise_dominant, noise_bulk = modes.curvature_moments(modes.variances)
    split = SplitMoments(
        SubspaceMoments(CurvatureMoments(*sums[0, 1:]), noise_dominant),
        SubspaceMoments(CurvatureMoments(*sums[1, 1:]), noise_bulk),
    )
    return Curve(when, eta, alignment.reshape(loss.shape), loss, split)


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
        bad, limit = float(eta[(eta <= 0) | (headroom <= 0)].flat[0]), 2.0 / top
        raise UnstableStep(f"step_size: got {bad!r}; a stationary state needs 0 < step_size < 2/λ₁ = {limit!r}")
    room = dot((2.0, 1.0), (-eta[..., None], modes.eigenvalues)).to_float()
    with np.errstate(over="ignore"):
        return modes.split_moments(eta[..., None] * modes.eigenvalues * modes.variances / room)


def _growth(decay: Decay, rows: Array) -> Array:
    """Per row, the exponent γ such that energies divided by e^(γt) neither overflow nor all vanish.

    Zero for a stable step with noise; the fastest growth where the step is unstable; and without any noise the
    slowest decay among blocks that carry energy, so that the alignment stays defined however long the run.
    """
    fastest = np.max(np.where((rows > 0) | decay.noisy, decay.log_ratio, _VANISHED), axis=-1)
    if np.any(decay.noisy):
        return np.maximum(fastest, 0.0)
    return np.where(fastest > _VANISHED, fastest, 0.0)  # where all is gone after a step, nothing is to be kept


def _weighted_energies(modes: Modes, decay: Decay, rows: Array, times: Times, part: slice, growth: float) -> Array:
    """Σ over the blocks of `part` of E_t/e^(growth·t) and of loss, λ and λ² times it, shape ``(4, rows, T)``.

    E_t = ρ^t E_0 + f(1 − ρ^t) without cancellation: f + (E_0 − f)·ρ^t where ρ^t is small, and
    E_0 + (E_0 − f)·expm1(t·log ρ) where it is near one. Memory does not grow with the blocks times the times.
    """
    # Blocks that grow faster than `growth` carry neither energy nor noise.
    log_ratio = np.minimum(decay.log_ratio, growth)
    count, when = rows.shape[0], times.astype(np.float64)
    result: Array = np.zeros((times.size, 4 * count))
    first, last, _ = part.indices(modes.eigenvalues.size)
    for start in range(first, last, _TILE_BLOCKS):
        blocks = slice(start, min(start + _TILE_BLOCKS, last))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            begin = _columns(modes, rows[:, blocks], blocks)
            limit = np.tile(_columns(modes, decay.floor[None, blocks], blocks), count)
            if growth == 0:
                result += _chunk(when, log_ratio[blocks], begin, limit)
            else:
                result += _scaled_chunk(when, log_ratio[blocks], begin, limit, growth)
    injected = np.where(decay.marginal, decay.injected, 0.0)
    if np.any(injected[part]):
        accrued = _columns(modes, injected[None, part], part).sum(axis=0)
        result += np.tile(np.multiply.outer(when * np.exp(-growth * when), accrued), count)
    return np.transpose(result.reshape(times.size, count, 4), (2, 1, 0))


def _columns(modes: Modes, energies: Array, blocks: slice) -> Array:
    """Loss, and the moments 0 to 2, of energies ``(rows, blocks)``; shape ``(blocks, 4·rows)``."""
    eigenvalues = modes.eigenvalues[blocks]
    first = energies * eigenvalues
    loss = np.divide(0.5 * energies, eigenvalues, out=np.zeros_like(first), where=eigenvalues != 0)
    return np.stack([loss, energies, first, first * eigenvalues], axis=-1).swapaxes(0, 1).reshape(eigenvalues.size, -1)


def _chunk(times: Array, log_ratio: Array, begin: Array, limit: Array) -> Array:
    """One chunk of blocks at all times: Σ begin·ρ^t + limit·(1 − ρ^t), shape ``(T, columns)``."""
    # Raised so that products with vanishing exponentials stay normal numbers: subnormal ones are slow.
    _, exponent = np.frexp(np.maximum(np.abs(begin).max(axis=0), np.abs(limit).max(axis=0)))
    raised = _HEADROOM - exponent
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
        if low >= _NEAR:
            result[window] = np.expm1(x, out=x) @ excess + at_start
            continue
        gained = at_end if high < _NEAR else -(np.expm1(x) @ limit)
        weights = excess if high < _NEAR else begin
        result[window] = (_vanishing_exp(x) if low < _UNDERFLOW else np.exp(x, out=x)) @ weights + gained
    return np.ldexp(result, -raised)


def _vanishing_exp(x: Array) -> Array:
    """The exponential in place, zero where it would underflow: there it is several times slower."""
    remains = x > _UNDERFLOW
    np.maximum(x, _UNDERFLOW, out=x)
    np.exp(x, out=x)
    return np.multiply(x, remains, out=x)


def _scaled_chunk(times: Array, log_ratio: Array, begin: Array, limit: Array, growth: float) -> Array:
    """The same with the common factor e^(−growth·t) drawn into every term (unstable or noise-free runs)."""
    result = np.empty((times.size, begin.shape[1]))
    noisy = bool(np.any(limit))
    for first in range(0, times.size, _TILE_TIMES):
        window = slice(first, first + _TILE_TIMES)
        kept, gone = scaled_powers(log_ratio, times[window, None], growth, noisy)
        result[window] = kept @ begin
        if noisy:
            result[window] += gone @ limit
    return result


def scaled_powers(log_ratio: Array, times: Any, growth: float, noisy: bool = True) -> tuple[Array, Array]:
    """ρ^t and, with noise, 1 − ρ^t, both over e^(growth·t) ≥ ρ^t: no overflow however long an unstable run."""
    kept = np.exp(times * np.minimum(log_ratio - growth, 0.0))
    if not noisy:
        return kept, kept
    exponent, scale = times * log_ratio, np.exp(-growth * times)
    near = np.abs(exponent) < -_NEAR
    return kept, np.where(near, -np.expm1(np.clip(exponent, -1.0, 1.0)) * scale, scale - kept)
