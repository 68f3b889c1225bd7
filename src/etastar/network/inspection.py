"""What can be seen of a model without differentiating it twice: its modules, its parameters, its autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from etastar.network.findings import Finding, Severity
from etastar.network.graph import nodes_of
from etastar.network.parameters import ParameterVector

__all__ = ["inspect_graph", "inspect_model", "inspect_parameters"]

_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel")
_NARROW = {torch.float16, torch.bfloat16}
# Autograd nodes of functions whose second derivative jumps, so that there is no third.
_KINKED = (
    "Relu",
    "LeakyRelu",
    "Prelu",
    "Rrelu",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "Hardshrink",
    "Softshrink",
    "Threshold",
    "Elu",
    "Abs",
    "Clamp",
    "Maximum",
    "Minimum",
    "MaxPool",
    "SmoothL1Loss",
    "HuberLoss",
    "L1Loss",
)


def inspect_model(model: nn.Module, training: bool | None) -> Iterator[Finding]:
    """Wrappers, compiled code, and modules whose output depends on the mode."""
    named = [(f"module {name}" if name else "the model", module) for name, module in model.named_modules()]
    if wrapped := [(name, type(module).__name__) for name, module in named if type(module).__name__ in _WRAPPERS]:
        cause = ", ".join(f"{name} is a {kind}" for name, kind in wrapped)
        yield Finding("parallel wrapper", Severity.REFUSED, cause, "give the module inside it: model.module")
    if compiled := [name for name, module in named if _is_compiled(module)]:
        remedy = "compiled graphs have no double backward, so they are bypassed while curvature is taken"
        yield Finding("compiled module", Severity.HANDLED, _listed(compiled), remedy)
    active = [(name, module) for name, module in named if (module.training if training is None else training)]
    if norms := [name for name, module in active if isinstance(module, _BatchNorm)]:
        remedy = "evaluate with training=False; batch statistics make the loss no mean over samples"
        yield Finding("batch norm in training mode", Severity.REFUSED, _listed(norms), remedy)
    quiet = [(name, module) for name, module in named if not (module.training if training is None else training)]
    if norms := [name for name, module in quiet if isinstance(module, _BatchNorm) and module.running_mean is None]:
        remedy = "it normalises by batch statistics in every mode; use GroupNorm or track_running_stats=True"
        yield Finding("batch norm without statistics", Severity.REFUSED, _listed(norms), remedy)
    if drops := [name for name, module in active if _drops(module)]:
        remedy = "evaluate with training=False; a random loss has no Hessian"
        yield Finding("dropout in training mode", Severity.REFUSED, _listed(drops), remedy)


def inspect_parameters(model: nn.Module, vector: ParameterVector) -> Iterator[Finding]:
    """Frozen, tied and hooked parameters."""
    if frozen := [name for name, tensor in model.named_parameters() if not tensor.requires_grad]:
        yield Finding("frozen parameters", Severity.NOTE, _listed(frozen), "they are no part of the vector")
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    if tied := [" = ".join(names) for names in aliases.values() if len(names) > 1]:
        yield Finding("tied parameters", Severity.HANDLED, _listed(tied), "counted once, under the first name")
    if hooked := [name for name, tensor in zip(vector.names, vector.tensors, strict=True) if tensor._backward_hooks]:
        remedy = "they would alter products; remove them, or give a copy of the model without them"
        yield Finding("gradient hooks", Severity.REFUSED, _listed(hooked), remedy)


def inspect_graph(evaluate: Callable[[], Tensor]) -> Iterator[Finding]:
    """What the graph of a loss is made of: kinked functions, fused attention, numbers of few digits."""
    dtypes: set[torch.dtype] = set()

    def keep(tensor: Tensor) -> Tensor:
        dtypes.add(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = evaluate()
    if narrow := sorted(str(dtype).removeprefix("torch.") for dtype in dtypes & _NARROW):
        remedy = "products would be good to two digits; give a loss_fn without autocast, in float32"
        yield Finding("reduced precision", Severity.REFUSED, f"the loss computes in {_listed(narrow)}", remedy)
    names = {type(node).__name__ for node in nodes_of([loss])}
    if kinked := sorted(n.rstrip("0123456789") for n in names if n.startswith(_KINKED)):
        remedy = "curvature is that between the kinks; η* takes in those that the step in use crosses"
        yield Finding("kinked functions", Severity.NOTE, _listed(kinked), remedy)
    if fused := sorted(
        n for n in names if "ScaledDotProduct" in n or "FlashAttention" in n or "EfficientAttention" in n
    ):
        remedy = "no double backward, so the mathematical kernel is used while curvature is taken"
        yield Finding("fused attention", Severity.HANDLED, _listed(fused), remedy)


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _drops(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0


def _listed(items: Iterable[str], limit: int = 5) -> str:
    found = list(items)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more
