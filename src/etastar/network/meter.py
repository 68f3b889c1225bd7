"""The meter: alignment, critical step size and loss thresholds of a network while it trains.

It measures at its own cadence, within a stated overhead, and never changes the run: parameters, buffers, gradients,
optimizer state, random streams and module modes are bit for bit what they would have been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from etastar.criteria import as_step_size
from etastar.errors import InvalidArgument
from etastar.files import parse_json
from etastar.history import History, Measurement
from etastar.measurement import decode, encode
from etastar.network.attachment import MeterHandle, Tracker
from etastar.network.batches import refuse_single_batch, whole_number
from etastar.network.curvature import HessianOperator
from etastar.network.direction import check_optimizer, is_plain, update_direction
from etastar.network.findings import PreflightReport
from etastar.network.parameters import ParameterVector
from etastar.network.population import population_moments
from etastar.network.preflight import preflight
from etastar.network.producer import Basis, Direction, Produced, training_moments
from etastar.network.sharpness import batch_sharpness
from etastar.network.subspace import Subspace, SubspaceTracker
from etastar.uncertainty import Estimate

__all__ = ["AlignmentMeter", "MeterHandle", "Tracker"]

Target = Literal["training", "population"]
LossFunction = Callable[[Any, Any], Tensor]


class AlignmentMeter:
    """Measures θ, η* and the loss thresholds of a model on fixed batches.

    Args:
        model: The network.
        loss_fn: ``loss_fn(model, batch)`` → the mean loss over the samples of the batch, a scalar tensor.
        curvature_batches: Fixed and re-iterable. With target "training" they are the loss, or stand for it; with
            "population" they give the Hessian and the basis, half of them each side of a product.
        rank: k.
        every: An attached meter measures at multiples of this many steps only.
        overhead: What measuring may cost, as a share of the run's own time: after the first, each measurement waits
            until one like the last fits. None measures at every multiple.
        target: "training", or "population": then `gradient_batches` are needed.
        gradient_batches: With "training", the whole training set where the curvature batches are only a part of it: it
            costs one gradient. With "population", three or more independent batches of one size, from other samples
            than the curvature's.
        tolerance: Error of the basis asked for at each refresh, ‖(I − VVᵀ)V*‖_F/√k.
        probes: Noise probes of the bulk (training); one product each.
        replace: Whether mini-batches are drawn with replacement (training).
        third_derivative: Whether η* takes in what steps do beyond the quadratic model (training): without it η* can be
            confidently wrong where the loss is far from quadratic. One gradient for each probe, or two.
        parameters: Names or prefixes to restrict to.
        training: Mode to evaluate in: False for evaluation mode, None for each module as it is.
        seed: Of the tracker and the probes.

    Attributes:
        history: The measurements so far.
        step: Steps of the run so far: counted while attached, saved in `state_dict`, free to set before `measure`.
        skipped: Steps at which an attached meter failed, with the reason.
        preflight: What was found when it was attached; None before.

    Raises:
        InvalidArgument: A target without its batches, or whatever `HessianOperator` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        curvature_batches: Iterable[Any],
        rank: int = 10,
        *,
        every: int = 1,
        overhead: float | None = 0.1,
        target: Target = "training",
        gradient_batches: Iterable[Any] | None = None,
        tolerance: float = 1e-2,
        probes: int = 8,
        replace: bool = True,
        third_derivative: bool = True,
        parameters: list[str] | str | None = None,
        training: bool | None = None,
        seed: int = 0,
    ) -> None:
        _check(curvature_batches, tolerance)
        whole_number("every", every, 1)
        whole_number("probes", probes, 2)
        whole_number("seed", seed, 0)
        for name, source in (("curvature_batches", curvature_batches), ("gradient_batches", gradient_batches)):
            refuse_single_batch(name, source)
        if overhead is not None and not overhead > 0:
            raise InvalidArgument("overhead", overhead, "must be positive, or None to measure at every `every` steps")
        if target not in ("training", "population"):
            raise InvalidArgument("target", target, 'must be "training" or "population"')
        self.model, self.loss_fn, self.target = model, loss_fn, target
        self.every, self.overhead, self.step = every, overhead, 0
        self.history = History()
        self.skipped: list[tuple[int, str]] = []
        self.preflight: PreflightReport | None = None
        self._rank, self._tolerance, self._probes = rank, tolerance, probes
        self._replace, self._third, self._seed = replace, third_derivative, seed
        self._parameters, self._training = parameters, training
        self._batches = list(curvature_batches)
        self._gradient_batches = [] if gradient_batches is None else list(gradient_batches)
        self._handle: MeterHandle | None = None
        self._build()

    def measure(self, step_size: float, batch_size: int, optimizer: torch.optim.Optimizer | None = None) -> Measurement:
        """Measure here and now, and keep the measurement in the history.

        Args:
            step_size: η that the verdict is about, [parameter²/loss].
            batch_size: b of the training run, [samples].
            optimizer: Where the update is not the plain gradient: an SGD with momentum or weight decay.

        Raises:
            InvalidArgument: A loss that is not finite, batches that changed, an optimizer that is not SGD or leaves
                parameters out; with target "population", momentum or weight decay.
        """
        begin = time.perf_counter()
        whole_number("batch_size", batch_size, 1)
        step_size = float(as_step_size(step_size))
        self._follow_parameters()
        if optimizer is not None:
            self._check(optimizer)
        before = self._products
        with torch.autocast(self.operator.device.type, enabled=False), self.operator.held():
            subspace = self.tracker.refresh(self._tolerance)
            basis = Basis.tracked(self.tracker, subspace)
            produced = self._produce(basis, step_size, batch_size, optimizer)
        measurement = Measurement(
            step=self.step,
            step_size=step_size,
            moments=produced.moments,
            batch_size=batch_size,
            provenance={
                "target": self.target,
                "samples": self.operator.samples,
                "gradient_samples": (self._whole or self.operator).samples,
                "parameters": self.operator.vector.size,
            },
            recoverable=produced.recoverable if bool(np.all(np.isfinite(produced.recoverable))) else None,
            certificate=_certificate(subspace, produced),
            cost={"products": self._products - before, "seconds": round(time.perf_counter() - begin, 6)},
        )
        self.history.append(measurement)
        return measurement

    def batch_sharpness(self, batches: Iterable[Any]) -> Estimate:
        """E⟨g_B, H_B g_B⟩/E‖g_B‖² over mini-batches of the run, [loss/parameter²]; see `sharpness.batch_sharpness`."""
        return batch_sharpness(self.model, self.loss_fn, batches, self._parameters, training=self._training)

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        *,
        path: str | Path | None = None,
        log: Tracker | None = None,
    ) -> MeterHandle:
        """Measure before the first step of `optimizer` and then before others, when `every` and `overhead` allow it.

        Preflight runs first, and its report stays in `preflight`. A measurement that fails is recorded in `skipped`
        with its reason; the run goes on. ``handle.remove()`` ends it.

        Args:
            optimizer: Of the run: stepped with a closure or without, by a scaler or not.
            batch_size: b, all samples behind one step, [samples]: accumulated micro-batches together.
            path: Where to write the history while the run goes, as JSON lines. A new file; or that of the run being
                resumed, after `load_state_dict`: rows beyond the state are dropped from it.
            log: A tracker: ``log.log(metrics, step)`` gets every measurement, as `etastar.quantities.metrics`.

        Raises:
            InvalidArgument: An optimizer whose update the moments do not describe, whatever preflight refuses (in its
                own name), a meter that is attached already, a file that exists.
        """
        if self._handle is not None and self._handle.attached:
            raise InvalidArgument("optimizer", type(optimizer).__name__, "the meter is attached: handle.remove() first")
        self._follow_parameters()
        self._check(optimizer)
        self.require_sound()
        self._handle = MeterHandle(self, optimizer, batch_size, path, log)
        return self._handle

    def require_sound(self) -> None:
        """Run preflight and keep its report in `preflight`.

        Raises:
            InvalidArgument: Whatever preflight refuses, in its own name.
        """
        with torch.autocast(self.operator.device.type, enabled=False):
            self.preflight = preflight(
                self.model, self.loss_fn, self._batches, self._parameters, training=self._training
            )
        self.preflight.require()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to be measured as if it had never stopped; safe for ``weights_only`` loading."""
        return {
            "step": self.step,
            "history": [encode(measurement) for measurement in self.history],
            "skipped": [list(entry) for entry in self.skipped],
            "tracker": self.tracker.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, on a meter made like the one that saved it, and before it is attached.

        Raises:
            InvalidArgument: Of another model or rank, or not a state of a meter.
        """
        try:
            history = History([decode(parse_json(line)) for line in state["history"]])
            step, skipped, tracker = (
                int(state["step"]),
                [(int(s), str(r)) for s, r in state["skipped"]],
                state["tracker"],
            )
        except (KeyError, TypeError, ValueError):
            raise InvalidArgument("state", type(state).__name__, "must come from AlignmentMeter.state_dict()") from None
        self.tracker.load_state_dict(tracker)
        self.step, self.history, self.skipped = step, history, skipped

    @property
    def _products(self) -> int:
        return sum(operator.products for operator in (self.operator, *(self._halves or ())))

    def _build(self) -> None:
        """The operators over the parameters that are trainable now, and a tracker that starts cold."""
        self.operator = self._operator(self._batches)
        self._halves = self._gradients = self._whole = None
        if self.target == "population":
            self._halves, self._gradients = self._population()
        elif self._gradient_batches:
            self._whole = self._operator(self._gradient_batches)
        self.tracker = SubspaceTracker(self.operator, self._rank, seed=self._seed)

    def _operator(self, batches: list[Any]) -> HessianOperator:
        return HessianOperator(self.model, self.loss_fn, batches, self._parameters, training=self._training)

    def _follow_parameters(self) -> None:
        """Start anew where parameters were frozen, unfrozen or added: every vector has other entries then."""
        now, before = ParameterVector.of(self.model, self._parameters).tensors, self.operator.vector.tensors
        if [id(tensor) for tensor in now] != [id(tensor) for tensor in before]:
            self._build()

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        check_optimizer(optimizer, self.operator.vector)
        if self.target == "population" and not is_plain(optimizer):
            remedy = 'the population target describes plain SGD; measure momentum and weight decay with "training"'
            raise InvalidArgument("optimizer", "momentum or weight decay", remedy)

    def _produce(
        self, basis: Basis, step_size: float, batch_size: int, optimizer: torch.optim.Optimizer | None
    ) -> Produced:
        if self._halves is not None and self._gradients is not None:
            gradients = torch.stack([operator.gradient() for operator in self._gradients])
            size = self._gradients[0].samples
            return population_moments(self._halves, gradients, size, basis, batch_size)

        def direction(gradient: Tensor) -> Direction:
            found = None if optimizer is None else update_direction(optimizer, self.operator.vector, gradient)
            return found or Direction(gradient)

        plain = optimizer is None or is_plain(optimizer)
        return training_moments(
            self.operator,
            self.loss_fn,
            basis,
            batch_size,
            probes=self._probes,
            replace=self._replace,
            direction=None if plain else direction,
            third_step=step_size if self._third and step_size > 0 else None,
            whole=self._whole,
            seed=self._seed + self.step,
        )

    def _population(self) -> tuple[tuple[HessianOperator, HessianOperator], list[HessianOperator]]:
        """Hessians of two halves of the curvature batches, and one operator for each gradient batch."""
        batches, given = self._batches, self._gradient_batches
        if len(batches) < 2:
            raise InvalidArgument("curvature_batches", len(batches), "the population target needs at least two")
        if len(given) < 3:
            raise InvalidArgument("gradient_batches", len(given), "the population target needs at least three")
        gradients = [self._operator([batch]) for batch in given]
        sizes = sorted({one.samples for one in gradients})
        if len(sizes) > 1:
            raise InvalidArgument("gradient_batches", sizes, "must all have one size")
        return (self._operator(batches[::2]), self._operator(batches[1::2])), gradients


def _check(batches: Any, tolerance: Any) -> None:
    if not isinstance(batches, Iterable):
        raise InvalidArgument("curvature_batches", batches, "must be an iterable of batches")
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise InvalidArgument("tolerance", tolerance, "must lie between 0 and 1")


def _certificate(subspace: Subspace, produced: Produced) -> dict[str, str | int | float]:
    """The basis behind a measurement, without the basis."""
    values = {
        "error": subspace.error,
        "largest_eigenvalue": subspace.eigenvalues[0],
        "smallest_dominant_eigenvalue": subspace.eigenvalues[-1],
        "gap": subspace.gap,
        "angle_bound": subspace.angle_bound,
        "largest_residual": subspace.residuals.max(),
        "third_derivative_shift": min(produced.third_shift, 1e3),
        **produced.basis_errors,
    }
    numbers = {name: float(value) for name, value in values.items()}
    known = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {"rank": subspace.rank, "outcome": subspace.outcome.name, **known}
