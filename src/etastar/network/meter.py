"""The meter: alignment, critical step size and loss thresholds of a network while it trains.

It measures at its own cadence, within a stated overhead, and never changes the run: parameters, buffers, gradients,
optimizer state, random streams and module modes are bit for bit what they would have been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from etastar.errors import EtastarError, InvalidArgument
from etastar.history import History, Measurement
from etastar.network.curvature import HessianOperator
from etastar.network.direction import check_optimizer, step_size_of, update_direction
from etastar.network.producer import Basis, Direction, Produced, population_moments, training_moments
from etastar.network.subspace import Subspace, SubspaceTracker

__all__ = ["AlignmentMeter", "MeterHandle"]

Target = Literal["training", "population"]
LossFunction = Callable[[Any, Any], Tensor]


@dataclass(slots=True)
class MeterHandle:
    """What `AlignmentMeter.attach` returns."""

    hook: Any

    def remove(self) -> None:
        """Stop measuring; the history stays."""
        self.hook.remove()


class AlignmentMeter:
    """Measures θ, η* and the loss thresholds of a model on fixed batches.

    Args:
        model: The network.
        loss_fn: ``loss_fn(model, batch)`` → the mean loss over the samples of the batch, a scalar tensor.
        curvature_batches: Fixed and re-iterable. With target "training" they *are* the loss; with "population" they
            give the Hessian and the basis, half of them each side of a product.
        rank: k.
        every: Steps between measurements, at least.
        overhead: Share of the run's time that measuring may take; the next measurement waits until it fits.
        target: "training", or "population": then `gradient_batches` are needed.
        gradient_batches: Three or more independent batches of one size, from other samples than the curvature's.
        tolerance: Error of the basis asked for at each refresh, ‖(I − VVᵀ)V*‖_F/√k.
        probes: Noise probes of the bulk (training); one product each.
        replace: Whether mini-batches are drawn with replacement (training).
        third_derivative: Whether second moments take in the third derivative over the step (training): without it η*
            can be confidently wrong where the loss is far from quadratic. Two gradients for each probe and one more.
        parameters: Names or prefixes to restrict to.
        training: Mode to evaluate in: False for evaluation mode, None for each module as it is.
        seed: Of the tracker and the probes.

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
        if every < 1:
            raise InvalidArgument("every", every, "must be at least 1")
        if overhead is not None and not overhead > 0:
            raise InvalidArgument("overhead", overhead, "must be positive, or None to measure at every `every` steps")
        self.model, self.loss_fn, self.target = model, loss_fn, target
        self.every, self.overhead = every, overhead
        self.history = History()
        self.skipped: list[tuple[int, str]] = []
        self._tolerance, self._probes, self._replace, self._seed = tolerance, probes, replace, seed
        self._training, self._third = training, third_derivative
        batches = list(curvature_batches)
        self.operator = HessianOperator(model, loss_fn, batches, parameters, training=training)
        self._halves = self._gradients = None
        if target == "population":
            self._halves, self._gradients = self._population(batches, gradient_batches, parameters)
        elif target != "training":
            raise InvalidArgument("target", target, 'must be "training" or "population"')
        self.tracker = SubspaceTracker(self.operator, rank, seed=seed)
        self._step = 0
        self._spent = 0.0
        self._began = self._ended = time.perf_counter()

    def measure(self, step_size: float, batch_size: int, optimizer: torch.optim.Optimizer | None = None) -> Measurement:
        """Measure here and now, and keep the measurement in the history.

        Args:
            step_size: η that the verdict is about, [parameter²/loss].
            batch_size: b of the training run, [samples].
            optimizer: Where the update is not the plain gradient: an SGD with momentum or weight decay.

        Raises:
            InvalidArgument: A loss that is not finite, batches that changed, an optimizer that is not SGD.
        """
        begin = time.perf_counter()
        before = self.operator.products
        with self.operator.held():
            subspace = self.tracker.refresh(self._tolerance)
            basis = Basis(subspace.basis, self.operator @ subspace.basis, subspace.eigenvalues.to(subspace.basis))
            produced = self._produce(basis, step_size, batch_size, optimizer)
        measurement = Measurement(
            step=self._step,
            step_size=step_size,
            moments=produced.moments,
            batch_size=batch_size,
            provenance={"target": self.target, "samples": self.operator.samples},
            recoverable=produced.recoverable if bool(np.all(np.isfinite(produced.recoverable))) else None,
            certificate=_certificate(subspace, produced.third_shift),
            cost={"products": self.operator.products - before, "seconds": round(time.perf_counter() - begin, 6)},
        )
        self._spent += time.perf_counter() - begin
        self.history.append(measurement)
        return measurement

    def attach(self, optimizer: torch.optim.Optimizer, batch_size: int) -> MeterHandle:
        """Measure before the first step and then after steps of `optimizer`, when `every` and `overhead` allow it.

        A measurement that fails is recorded in `skipped` with its reason; the run goes on.

        Raises:
            InvalidArgument: An optimizer whose update the moments do not describe.
        """
        check_optimizer(optimizer)
        self._began = self._ended = time.perf_counter()
        self._spent = 0.0

        def after(stepped: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._step += 1
            if self._step % self.every == 0 and self._affordable():
                self._try(stepped, batch_size)

        self._try(optimizer, batch_size)
        return MeterHandle(optimizer.register_step_post_hook(after))

    def _try(self, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        try:
            self.measure(step_size_of(optimizer), batch_size, optimizer)
        except EtastarError as error:
            self.skipped.append((self._step, str(error)))

    def _affordable(self) -> bool:
        """Whether the time spent measuring so far is within the budget of the run's own time."""
        if self.overhead is None:
            return True
        trained = time.perf_counter() - self._began - self._spent
        return self._spent <= self.overhead * trained

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

        if optimizer is not None:
            check_optimizer(optimizer)
        plain = optimizer is None or update_direction(optimizer, self.operator.vector, self.operator.gradient()) is None
        return training_moments(
            self.operator,
            self.loss_fn,
            basis,
            batch_size,
            probes=self._probes,
            replace=self._replace,
            direction=None if plain else direction,
            third_step=step_size if self._third and step_size > 0 else None,
            seed=self._seed + self._step,
        )

    def _population(
        self, batches: list[Any], gradient_batches: Iterable[Any] | None, parameters: list[str] | str | None
    ) -> tuple[tuple[HessianOperator, HessianOperator], list[HessianOperator]]:
        """Hessians of two halves of the curvature batches, and one operator for each gradient batch."""
        given = [] if gradient_batches is None else list(gradient_batches)
        if len(batches) < 2:
            raise InvalidArgument("curvature_batches", len(batches), "the population target needs at least two")
        if len(given) < 3:
            raise InvalidArgument("gradient_batches", len(given), "the population target needs at least three")

        def operator(part: list[Any]) -> HessianOperator:
            return HessianOperator(self.model, self.loss_fn, part, parameters, training=self._training)

        gradients = [operator([batch]) for batch in given]
        sizes = sorted({one.samples for one in gradients})
        if len(sizes) > 1:
            raise InvalidArgument("gradient_batches", sizes, "must all have one size")
        return (operator(batches[::2]), operator(batches[1::2])), gradients


def _certificate(subspace: Subspace, third_shift: float) -> dict[str, str | int | float]:
    """The basis behind a measurement, without the basis."""
    values = {
        "error": subspace.error,
        "largest_eigenvalue": subspace.eigenvalues[0],
        "smallest_dominant_eigenvalue": subspace.eigenvalues[-1],
        "gap": subspace.gap,
        "angle_bound": subspace.angle_bound,
        "largest_residual": subspace.residuals.max(),
        "third_derivative_shift": min(third_shift, 1e3),
    }
    numbers = {name: float(value) for name, value in values.items()}
    known = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {"rank": subspace.rank, "outcome": subspace.outcome.name, **known}
