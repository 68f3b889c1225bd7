"""Evaluating a model in the middle of its training without leaving a trace.

Restored whatever happens inside, bit for bit, also after an exception or Ctrl-C: random streams (torch, the
device's, NumPy, Python, the loader's own generator), buffers, and the training flag of every module. Gradients are
taken by ``torch.autograd.grad``, which never writes ``.grad``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from etastar.errors import InvalidArgument

__all__ = ["aside", "moved", "refuse_distributed", "undisturbed"]


@contextmanager
def undisturbed(
    model: nn.Module,
    device: torch.device,
    batches: Any = None,
    training: bool | None = None,
    fused: bool = False,
) -> Generator[None]:
    """Evaluate twice-differentiably inside, restore everything on leaving.

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
        stack.enter_context(_random_streams([device], _loader_generators(batches)))
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


@contextmanager
def aside(model: nn.Module | None, devices: Iterable[torch.device], seed: int) -> Generator[None]:
    """Evaluate inside as the run itself would, with streams of one's own; restore everything on leaving.

    Had the streams continued, a batch drawn inside would be the very batch that the run draws next.

    Args:
        model: Its buffers and training flags are restored; None where there are none to restore.
        devices: Whose random streams are restored beside the CPU's.
        seed: Where every stream starts.
    """
    with _random_streams(devices, (), seed), _state(model), torch.enable_grad():
        yield


@contextmanager
def moved(tensors: Sequence[Tensor], by: Sequence[Tensor]) -> Generator[None]:
    """Parameters displaced by tensors of their shapes; put back bit for bit, and as versions go never touched."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor, part in zip(tensors, by, strict=True):
            tensor.data.add_(part)
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.data.copy_(value)


def refuse_distributed() -> None:
    """Raise where ``torch.distributed`` is initialised: every rank would see its own part of the curvature."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        allowed = "curvature runs in one process only; measure checkpoints offline"
        raise InvalidArgument("torch.distributed", "initialised", allowed)


@contextmanager
def _random_streams(
    devices: Iterable[torch.device], generators: Iterable[torch.Generator], seed: int | None = None
) -> Generator[None]:
    default = [torch.default_generator, *map(_default_generator, {d for d in devices if d.type != "cpu"})]
    kept = [(generator, generator.get_state()) for generator in [*default, *generators]]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global stream is what is kept
    try:
        if seed is not None:
            for generator in default:  # torch.manual_seed would also reach devices that are not kept here
                generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in kept:
            generator.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()  # pyright: ignore[reportPrivateUsage]
    return torch.get_device_module(device).default_generators[device.index]


def _loader_generators(batches: Any) -> Iterator[torch.Generator]:
    sampler = getattr(batches, "sampler", None)
    found = {id(holder): getattr(holder, "generator", None) for holder in (batches, sampler)}
    yield from {id(value): value for value in found.values() if isinstance(value, torch.Generator)}.values()


@contextmanager
def _state(model: nn.Module | None) -> Generator[None]:
    modules = [] if model is None else list(model.modules())
    flags = [(module, module.training) for module in modules]
    # The tables themselves: a forward pass may also replace a buffer, fill one that was None, or register one.
    tables = [(module._buffers, dict(module._buffers)) for module in modules]  # pyright: ignore[reportPrivateUsage]
    values = [(buffer, buffer.detach().clone()) for _, kept in tables for buffer in kept.values() if buffer is not None]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for table, kept in tables:
            table.clear()
            table.update(kept)
        for buffer, value in values:
            buffer.data.copy_(value)  # .data: no new version, so graphs that saved the buffer stay valid
