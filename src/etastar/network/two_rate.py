"""SGD with two rates, both measured: momentum in the bulk, a plain small step in the dominant subspace.

Momentum at rate η and factor β lets gradient noise act as a step of η/(1 − β). In the bulk that is its use; in the
dominant subspace, where the loss threshold η_D binds, it raises the loss, and descent there needs no momentum: k steep
directions are followed by plain steps soon enough. What bounds the rate in the bulk is no loss threshold (a constant
step sits at its own) but whether the noise that it lets in feeds on itself: the noise-kernel norm, measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etastar.criteria import Outcome, loss_thresholds
from etastar.errors import EtastarError, InvalidArgument
from etastar.history import History, Measurement
from etastar.network.batches import whole_number
from etastar.network.meter import AlignmentMeter
from etastar.network.subspace import SubspaceOutcome, SubspaceTracker
from etastar.network.wrapped import Correction, WrappedOptimizer, span_part

__all__ = ["RateOutcome", "Rates", "TwoRateSGD"]

_WINDOW = 4  # measurements: what a single state fluctuates by, halved
_BULK_NORM = 0.5  # largest K of the bulk alone: half of the border, where the loss falls fastest
_WHOLE_NORM = 1.0  # largest K where both subspaces have momentum: the border, to leave plain momentum alone if possible
_EDGE = 0.25  # of 2(1 + β)/λ: curvature outside the basis may grow twofold twice until the next refresh
_EARLY = 3  # more measurements before the second regular one, each at half the step of the next: curvature rises first


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
        bulk: Rate of the update with momentum, [parameter²/loss]: ``lr``, or less where K or `curvature` is large.
        dominant: Rate of the plain step in the dominant subspace; None where that has momentum and ``bulk`` too.
        outcome: Why the dominant one is what it is.
        kernel_norm: K at ``lr``, the noise-kernel norm of what has momentum; None where no loss was measured.
        curvature: Largest that the last refresh found outside the basis before it; λ₁ at the first, 0 before.
    """

    bulk: float
    dominant: float | None
    outcome: RateOutcome
    kernel_norm: float | None = None
    curvature: float = 0.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the rule takes from the last window of measurements."""

    outcome: RateOutcome | None = None  # where the thresholds leave nothing to decide
    threshold: float = 0.0
    largest: float = 0.0
    smallest: float = 0.0
    kernel: tuple[float, float] | None = None  # K over the noise step lr/(1 − β): of the bulk, and of the whole

    @classmethod
    def of(cls, meter: AlignmentMeter, losses: Mapping[int, float]) -> _Seen:
        history = meter.history
        kernel = _kernel(history, losses)
        failed = bool(meter.skipped) and (not len(history) or meter.skipped[-1][0] >= history[-1].step)
        if failed or not len(history):
            return cls(RateOutcome.UNMEASURED, kernel=kernel)
        window, certificate = _window(history), history[-1].certificate
        values = [certificate.get(f"{name}_eigenvalue") for name in ("largest", "smallest_dominant")]
        largest, smallest = (float(value) if isinstance(value, float) else 0.0 for value in values)
        bounds, dominant = loss_thresholds(_mean(window)), window.loss_thresholds.dominant
        if not dominant.resolved or bounds.dominant_outcome is not Outcome.BELOW or smallest <= 0:
            return cls(RateOutcome.UNRESOLVED, kernel=kernel)
        if not bounds.bulk_only:
            return cls(RateOutcome.TOGETHER, kernel=kernel)
        return cls(None, float(dominant.value), largest, smallest, kernel)

    def rates(self, lr: float, momentum: float, curvature: float) -> Rates:
        """The rule: the dominant one first, as it says what has momentum."""
        bulk, whole = (kernel * lr / (1 - momentum) for kernel in self.kernel or (0.0, 0.0))
        rate, outcome = self._dominant(_held(lr, bulk, _BULK_NORM), momentum)
        norm, most = (whole, _WHOLE_NORM) if rate is None else (bulk, _BULK_NORM)
        held = _held(lr, norm, most)
        if rate is not None:
            held = min(held, _held(lr, lr * curvature, _EDGE * 2 * (1 + momentum)))
        return Rates(held, rate, outcome, None if self.kernel is None else norm, curvature)

    def _dominant(self, lr: float, momentum: float) -> tuple[float | None, RateOutcome]:
        """Where momentum would diverge in the dominant subspace, lr ≥ 2(1 + β)/λ₁, it is not left to it."""
        if self.outcome is not None:
            return None, self.outcome
        rate = min(0.5 * self.threshold, 1.0 / self.largest)
        if lr * self.largest < 2 * (1 + momentum):
            if lr <= rate * (1 - momentum):
                return None, RateOutcome.BELOW
            if rate * self.smallest < 1 - momentum:
                return None, RateOutcome.SLOW
        return rate, RateOutcome.THRESHOLD if rate < 1.0 / self.largest else RateOutcome.STABILITY


class TwoRateSGD(WrappedOptimizer):
    """Momentum with ``lr`` in the bulk; in the dominant subspace a plain step of half its measured loss threshold η_D.

    Both subspaces have momentum where the thresholds do not separate, or the dominant step could not keep up with it
    (as where noise falls with the loss: an interpolating model under cross-entropy). Otherwise its buffer is kept out
    of the dominant subspace.

    What has momentum has it at ``lr``, or at what its noise-kernel norm K = lr/(1 − β) · q0/(4L) allows where that is
    less: K ≤ ½ for the bulk alone, K ≤ 1 for both. q0 is the noise energy there; L, the loss, must be one that cannot
    fall below zero. K is the share of the loss that noise at this rate puts back in the end. For least squares in small
    steps it is lr·tr(H)/(2b(1 − β)), and above 1 mini-batch SGD diverges (Paquette et al., arXiv 2102.04396). Where
    both subspaces have momentum at K ≤ 1, this is ``torch.optim.SGD(params, lr, momentum)``, bit for bit.

    Between refreshes the basis falls behind, and momentum meets steep directions: with two rates the bulk's is at most
    a quarter of 2(1 + β)/λ, where λ is the largest curvature that the last refresh found outside the basis before it.

    BSFA (arXiv 2510.25244) scales the two parts by fixed factors (`ScaledOptimizer`); here both are measured, and one
    knob is left. The meter measures the plain gradient step, before the steps that are multiples of ``meter.every`` and
    at an eighth, a quarter and half of the first one, over windows of four measurements. Weight decay is part of the
    gradient, in both subspaces. Damping dominant noise takes away what kept the curvature down: watch
    ``largest_eigenvalue`` and the held-out loss.

    Args:
        params: As ``torch.optim.SGD`` takes them; they must hold all that the meter measures. Groups may differ in
            weight decay only.
        meter: Of the model that is trained, with ``overhead=None``: when it measures must not depend on the clock.
            Cheap enough for this: 64 curvature samples, ``third_derivative=False, probes=4, every=200, tolerance=0.3``.
        batch_size: b, all samples behind one step, [samples].
        lr: The knob: what momentum SGD would take, a number or a tensor; schedulers may change it. What blows up
            between two measurements is not caught.
        momentum: β, between 0 and 1.
        weight_decay: Coefficient of the L2 penalty.

    Attributes:
        meter: The meter; its history says what was seen at which step.

    Raises:
        InvalidArgument: A meter with an overhead, momentum outside (0, 1), parameters that the meter measures and this
            does not move, whatever preflight refuses; at a step, groups that differ in lr or momentum, or have
            ``dampening``, ``nesterov`` or ``maximize``.
    """

    _SAVED = ("meter", "losses", "curvature")

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
        meter.require_sound()
        self._losses: dict[int, float] = {}  # L by step, at the last measurements
        self._curvature = 0.0
        self._seen = _Seen.of(meter, self._losses)

    @property
    def rates(self) -> Rates:
        """The rates of the next step, as far as it is known before the measurement that may be due there."""
        return self._seen.rates(self._one("lr"), self._one("momentum"), self._curvature)

    def _begin(self) -> Correction | None:
        lr = self._one("lr")
        for setting in ("dampening", "nesterov", "maximize"):
            if any(group[setting] for group in self.param_groups):
                raise InvalidArgument(f"optimizer {setting}", True, "must not be set: the rule is of plain momentum")
        frozen = not all(tensor.requires_grad for tensor in self.meter.operator.vector.tensors)
        if frozen or self._due:
            self._measure(lr)
        rates, basis, vector = self.rates, self.meter.tracker.basis, self.meter.operator.vector
        if basis is None or (rates.dominant is None and rates.bulk == lr):
            return None
        if rates.dominant is None:
            return Correction(vector, basis, rates.bulk / lr, rates.bulk / lr)
        self._forget(basis)
        return Correction(vector, basis, rates.dominant / lr, rates.bulk / lr)

    @property
    def _due(self) -> bool:
        step, every = self.meter.step, self.meter.every
        return step % every == 0 or step in {every >> halvings for halvings in range(1, 1 + _EARLY)}

    def _end(self) -> None:
        self.meter.step += 1

    def _measure(self, lr: float) -> None:
        """A failure (a loss that is not finite) is the meter's to record, and leaves the update to momentum."""
        before = self.meter.tracker.basis
        try:
            if self.meter.measure(lr, self._batch_size).certificate["outcome"] == SubspaceOutcome.NOT_FINITE.name:
                raise InvalidArgument("curvature", "not finite", SubspaceOutcome.NOT_FINITE.value)
            kept = list(self._losses.items())[1 - _WINDOW :]
            self._losses = dict([*kept, (self.meter.step, self.meter.operator.loss())])
            self._curvature = _outside(before, self.meter.tracker)
        except (EtastarError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            self.meter.skipped.append((self.meter.step, str(error)))
        self._require(self.meter.operator.vector)  # the meter follows what is frozen, unfrozen or added
        self._seen = _Seen.of(self.meter, self._losses)

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
        return {"meter": self.meter.state_dict(), "losses": dict(self._losses), "curvature": self._curvature}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.meter.load_state_dict(state["meter"])
        self._losses, self._curvature = dict(state["losses"]), float(state["curvature"])
        self._seen = _Seen.of(self.meter, self._losses)


def _window(history: History) -> Measurement:
    return history.window(min(_WINDOW, len(history))) if len(history) > 1 else history[-1]


def _mean(window: Measurement) -> Any:
    return window.moments if window.moments.shape == () else window.moments.mean(0)


def _kernel(history: History, losses: Mapping[int, float]) -> tuple[float, float] | None:
    """q0/(4L) of the bulk and of the whole, means over the last measurements; None where a loss is not positive."""
    rows = [history[-1 - back] for back in range(min(_WINDOW, len(history)))]
    known = [(row.moments, losses[row.step]) for row in rows if row.step in losses]
    if not known or min(loss for _, loss in known) <= 0:
        return None
    dominant, bulk = np.mean(
        [[np.mean(part.noise.zeroth) / (4 * loss) for part in (split.dominant, split.bulk)] for split, loss in known],
        axis=0,
    )
    return float(bulk), float(dominant + bulk)


def _held(lr: float, norm: float, most: float) -> float:
    return lr * most / norm if norm > most else lr


def _outside(before: Tensor | None, tracker: SubspaceTracker) -> float:
    """Largest curvature of the dominant part of the Hessian, VΛVᵀ, outside an earlier basis; λ₁ where that is none."""
    now, values = tracker.basis, tracker.eigenvalues.clamp_min(0)
    if now is None or before is None or before.shape != now.shape:
        return float(values.max())
    inside = (before.mT @ now).double().cpu()
    weights = values.sqrt()
    missed = torch.eye(len(values), dtype=torch.float64) - inside.mT @ inside
    return max(0.0, float(torch.linalg.eigvalsh(weights[:, None] * missed * weights)[-1]))
