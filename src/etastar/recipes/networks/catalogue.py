"""The named networks, each with the losses it has and the settings found for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etastar.errors import InvalidArgument
from etastar.recipes.networks.cifar import load_cifar
from etastar.recipes.networks.digits import load_digits
from etastar.recipes.networks.mnist import load_mnist
from etastar.recipes.networks.models import SentenceClassifier, Transformer, cifar_cnn, digits_cnn, tanh_mlp
from etastar.recipes.networks.network import LossName, Network, Samples, Settings
from etastar.recipes.networks.sst2 import LENGTH, load_sst2
from etastar.recipes.networks.sst2 import VOCABULARY as WORDS
from etastar.recipes.networks.text import CONTEXT, VOCABULARY, load_text

__all__ = ["NETWORKS", "Recipe", "load_network"]

_SEEDS = 1 << 62  # PyTorch takes 64 bits; room for streams of their own beside a seed


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a named network is made.

    Attributes:
        build: Makes the model.
        load: Training and held-out samples; from a directory where `reads_files`.
        settings: By loss; the first one is the recipe's default.
        reads_files: Whether the data are the user's files.
        watched: Samples of each set that loss curves are taken over.
    """

    build: Callable[[], nn.Module]
    load: Callable[..., tuple[Samples, Samples]]
    settings: Mapping[LossName, Settings]
    reads_files: bool = False
    watched: int = 5000


def load_network(name: str, loss: LossName | None = None, seed: int = 0, data: str | Path | None = None) -> Network:
    """A recipe's network; the initialisation is drawn from `seed` alone, the samples and their order are fixed.

    Args:
        name: One of `NETWORKS`.
        loss: None takes the recipe's first.
        seed: Of the initialisation.
        data: Directory of the recipe's files, for those that read any; see `mnist`.

    Raises:
        InvalidArgument: An unknown name, a seed out of range, a loss that the recipe has not, a directory it has no
            use for.
        InvalidFile: The recipe's files are not found, or not what they should be.
    """
    if not 0 <= seed < _SEEDS:
        raise InvalidArgument("seed", seed, f"must be between 0 and {_SEEDS - 1}")
    recipe = NETWORKS.get(name) or _PROTOCOL_ONLY.get(name)
    if recipe is None:
        raise InvalidArgument("recipe", name, f"must be one of {', '.join(NETWORKS)}")
    loss = next(iter(recipe.settings)) if loss is None else loss
    if loss not in recipe.settings:
        raise InvalidArgument("loss", loss, f"{name} is trained with {' or '.join(recipe.settings)}")
    if data is not None and not recipe.reads_files:
        raise InvalidArgument("data", str(data), f"{name} brings its own data")
    train, held_out = recipe.load(data) if recipe.reads_files else recipe.load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build()
    return Network(name, loss, model, _LOSSES[loss], train, held_out, recipe.settings[loss], recipe.watched)


def _mean_squared(model: Any, batch: Samples) -> Tensor:
    """½‖outputs − one-hot‖², mean over samples."""
    inputs, labels = batch
    outputs = model(inputs)
    targets = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)[labels]  # one_hot: no vmap
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def _cross_entropy(model: Any, batch: Samples) -> Tensor:
    """[nat] per label: mean over the labels of a sample, then over samples."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())


_LOSSES: dict[LossName, Callable[[Any, Samples], Tensor]] = {"mse": _mean_squared, "cross-entropy": _cross_entropy}

NETWORKS: dict[str, Recipe] = {
    "digits-mlp": Recipe(
        partial(tanh_mlp, 64, 100, 100, 10),
        partial(load_digits, (64,)),
        {"mse": Settings(0.1, 50, 10, 2000, 50, 1500), "cross-entropy": Settings(0.2, 50, 10, 2000, 50, 1500)},
    ),
    "digits-cnn": Recipe(
        digits_cnn,
        partial(load_digits, (1, 8, 8)),
        {"mse": Settings(0.1, 50, 10, 4000, 100, 1500), "cross-entropy": Settings(0.2, 50, 10, 3000, 100, 1500)},
    ),
    "mnist5k-mlp": Recipe(
        partial(tanh_mlp, 784, 200, 200, 10),
        load_mnist,
        {"mse": Settings(0.1, 50, 10, 2000, 200, 5000), "cross-entropy": Settings(0.1, 50, 10, 2000, 200, 5000)},
        reads_files=True,
    ),
    "text-transformer": Recipe(
        partial(Transformer, VOCABULARY, CONTEXT),
        load_text,
        {"cross-entropy": Settings(0.1, 16, 2, 800, 200, 256)},
        watched=128,
    ),
}

# Settings that a protocol prescribes, not found by trial: no choice of ``etastar train``.
_PROTOCOL_ONLY: dict[str, Recipe] = {
    "cifar5k-cnn": Recipe(cifar_cnn, load_cifar, {"mse": Settings(0.001, 50, 10, 20_000, 200, 256)}, reads_files=True),
    "sst2-transformer": Recipe(
        partial(SentenceClassifier, WORDS, LENGTH),
        load_sst2,
        {"mse": Settings(0.001, 50, 2, 20_000, 200, 256)},
        reads_files=True,
    ),
}
