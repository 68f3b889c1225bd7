"""The gauge: what every step of any optimizer does to the loss, from gradients alone (theory §8, rank 0).

It reads the update really made, u = θ − θ⁺, and a second gradient where the step began, every so often. It needs no
model and no curvature, works with any attention kernel, and never changes the run: parameters, gradients, optimizer
state and random streams are bit for bit what they would have been.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.gauge.observer import Observer
from etastar.network.gauge.state import load_state, save_state
from etastar.network.gauge.summary import GaugeSummary, Sampling, summarise
from etastar.network.gauge.vectors import read_parameters

__all__ = ["StepGauge"]


class StepGauge:
    """Attach to an optimizer; ask `summary` after some hundred steps.

    Around it, a training loop needs two lines, and the second only where gradients are clipped, accumulated or
    scaled::

        if gauge.due:
            gauge.second(lambda: loss_fn(model(x2), y2))     # another batch, same point
        loss_fn(model(x), y).backward()
        gauge.observe()                                       # before clipping; with AMP scale=scaler.get_scale()
        optimizer.step()

    Two points of method. *Sampling*: with ``"shuffled"`` (the default, always right) only steps that have a second
    gradient are read, and other steps cost nothing. With ``"independent"`` (every batch a fresh draw, or a simple
    noise scale far below the size of the dataset) every step is read, and the same window says far more. Within
    shuffled epochs consecutive gradients repel each other, which would raise η/η_full by about
    noise scale / (2·dataset size). *The trap of a constant step*: once a run is stationary, every stable step reads
    1: "equilibrated", not "too large".

    Args:
        optimizer: Any ``torch.optim.Optimizer``; closures, AMP, several groups and late groups are understood.
        basis: Orthonormal ``(P, k)``, rows in the order of the parameters: then also the dominant subspace and the
            bulk, of this very basis: a stale one lets dominant gradient into the bulk. Replace it through `basis`.
        parameters: ``model.named_parameters()``: names for the layers, and the order of the basis; without it, the
            optimizer's order.
        every: Steps per second point, at a random place in each such block. A function given to `second` costs two
            gradients, so the default costs 2/128 = 1.6 % of a step, and 3/128 with a basis, whose coupling to the rest
            takes one more; gradients given cost one.
        batch_size: b behind one optimizer step, [samples]; noise scales are in units of b without it.
        sampling: See above.
        seed: Of the places of second points and of the random streams inside `second`.
        keep: Blocks of `every` steps that are remembered.

    Raises:
        InvalidArgument: An argument that is not of its kind, complex parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> gauge = StepGauge(torch.optim.SGD([weight], lr=0.1), every=4)
        >>> gauge.summary().verdict
        'not enough steps yet: let the run go on, or give the gauge a smaller `every`'
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        basis: Tensor | None = None,
        *,
        parameters: Iterable[Any] | None = None,
        every: int = 128,
        batch_size: int | None = None,
        sampling: Sampling = "shuffled",
        seed: int = 0,
        keep: int = 512,
    ) -> None:
        _check(optimizer, every, batch_size, sampling, keep)
        self.every, self.batch_size, self.seed = every, batch_size, seed
        self.sampling: Sampling = sampling
        order = read_parameters(parameters)
        self._observer = Observer(optimizer, order, every, sampling == "independent", seed, keep)
        self._placed = (-1, 0)  # block, and the place of its second point
        self.basis = basis

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The trainable parameters in the gauge's order: that of the basis and of gradients given to `second`."""
        self._observer.refresh()
        return tuple(self._observer.layout.tensors)

    @property
    def basis(self) -> Tensor | None:
        """The basis in use, ``(P, k)``; None again once parameters were added or frozen that it does not know."""
        self._observer.refresh()
        return self._observer.basis

    @basis.setter
    def basis(self, basis: Tensor | None) -> None:
        self._observer.set_basis(basis)

    @property
    def steps(self) -> int:
        """Steps of the optimizer seen."""
        return self._observer.steps

    @property
    def overhead(self) -> float:
        """Second gradients evaluated per step so far, in gradients of a batch like theirs."""
        return self._observer.extra_gradients / max(self.steps, 1)

    @property
    def due(self) -> bool:
        """Whether a second gradient is wanted before the next step."""
        watch, block = self._observer, self.steps // self.every
        if watch.phase != "none" or watch.too_late or watch.second_in == block:
            return False
        if self._placed[0] != block:
            place = random.Random(f"{self.seed}/{block}").randrange(self.every - 1)  # noqa: S311
            self._placed = (block, place)
        return self.steps % self.every >= self._placed[1]

    @torch.no_grad()
    def observe(self, *, scale: float | Tensor = 1.0) -> None:
        """Read ``.grad`` as the gradient of this step's batch: after backward, before clipping.

        Without it the gauge reads ``.grad`` when ``optimizer.step`` begins (or after the first call of a closure).
        A later call before the same step replaces the earlier one; after a skipped step (AMP) nothing is lost.

        Args:
            scale: What the loss was multiplied by: ``scaler.get_scale()``, unless gradients were unscaled already.
        """
        _check_scale(scale)
        if not self._observer.too_late:
            self._observer.see(scale)

    @torch.no_grad()
    def accumulate(self, weight: float = 1.0) -> None:
        """After the backward of each micro-batch: their scatter gives m0 at every step, without extra gradients.

        They must add up to the mean gradient. Gradients must be zeroed to None where a step may be abandoned midway.

        Args:
            weight: Its share of the accumulated mean, in any unit: its number of samples.

        Raises:
            InvalidArgument: A weight that is not positive.
        """
        if not (weight > 0 and math.isfinite(weight)):
            raise InvalidArgument("weight", weight, "must be a positive number")
        self._observer.accumulate(float(weight))

    @torch.no_grad()
    def second(
        self,
        source: Callable[[], Any] | Sequence[Tensor | None],
        *,
        scale: float | Tensor = 1.0,
        model: torch.nn.Module | None = None,
    ) -> None:
        """A second gradient at this point, on a batch independent of the run's; before the step.

        Args:
            source: Best a function that returns the mean loss on another batch. It is called now and after the step
                (twice there, with a basis), and must use the same batch every time: draw it outside. Any autocast
                belongs inside. Or the gradient itself, in the order of `parameters`.
            scale: What gradients given were multiplied by.
            model: Its buffers are put back after each call (BatchNorm).

        Raises:
            InvalidArgument: Gradients that do not fit, a function that returns no loss, a call within a step.
        """
        _check_scale(scale)
        self._observer.second(source, scale, model)

    def summary(self, window: int | None = None, level: float = 0.9) -> GaugeSummary:
        """Read the last steps.

        Args:
            window: Steps, rounded up to whole blocks of `every`; all that is kept unless given.
            level: Coverage of the intervals.

        Raises:
            InvalidArgument: A window that is not positive, a level outside (0, 1).
        """
        if window is not None and not window > 0:
            raise InvalidArgument("window", window, "must be a positive number of steps")
        if not 0 < level < 1:
            raise InvalidArgument("level", level, "must lie between 0 and 1")
        blocks = self._observer.recorder.last(None if window is None else math.ceil(window / self.every))
        return summarise(blocks, self.sampling, self.batch_size, level)

    def detach(self) -> None:
        """Leave the optimizer and free the buffers; what was recorded stays readable."""
        self._observer.detach()

    remove = detach

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit for bit, in tensors and plain values; call it between two steps.

        The basis is not part of it, nor a second point or micro-batches of a step not yet made.
        """
        return save_state(self._observer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, on a gauge made like the one that saved it.

        Raises:
            InvalidArgument: Of other parameters, another `every`, or not a state of a gauge.
        """
        load_state(self._observer, state)


def _check(optimizer: Any, every: Any, batch_size: Any, sampling: Any, keep: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidArgument("optimizer", optimizer, "must be a torch.optim.Optimizer")
    for name, value, least in (("every", every, 2), ("keep", keep, 1), ("batch_size", batch_size, 1)):
        if name == "batch_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidArgument(name, value, f"must be a whole number, at least {least}")
    if sampling not in ("independent", "shuffled"):
        raise InvalidArgument("sampling", sampling, 'must be "independent" or "shuffled"')


def _check_scale(scale: float | Tensor) -> None:
    if not isinstance(scale, Tensor) and not (scale > 0 and math.isfinite(scale)):
        raise InvalidArgument("scale", scale, "must be a positive number")
