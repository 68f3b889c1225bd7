"""An optimizer around another one: the inner one steps, and the update it made is corrected in two subspaces.

What an update is, is seen in the parameters alone: before the inner step minus after it. So nothing that the inner
optimizer keeps (momentum, Adam's moments, weight decay, clipping) gets past the correction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.parameters import ParameterVector

__all__ = ["Correction", "WrappedOptimizer", "span_part"]


class Correction:
    """The factors that one step's update gets in the span of a basis and in its complement.

    It holds one copy of the parameters, as they were when it was made.

    Args:
        vector: The parameters that the basis is over.
        basis: Orthonormal, ``(P, k)``.
        dominant: Factor of the update's part in the span.
        bulk: Factor of the rest.
    """

    def __init__(self, vector: ParameterVector, basis: Tensor, dominant: float, bulk: float) -> None:
        self._vector, self._basis, self._dominant, self._bulk = vector, basis, dominant, bulk
        self._before = [tensor.detach().clone() for tensor in vector.tensors]

    def apply(self) -> None:
        """Scale the update made since; it stays exactly what it was where both factors are 1."""
        dominant, bulk, tensors = self._dominant, self._bulk, self._vector.tensors
        moved = (old - new for old, new in zip(self._before, tensors, strict=True))
        inside = span_part(self._vector, self._basis, moved)
        for tensor, old, part in zip(tensors, self._before, inside, strict=True):
            if bulk == 1:
                tensor.add_(part, alpha=1.0 - dominant)
            else:  # from `old`: a factor of 0 leaves no round-off of what was undone
                tensor.copy_(old - bulk * (old - tensor) - (dominant - bulk) * part)


class WrappedOptimizer(torch.optim.Optimizer, ABC):
    """A ``torch.optim.Optimizer`` that shares groups, state and defaults with the one inside.

    Attributes:
        inner: The optimizer that steps. Its ``param_groups``, ``state`` and ``defaults`` *are* this one's, so that
            schedulers, scalers and clipping may use either; closures, ``foreach`` and ``fused`` are its own affair.
    """

    _SAVED: ClassVar[tuple[str, ...]]

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        if not isinstance(inner, torch.optim.Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("inner", type(inner).__name__, "must be a torch.optim.Optimizer")
        self.inner = inner
        self.__setstate__({})  # hooks and the profiled step, as unpickling makes them; the rest is the inner one's

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimizer's own list."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimizer's own state."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The inner optimizer's own defaults."""
        return self.inner.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the inner optimizer does."""
        self.inner.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimizer, corrected.

        Args:
            closure: Evaluates the model again and returns the loss; the inner optimizer calls it.

        Returns:
            What the inner optimizer returns.
        """
        device = next(tensor for group in self.param_groups for tensor in group["params"]).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            correction = self._begin()
        outcome = self.inner.step(closure) if closure is not None else self.inner.step()
        if correction is not None:
            with torch.no_grad(), torch.autocast(device, enabled=False):
                correction.apply()
        self._end()
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, with what this one's next steps depend on; safe for ``weights_only`` loading."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = {**self.inner.state_dict(), **self._own_state()}
        for after in self._optimizer_state_dict_post_hooks.values():
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict` bit for bit.

        Raises:
            InvalidArgument: Not a state of such an optimizer.
        """
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state = before(self, state) or state
        if missing := [name for name in ("state", "param_groups", *self._SAVED) if name not in state]:
            allowed = f"must come from {type(self).__name__}.state_dict(); {missing[0]} is missing"
            raise InvalidArgument("state_dict", sorted(state), allowed)
        own, found = (
            [len(group["params"]) for group in groups] for groups in (self.param_groups, state["param_groups"])
        )
        if own != found:
            raise InvalidArgument("state_dict", f"groups of {found} parameters", f"must have groups of {own}")
        self._load_own_state(state)
        self.inner.load_state_dict(state)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: as of any optimizer, without hooks or the `step` that schedulers patch."""
        left = ("step", "_opt_called")
        return {n: value for n, value in vars(self).items() if n not in left and not n.startswith("_optimizer_")}

    @abstractmethod
    def _begin(self) -> Correction | None:
        """What to do about the step about to be made; None leaves it to the inner optimizer."""

    @abstractmethod
    def _end(self) -> None:
        """Count the step that was made."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """What is saved beside the inner optimizer's state, by the names in `_SAVED`."""

    @abstractmethod
    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Restore it."""

    def _require(self, vector: ParameterVector) -> None:
        """Refuse a basis over parameters that are not moved here: a projected update would move them."""
        moved = {id(tensor) for group in self.param_groups for tensor in group["params"]}
        pairs = list(zip(vector.names, vector.tensors, strict=True))
        if still := [name for name, tensor in pairs if id(tensor) not in moved]:
            remedy = "it must hold all that the basis is over: restrict the operator's `parameters`"
            raise InvalidArgument("optimizer", f"{len(still)} parameters not in it, {still[0]} first", remedy)
        if frozen := [name for name, tensor in pairs if not tensor.requires_grad]:
            remedy = "was frozen after the basis was made over it: make operator and optimizer anew"
            raise InvalidArgument("parameters", frozen[0], remedy)


def span_part(vector: ParameterVector, basis: Tensor, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The part of a vector that lies in the span of the basis, in pieces of the parameters' shapes, one at a time.

    Of a vector that is not finite it is zero: one bad entry must not spread to every parameter.
    """
    rows = [basis[entries] for entries in vector.slices.values()]
    inside = torch.zeros(basis.shape[1], dtype=basis.dtype, device=basis.device)
    for part, piece in zip(rows, pieces, strict=True):
        inside += part.mT @ piece.reshape(-1)
    inside = torch.where(torch.isfinite(inside).all(), inside, torch.zeros_like(inside))
    for part, tensor in zip(rows, vector.tensors, strict=True):
        yield (part @ inside).view_as(tensor)
