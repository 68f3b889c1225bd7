"""The update an optimizer makes, as a direction h: θ' = θ − η·h, with the gradient noise as it enters h.

Only SGD, with momentum, dampening, Nesterov and weight decay, moves along a direction that the moments describe;
other optimizers are refused by name, and the gauge serves them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etastar.errors import InvalidArgument
from etastar.network.parameters import ParameterVector
from etastar.network.producer import Direction

__all__ = ["check_optimizer", "is_plain", "step_size_of", "update_direction"]


def check_optimizer(optimizer: torch.optim.Optimizer, vector: ParameterVector) -> None:
    """Refuse what the moments do not describe.

    Raises:
        InvalidArgument: Not plain ``torch.optim.SGD``, groups that differ in a setting, a loss that is maximised, or
            parameters of `vector` that it does not move.
    """
    if type(optimizer) is not torch.optim.SGD:
        remedy = "the meter describes torch.optim.SGD (momentum, Nesterov, weight decay); use StepGauge"
        raise InvalidArgument("optimizer", type(optimizer).__name__, remedy)
    for setting in ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize"):
        values = {float(group[setting]) for group in optimizer.param_groups}
        if len(values) > 1:
            raise InvalidArgument(f"optimizer {setting}", sorted(values), "must be one for all groups; use StepGauge")
    if optimizer.param_groups[0]["maximize"]:
        raise InvalidArgument("optimizer maximize", True, "the moments describe descent")
    moved = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    if still := [name for name, tensor in zip(vector.names, vector.tensors, strict=True) if id(tensor) not in moved]:
        remedy = "it must move every parameter that is measured: freeze the others, or name these in `parameters`"
        raise InvalidArgument("optimizer", f"{len(still)} parameters not in it, {still[0]} first", remedy)


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the update is the gradient itself: neither momentum nor weight decay."""
    return all(group["momentum"] == 0 and group["weight_decay"] == 0 for group in optimizer.param_groups)


def step_size_of(optimizer: torch.optim.Optimizer) -> float:
    """The step size in use, [parameter²/loss]."""
    return float(optimizer.param_groups[0]["lr"])


def update_direction(optimizer: torch.optim.Optimizer, vector: ParameterVector, gradient: Tensor) -> Direction | None:
    """The direction h of the next step at the mean gradient ``(P,)``; None where it is the gradient itself.

    Weight decay enters h only: the moments stay those of the loss.
    """
    group = optimizer.param_groups[0]
    if is_plain(optimizer):
        return None
    momentum, decay = float(group["momentum"]), float(group["weight_decay"])
    decayed = gradient if decay == 0 else gradient + decay * vector.current()
    if momentum == 0:
        return Direction(decayed)
    dampening = float(group["dampening"])
    buffer = _momentum(optimizer, vector)
    if buffer is None:  # the first step of SGD sets the buffer to the gradient, without dampening
        buffer, scale = decayed, 1.0
    else:
        buffer, scale = momentum * buffer + (1.0 - dampening) * decayed, 1.0 - dampening
    if group["nesterov"]:
        return Direction(decayed + momentum * buffer, 1.0 + momentum * scale)
    return Direction(buffer, scale)


def _momentum(optimizer: torch.optim.Optimizer, vector: ParameterVector) -> Tensor | None:
    states: list[dict[str, Any]] = [optimizer.state.get(tensor, {}) for tensor in vector.tensors]
    buffers = [state.get("momentum_buffer") for state in states]
    if all(buffer is None for buffer in buffers):
        return None
    pieces = zip(buffers, vector.tensors, strict=True)
    return torch.cat([(torch.zeros_like(t) if b is None else b).detach().reshape(-1) for b, t in pieces])
