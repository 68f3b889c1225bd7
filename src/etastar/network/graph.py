"""The differentiable record of one batch: built once, then good for any number of products.

The Hessian's is reverse over reverse: the gradient with its graph, differentiated along a vector. Gauss-Newton's is
Jᵀ H_z J, where J v comes from differentiating Jᵀ u, linear in u, by u: reverse mode only, so whatever has a double
backward has this too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from etastar.errors import InvalidArgument

__all__ = [
    "GaussNewtonGraph",
    "Graph",
    "HessianGraph",
    "checked_loss",
    "graph_bytes",
    "is_unstackable",
    "named_errors",
    "nodes_of",
    "refuse_not_finite",
    "refuse_once_differentiable",
]

Pieces = Sequence[Tensor | None]

_ENDS = ("Error", "DelayedError")


class Graph(Protocol):
    """What an operator needs of a batch: its loss, its gradient, and products, all cut by parameter."""

    @property
    def loss(self) -> Tensor:
        """The mean loss of the batch, shape ``()``."""
        ...

    @property
    def gradient(self) -> Pieces:
        """Its gradient; None for a parameter the loss does not depend on."""
        ...

    @property
    def roots(self) -> Pieces:
        """What products differentiate."""
        ...

    def product(self, vectors: Sequence[Tensor], batched: bool) -> Pieces:
        """Curvature times one vector, or times a stack of them along a new leading axis where `batched`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class HessianGraph:
    """∇L of one batch, with the graph that a second differentiation needs."""

    parameters: Sequence[Tensor]
    loss: Tensor
    gradient: Pieces

    @classmethod
    def build(cls, loss: Any, parameters: Sequence[Tensor]) -> HessianGraph:
        """Differentiate a scalar loss once, keeping the graph."""
        checked = checked_loss(loss)
        return cls(parameters, checked.detach(), _gradient(checked, parameters))

    @property
    def roots(self) -> Pieces:
        """The gradient."""
        return self.gradient

    def product(self, vectors: Sequence[Tensor], batched: bool) -> Pieces:
        """H v."""
        return _differentiate(self.gradient, self.parameters, vectors, batched)


@dataclass(frozen=True, slots=True, eq=False)
class GaussNewtonGraph:
    """The outputs z of one batch, the loss as a function of them, and Jᵀu for a dummy u."""

    parameters: Sequence[Tensor]
    loss: Tensor
    gradient: Pieces
    output: Tensor = field(repr=False)
    leaf: Tensor = field(repr=False)  # z again, cut off from the parameters
    slope: Tensor = field(repr=False)  # ∂ℓ/∂z as a function of the leaf
    dummy: Tensor = field(repr=False)
    pullback: Pieces = field(repr=False)  # Jᵀu as a function of the dummy

    @classmethod
    def build(cls, output: Any, output_loss: Callable[[Tensor], Any], parameters: Sequence[Tensor]) -> GaussNewtonGraph:
        """Differentiate the loss by the outputs, and the outputs by the parameters."""
        if not isinstance(output, Tensor):
            raise InvalidArgument("output_fn", type(output).__name__, "must return one tensor")
        if not output.requires_grad:
            raise InvalidArgument("output_fn", "a detached tensor", "must depend on the parameters")
        leaf = output.detach().requires_grad_()
        loss = checked_loss(output_loss(leaf), "output_loss")
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        dummy = torch.zeros_like(output).requires_grad_()
        pullback = _gradient(output, parameters, dummy)
        gradient = _grad(output, parameters, slope.detach(), retain_graph=True)
        return cls(parameters, loss.detach(), gradient, output, leaf, slope, dummy, pullback)

    @property
    def roots(self) -> Pieces:
        """Jᵀu and ∂ℓ/∂z."""
        return [*self.pullback, self.slope]

    def product(self, vectors: Sequence[Tensor], batched: bool) -> Pieces:
        """Jᵀ H_z J v."""
        (pushed,) = _differentiate(self.pullback, [self.dummy], vectors, batched)
        if pushed is None:
            return [None] * len(self.parameters)
        (bent,) = _differentiate([self.slope], [self.leaf], [pushed], batched)
        if bent is None:
            return [None] * len(self.parameters)
        return _differentiate([self.output], self.parameters, [bent], batched)


def checked_loss(loss: Any, name: str = "loss_fn") -> Tensor:
    """`loss` if it is a scalar that can be differentiated; InvalidArgument by name if not."""
    if not isinstance(loss, Tensor):
        raise InvalidArgument(name, type(loss).__name__, "must return a scalar tensor, the mean loss of the batch")
    if loss.ndim != 0:
        raise InvalidArgument(name, f"a loss of shape {tuple(loss.shape)}", "must be a scalar; take its .mean()")
    if not loss.requires_grad:
        raise InvalidArgument(name, "a detached loss", "must depend on the parameters: no .item(), .detach(), no_grad")
    return loss


@contextmanager
def named_errors(source: str) -> Generator[None]:
    """Turn autograd's refusals into an InvalidArgument that names the remedy; all else passes."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        remedy = _remedy(str(error))
        if remedy is None:
            raise
        raise InvalidArgument(source, str(error), remedy) from error


def nodes_of(tensors: Iterable[Tensor | None]) -> Iterator[Any]:
    """All nodes of the autograd graph behind `tensors`."""
    waiting, seen = [tensor.grad_fn for tensor in tensors if tensor is not None], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def refuse_once_differentiable(graph: Graph) -> None:
    """Refuse a graph with ends that autograd would raise at if it went there; told what to reach, it does not go."""
    if any(type(node).__name__ in _ENDS for node in nodes_of(graph.roots)):
        remedy = "its double backward is missing; write it with differentiable operations"
        raise InvalidArgument("loss_fn", "a function marked once_differentiable", remedy)


def refuse_not_finite(losses: Tensor) -> None:
    """Refuse losses, ``(batches,)``, of which one is NaN or infinite."""
    if not bool(torch.isfinite(losses).all()):
        value = losses[~torch.isfinite(losses)][0].item()
        remedy = "a loss that is not finite has no curvature: the run diverged, or log(0)"
        raise InvalidArgument("loss_fn", value, remedy)


def is_unstackable(error: RuntimeError) -> bool:
    """Whether a stacked backward failed for being stacked: an operation that vmap cannot follow."""
    return any(sign in str(error).lower() for sign in ("vmap", "batching rule"))


def graph_bytes(build: Callable[[], object], exclude: Sequence[Tensor]) -> int:
    """Bytes that the graph made by `build` keeps alive, each tensor counted once, those in `exclude` not at all."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> int:
        saved.append(tensor)
        return len(saved) - 1

    def give(index: int) -> Tensor:
        return saved[index]

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        graph = build()
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in saved}
    del graph
    saved.clear()  # the list and the graph hold each other
    return sum(sizes.values()) - sum(sizes.get(tensor.data_ptr(), 0) for tensor in exclude)


def _gradient(value: Tensor, parameters: Sequence[Tensor], along: Tensor | None = None) -> Pieces:
    pieces = _grad(value, parameters, along, create_graph=True)
    if all(piece is None for piece in pieces):
        raise InvalidArgument("parameters", f"{len(parameters)} of them", "the loss depends on none of these")
    if any(piece is not None and piece.layout != torch.strided for piece in pieces):
        raise InvalidArgument("loss_fn", "sparse gradients", "have no products; use sparse=False in the embedding")
    return pieces


def _differentiate(values: Pieces, inputs: Sequence[Tensor], along: Sequence[Tensor], batched: bool) -> Pieces:
    live = [(value, vector) for value, vector in zip(values, along, strict=True) if _varies(value)]
    if not live:  # a gradient that depends on nothing: zero curvature
        return [None] * len(inputs)
    outputs, vectors = zip(*live, strict=True)
    return _grad(outputs, inputs, vectors, retain_graph=True, is_grads_batched=batched)


def _grad(outputs: Any, inputs: Sequence[Tensor], along: Any, **options: bool) -> Pieces:
    return torch.autograd.grad(outputs, inputs, along, allow_unused=True, **options)


def _varies(value: Tensor | None) -> bool:
    return value is not None and value.requires_grad


def _remedy(message: str) -> str | None:
    text = message.lower()
    if "modified by an inplace operation" in text:
        return "the parameters moved while graphs were held; leave operator.held() before a step"
    if "torch.compile" in text or "aot_autograd" in text or "donated buffer" in text:
        return "compiled code has no double backward; give loss_fn the module that was not compiled"
    if not any(sign in text for sign in ("derivative for", "double backward", "differentiate twice", "once_differ")):
        return None
    if "attention" in text or "flash" in text or "sdp" in text:
        return "fused attention has no double backward; use sdpa_kernel(SDPBackend.MATH)"
    return "this operation has no double backward; write it with differentiable ones"
