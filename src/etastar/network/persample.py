"""Losses and gradients of single samples, and gradients at displaced parameters: what noise and higher orders need.

A loss is evaluated at other parameter values through a functional view of the model, so that the model itself is
never written to. Samples are vectorised where the model allows it and looped over where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from etastar.network.batches import tensors_of
from etastar.network.parameters import ParameterVector

__all__ = ["gradient_at", "loss_at", "map_tensors", "per_sample_gradients", "per_sample_losses"]

LossFunction = Callable[[Any, Any], Tensor]
_CHUNK_BYTES = 64 << 20
_NOT_VECTORISED = (RuntimeError, ValueError, NotImplementedError)  # data-dependent control flow, odd operations


class _Displaced(nn.Module):
    """A loss with other values of some parameters, however it reaches them: by call, method, attribute or closure."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn
        self.values = {f"model.{name}": value for name, value in values.items()}

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)

    def at(self, batch: Any) -> Tensor:
        return functional_call(self, self.values, (batch,), tie_weights=True)


def gradient_at(
    model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any, parameters: Tensor
) -> Tensor:
    """∇L of one batch at `parameters` ``(P,)``, shape ``(P,)``; the model stays as it is."""
    pieces = [piece.detach().requires_grad_() for piece in vector.split(parameters)]
    loss = _Displaced(model, loss_fn, dict(zip(vector.names, pieces, strict=True))).at(batch)
    found = torch.autograd.grad(loss, pieces, allow_unused=True, materialize_grads=True)
    return torch.cat([piece.reshape(-1) for piece in found])


@torch.no_grad()
def loss_at(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any, parameters: Tensor) -> Tensor:
    """L of one batch at `parameters` ``(P,)``, a scalar; a forward pass, and the model stays as it is."""
    return _Displaced(model, loss_fn, dict(zip(vector.names, vector.split(parameters), strict=True))).at(batch)


def per_sample_losses(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Tensor:
    """The losses of the samples of one batch, ``(samples,)``, differentiable twice in the model's own parameters."""

    def one(sample: Any) -> Tensor:
        return loss_fn(model, map_tensors(sample, lambda tensor: tensor[None]))

    try:
        return vmap(one)(batch)
    except _NOT_VECTORISED:
        samples = range(next(tensors_of(batch)).shape[0])
        return torch.stack([one(map_tensors(batch, lambda tensor, at=index: tensor[at])) for index in samples])


def per_sample_gradients(
    model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any
) -> Iterator[Tensor]:
    """Gradients of the samples of one batch, in chunks ``(samples, P)``; samples lie along leading dimensions."""
    samples = next(tensors_of(batch)).shape[0]
    height = max(1, _CHUNK_BYTES // (vector.size * vector.tensors[0].element_size()))
    vectorised = True
    for begin in range(0, samples, height):
        part = map_tensors(batch, lambda tensor, at=slice(begin, begin + height): tensor[at])
        if vectorised:
            try:
                yield _vectorised(model, loss_fn, vector, part)
                continue
            except _NOT_VECTORISED:
                vectorised = False
        yield _looped(model, loss_fn, vector, part)


def _vectorised(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any) -> Tensor:
    def one(values: tuple[Tensor, ...], sample: Any) -> Tensor:
        shown = _Displaced(model, loss_fn, dict(zip(vector.names, values, strict=True)))
        return shown.at(map_tensors(sample, lambda tensor: tensor[None]))

    values = tuple(tensor.detach() for tensor in vector.tensors)
    found = vmap(grad(one), in_dims=(None, 0))(values, batch)
    return torch.cat([piece.reshape(piece.shape[0], -1) for piece in found], dim=1)


def _looped(model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, batch: Any) -> Tensor:
    rows: list[Tensor] = []
    for index in range(next(tensors_of(batch)).shape[0]):
        loss = loss_fn(model, map_tensors(batch, lambda tensor, at=slice(index, index + 1): tensor[at]))
        found = torch.autograd.grad(loss, vector.tensors, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([piece.reshape(-1) for piece in found]))
    return torch.stack(rows)


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
