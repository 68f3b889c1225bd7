"""Plain SGD at a constant step in closed form: expected energies at any times.

With ρ = (1 − ηλ)², expected gradient energies are E_t = ρ^t E_0 + s²·(1 − ρ^t)/(1 − ρ), s² = (ηλ)²κ²
(theory §4; T16 for the floor s²/(1 − ρ) = ηλκ²/(2 − ηλ)). Any time costs one exponential per block: no stepping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.compensated import dot
from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import Times
from etastar.quadratic.modes import Modes

__all__ = ["VANISHED", "Decay", "bounded_product", "plain_sums", "scaled_powers"]

Array = npt.NDArray[np.float64]
_TILE_BLOCKS, _TILE_TIMES = 2048, 32  # a tile of exponentials stays in the second-level cache
VANISHED = -1.0e4  # log ρ where ρ = 0: exp of it times any t ≥ 1 is zero, and times 0 is one
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
            product = bounded_product(step_size, modes.eigenvalues)
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
        log_ratio = np.where(np.isneginf(log_modulus), VANISHED, 2.0 * log_modulus)
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


def bounded_product(step_size: float, eigenvalues: Array) -> Array:
    """ηλ; InvalidArgument where its square overflows."""
    with np.errstate(over="ignore", under="ignore"):
        product = step_size * eigenvalues
    if np.any(np.abs(product) > _LARGEST):
        raise InvalidArgument("step_size", step_size, f"times an eigenvalue must stay below {_LARGEST:g}")
    return product


def plain_sums(modes: Modes, decay: Decay, rows: Array, times: Times, growth: float) -> Array:
    """Energy, loss, first and second moment of SGD over the dominant and the bulk blocks, over e^(growth·t).

    Shape ``(2, 4, rows, T)``; O(blocks) a time.
    """
    parts = (slice(None, modes.cut), slice(modes.cut, None))
    return np.stack([_weighted_energies(modes, decay, rows, times, part, growth) for part in parts])


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
    """Energy, loss, and the moments 1 and 2, of energies ``(rows, blocks)``; shape ``(blocks, 4·rows)``."""
    eigenvalues = modes.eigenvalues[blocks]
    first = energies * eigenvalues
    loss = np.divide(0.5 * energies, eigenvalues, out=np.zeros_like(first), where=eigenvalues != 0)
    return np.stack([energies, loss, first, first * eigenvalues], axis=-1).swapaxes(0, 1).reshape(eigenvalues.size, -1)


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
