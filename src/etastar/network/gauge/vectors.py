"""The gauge's view of an optimizer: its trainable parameters in one order, and inner products of lists of tensors.

A "vector" here is a list of tensors, one per parameter. Inner products come back per parameter, with the part
in the dominant subspace as one more entry, on the device: nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument

__all__ = ["Layout", "dense", "read_parameters"]

Vector = list[Tensor]
_ORTHONORMAL = 1e-3  # of VᵀV − I: float32 bases of ours stay within 1e-5
_NARROW = (torch.float16, torch.bfloat16)


def read_parameters(parameters: Iterable[Any] | None) -> dict[int, tuple[int, str]]:
    """Rank and name of each parameter, by identity, from ``named_parameters()`` or ``parameters()``.

    Raises:
        InvalidArgument: An entry that is neither a tensor nor a pair of name and tensor.
    """
    order: dict[int, tuple[int, str]] = {}
    for rank, entry in enumerate(parameters or ()):
        name, tensor = entry if isinstance(entry, tuple) and len(entry) == 2 else (str(rank), entry)
        if not isinstance(tensor, Tensor):
            raise InvalidArgument("parameters", entry, "give model.named_parameters() or model.parameters()")
        order.setdefault(id(tensor), (rank, str(name)))
    return order


class Layout:
    """Trainable parameters of an optimizer, their names and groups, and inner products over them.

    Attributes:
        tensors: The parameters that require grad, in the order asked for; tied ones once.
        names: One name each: from the order given, the optimizer's own ``param_names``, or "group.position".
        groups: The index of each one's parameter group.
        device: Where results are gathered: the first parameter's device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, order: dict[int, tuple[int, str]]) -> None:
        found: list[tuple[int, str, int, Tensor]] = []
        for index, group in enumerate(optimizer.param_groups):
            own = group.get("param_names")
            for position, tensor in enumerate(group["params"]):
                fallback = own[position] if own else f"{index}.{position}"
                rank, name = order.get(id(tensor), (len(order) + len(found), fallback))
                if tensor.is_complex():
                    raise InvalidArgument("optimizer", name, "complex parameters are not supported by the gauge")
                if tensor.requires_grad:
                    found.append((rank, name, index, tensor))
        found.sort(key=lambda entry: entry[0])
        self.tensors: Vector = [entry[3] for entry in found]
        self.names = tuple(entry[1] for entry in found)
        self.groups = tuple(entry[2] for entry in found)
        self.group_names = {i: str(group.get("name", i)) for i, group in enumerate(optimizer.param_groups)}
        self.device = self.tensors[0].device if found else torch.device("cpu")
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.ordered = len(optimizer.param_groups) == 1 or all(id(t) in order for t in self.tensors)
        self.slices: Vector | None = None
        self._steps: tuple[tuple[Any, ...], Tensor] | None = None

    @staticmethod
    def signature(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
        """Changes when a parameter is added, frozen or unfrozen."""
        return tuple(id(t) for group in optimizer.param_groups for t in group["params"] if t.requires_grad)

    def versions(self) -> tuple[int, ...]:
        """Changes when anybody writes into a parameter."""
        return tuple(tensor._version for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(tensor.numel() for tensor in self.tensors)

    def gradients(self) -> list[Tensor | None]:
        """The ``.grad`` of each parameter; a sparse one as a dense copy."""
        return [dense(tensor.grad) for tensor in self.tensors]

    def gradient_versions(self) -> tuple[tuple[int, int], ...]:
        """Changes when ``.grad`` is replaced or written into: clipped, unscaled, accumulated."""
        return tuple((0, 0) if t.grad is None else (id(t.grad), t.grad._version) for t in self.tensors)

    def buffers(self) -> Vector:
        """Room for one vector."""
        return [torch.empty_like(tensor, requires_grad=False) for tensor in self.tensors]

    def set_basis(self, basis: Tensor | None) -> None:
        """Take an orthonormal basis, ``(P, k)``, rows in the order of the parameters.

        Raises:
            InvalidArgument: Another shape, columns that are not orthonormal, or an ambiguous order.
        """
        if basis is None:
            self.slices = None
            return
        if not isinstance(basis, Tensor) or basis.ndim != 2 or basis.shape[0] != self.size:  # pyright: ignore[reportUnnecessaryIsInstance]
            shape = tuple(basis.shape) if isinstance(basis, Tensor) else basis  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("basis", shape, f"must be a tensor of shape ({self.size}, k)")
        if not self.ordered:
            remedy = (
                "with several parameter groups its order is ambiguous: also give parameters=model.named_parameters()"
            )
            raise InvalidArgument("basis", tuple(basis.shape), remedy)
        wide = basis.detach().to(self.wide)
        error = (wide.T @ wide - torch.eye(basis.shape[1], dtype=self.wide, device=basis.device)).abs().max()
        if not bool(error <= _ORTHONORMAL):
            raise InvalidArgument("basis", tuple(basis.shape), "its columns must be orthonormal")
        rows = basis.detach().split([tensor.numel() for tensor in self.tensors])
        narrow = [torch.float32 if t.dtype in _NARROW else t.dtype for t in self.tensors]
        self.slices = [r.to(t.device, d) for r, t, d in zip(rows, self.tensors, narrow, strict=True)]

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor | None]) -> Tensor:
        """Inner products per parameter, then of the projections on the basis (0 without one); ``(L + 1,)``.

        A missing gradient is the gradient of a parameter that the batch did not use: zero.
        """
        parts = [x.new_zeros(()) if y is None else _dot(x, y) for x, y in zip(a, b, strict=True)]
        return self._gather(parts, None if self.slices is None else torch.dot(self.project(a), self.project(b)))

    def norms(self, a: Sequence[Tensor | None]) -> Tensor:
        """Squared norms, as `dots` of a vector with itself; ``(L + 1,)``."""
        if all(x is not None and x.dtype not in _NARROW for x in a):
            lengths = torch._foreach_norm(list(a))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage, reportArgumentType]
            parts = [length * length for length in lengths]
        else:
            parts = [t.new_zeros(()) if x is None else _dot(x, x) for t, x in zip(self.tensors, a, strict=True)]
        inside = None if self.slices is None else self.project(a)
        return self._gather(parts, None if inside is None else torch.dot(inside, inside))

    def project(self, a: Sequence[Tensor | None]) -> Tensor:
        """Coordinates in the basis, ``(k,)``."""
        slices = self.slices or []
        parts = [s.T @ x.detach().reshape(-1).to(s.dtype) for s, x in zip(slices, a, strict=True) if x is not None]
        total = torch.zeros(slices[0].shape[1] if slices else 0, dtype=self.wide, device=self.device)
        for part in parts:
            total += part.to(self.device)
        return total

    def inside(self, a: Sequence[Tensor]) -> Vector:
        """The part of a vector in the span of the basis."""
        coordinates = self.project(a)
        return [
            (s @ coordinates.to(s.device, s.dtype)).view_as(x).to(x.dtype)
            for s, x in zip(self.slices or [], a, strict=True)
        ]

    def step_sizes(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The optimizer's ``lr`` per parameter, then the one for the basis; ``(L + 1,)``, 0 where there is none."""
        rates = tuple(group.get("lr", 0.0) for group in optimizer.param_groups)
        plain = all(isinstance(rate, int | float) for rate in rates)
        if plain and self._steps is not None and self._steps[0] == rates:
            return self._steps[1]
        each = [torch.as_tensor(rate, dtype=self.wide).reshape(()).to(self.device) for rate in rates]
        sizes = torch.stack([*(each[group] for group in self.groups), each[self.groups[0]]])
        self._steps = (rates, sizes) if plain else None
        return sizes

    def _gather(self, parts: list[Tensor], dominant: Tensor | None) -> Tensor:
        if not all(part.device == self.device and part.dtype == parts[0].dtype for part in parts):
            parts = [part.to(self.device, self.wide) for part in parts]
        last = parts[0].new_zeros(()) if dominant is None else dominant.to(parts[0])
        return torch.stack([*parts, last])


def dense(gradient: Tensor | None) -> Tensor | None:
    """A sparse gradient as a dense copy, any other as it is."""
    return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient


def subtract_(a: Vector, b: Sequence[Tensor]) -> None:
    """In place a − b, in one call."""
    torch._foreach_sub_(a, list(b))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def copy_(a: Vector, b: Sequence[Tensor | None]) -> None:
    """In place a ← b (None: zero), in one call where nothing is missing."""
    if all(y is not None for y in b):
        torch._foreach_copy_(a, list(b))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage, reportArgumentType, reportCallIssue]
        return
    for x, y in zip(a, b, strict=True):
        _ = x.zero_() if y is None else x.copy_(y)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.reshape(-1), y.reshape(-1)
    if x.dtype in _NARROW or x.dtype != y.dtype:
        x, y = x.float(), y.float()  # 8 or 11 bits are too few to accumulate in
    return torch.dot(x, y)
