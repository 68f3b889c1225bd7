"""The flat parameter vector of a model: which parameters, in which order, and how vectors are cut into them.

The order is that of ``named_parameters()`` among those that require grad; a tied parameter occurs once, under its
first name. Blocks of m vectors are ``(P, m)`` and are best laid out column by column (the transpose of a contiguous
``(m, P)``): then neither `split` nor `join` copies more than once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from etastar.errors import InvalidArgument

__all__ = ["ParameterVector"]

_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class ParameterVector:
    """The parameters that curvature is taken with respect to, as one vector of P entries.

    Attributes:
        names: One per parameter, in the order of the vector.
        tensors: The parameters themselves (leaves, not copies).
        offsets: Where each begins in the vector, with P at the end; ``len(names) + 1`` of them.

    Example:
        >>> ParameterVector.of(torch.nn.Linear(3, 2)).slices
        {'weight': slice(0, 6, None), 'bias': slice(6, 8, None)}
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...] = field(repr=False)
    offsets: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, model: torch.nn.Module, only: Sequence[str] | str | None = None) -> ParameterVector:
        """The parameters of `model` that require grad, or those of them that `only` names.

        Args:
            model: Its ``named_parameters()`` give the order.
            only: Exact names or prefixes of whole components (``"encoder"`` means ``encoder.*``); any name of a tied
                parameter will do.

        Raises:
            InvalidArgument: No parameter is left, a name matches none, or they differ in dtype or device.
        """
        if not isinstance(model, torch.nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("model", type(model).__name__, "must be a torch.nn.Module")
        trainable: dict[str, Tensor] = {
            name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad
        }
        if not trainable:
            frozen = sum(1 for _ in model.parameters())
            raise InvalidArgument("model", f"{frozen} parameters, all frozen", "one at least must require grad")
        if only is not None:
            trainable = _restrict(model, trainable, [only] if isinstance(only, str) else only)
        names, tensors = tuple(trainable), tuple(trainable.values())
        _check_kind(names, tensors)
        return cls(names, tensors, (0, *accumulate(tensor.numel() for tensor in tensors)))

    @property
    def size(self) -> int:
        """P, the number of entries."""
        return self.offsets[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of every parameter: float32 or float64."""
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        """Where every parameter lives."""
        return self.tensors[0].device

    @property
    def slices(self) -> dict[str, slice]:
        """The entries of each parameter in the vector."""
        return {name: slice(*ends) for name, ends in zip(self.names, pairwise(self.offsets), strict=True)}

    def current(self) -> Tensor:
        """A copy of the parameters as they are now, ``(P,)``."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in self.tensors])

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Cut ``(P,)`` into tensors of the parameters' shapes, or ``(P, m)`` into ``(m, *shape)``; views, no copies.

        Raises:
            InvalidArgument: Another shape, dtype or device than the parameters need.
        """
        self.check(vectors)
        rows = vectors.mT if vectors.ndim == 2 else vectors
        pieces = zip(self.tensors, pairwise(self.offsets), strict=True)
        return [rows[..., begin:end].view((*rows.shape[:-1], *tensor.shape)) for tensor, (begin, end) in pieces]

    def join(self, pieces: Iterable[Tensor]) -> Tensor:
        """Inverse of `split`: pieces of the parameters' shapes to ``(P,)``, of ``(m, *shape)`` to ``(P, m)``."""
        parts = list(pieces)
        batched = parts[0].ndim > self.tensors[0].ndim
        joined = torch.cat([part.reshape(part.shape[0], -1) if batched else part.reshape(-1) for part in parts], -1)
        return joined.mT if batched else joined

    def check(self, vectors: Tensor) -> None:
        """Refuse what is not ``(P,)`` or ``(P, m)`` in the parameters' dtype and on their device."""
        if not isinstance(vectors, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("vectors", vectors, "must be a tensor")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.size:
            allowed = f"must have the shape ({self.size},) or ({self.size}, m)"
            raise InvalidArgument("vectors", tuple(vectors.shape), allowed)
        if vectors.dtype != self.dtype or vectors.device != self.device:
            allowed = f"must be {self.dtype} on {self.device}, as the parameters are"
            raise InvalidArgument("vectors", f"{vectors.dtype} on {vectors.device}", allowed)


def _restrict(model: torch.nn.Module, trainable: dict[str, Tensor], only: Sequence[str]) -> dict[str, Tensor]:
    aliases = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    wanted: set[int] = set()
    for entry in only:
        matched = {key for name, key in aliases.items() if name == entry or name.startswith(f"{entry}.")}
        if not matched:
            near = get_close_matches(entry, aliases, 3, cutoff=0.4)
            raise InvalidArgument("parameters", entry, f"names no parameter; close: {', '.join(near) or 'none'}")
        wanted |= matched
    if not only:
        raise InvalidArgument("parameters", list(only), "must name one at least, or be None for all")
    chosen = {name: tensor for name, tensor in trainable.items() if id(tensor) in wanted}
    if not chosen:
        raise InvalidArgument("parameters", list(only), "all of these are frozen; one at least must require grad")
    return chosen


def _check_kind(names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> None:
    first = tensors[0]
    for name, tensor in zip(names, tensors, strict=True):
        if is_lazy(tensor):
            raise InvalidArgument(name, "a lazy parameter", "has no shape yet; run one forward pass first")
        if tensor.dtype not in _DTYPES:
            raise InvalidArgument(name, tensor.dtype, "curvature needs float32 or float64; convert a copy of the model")
        if tensor.layout != torch.strided:
            raise InvalidArgument(name, tensor.layout, "sparse parameters have no second derivatives here")
        if tensor.dtype != first.dtype:
            raise InvalidArgument(name, tensor.dtype, f"all parameters need one dtype; {names[0]} is {first.dtype}")
        if tensor.device != first.device:
            raise InvalidArgument(name, tensor.device, f"all must be on one device; {names[0]} is on {first.device}")
    if not any(tensor.numel() for tensor in tensors):
        raise InvalidArgument("parameters", names, "have no entries")
