"""The counterfactual ledger: what the dominant, the bulk and the whole update would do to the loss, said and seen.

At a checkpoint the meter's moments predict the expected loss change of each projected update. Updates that the
optimizer would make on real mini-batches are then cut into these parts, and the loss of held-out samples is looked at
where each part alone would lead; the model itself is never written to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.criteria import loss_change
from etastar.errors import InvalidArgument
from etastar.network.batches import refuse_single_batch, tensors_of
from etastar.network.direction import check_optimizer, update_direction
from etastar.network.meter import AlignmentMeter
from etastar.network.persample import gradient_at, loss_at
from etastar.uncertainty import Estimate

__all__ = ["PARTS", "LedgerEntry", "LedgerSummary", "UpdateLedger"]

Array = npt.NDArray[np.float64]
PARTS = ("dominant", "bulk", "full")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One checkpoint.

    Attributes:
        step: Steps taken before it.
        step_size: η of the updates, [parameter²/loss].
        batch_size: b behind them, [samples].
        updates: Mini-batches whose updates were made.
        predicted: By part ("dominant", "bulk", "full"): expected loss change from the meter's moments, [loss].
        measured: By part: mean loss change on the held-out batches, [loss]. Its standard error covers the draw of the
            mini-batches and, with two held-out batches or more, that of the held-out samples.
    """

    step: int
    step_size: float
    batch_size: int
    updates: int
    predicted: Mapping[str, Estimate]
    measured: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """Prediction against measurement of one part over all entries.

    Attributes:
        part: "dominant", "bulk" or "full".
        entries: Those with both numbers.
        ratio: Sum of the measured over sum of the predicted changes; 1 where the moments say what happens.
        ratio_error: Its standard error, from those of the entries.
        deviation: Root mean square of (measured − predicted)/standard error of both; about 1 where errors are honest.
        same_sign: Entries in which both have one sign.
    """

    part: str
    entries: int
    ratio: float
    ratio_error: float
    deviation: float
    same_sign: int


class UpdateLedger:
    """Predicted and measured loss changes of projected updates, checkpoint by checkpoint.

    A checkpoint costs a measurement of the meter and, for each mini-batch, a gradient and three passes over the
    held-out batches. Predictions with target "training" are about the training loss: on held-out samples the
    difference between the two losses is part of what is seen; give training samples to look at the moments alone.

    Args:
        meter: Measures at each checkpoint; best one of its own, for its history then holds checkpoints only.
        held_out_batches: Fixed and re-iterable, in the form that the meter's loss function takes; two or more of one
            size let standard errors cover the draw of their samples.

    Attributes:
        entries: Oldest first.

    Raises:
        InvalidArgument: No held-out batch, or one where an iterable of them is meant.
    """

    def __init__(self, meter: AlignmentMeter, held_out_batches: Iterable[Any]) -> None:
        refuse_single_batch("held_out_batches", held_out_batches)
        self.meter, self.entries = meter, list[LedgerEntry]()
        self._held_out = list(held_out_batches)
        if not self._held_out:
            raise InvalidArgument("held_out_batches", 0, "give one batch at least")

    def check(self, optimizer: torch.optim.Optimizer, mini_batches: Iterable[Any]) -> LedgerEntry:
        """Measure here, predict, and try the updates; the run stays as it is, bit for bit.

        Args:
            optimizer: Of the run: an SGD that the meter describes; its step size and momentum make the updates.
            mini_batches: Two or more of the run's batch size, drawn as the run draws them.

        Raises:
            InvalidArgument: Fewer than two mini-batches or of several sizes, an optimizer that the meter refuses.
        """
        refuse_single_batch("mini_batches", mini_batches)
        drawn = list(mini_batches)
        sizes = sorted({_samples(batch) for batch in drawn})
        if len(drawn) < 2 or len(sizes) > 1:
            raise InvalidArgument("mini_batches", f"{len(drawn)} of sizes {sizes}", "give two or more of one size")
        check_optimizer(optimizer, self.meter.operator.vector)
        eta = float(optimizer.param_groups[0]["lr"])
        measurement = self.meter.measure(eta, sizes[0], optimizer)
        changes = self._changes(optimizer, eta, drawn)
        entry = LedgerEntry(
            step=measurement.step,
            step_size=eta,
            batch_size=sizes[0],
            updates=len(drawn),
            predicted={
                part: measurement.estimate(lambda split, part=part: getattr(loss_change(split, eta), part))
                for part in PARTS
            },
            measured={part: self._estimate(changes[i]) for i, part in enumerate(PARTS)},
        )
        self.entries.append(entry)
        return entry

    def summary(self) -> list[LedgerSummary]:
        """Of each part, over all entries; NaN where there is none."""
        return [_summary(part, self.entries) for part in PARTS]

    def columns(self) -> dict[str, Array]:
        """What a calibration plot needs: ``step``, and by part ``predicted_``, ``measured_`` and ``…_error``."""
        table = {"step": np.array([float(entry.step) for entry in self.entries])}
        for part in PARTS:
            for kind in ("predicted", "measured"):
                found: list[Estimate] = [getattr(entry, kind)[part] for entry in self.entries]
                table[f"{kind}_{part}"] = np.array([float(e.value) for e in found])
                table[f"{kind}_{part}_error"] = np.array([float(e.standard_error) for e in found])
        return table

    def _changes(self, optimizer: torch.optim.Optimizer, eta: float, drawn: Sequence[Any]) -> Array:
        """Loss changes by part, mini-batch and held-out batch, ``(3, updates, held out)``."""
        operator, basis = self.meter.operator, self.meter.tracker.basis
        if basis is None:
            raise InvalidArgument("meter", "no basis", "measure once")
        known, here = (operator.model, self.meter.loss_fn, operator.vector), operator.vector.current()

        def losses(point: Tensor) -> Array:
            return np.array([float(loss_at(*known, batch, point)) for batch in self._held_out])

        found = np.empty((len(PARTS), len(drawn), len(self._held_out)))
        with torch.autocast(operator.device.type, enabled=False), operator.reading():
            before = losses(here)
            for index, batch in enumerate(drawn):
                gradient = gradient_at(*known, batch, here)
                direction = update_direction(optimizer, operator.vector, gradient)
                update = -eta * (gradient if direction is None else direction.vector)
                inside = basis @ (basis.mT @ update)
                for part, displacement in enumerate((inside, update - inside, update)):
                    found[part, index] = losses(here + displacement) - before
        return found

    def _estimate(self, changes: Array) -> Estimate:
        """Mean over ``(updates, held out)``, and an error for the draw of either."""
        weights = np.array([_samples(batch) for batch in self._held_out], dtype=np.float64)
        weights /= weights.sum()
        each = changes @ weights
        mean, variance = float(each.mean()), float(each.var(ddof=1)) / len(each)
        count = len(each)
        if len(weights) > 1:
            variance += float(weights**2 @ (changes.mean(0) - mean) ** 2) * len(weights) / (len(weights) - 1)
            count = min(count, len(weights))
        error, half = math.sqrt(variance), _quantile(count) * math.sqrt(variance)
        return Estimate(mean, error, 0.0, mean - half, mean + half, 0.9, math.isfinite(mean + half))


def _summary(part: str, entries: Sequence[LedgerEntry]) -> LedgerSummary:
    pairs = [(entry.predicted[part], entry.measured[part]) for entry in entries]
    known = [(p, m) for p, m in pairs if math.isfinite(float(p.value)) and math.isfinite(float(m.value))]
    nan = math.nan
    if not known:
        return LedgerSummary(part, 0, nan, nan, nan, 0)
    (said, said_error), (seen, seen_error) = (
        (
            np.array([float(pair[i].value) for pair in known]),
            np.array([float(pair[i].standard_error) for pair in known]),
        )
        for i in (0, 1)
    )
    errors = np.hypot(said_error, seen_error)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(seen.sum() / said.sum())
        error = math.sqrt(float(np.sum(seen_error**2 + (ratio * said_error) ** 2))) / abs(float(said.sum()))
        deviation = float(np.sqrt(np.mean(((seen - said) / errors) ** 2)))
    return LedgerSummary(part, len(known), ratio, error, deviation, int(np.sum(np.sign(said) == np.sign(seen))))


def _samples(batch: Any) -> int:
    return int(next(tensors_of(batch)).shape[0])


def _quantile(count: int) -> float:
    from scipy.special import stdtrit  # lazy: importing the ledger should not load SciPy

    return float(stdtrit(count - 1, 0.95))
