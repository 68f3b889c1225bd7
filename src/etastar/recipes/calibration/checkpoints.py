"""The checkpoints of a calibration: a network stopped in the middle of a run, with everything about it exact.

Here the loss is the mean over all training samples, so that gradient and Hessian have no sampling error, and the
dominant subspace is one fixed basis: what is compared with a prediction is then the prediction's error alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from etastar.network.curvature import HessianOperator
from etastar.network.persample import gradient_at, loss_at
from etastar.network.producer import Basis
from etastar.network.subspace import SubspaceTracker
from etastar.recipes.networks.network import Network, Samples

__all__ = ["Checkpoint", "checkpoints", "is_large"]

_TOLERANCE = 1e-3  # of the basis: its effect on η* is far below any sampling error
_LARGE = 100_000  # parameters from which a pass over all samples for each of them is out of reach
_CHUNK = 64  # samples of a large model in one evaluation


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A network at one step of its run.

    Attributes:
        step: Steps taken before.
        network: Its model stands at the checkpoint and its training samples are the loss; nothing here writes to it.
        step_size: η of the run, [parameter²/loss].
        batch_size: b of the run.
        batches: The training samples, in batches.
        operator: Hessian of the mean loss over all training samples.
        basis: Its dominant subspace, fixed over every step compared.
        gradient: ∇L over all training samples, ``(P,)``.
        parameters: θ, ``(P,)``.
    """

    step: int
    network: Network
    step_size: float
    batch_size: int
    batches: list[Samples]
    operator: HessianOperator
    basis: Basis
    gradient: Tensor
    parameters: Tensor

    def gradient_at(self, parameters: Tensor) -> Tensor:
        """∇L over all training samples at other parameters ``(P,)``."""
        network, found = self.network, torch.zeros_like(self.gradient)
        with self.operator.reading() as batches:
            for batch in batches:
                part = gradient_at(network.model, network.loss_fn, self.operator.vector, batch, parameters)
                found.add_(part, alpha=len(batch[0]) / self.operator.samples)
        return found

    def loss_at(self, parameters: Tensor) -> float:
        """L over all training samples at other parameters ``(P,)``."""
        network, found = self.network, 0.0
        with self.operator.reading() as batches:
            for batch in batches:
                part = loss_at(network.model, network.loss_fn, self.operator.vector, batch, parameters)
                found += float(part) * len(batch[0]) / self.operator.samples
        return found

    def batch_gradients(self, count: int, seed: int) -> Tensor:
        """Gradients of `count` mini-batches drawn with replacement, as the run draws them, ``(count, P)``."""
        generator = torch.Generator().manual_seed(seed)
        network = self.network
        return torch.stack(
            [
                gradient_at(
                    network.model,
                    network.loss_fn,
                    self.operator.vector,
                    network.draw(generator, self.batch_size),
                    self.parameters,
                )
                for _ in range(count)
            ]
        )

    def sides(self, rows: Tensor, other: Tensor | None = None) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """⟨S r, o⟩ of each row ``(m, P)`` with its partner, dominant and bulk, ``(2, m)``; energies without one."""
        parts = [self.basis.coordinates(rows).double(), self.basis.bulk(rows).double()]
        if other is None:
            found = [part.square().sum(dim=-1) for part in parts]
        else:
            partners = [self.basis.coordinates(other).double(), self.basis.bulk(other).double()]
            found = [(part * partner).sum(dim=-1) for part, partner in zip(parts, partners, strict=True)]
        return torch.stack(found).cpu().numpy()


def is_large(network: Network) -> bool:
    """Whether the samples that a calibration takes must be few."""
    return sum(parameter.numel() for parameter in network.model.parameters()) >= _LARGE


def checkpoints(
    network: Network, count: int, steps: int, step_size: float, batch_size: int, rank: int, samples: int, seed: int
) -> Iterator[Checkpoint]:
    """Train with plain SGD at a constant step and stop `count` times, from early to late, evenly in the logarithm.

    Loss, basis and gradient are made anew at each stop; in between the model moves on, so that a checkpoint must be
    used before the next is asked for. The first `samples` training samples are the loss.
    """
    inputs, targets = network.train
    shown = replace(network, train=(inputs[:samples], targets[:samples]))
    batches = shown.curvature_batches(samples, _CHUNK if is_large(network) else samples)
    operator = HessianOperator(network.model, network.loss_fn, batches)
    tracker = SubspaceTracker(operator, rank, seed=seed)
    optimizer = torch.optim.SGD(network.model.parameters(), lr=step_size)
    generator = torch.Generator().manual_seed(seed)
    stops = set(np.geomspace(max(1, steps // 100), steps, count).round().astype(int).tolist())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        network.loss_fn(network.model, network.draw(generator, batch_size)).backward()
        optimizer.step()
        if step in stops:
            with operator.held():
                subspace = tracker.refresh(_TOLERANCE)
                basis = Basis.tracked(tracker, subspace)
                gradient = operator.gradient()
            here = operator.vector.current()
            yield Checkpoint(step, shown, step_size, batch_size, batches, operator, basis, gradient, here)
