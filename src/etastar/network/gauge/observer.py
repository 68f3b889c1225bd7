"""The gauge's place in a training loop: which gradient belongs to which point, and what may be multiplied with what.

One step goes: (second gradient g') · gradient g seen · step begins: parameters copied · step made: the copy becomes
the update u · next gradient g⁺ seen. Two buffers: u, and g' (or the running sum of micro-batches). Whatever breaks the
chain (a parameter written by somebody else, frozen or added; a step that was skipped) drops the products that would
span it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.gauge.event import coupling_of, gradient_aside, read_gradients, same_batch_after, second_point
from etastar.network.gauge.held import Micro, Seen, Source
from etastar.network.gauge.vectors import Layout, Vector, copy_, subtract_
from etastar.network.gauge.window import Recorder

__all__ = ["Observer"]


class Observer:
    """Follows one optimizer and fills a recorder.

    Args:
        optimizer: Followed through its step hooks.
        order: Rank and name of parameters, by identity.
        every: Steps per block.
        every_step: Read every step, not only those with a second gradient.
        seed: Of the streams inside second gradients.
        keep: Blocks kept.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        order: dict[int, tuple[int, str]],
        every: int,
        every_step: bool,
        seed: int,
        keep: int,
    ) -> None:
        self.optimizer, self.order = optimizer, order
        self.every, self.every_step, self.seed = every, every_step, seed
        self.steps = self.extra_gradients = self.block_start = 0
        self.second_in = -1  # block of the last second point
        self.recorder = Recorder(keep)
        self.layout, self.signature = Layout(optimizer, order), Layout.signature(optimizer)
        self.basis: Tensor | None = None
        self.based = False  # a basis was there since the block began
        self.update: Vector | None = None
        self.aside: Vector | None = None  # g', or the sum of micro-batches
        self.in_closure = False
        self.forget()
        self._handles = [
            optimizer.register_step_pre_hook(self.before_step),
            optimizer.register_step_post_hook(self.after_step),
        ]

    def forget(self) -> None:
        """Drop what refers to the present point; finished rows stay."""
        self.seen: Seen | None = None
        self.micro: Micro | None = None
        self.source: Source | None = None
        self.has_update = self.copied = self.captured = False
        self.phase = "none"  # of g': "here" before its step, "after" until the next gradient is seen
        self.event: list[Tensor] = []
        self.pair: list[Tensor] = []
        self.step_size: Tensor | None = None  # of the step that made u
        self.at: tuple[int, ...] | None = None  # versions of the parameters where u ended and g' was taken

    def detach(self) -> None:
        """Leave the optimizer, free the buffers."""
        for handle in self._handles:
            handle.remove()
        self.forget()
        self.update = self.aside = None

    def set_basis(self, basis: Tensor | None) -> None:
        """Use another basis from now on."""
        self.refresh()
        self.layout.set_basis(basis)
        self.basis = basis
        fresh = not any(self.recorder.rows.values())
        self.based = basis is not None and (self.based or fresh)

    def refresh(self) -> None:
        """Start anew where parameters were added, frozen or unfrozen: no product may span that."""
        signature = Layout.signature(self.optimizer)
        if signature == self.signature:
            return
        self._close()
        self.forget()
        self.update = self.aside = None
        self.layout, self.signature = Layout(self.optimizer, self.order), signature
        if self.basis is not None and self.basis.shape[0] == self.layout.size and self.layout.ordered:
            self.layout.set_basis(self.basis)
        else:
            self.basis = None
        self.based = self.basis is not None

    @property
    def idle(self) -> bool:
        """Nothing waits for the gradient of this step."""
        return not (self.has_update or self.every_step or self.micro is not None or self.phase != "none")

    @property
    def too_late(self) -> bool:
        """In a closure's second and later calls, which are at other points."""
        return self.in_closure and self.captured

    def see(self, scale: float | Tensor) -> None:
        """Reduce the batch gradient to its products with what is held."""
        self.refresh()
        self._check_place()
        layout, inverse = self.layout, 1.0 / scale
        seen = self.seen = Seen(layout.gradient_versions(), inverse)
        if self.idle or not layout.tensors:
            return
        found = layout.gradients()
        if self.every_step or self.phase == "here" or self.micro is not None:
            seen.energy = layout.norms(found) * inverse * inverse
        if self.has_update and self.every_step and self.update is not None:
            seen.along = layout.dots(self.update, found) * inverse
        if self.phase != "none" and self.aside is not None:
            product = layout.dots(self.aside, found) * inverse
            seen.second, seen.here = (product, None) if self.phase == "after" else (None, product)
        if self.micro is not None and seen.energy is not None:
            seen.micro = self.micro.signal(seen.energy, inverse, seen.versions)

    def accumulate(self, weight: float) -> None:
        """Take the micro-batch that was just added to ``.grad``."""
        self.refresh()
        if self.phase != "none" or self.too_late:  # the buffer is taken
            return
        layout, gradients = self.layout, self.layout.gradients()
        if not layout.tensors:
            return
        self.aside = self.aside or layout.buffers()
        versions = layout.gradient_versions()
        if self.micro is None or self.seen is not None or not self.micro.goes_on(versions):
            self.seen = None  # a step seen but skipped: this is the next one
            self.micro = Micro(layout.norms(gradients), weight, weight**2, 1, versions)
        else:
            present = [torch.zeros_like(x) if g is None else g for x, g in zip(self.aside, gradients, strict=True)]
            subtract_(self.aside, present)
            self.micro.add(layout.norms(self.aside), weight, versions)
        copy_(self.aside, gradients)

    def second(
        self, source: Callable[[], Any] | Sequence[Tensor | None], scale: float | Tensor, model: torch.nn.Module | None
    ) -> None:
        """Take g' at the present point."""
        if self.too_late:
            raise InvalidArgument("second", "called within optimizer.step", "call it before the step")
        self.refresh()
        if not self.layout.tensors:
            raise InvalidArgument("second", "no trainable parameter", "unfreeze one first")
        self._check_place()
        if self.phase == "after":
            self._finish_event()
        self.phase, self.micro, layout = "none", None, self.layout
        if callable(source):
            seed = random.Random(f"{self.seed}:{self.steps}").getrandbits(62)  # noqa: S311
            loss, gradient = gradient_aside(source, layout.tensors, seed, model)
            self.source = Source(source, model, seed, loss)
        else:
            gradient, self.source = read_gradients(source, layout, scale), None
        self.extra_gradients += 1
        self.aside = self.aside or layout.buffers()
        copy_(self.aside, gradient)
        self.phase, self.second_in, self.at = "here", self.steps // self.every, layout.versions()
        if self.seen is not None:
            self._join_seen(self.seen)

    def _join_seen(self, seen: Seen) -> None:
        """The gradient was seen before g': multiply them now, if it is still there."""
        layout = self.layout
        if seen.versions != layout.gradient_versions() or self.aside is None:
            self.phase = "none"  # clipped since: too late for this point
            return
        found = layout.gradients()
        seen.here = layout.dots(self.aside, found) * seen.inverse
        seen.energy = layout.norms(found) * seen.inverse * seen.inverse

    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Step hook: the gradient is final, or a closure will make it."""
        self.captured = self.copied = False
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._capture()
            return None

        def watched(*a: Any, **k: Any) -> Any:
            self.in_closure = True
            try:
                value = closure(*a, **k)
            finally:
                self.in_closure = False
            if not self.captured:
                self._capture()
            return value

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _capture(self) -> None:
        """The gradient is there and the parameters are still the old ones."""
        self.captured = True
        if not self.idle:  # steps that nobody waits for cost nothing
            with torch.no_grad():
                self._read()

    def _read(self) -> None:
        if self.seen is None:
            scale = getattr(self.optimizer, "grad_scale", None)  # set by GradScaler around fused steps
            self.see(1.0 if scale is None else scale)
        seen = self.seen
        if seen is None:
            return
        step_size = self.step_size
        if seen.along is not None and seen.energy is not None and step_size is not None:
            self.recorder.add("step", seen.along, seen.energy, step_size)
        self._finish_event()
        if self.layout.tensors:
            self.step_size = self.layout.step_sizes(self.optimizer)
            if seen.micro is not None and seen.energy is not None:
                self.recorder.add("micro", seen.micro, seen.energy, self.step_size)
        self.has_update, self.micro = False, None
        self.copied = bool(self.layout.tensors) and (self.every_step or self.phase == "here")
        if self.copied:
            self.update = self.update or self.layout.buffers()
            copy_(self.update, self.layout.tensors)

    def after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Step hook: the parameters have moved."""
        seen, self.seen = self.seen, None
        copied, phase = self.copied, self.phase
        self.copied = self.captured = False
        self.phase = "none"  # should the function behind g' fail, nothing half-done remains
        self.steps += 1
        if copied and self.update is not None:
            with torch.no_grad():
                subtract_(self.update, self.layout.tensors)
                self.has_update, self.at = True, self.layout.versions()
                if phase == "here" and seen is not None:
                    self._measure(seen)
        if self.steps % self.every == 0:
            with torch.no_grad():
                self._close()

    def _measure(self, seen: Seen) -> None:
        """At the end of a step that had a second gradient: the event, but for ⟨g', g⁺⟩."""
        layout, u, second, step = self.layout, self.update, self.aside, self.step_size
        if u is None or second is None or step is None or seen.here is None or seen.energy is None:
            return
        self.event = second_point(layout, u, second, seen.here, seen.energy, step)
        self.pair, source, self.source = [], self.source, None
        if source is not None:

            def again() -> tuple[Tensor, list[Tensor | None]]:
                self.extra_gradients += 1
                return gradient_aside(source.closure, layout.tensors, source.seed, source.model)

            loss, after = again()
            self.pair = same_batch_after(layout, u, second, after, loss - source.loss, step)
            based = layout.slices is not None
            self.pair.append(coupling_of(layout, u, second, after, again) if based else torch.zeros_like(self.pair[0]))
        self.phase = "after"

    def _finish_event(self) -> None:
        """Record the event of the step before, now that the next gradient was seen."""
        if self.phase == "after":
            if self.seen is not None and self.seen.second is not None:
                slope, here, energy, gradient, wrong, step = self.event
                self.recorder.add("event", slope, here, self.seen.second, energy, gradient, wrong, step)
                if self.pair:
                    self.recorder.add("pair", *self.pair)
            self.phase = "none"

    def _check_place(self) -> None:
        """Drop u and g' where somebody else has moved the parameters since."""
        if (self.has_update or self.phase != "none") and self.at is not None and self.at != self.layout.versions():
            self.has_update, self.phase = False, "none"

    def _close(self) -> None:
        layout = self.layout
        groups = tuple(layout.group_names[group] for group in layout.groups)
        based = self.based and layout.slices is not None
        self.recorder.close(self.steps, self.steps - self.block_start, layout.names, groups, based, layout.wide)
        self.block_start, self.based = self.steps, layout.slices is not None
