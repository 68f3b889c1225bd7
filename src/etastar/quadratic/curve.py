"""Expected curves at a constant step, for every optimizer: alignment, loss and moments at any times.

The sums over blocks come in closed form from ``exact`` for plain SGD, and from leaps for everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import CriticalStep, LossThresholds, critical_step_size, loss_thresholds
from etastar.errors import InvalidArgument, UnstableStep
from etastar.moments import SplitMoments
from etastar.quadratic.arguments import Times, read_times, single_step_size
from etastar.quadratic.exact import VANISHED, Decay, plain_sums
from etastar.quadratic.modes import Modes, State
from etastar.quadratic.optimizers.frame import Frame
from etastar.quadratic.optimizers.observables import split_of, update_noise
from etastar.quadratic.optimizers.rules import PLAIN, Update
from etastar.quadratic.optimizers.sums import expected_sums

__all__ = ["Curve", "expected"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """The exact expected run from one state, or a batch of them, at recorded times.

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


def expected(modes: Modes, state: State, step_size: Any, times: Any, update: Update = PLAIN) -> Curve:
    """The curve from `state` at a constant step size, at strictly increasing whole times ≥ 0."""
    eta, when = single_step_size(step_size), read_times(times)
    decay = Decay.of(modes, eta)
    rows = state.energy.reshape(-1, state.energy.shape[-1])
    log_ratio = decay.log_ratio if update.plain else update.log_ratio(decay.product)
    growth = _growth(log_ratio, decay.noisy, rows)
    columns = 4 if update.direction is None else 6
    sums = np.empty((2, columns, rows.shape[0], when.size))
    for value in np.unique(growth):
        group = growth == value
        sums[:, :, group] = _sums(modes, update, eta, decay, rows[group], when, float(value))
    with np.errstate(over="ignore", invalid="ignore"):
        total = sums[0, 0] + sums[1, 0]
        alignment = np.where(total > 0, sums[0, 0] / np.where(total > 0, total, 1.0), np.nan)
        scale = np.exp(np.multiply.outer(growth, when))
        sums = np.where(sums == 0, 0.0, sums * scale).reshape(2, columns, *state.batch, when.size)
        loss = sums[0, 1] + sums[1, 1]
    return Curve(when, eta, alignment.reshape(loss.shape), loss, split_of(update_noise(modes, update), update, *sums))


def _sums(modes: Modes, update: Update, eta: float, decay: Decay, rows: Array, times: Times, growth: float) -> Array:
    """Sums over the dominant and the bulk blocks over e^(growth·t), ``(2, columns, rows, T)``."""
    if update.plain:
        return plain_sums(modes, decay, rows, times, growth)
    # In units of the largest energy or variance, so that no product overflows.
    _, unit = np.frexp(max(float(rows.max()), float(modes.variances.max())))
    scaled = replace(modes, variances=np.ldexp(modes.variances, -unit))
    frame = Frame.of(update, eta, modes.eigenvalues)
    starts = frame.moments(np.ldexp(rows, -unit))
    with np.errstate(over="ignore", under="ignore"):
        sums = np.ldexp(expected_sums(scaled, frame, starts, times, growth), unit)
    if growth == 0 and not np.all(np.isfinite(sums)):
        raise UnstableStep(f"step_size: got {eta!r}; too near the limit of stability, or β too near 1, for float64")
    return sums


def _growth(log_ratio: Array, noisy: npt.NDArray[np.bool_], rows: Array) -> Array:
    """Per row, the exponent γ such that energies divided by e^(γt) neither overflow nor all vanish.

    Zero for a stable step with noise; the fastest growth where the step is unstable; and without any noise the
    slowest decay among blocks that carry energy, so that the alignment stays defined however long the run.
    """
    fastest = np.max(np.where((rows > 0) | noisy, log_ratio, VANISHED), axis=-1)
    if np.any(noisy):
        return np.maximum(fastest, 0.0)
    return np.where(fastest > VANISHED, fastest, 0.0)  # where all is gone after a step, nothing is to be kept
