"""A gradient on the side: evaluated so that the run does not notice.

The random streams (PyTorch's, NumPy's, Python's) and, given the model, its buffers are put back afterwards, also
after an exception or Ctrl-C; ``.grad`` is never touched. Inside, the streams start from the gauge's own seed: had
they continued, a batch drawn there would be the very batch that the run draws next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etastar.errors import InvalidArgument

__all__ = ["dense", "gradient_aside"]


def gradient_aside(
    closure: Callable[[], Any], tensors: Sequence[Tensor], seed: int, model: torch.nn.Module | None
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss that `closure` returns and its gradient, without a trace in the run.

    Raises:
        InvalidArgument: The closure returns no scalar with a graph to the parameters.
    """
    with _isolated(seed, tensors, model), torch.enable_grad():
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            remedy = "the function must return the mean loss, a scalar tensor with its graph, and not call backward()"
            raise InvalidArgument("second", loss, remedy)
        found: Sequence[Tensor | None] = torch.autograd.grad(loss.reshape(()), tensors, allow_unused=True)
    return loss.detach().reshape(()), [dense(g) for g in found]


def dense(gradient: Tensor | None) -> Tensor | None:
    """A sparse gradient as a dense copy, any other as it is."""
    return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient


@contextmanager
def _isolated(seed: int, tensors: Sequence[Tensor], model: torch.nn.Module | None) -> Generator[None]:
    kept = [(buffer, buffer.detach().clone()) for buffer in ([] if model is None else model.buffers())]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (the user's code may use the global stream)
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    stream = torch.get_rng_state()  # fork_rng would cost more than the gradient of a small model
    on_device = [(index, torch.cuda.get_rng_state(index)) for index in devices]
    try:
        # The CPU generator alone: torch.manual_seed would also reach devices that are not saved here.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        torch.set_rng_state(stream)
        for index, state in on_device:
            torch.cuda.set_rng_state(state, index)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        with torch.no_grad():
            for buffer, value in kept:
                buffer.data.copy_(value)  # .data: no new version, so graphs that saved the buffer stay valid
