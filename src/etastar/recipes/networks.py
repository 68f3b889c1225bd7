"""Named networks on real data: model, loss, samples and the settings of their runs.

digits are scikit-learn's 1,797 images of 8 × 8 pixels; the first 1,500 train, the rest are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from etastar.errors import InvalidArgument, MissingExtra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("etastar train", "network") from error

__all__ = ["NETWORKS", "Network", "load_network"]

LossName = Literal["mse", "cross-entropy"]
_TRAINING = 1500


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network with its data.

    Attributes:
        name: Of the recipe.
        model: Freshly initialised, float32.
        loss_fn: Mean loss of a batch ``(inputs, targets)``.
        train: Inputs ``(n, …)`` and targets ``(n,)`` of the training samples.
        held_out: The same for the samples kept aside.
        step_size: η of a constant-step run, [parameter²/loss].
        batch_size: b.
        rank: k.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    step_size: float
    batch_size: int
    rank: int

    def curvature_batches(self, samples: int, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """The first `samples` training samples, in batches; InvalidArgument where there are not as many."""
        inputs, targets = self.train
        if not 1 <= samples <= len(inputs):
            raise InvalidArgument("curvature_samples", samples, f"must be between 1 and {len(inputs)}")
        return [
            (inputs[i : min(i + size, samples)], targets[i : min(i + size, samples)]) for i in range(0, samples, size)
        ]


def load_network(name: str, loss: LossName = "mse", seed: int = 0) -> Network:
    """A recipe's network; the initialisation is drawn from `seed` alone.

    Raises:
        InvalidArgument: An unknown name.
    """
    if name not in NETWORKS:
        raise InvalidArgument("recipe", name, f"must be one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
    inputs, labels = _digits()
    if name == "digits-cnn":
        inputs = inputs.reshape(-1, 1, 8, 8)
    return Network(
        name=name,
        model=model,
        loss_fn=_mean_squared if loss == "mse" else _cross_entropy,
        train=(inputs[:_TRAINING], labels[:_TRAINING]),
        held_out=(inputs[_TRAINING:], labels[_TRAINING:]),
        step_size=0.1 if loss == "mse" else 0.2,
        batch_size=50,
        rank=10,
    )


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits-mlp": _mlp, "digits-cnn": _cnn}


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, digit = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(digit))
    inputs = torch.tensor(pixels[order] / 16.0, dtype=torch.float32)
    return inputs, torch.tensor(digit[order], dtype=torch.int64)


def _mean_squared(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    targets = nn.functional.one_hot(labels, 10).to(inputs.dtype)
    return 0.5 * (model(inputs) - targets).square().sum(dim=1).mean()


def _cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)
