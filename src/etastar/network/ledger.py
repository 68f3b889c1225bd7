"""The counterfactual ledger: what the dominant, the bulk and the whole update would do to the loss, said and seen.

At a checkpoint the meter's moments predict the expected loss change of each projected update. Updates that the
optimizer would make on real mini-batches are then cut into these parts, and the loss of held-out samples is looked at
where each part alone would lead; the model itself is never written to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from etastar.criteria import loss_change
from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.network.batches import refuse_single_batch, tensors_of
from etastar.network.direction import check_optimizer, update_direction
from etastar.network.ledger_entries import (
    PARTS,
    LedgerEntry,
    LedgerSummary,
    ledger_columns,
    ledger_summary,
    save_ledger,
)
from etastar.network.meter import AlignmentMeter
from etastar.network.persample import gradient_at, loss_at
from etastar.uncertainty import Estimate

__all__ = ["UpdateLedger"]

Array = npt.NDArray[np.float64]


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
            descent={part: measurement.estimate(lambda split, part=part: eta * _slope(split, part)) for part in PARTS},
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
        return ledger_summary(self.entries)

    def columns(self) -> dict[str, Array]:
        """The entries as arrays; see `ledger_columns`."""
        return ledger_columns(self.entries)

    def save(self, path: str | Path) -> None:
        """Write the entries as JSON lines, whole or not at all; `load_ledger` reads them.

        Raises:
            InvalidFile: It cannot be written.
        """
        save_ledger(self.entries, path)

    def state_dict(self) -> dict[str, Any]:
        """The entries, as plain values that survive ``weights_only`` loading; the meter has a state of its own."""
        return {"entries": [entry.encode() for entry in self.entries]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            InvalidArgument: Not a state of a ledger.
        """
        try:
            self.entries = [LedgerEntry.decode(line) for line in state["entries"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InvalidArgument("state", type(state).__name__, "must come from UpdateLedger.state_dict()") from None

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
        count = len(each)
        with np.errstate(invalid="ignore"):  # where an update leads to an infinite loss, the error is NaN
            mean, variance = float(each.mean()), float(each.var(ddof=1)) / count
            if len(weights) > 1:
                variance += float(weights**2 @ (changes.mean(0) - mean) ** 2) * len(weights) / (len(weights) - 1)
                count = min(count, len(weights))
        error, half = math.sqrt(variance), _quantile(count) * math.sqrt(variance)
        return Estimate(mean, error, 0.0, mean - half, mean + half, 0.9, math.isfinite(mean + half))


def _slope(split: SplitMoments, part: str) -> Array:
    sides = {"dominant": split.dominant.slope, "bulk": split.bulk.slope}
    return sides[part] if part in sides else sides["dominant"] + sides["bulk"]


def _samples(batch: Any) -> int:
    return int(next(tensors_of(batch)).shape[0])


def _quantile(count: int) -> float:
    from scipy.special import stdtrit  # lazy: importing the ledger should not load SciPy

    return float(stdtrit(count - 1, 0.95))
