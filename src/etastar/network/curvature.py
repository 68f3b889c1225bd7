"""Products with the Hessian or the Gauss-Newton matrix of a mean loss over fixed batches.

One batch at a time: its graph is built once and serves the whole block of vectors, so that a product costs one to
two gradients instead of three. Inside ``with operator.held():`` graphs are kept between blocks too, as many as the
memory budget allows, for as long as the parameters stay where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor, nn

from etastar.errors import InvalidArgument
from etastar.network.batches import Batches, Count
from etastar.network.graph import (
    GaussNewtonGraph,
    Graph,
    HessianGraph,
    graph_bytes,
    is_unstackable,
    named_errors,
    refuse_not_finite,
    refuse_once_differentiable,
)
from etastar.network.isolation import refuse_distributed, undisturbed
from etastar.network.parameters import ParameterVector

__all__ = ["CurvatureOperator", "GaussNewtonOperator", "HessianOperator"]

# Where one backward over a stack beats a loop (benchmarks/network): overhead-bound, hence few bytes per vector.
_STACK_LEAST = 4
_STACK_BYTES = 4 << 20


class Options(TypedDict, total=False):
    """The keywords that both operators take; see `CurvatureOperator`."""

    training: bool | None
    count: Count | None
    memory_budget: int


class CurvatureOperator(ABC):
    """A symmetric P × P matrix known by its products: the mean over all samples of the batches.

    Every call reads the parameters as they are and leaves the run exactly as it was (see `isolation`). One host
    synchronisation per block. Attributes: `vector`, the `ParameterVector`; `model`.

    Args:
        model: The module whose parameters, buffers and modes are meant.
        batches: Fixed and re-iterable: a list, or a loader without shuffling or augmentation.
        parameters: Names or prefixes to restrict to; all that require grad otherwise.
        training: Mode to evaluate in: False for evaluation mode, None for each module as it is.
        count: Samples in a batch, ``count(batch)``; otherwise the rule in `batches`.
        memory_budget: Bytes that graphs may hold at a time, beyond the one in use.

    Raises:
        InvalidArgument: Batches that are empty, unsized or read once; all parameters frozen; torch.distributed.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        parameters: Sequence[str] | str | None = None,
        *,
        training: bool | None = None,
        count: Count | None = None,
        memory_budget: int = 1 << 30,
    ) -> None:
        refuse_distributed()
        self.model = model
        self.vector = ParameterVector.of(model, parameters)
        self._training = training
        self._memory_budget = memory_budget
        self._products = 0
        self._bytes_per_sample: float | None = None
        self._stackable = True
        self._held: dict[int, Graph] | None = None
        self._stamp = _stamp(self.vector.tensors)
        with undisturbed(model, self.vector.device, batches, training):
            self._batches = Batches.of(batches, count)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self.vector.size, self.vector.size

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of every vector."""
        return self.vector.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters, and of every vector."""
        return self.vector.device

    @property
    def samples(self) -> int:
        """N, over all batches."""
        return self._batches.samples

    @property
    def products(self) -> int:
        """Products with single vectors spent so far."""
        return self._products

    @property
    def bytes_per_sample(self) -> float:
        """What a graph holds for a sample, [bytes]; infinite before the first."""
        return float("inf") if self._bytes_per_sample is None else self._bytes_per_sample

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The curvature times ``(P,)`` or ``(P, m)``, of the same shape, [loss/parameter²] times that of `vectors`.

        Raises:
            InvalidArgument: Wrong shape, dtype or device; a loss that is not finite, not scalar, detached or not
                twice differentiable; batches that changed.
        """
        self.vector.check(vectors)
        rows = (vectors if vectors.ndim == 2 else vectors[:, None]).detach().mT.contiguous().mT
        with self._evaluating() as graphs:
            out = torch.zeros(rows.shape[1], self.vector.size, dtype=self.dtype, device=self.device)
            for weight, graph, samples in graphs:
                self._add_products(out, rows, weight, graph, samples)
        self._products += rows.shape[1]
        return out.mT if vectors.ndim == 2 else out[0]

    def gradient(self) -> Tensor:
        """∇L, shape ``(P,)``, [loss/parameter]."""
        with self._evaluating() as graphs:
            out = torch.zeros(self.vector.size, dtype=self.dtype, device=self.device)
            target = self.vector.split(out)
            for weight, graph, _ in graphs:
                _add(target, graph.gradient, weight)
        return out

    def loss(self) -> float:
        """L, the mean over all samples; NaN or inf where it is that."""
        with self._evaluating(finite=False) as graphs:
            return float(sum(weight * graph.loss.double() for weight, graph, _ in graphs))

    @contextmanager
    def reading(self) -> Generator[Iterator[Any]]:
        """The batches once more, for evaluations of the caller's own that leave the run as it was too."""
        with undisturbed(self.model, self.device, self._batches.source, self._training), named_errors("loss_fn"):
            yield iter(self._batches)

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep graphs between calls, within the memory budget, while the parameters stay where they are.

        Moving the parameters inside is an error at the next product, never a wrong number. May be nested.
        """
        outer = self._held
        self._held = {} if outer is None else outer
        try:
            yield
        finally:
            self._held = outer

    @abstractmethod
    def _graph(self, batch: Any) -> Graph:
        """The record of one batch at the parameters as they are."""

    @contextmanager
    def _evaluating(self, finite: bool = True) -> Generator[Iterator[tuple[float, Graph, int]]]:
        losses: list[Tensor] = []
        self._refuse_moved()
        try:
            with undisturbed(self.model, self.device, self._batches.source, self._training), named_errors("loss_fn"):
                yield self._graphs(losses)
                if finite:
                    refuse_not_finite(torch.stack(losses))
        except BaseException:
            if self._held:
                self._held.clear()
            raise

    def _graphs(self, losses: list[Tensor]) -> Iterator[tuple[float, Graph, int]]:
        held, counts, weights = self._held, self._batches.counts, self._batches.weights
        complete = held is not None and len(held) == len(counts)
        for index, batch in enumerate(counts if complete else self._batches):
            graph = held.get(index) if held else None
            if graph is None:
                graph = self._graph(batch)
                if self._bytes_per_sample is None:
                    self._bytes_per_sample = self._measure(graph, batch) / counts[index]
                if held is not None and self._fits(sum(counts[i] for i in held) + counts[index]):
                    held[index] = graph
            losses.append(graph.loss)
            yield weights[index], graph, counts[index]

    def _measure(self, graph: Graph, batch: Any) -> int:
        """What the graph of a batch holds in bytes; once, at the first graph ever, which is also inspected."""
        refuse_once_differentiable(graph)
        return graph_bytes(lambda: self._graph(batch), self.vector.tensors)

    def _fits(self, samples: int) -> bool:
        return samples * self.bytes_per_sample <= self._memory_budget

    def _add_products(self, out: Tensor, rows: Tensor, weight: float, graph: Graph, samples: int) -> None:
        split, columns = self.vector.split, rows.shape[1]
        width = min(columns, self._stack_width(samples))
        done = 0
        while width >= _STACK_LEAST and done < columns:
            part = slice(done, done + width)
            try:
                pieces = graph.product(split(rows[:, part]), True)
            except RuntimeError as error:
                if not is_unstackable(error):
                    raise
                self._stackable = False
                break
            _add(split(out[part].mT), pieces, weight)
            done += width
        for column in range(done, columns):
            _add(split(out[column]), graph.product(split(rows[:, column]), False), weight)

    def _stack_width(self, samples: int) -> int:
        """How many vectors one batched backward takes: 0 where a loop is faster, or the only way."""
        if not self._stackable:
            return 0
        limit = _STACK_BYTES if self.device.type == "cpu" else self._memory_budget
        return int(limit // max(samples * self.bytes_per_sample, 1.0))

    def _refuse_moved(self) -> None:
        """Hold graphs to the parameters they were built at; writing through ``.data`` alone leaves no trace."""
        if not self._held:
            self._stamp = _stamp(self.vector.tensors)
        elif self._stamp != _stamp(self.vector.tensors):
            self._held.clear()
            raise InvalidArgument("parameters", "moved inside held()", "leave operator.held() before taking a step")


@final
class HessianOperator(CurvatureOperator):
    """The Hessian ∇²L of the mean loss.

    Args:
        model: The module whose parameters are meant.
        loss_fn: ``loss_fn(model, batch)`` → the mean loss over the samples of the batch, a scalar tensor.
        batches: Fixed and re-iterable.
        parameters: Names or prefixes to restrict to.
        **options: `training`, `count`, `memory_budget`, as in `CurvatureOperator`.

    Example:
        >>> model, batch = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
        >>> H = HessianOperator(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [batch])
        >>> H @ torch.ones(2)
        tensor([1., 1.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[Any],
        parameters: Sequence[str] | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not callable(loss_fn):
            raise InvalidArgument("loss_fn", type(loss_fn).__name__, "must be callable: loss_fn(model, batch)")
        super().__init__(model, batches, parameters, **options)
        self._loss_fn = loss_fn

    def _graph(self, batch: Any) -> Graph:
        return HessianGraph.build(self._loss_fn(self.model, batch), self.vector.tensors)


@final
class GaussNewtonOperator(CurvatureOperator):
    """The generalized Gauss-Newton matrix mean(Jᵀ ∇²ℓ J): the Hessian of the loss with the network linearised.

    Positive semi-definite where the loss is convex in the outputs (Schraudolph, doi:10.1162/08997660260028683).

    Args:
        model: The module whose parameters are meant.
        output_fn: ``output_fn(model, batch)`` → one tensor, the outputs z.
        output_loss: ``output_loss(z, batch)`` → the mean loss over the samples of the batch, a scalar tensor.
        batches: Fixed and re-iterable.
        parameters: Names or prefixes to restrict to.
        **options: `training`, `count`, `memory_budget`, as in `CurvatureOperator`.
    """

    def __init__(
        self,
        model: nn.Module,
        output_fn: Callable[[Any, Any], Tensor],
        output_loss: Callable[[Tensor, Any], Tensor],
        batches: Iterable[Any],
        parameters: Sequence[str] | str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(model, batches, parameters, **options)
        self._output_fn = output_fn
        self._output_loss = output_loss

    def _graph(self, batch: Any) -> Graph:
        output = self._output_fn(self.model, batch)
        return GaussNewtonGraph.build(output, lambda z: self._output_loss(z, batch), self.vector.tensors)


@torch.no_grad()
def _add(target: list[Tensor], pieces: Sequence[Tensor | None], weight: float) -> None:
    for part, piece in zip(target, pieces, strict=True):
        if piece is not None:
            part.add_(piece, alpha=weight)


def _stamp(tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
