"""What every run of a named network asks: which network, how it is trained, and what is tracked.

Recipes add their own fields; a zero takes the network's own value, and nothing runs before all of it is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from etastar.errors import InvalidArgument
from etastar.recipes.networks.catalogue import load_network
from etastar.recipes.networks.network import LossName, Network

__all__ = ["RunPlan", "at_least", "load_run"]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run of constant-step SGD; a zero takes the network's own value.

    Attributes:
        recipe: One of the named networks.
        loss: None takes the recipe's first.
        steps: Of SGD.
        step_size: η, [parameter²/loss].
        batch_size: b.
        rank: k.
        seed: Of the initialisation, the mini-batches, and everything else that is drawn.
        data: Directory of the recipe's files, where it reads any.
    """

    recipe: str
    loss: LossName | None = None
    steps: int = 0
    step_size: float = 0.0
    batch_size: int = 0
    rank: int = 0
    seed: int = 0
    data: Path | None = None


P = TypeVar("P", bound=RunPlan)


def load_run(plan: P) -> tuple[P, Network]:
    """The plan with the zeros of a `RunPlan` filled in, and the network at its initialisation.

    Raises:
        InvalidArgument: An unknown recipe, or a number out of range.
        InvalidFile: The recipe's files are not what they should be.
    """
    network = load_network(plan.recipe, plan.loss, plan.seed, plan.data)
    own = network.settings
    plan = replace(
        plan,
        loss=network.loss,
        steps=plan.steps or own.steps,
        step_size=plan.step_size or own.step_size,
        batch_size=plan.batch_size or own.batch_size,
        rank=plan.rank or own.rank,
    )
    samples, size = len(network.train[0]), sum(parameter.numel() for parameter in network.model.parameters())
    at_least(plan, steps=1)
    if not 0 < plan.step_size <= torch.finfo(torch.float32).max:
        raise InvalidArgument("step_size", plan.step_size, "must be positive, and finite in float32")
    if not 1 <= plan.batch_size <= samples:
        raise InvalidArgument("batch_size", plan.batch_size, f"must be between 1 and {samples}")
    if not 1 <= plan.rank < size:
        raise InvalidArgument("rank", plan.rank, f"must be at least 1 and less than the {size} parameters")
    return plan, network


def at_least(plan: RunPlan, **least: int) -> None:
    """Refuse, by name, what is smaller.

    Raises:
        InvalidArgument: The first such field.
    """
    for name, bound in least.items():
        if getattr(plan, name) < bound:
            raise InvalidArgument(name, getattr(plan, name), f"must be at least {bound}")
