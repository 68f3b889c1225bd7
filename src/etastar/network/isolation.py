"""Evaluating a model in the middle of its training without leaving a trace.

Restored whatever happens inside, bit for bit: random streams (torch, the device's, NumPy, Python, the loader's own
generator), buffers, and the training flag of every module. Gradients are taken by ``torch.autograd.grad``, which
never writes ``.grad``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from etastar.errors import InvalidArgument

__all__ = ["refuse_distributed", "undisturbed"]


@contextmanager
def undisturbed(
    model: nn.Module,
    device: torch.device,
    batches: Any = None,
    training: bool | None = None,
    fused: bool = False,
) -> Generator[None]:
    """Evaluate twice-differentiably inside, restore everything on leaving, also after an exception or Ctrl-C.

    Inside, gradients are on, ambient autocast is off, attention takes its mathematical kernel and
    ``torch.compile`` is bypassed: fused kernels and compiled graphs have no second derivative.

    Args:
        model: Its buffers and training flags are restored.
        device: Whose random stream is restored beside the CPU's.
        batches: The loader, for the sake of its own generator.
        training: Mode to evaluate in; None leaves every module as it is.
        fused: Leave attention its fused kernels, for evaluations that are not differentiated twice.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_streams(device, batches))
        stack.enter_context(_state(model))
        if training is not None:
            model.train(training)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if not fused:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # nothing can be compiled where the compiler was never loaded
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def refuse_distributed() -> None:
    """Raise where ``torch.distributed`` is initialised: every rank would see its own part of the curvature."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        allowed = "curvature runs in one process only; measure checkpoints offline"
        raise InvalidArgument("torch.distributed", "initialised", allowed)


@contextmanager
def _random_streams(device: torch.device, batches: Any) -> Generator[None]:
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global stream is what is kept
    devices = [device] if device.type in ("cuda", "xpu") else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in generators:
            generator.set_state(state)


def _generators(batches: Any) -> Iterator[torch.Generator]:
    sampler = getattr(batches, "sampler", None)
    found = {id(holder): getattr(holder, "generator", None) for holder in (batches, sampler)}
    yield from {id(value): value for value in found.values() if isinstance(value, torch.Generator)}.values()


@contextmanager
def _state(model: nn.Module) -> Generator[None]:
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for module, name, buffer, value in buffers:
            setattr(module, name, buffer)
            buffer.data.copy_(value)  # .data: no new version, so graphs that saved the buffer stay valid
