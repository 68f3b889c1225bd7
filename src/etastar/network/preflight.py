"""Is the curvature of this model, loss and data sound? One finding per defect, with its cause and remedy.

What can be seen is inspected; what can be measured is: two passes over the data, a batch against its halves, the
gradient against differences of the loss, and the Hessian's products against symmetry, linearity and differences of
the gradient. The run is left as it was, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etastar.errors import InvalidArgument
from etastar.network.batches import Batches, Count, samples_in, tensors_of
from etastar.network.curvature import HessianOperator
from etastar.network.findings import Finding, PreflightReport, Severity
from etastar.network.graph import HessianGraph, checked_loss, named_errors
from etastar.network.inspection import inspect_graph, inspect_model, inspect_parameters
from etastar.network.isolation import refuse_distributed, undisturbed
from etastar.network.parameters import ParameterVector
from etastar.network.persample import map_tensors
from etastar.network.probes import asymmetry, difference, nonlinearity, probe_vectors, slope

__all__ = ["preflight"]

_ORDER = (Severity.REFUSED, Severity.HANDLED, Severity.NOTE)
# Relative discrepancies allowed, in float32 and float64: round-off of sums over many samples, with room.
_EXACT = {torch.float32: 1e-3, torch.float64: 1e-9}
_DIFFERENCE = {torch.float32: 5e-2, torch.float64: 1e-4}


def preflight(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    parameters: Sequence[str] | str | None = None,
    *,
    training: bool | None = None,
    count: Count | None = None,
) -> PreflightReport:
    """Check what `HessianOperator` would be given; the arguments are its own.

    Costs about a dozen gradients of the whole sample. Everything seen is reported together; the loss is cut in halves
    and differences are taken only where nothing else is refused.

    Returns:
        The findings; ``report.ok`` says whether curvature may be used, ``report.require()`` raises where not.
    """
    found: list[Finding] = []
    try:
        _check(found, model, loss_fn, batches, parameters, training, count)
    except InvalidArgument as error:  # what ends the checks is a finding too
        found.append(Finding(error.name, Severity.REFUSED, str(error.value), error.allowed))
    return PreflightReport(tuple(sorted(found, key=lambda finding: _ORDER.index(finding.severity))))


def _check(
    found: list[Finding],
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    parameters: Sequence[str] | str | None,
    training: bool | None,
    count: Count | None,
) -> None:
    found += inspect_model(model, training)
    refuse_distributed()
    vector = ParameterVector.of(model, parameters)
    found += inspect_parameters(model, vector)
    with undisturbed(model, vector.device, batches, training):
        found += _changing(batches, count)
    operator = HessianOperator(model, loss_fn, batches, parameters, training=training, count=count)
    dropping = any(finding.name == "dropout in training mode" for finding in found)
    found += _evaluate(operator, loss_fn, training, dropping)
    if not any(finding.severity is Severity.REFUSED for finding in found):
        found += _halves(operator, loss_fn, training, count)
    if not any(finding.severity is Severity.REFUSED for finding in found):
        found += _products(operator, kinked=any(finding.name == "kinked functions" for finding in found))


def _changing(batches: Iterable[Any], count: Count | None) -> Iterator[Finding]:
    """Two passes, with the random streams running on between them as they would between two measurements."""
    known = Batches.of(batches, count)
    first, second = _fingerprints(known.source), _fingerprints(known.source)
    if first == second:
        return
    remedy = "batches must be fixed: list(loader), or a loader with shuffle=False"
    if Counter(sample for batch in first for sample in batch) == Counter(
        sample for batch in second for sample in batch
    ):
        yield Finding("shuffled batches", Severity.REFUSED, "two passes give the same samples in another order", remedy)
    else:
        cause = "two passes give different samples: augmentation, or sampling"
        yield Finding("changing batches", Severity.REFUSED, cause, remedy)


def _fingerprints(batches: Iterable[Any]) -> list[list[bytes]]:
    return [[_digest(row) for tensor in tensors_of(batch) for row in _rows(tensor)] for batch in batches]


def _rows(tensor: Tensor) -> Iterable[Tensor]:
    return tensor.detach().cpu() if tensor.ndim else [tensor.detach().cpu()]


def _digest(row: Tensor) -> bytes:
    data = row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def _evaluate(
    operator: HessianOperator, loss_fn: Callable[[Any, Any], Tensor], training: bool | None, dropping: bool
) -> Iterator[Finding]:
    """The graph of the first batch, and the loss twice with the random streams running on."""
    model, tensors = operator.model, operator.vector.tensors
    with operator.reading() as batches:
        batch = next(batches)
    with undisturbed(model, operator.device, None, training, fused=True):
        yield from inspect_graph(lambda: checked_loss(loss_fn(model, batch)))
    with undisturbed(model, operator.device, None, training), named_errors("loss_fn"):
        graph = HessianGraph.build(loss_fn(model, batch), tensors)
        again = HessianGraph.build(loss_fn(model, batch), tensors)
    unused = [name for name, piece in zip(operator.vector.names, graph.gradient, strict=True) if piece is None]
    if unused:
        yield Finding("unused parameters", Severity.NOTE, ", ".join(unused[:5]), "their curvature is zero")
    if not dropping and bool(torch.isfinite(graph.loss)) and not _agree(graph, again, _EXACT[operator.dtype]):
        remedy = (
            "a loss that draws random numbers or keeps state has no Hessian; fix them, or evaluate with training=False"
        )
        cause = f"two evaluations of one batch give {float(graph.loss):.6g} and {float(again.loss):.6g}"
        yield Finding("random loss", Severity.REFUSED, cause, remedy)


def _halves(
    operator: HessianOperator, loss_fn: Callable[[Any, Any], Tensor], training: bool | None, count: Count | None
) -> Iterator[Finding]:
    """The first batch against its halves along the leading dimension: is the loss a mean over samples?"""
    with operator.reading() as batches:
        batch = next(batches)
        try:
            height = next(tensors_of(batch)).shape[0]
            pieces = slice(0, height // 2), slice(height // 2, height)
            parts = [map_tensors(batch, lambda tensor, at=at: tensor[at]) for at in pieces]
            counts = [samples_in(part, count) for part in parts]
            whole, *losses = (loss_fn(operator.model, part).detach().double() for part in (batch, *parts))
        except (InvalidArgument, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
            return  # samples that do not lie along the leading dimension, or one sample alone
    mean = sum(loss * number for loss, number in zip(losses, counts, strict=True)) / sum(counts)
    size, tolerance = sum(loss.abs() for loss in losses), _EXACT[operator.dtype]
    if bool((whole - mean).abs() <= tolerance * size):
        return
    if bool((whole - sum(losses)).abs() <= tolerance * size):
        remedy = "divide it by the number of samples: batches of other sizes would count for more than their share"
        yield Finding("summed loss", Severity.REFUSED, "the loss of a batch is the sum of those of its halves", remedy)
        return
    cause = f"a batch has {float(whole):.6g}, its halves {float(mean):.6g} on average"
    remedy = "sound as a mean over batches; the noise of the training target needs a mean over samples"
    yield Finding("coupled samples", Severity.NOTE, cause, remedy)


def _agree(one: HessianGraph, other: HessianGraph, tolerance: float) -> bool:
    pairs = zip([one.loss, *one.gradient], [other.loss, *other.gradient], strict=True)
    return all(
        a is b or (a is not None and b is not None and _close(a.detach(), b.detach(), tolerance)) for a, b in pairs
    )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * (a.norm() + b.norm()))


def _products(operator: HessianOperator, kinked: bool) -> Iterator[Finding]:
    gradient = operator.gradient()
    vectors = probe_vectors(operator, gradient)
    kinks = "kinks crossed within the step would explain it: curvature between kinks, as autograd defines it"
    severity, allowed = Severity.NOTE if kinked else Severity.REFUSED, _DIFFERENCE[operator.dtype]
    if (found := slope(operator, vectors[:, 0], gradient, allowed)) > allowed:
        remedy = "a hook alters it, a backward is wrong, or .detach() hides a part of the loss"
        cause = f"the gradient is {found:.1e} off a central difference of the loss"
        yield Finding("gradient off differences", severity, cause, kinks if kinked else remedy)
    products = operator @ vectors
    if not bool(gradient.any() or products.any()):
        remedy = "no step moves the parameters from here: units that never fire, or a loss that ignores the network"
        yield Finding("flat loss", Severity.REFUSED, "gradient and curvature are zero", remedy)
        return
    if not bool(products.any()):
        remedy = "a loss of straight pieces has no Hessian and no dominant subspace: StepGauge needs none"
        yield Finding("no curvature", Severity.REFUSED, "products with the Hessian are zero", remedy)
        return
    if not bool(torch.isfinite(products).all()):
        remedy = "a second derivative is infinite here: sqrt or norm at 0, or log(0); add a small constant"
        yield Finding("infinite curvature", Severity.REFUSED, "a product is not finite", remedy)
        return
    exact, remedy = _EXACT[operator.dtype], "an operation's double backward is wrong, or .detach() hides a part of it"
    if (found := asymmetry(vectors, products)) > exact:
        yield Finding("asymmetric products", Severity.REFUSED, f"|uᵀHv − vᵀHu| is {found:.1e} of ‖Hu‖ + ‖Hv‖", remedy)
    if (found := nonlinearity(operator, vectors, products)) > exact:
        yield Finding("nonlinear products", Severity.REFUSED, f"H(3u − 2v) is {found:.1e} off", remedy)
    if (found := difference(operator, vectors[:, 0], products[:, 0], allowed)) > allowed:
        cause = f"products are {found:.1e} off a central difference of the gradient"
        yield Finding("products off differences", severity, cause, kinks if kinked else remedy)
