"""One refresh: explore the leading direction of the correction, one product at a time, until told to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from etastar.network.certificate import ErrorEstimate
from etastar.network.explored import ExploredSpace, Model

__all__ = ["Goal", "Search", "Stop"]

_GOAL_MEMORY = 3  # products whose effect on a goal predicts that of the error left


class Stop(Enum):
    """Why a search ended."""

    TOLERANCE = auto()
    GOAL = auto()
    BUDGET = auto()
    NOT_FINITE = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What the subspace is for, so that a refresh may stop when the rest of its error no longer matters.

    Attributes:
        quantity: From a basis ``(P, k)`` to numbers ``(q,)``, such as θ and η*.
        noise: The sampling error of each, ``(q,)`` or one number, in the units of `quantity`.
    """

    quantity: Callable[[Tensor], Tensor]
    noise: Tensor | float


class Search:
    """A space being explored for its top `rank` eigenvectors.

    Args:
        space: What is known to begin with.
        rank: k.
        responses: The error estimate's first guesses.
        scout: Gives a random vector ``(P,)``, for when the space is exhausted too early.
    """

    def __init__(self, space: ExploredSpace, rank: int, responses: Tensor, scout: Callable[[], Tensor]) -> None:
        self.space = space
        self.estimate = ErrorEstimate(rank, responses)
        self.model: Model | None = None
        self._rank = rank
        self._scout = scout
        self._correction = torch.zeros(0, rank, dtype=torch.float64)

    @property
    def chosen(self) -> Tensor:
        """The model's top eigenvectors, in coordinates, ``(b, k)``."""
        assert self.model is not None  # noqa: S101  # only read after the first product
        return self.model.vectors[:, : self._rank]

    def run(self, first: int, least: int, most: int, tolerance: float, goal: Goal | None) -> Stop:
        """Explore.

        Args:
            first: How many carried vectors to multiply at once.
            least: Products to spend in any case.
            most: Products never to exceed.
            tolerance: Estimated error to stop at.
            goal: Or the quantity that must have settled.
        """
        watch = None if goal is None else _Watch(goal, self._rank)
        directions: Tensor | None = torch.eye(self.space.size, first, dtype=torch.float64)
        while directions is not None:
            self._explore(directions)
            if not self.space.finite:
                return Stop.NOT_FINITE
            settled = watch is not None and watch.settled(self)
            if self.space.products >= least:
                if self.estimate.value <= tolerance:
                    return Stop.TOLERANCE
                if settled:
                    return Stop.GOAL
            if self.space.products >= most:
                return Stop.BUDGET
            directions = self._next()
        return Stop.TOLERANCE  # nothing is left to explore: the answer is exact

    def _explore(self, directions: Tensor) -> None:
        before = self.model
        share = (directions.mT @ self.space.extended(self._correction)).square().sum()
        kind = int(self.space.parts(directions).argmax())
        self.space.explore(directions)
        if not self.space.finite:
            return
        self.model = self.space.model(self._rank)
        self._correction = self.space.outside(self.chosen)
        if before is not None and before.values.numel() >= self._rank:
            old = self.space.extended(before.vectors[:, : self._rank])
            move = (self.chosen - old @ (old.mT @ self.chosen)).square().sum()
            self.estimate.answered(kind, float(share), float(move))
        if self.space.products >= self._rank:
            self.estimate.update(self.space.parts(self._correction))

    def _next(self) -> Tensor | None:
        """The leading direction of the correction; without one, the next eigenvector guessed, or a random vector."""
        if self.space.complete:
            return None
        left, sizes, _ = torch.linalg.svd(self._correction, full_matrices=False)
        if float(sizes[:1].sum()) > self.space.resolution:
            return self._unit(left[:, :1])
        assert self.model is not None  # noqa: S101
        if self.space.size > self.space.products:
            rest = self.space.outside(self.model.vectors)
            sizes = rest.norm(dim=0)
            return self._unit(rest[:, int((sizes > 0.5 * sizes.max()).int().argmax()), None])
        if not self.space.widen(self._scout()):
            return None
        return torch.eye(self.space.size, dtype=torch.float64)[:, -1:]

    def _unit(self, direction: Tensor) -> Tensor:
        for _ in range(2):  # once is not enough where the direction is short
            direction = self.space.outside(direction)
            direction = direction / direction.norm()
        return direction


class _Watch:
    """Predicts what the error left will do to a goal's quantity, from what the last products did."""

    def __init__(self, goal: Goal, rank: int) -> None:
        self._goal = goal
        self._rank = rank
        self._last: tuple[Tensor, Tensor] | None = None
        self._effects: list[Tensor] = []  # change of the quantity per unit of error moved

    def settled(self, search: Search) -> bool:
        """Whether the predicted effect is below the noise in every component."""
        chosen = search.chosen
        if chosen.shape[1] < self._rank:
            return False
        value = torch.as_tensor(self._goal.quantity(search.space.vectors(chosen))).detach().to("cpu", torch.float64)
        if self._last is not None:
            before, old = self._last[0], search.space.extended(self._last[1])
            move = float((chosen - old @ (old.mT @ chosen)).norm()) / math.sqrt(self._rank)
            self._effects.append((value - before).abs() / max(move, 1e-300))
        self._last = value, chosen
        if len(self._effects) < 2:
            return False
        worst = torch.stack(self._effects[-_GOAL_MEMORY:]).amax(0)
        return bool((worst * search.estimate.value <= torch.as_tensor(self._goal.noise)).all())
