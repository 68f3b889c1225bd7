"""SGD with two rates, both measured: momentum in the bulk, a plain small step in the dominant subspace.

Momentum at rate η and factor β lets gradient noise act as a step of η/(1 − β). In the bulk that is its use; in the
dominant subspace, where the loss threshold η_D binds, it raises the loss, and descent there needs no momentum: k steep
directions are followed by plain steps soon enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from etastar.criteria import Outcome, loss_thresholds
from etastar.errors import EtastarError, InvalidArgument
from etastar.history import History, Measurement
from etastar.network.batches import whole_number
from etastar.network.meter import AlignmentMeter
from etastar.network.wrapped import Correction, WrappedOptimizer, span_part

__all__ = ["RateOutcome", "Rates", "TwoRateSGD"]

_WINDOW = 4  # measurements: what a single state fluctuates by, halved


class RateOutcome(Enum):
    """Why the dominant rate is what it is; all but the first two leave the whole update to momentum."""

    THRESHOLD = "thresholds separate: half of η_D, where one plain step lowers the dominant loss most"
    STABILITY = "thresholds separate, and half of η_D exceeds 1/λ₁: held there"
    UNMEASURED = "nothing measured yet, or the last measurement failed: see meter.skipped"
    UNRESOLVED = "η_D is not resolved: a larger curvature sample, or more probes"
    TOGETHER = "no step lowers the loss in the bulk and raises it in the dominant subspace"
    BELOW = "momentum's own noise step lr/(1 − β) is below half of η_D"
    SLOW = "a plain step this small would descend slower than the momentum forgets: noise falls with the loss here"


@dataclass(frozen=True, slots=True)
class Rates:
    """The two rates of one step.

    Attributes:
        bulk: Rate of the update with momentum, ``lr``, [parameter²/loss].
        dominant: Rate of the plain step in the dominant subspace; None where that has momentum and ``lr`` too.
        outcome: Why.
    """

    bulk: float
    dominant: float | None
    outcome: RateOutcome


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the rule takes from the last window of measurements."""

    outcome: RateOutcome | None = None  # where the thresholds leave nothing to decide
    threshold: float = 0.0
    largest: float = 0.0
    smallest: float = 0.0

    @classmethod
    def of(cls, meter: AlignmentMeter) -> _Seen:
        history = meter.history
        failed = bool(meter.skipped) and (not len(history) or meter.skipped[-1][0] > history[-1].step)
        if failed or not len(history):
            return cls(RateOutcome.UNMEASURED)
        window, certificate = _window(history), history[-1].certificate
        values = [certificate.get(f"{name}_eigenvalue") for name in ("largest", "smallest_dominant")]
        largest, smallest = (float(value) if isinstance(value, float) else 0.0 for value in values)
        bounds, dominant = loss_thresholds(_mean(window)), window.loss_thresholds.dominant
        if not dominant.resolved or bounds.dominant_outcome is not Outcome.BELOW or smallest <= 0:
            return cls(RateOutcome.UNRESOLVED)
        if not bounds.bulk_only:
            return cls(RateOutcome.TOGETHER)
        return cls(None, float(dominant.value), largest, smallest)

    def rates(self, lr: float, momentum: float) -> Rates:
        """The rule; where momentum would diverge in the dominant subspace, lr ≥ 2(1 + β)/λ₁, it is not left to it."""
        if self.outcome is not None:
            return Rates(lr, None, self.outcome)
        rate = min(0.5 * self.threshold, 1.0 / self.largest)
        outcome = RateOutcome.THRESHOLD if rate < 1.0 / self.largest else RateOutcome.STABILITY
        if lr * self.largest < 2 * (1 + momentum):
            if lr <= rate * (1 - momentum):
                return Rates(lr, None, RateOutcome.BELOW)
            if rate * self.smallest < 1 - momentum:
                return Rates(lr, None, RateOutcome.SLOW)
        return Rates(lr, rate, outcome)


class TwoRateSGD(WrappedOptimizer):
    """Momentum with ``lr`` in the bulk; in the dominant subspace a plain step of half its measured loss threshold η_D.

    Where the thresholds do not separate, or the dominant step could not keep up with the momentum (as where noise falls
    with the loss: an interpolating model under cross-entropy), it is ``torch.optim.SGD(params, lr, momentum)``, bit for
    bit. The momentum buffer is kept out of the dominant subspace otherwise. `rates` says which, and why.

    BSFA (arXiv 2510.25244) scales the two parts by fixed factors (`ScaledOptimizer`); here both are measured, and one
    knob is left. The meter measures the plain gradient step, before the steps that are multiples of ``meter.every``,
    over windows of four measurements. Weight decay is part of the gradient, in both subspaces. Damping dominant noise
    takes away what kept the curvature down: watch ``largest_eigenvalue`` and the held-out loss.

    Args:
        params: As ``torch.optim.SGD`` takes them; they must hold all that the meter measures. Groups may differ in
            weight decay only.
        meter: Of the model that is trained, with ``overhead=None``: when it measures must not depend on the clock.
            Cheap enough for this: 64 curvature samples, ``third_derivative=False, probes=4, every=200, tolerance=0.3``.
        batch_size: b, all samples behind one step, [samples].
        lr: The knob: what momentum SGD would take, a number or a tensor; schedulers may change it.
        momentum: β, between 0 and 1.
        weight_decay: Coefficient of the L2 penalty.

    Attributes:
        meter: The meter; its history says what was seen at which step.

    Raises:
        InvalidArgument: A meter with an overhead, momentum outside (0, 1), parameters that the meter measures and this
            does not move; at a step, groups that differ in lr or momentum.
    """

    _SAVED = ("meter",)

    def __init__(
        self,
        params: Iterable[Any],
        *,
        meter: AlignmentMeter,
        batch_size: int,
        lr: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 < momentum < 1:
            raise InvalidArgument("momentum", momentum, "must lie between 0 and 1")
        if meter.overhead is not None:
            raise InvalidArgument("meter.overhead", meter.overhead, "must be None: the clock must not steer a run")
        super().__init__(torch.optim.SGD(params, lr, momentum, weight_decay=weight_decay))
        self.meter, self._batch_size = meter, whole_number("batch_size", batch_size, 1)
        self._require(meter.operator.vector)
        self._seen = _Seen.of(meter)

    @property
    def rates(self) -> Rates:
        """The rates of the next step, as far as it is known before the measurement that may be due there."""
        return self._seen.rates(self._one("lr"), self._one("momentum"))

    def _begin(self) -> Correction | None:
        lr = self._one("lr")
        frozen = not all(tensor.requires_grad for tensor in self.meter.operator.vector.tensors)
        if frozen or self.meter.step % self.meter.every == 0:
            self._measure(lr)
        rate, basis, vector = self.rates.dominant, self.meter.tracker.basis, self.meter.operator.vector
        if rate is None or basis is None:
            return None
        self._forget(basis)
        return Correction(vector, basis, rate / lr, 1.0)

    def _end(self) -> None:
        self.meter.step += 1

    def _measure(self, lr: float) -> None:
        """A failure (a loss that is not finite) is the meter's to record, and leaves the update to momentum."""
        try:
            self.meter.measure(lr, self._batch_size)
        except (EtastarError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            self.meter.skipped.append((self.meter.step, str(error)))
        self._require(self.meter.operator.vector)  # the meter follows what is frozen, unfrozen or added
        self._seen = _Seen.of(self.meter)

    def _forget(self, basis: Tensor) -> None:
        """Take the dominant part out of the momentum buffers."""
        vector = self.meter.operator.vector
        states: list[dict[str, Any]] = [self.inner.state[tensor] for tensor in vector.tensors]
        if all(state.get("momentum_buffer") is None for state in states):
            return
        for state, tensor in zip(states, vector.tensors, strict=True):
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(tensor)
        buffers = [state["momentum_buffer"] for state in states]
        for buffer, part in zip(buffers, span_part(vector, basis, buffers), strict=True):
            buffer.sub_(part)

    def _one(self, setting: str) -> float:
        values = {float(group[setting]) for group in self.param_groups}
        if len(values) > 1:
            raise InvalidArgument(f"optimizer {setting}", sorted(values), "must be one for all groups")
        return values.pop()

    def _own_state(self) -> dict[str, Any]:
        return {"meter": self.meter.state_dict()}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.meter.load_state_dict(state["meter"])
        self._seen = _Seen.of(self.meter)


def _window(history: History) -> Measurement:
    return history.window(min(_WINDOW, len(history))) if len(history) > 1 else history[-1]


def _mean(window: Measurement) -> Any:
    return window.moments if window.moments.shape == () else window.moments.mean(0)
