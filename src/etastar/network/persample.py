"""Gradients of single samples, and gradients at displaced parameters: what noise and third derivatives need.

A loss is evaluated at other parameter values through a functional view of the model, so that the model itself is
never written to. Per-sample gradients are vectorised where the model allows it and looped over where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from etastar.network.batches import tensors_of
from etastar.network.parameters import ParameterVector

__all__ = ["gradient_at", "loss_at", "map_tensors", "per_sample_gradients", "per_sample_pieces"]

LossFunction = Callable[[Any, Any], Tensor]
_CHUNK_BYTES = 64 << 20


class _Displaced:
    """A model seen with other values of some parameters; everything else is the model's own."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self._model, self._values = model, values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, self._values, args, kwargs, tie_weights=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def gradient_at(
    model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any, parameters: Tensor
) -> Tensor:
    """∇L of one batch at `parameters` ``(P,)``, shape ``(P,)``; the model stays as it is."""
    pieces = [piece.detach().requires_grad_() for piece in vector.split(parameters)]
    loss = loss_fn(_Displaced(model, dict(zip(vector.names, pieces, strict=True))), batch)
    found = torch.autograd.grad(loss, pieces, allow_unused=True, materialize_grads=True)
    return torch.cat([piece.reshape(-1) for piece in found])


@torch.no_grad()
def loss_at(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any, parameters: Tensor) -> Tensor:
    """L of one batch at `parameters` ``(P,)``, a scalar; a forward pass, and the model stays as it is."""
    return loss_fn(_Displaced(model, dict(zip(vector.names, vector.split(parameters), strict=True))), batch)


def per_sample_gradients(
    model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any
) -> Iterator[Tensor]:
    """Gradients of the samples of one batch, in chunks ``(samples, P)``; samples lie along leading dimensions."""
    for pieces in per_sample_pieces(model, loss_fn, vector, batch):
        yield torch.cat([piece.reshape(piece.shape[0], -1) for piece in pieces], dim=1)


def per_sample_pieces(
    model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any
) -> Iterator[list[Tensor]]:
    """The same by parameter, each ``(samples, *shape)``, without the copy that joins them."""
    tensors = list(tensors_of(batch))
    samples = tensors[0].shape[0]
    height = max(1, _CHUNK_BYTES // (vector.size * vector.tensors[0].element_size()))
    vectorised = True
    for begin in range(0, samples, height):
        part = map_tensors(batch, lambda tensor, at=slice(begin, begin + height): tensor[at])
        if vectorised:
            try:
                yield _vectorised(model, loss_fn, vector, part)
                continue
            except (RuntimeError, ValueError, NotImplementedError):  # data-dependent control flow, odd operations
                vectorised = False
        yield _looped(model, loss_fn, vector, part)


def _vectorised(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any) -> list[Tensor]:
    def one(values: tuple[Tensor, ...], sample: Any) -> Tensor:
        shown = _Displaced(model, dict(zip(vector.names, values, strict=True)))
        return loss_fn(shown, map_tensors(sample, lambda tensor: tensor[None]))

    values = tuple(tensor.detach() for tensor in vector.tensors)
    return [piece.detach() for piece in vmap(grad(one), in_dims=(None, 0))(values, batch)]


def _looped(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any) -> list[Tensor]:
    samples = next(tensors_of(batch)).shape[0]
    rows: list[tuple[Tensor, ...]] = []
    for index in range(samples):
        loss = loss_fn(model, map_tensors(batch, lambda tensor, at=slice(index, index + 1): tensor[at]))
        rows.append(torch.autograd.grad(loss, vector.tensors, allow_unused=True, materialize_grads=True))
    return [torch.stack(pieces) for pieces in zip(*rows, strict=True)]


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `change` applied to every tensor."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(value, change) for name, value in cast(Mapping[Any, Any], batch).items()}
    if isinstance(batch, (tuple, list)):
        changed = [map_tensors(value, change) for value in cast(list[Any], batch)]
        return tuple(changed) if isinstance(batch, tuple) else changed
    return batch
