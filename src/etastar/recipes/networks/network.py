"""A network with its data and the settings of its runs: what training, calibration and forecasts start from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etastar.errors import InvalidArgument

__all__ = ["LossName", "Network", "Samples", "Settings"]

LossName = Literal["mse", "cross-entropy"]
Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """A recipe's own values for one loss, found by trial.

    At them, SGD lowers the loss first, and the noise equilibrates in the dominant subspace within the run.

    Attributes:
        step_size: η of a constant-step run, [parameter²/loss].
        batch_size: b, [samples].
        rank: k.
        steps: Of the run.
        every: Steps between measurements.
        curvature_samples: Training samples that Hessian and noise are taken over; the gradient is that of all of them.
    """

    step_size: float
    batch_size: int
    rank: int
    steps: int
    every: int
    curvature_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network with its data.

    Attributes:
        name: Of the recipe.
        loss: Name of the loss.
        model: Freshly initialised, float32.
        loss_fn: Mean loss of a batch ``(inputs, targets)`` over its samples, which lie along the leading dimension.
        train: Inputs ``(n, …)`` and targets ``(n, …)`` of the training samples.
        held_out: The same for the samples kept aside.
        settings: The recipe's own values for this loss.
        watched: Samples of each set, the first ones, that loss curves are taken over.
    """

    name: str
    loss: LossName
    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    train: Samples
    held_out: Samples
    settings: Settings
    watched: int

    @property
    def step_size(self) -> float:
        """η of a constant-step run, [parameter²/loss]."""
        return self.settings.step_size

    @property
    def batch_size(self) -> int:
        """b, [samples]."""
        return self.settings.batch_size

    @property
    def rank(self) -> int:
        """Rank k."""
        return self.settings.rank

    @property
    def digest(self) -> str:
        """Of all samples: a run's name holds it, so that other data are another run."""
        found = hashlib.sha256()
        for tensor in (*self.train, *self.held_out):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:12]

    def curvature_batches(self, samples: int = 0, size: int = 256) -> list[Samples]:
        """The first `samples` training samples, in batches; 0 takes the recipe's own number.

        Raises:
            InvalidArgument: There are not as many.
        """
        samples = samples or self.settings.curvature_samples
        inputs, targets = self.train
        if not 1 <= samples <= len(inputs):
            raise InvalidArgument("curvature_samples", samples, f"must be between 1 and {len(inputs)}")
        edges = range(0, samples, size)
        return [(inputs[i : min(i + size, samples)], targets[i : min(i + size, samples)]) for i in edges]

    def draw(self, generator: torch.Generator, size: int) -> Samples:
        """A mini-batch of training samples, drawn with replacement; one draw of `generator` on the CPU.

        Example:
            >>> from etastar.recipes.networks import load_network
            >>> network = load_network("digits-mlp")
            >>> inputs, targets = network.draw(torch.Generator().manual_seed(0), 50)
            >>> tuple(inputs.shape), tuple(targets.shape)
            ((50, 64), (50,))
        """
        inputs, targets = self.train
        drawn = torch.randint(len(inputs), (size,), generator=generator)
        return inputs[drawn], targets[drawn]

    def losses(self) -> tuple[float, float]:
        """Training and held-out loss as curves show them: over the first `watched` samples of each set."""
        with torch.no_grad():
            first, second = (
                float(self.loss_fn(self.model, (inputs[: self.watched], targets[: self.watched])))
                for inputs, targets in (self.train, self.held_out)
            )
        return first, second
