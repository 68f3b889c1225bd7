"""Successive halving: many configurations run short, the better half twice as long, within a budget of full runs.

Jamieson and Talwalkar (arXiv 1502.07943). Every run is a complete one of its own length, its schedule included: what
is halved is the length, so that linear and cosine decays are judged by where they end. Every round has a seed of its
own, so that what survives them has not been near the edge of divergence by one lucky draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from etastar.recipes.contest.configuration import RunConfiguration

__all__ = ["BUDGET", "LEAST_STEPS", "Tuning", "tuning"]

BUDGET = 12  # full runs
_ROUNDS = 4  # 24 runs of an eighth, 12 of a quarter, 6 of a half, 3 in full: three full runs a round
LEAST_STEPS = 10 * 2 ** (_ROUNDS - 1)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How far the tuning of one baseline has come.

    Attributes:
        missing: Runs of the present round that have not been made.
        best: The configuration that won the last round; None before.
        spent: Steps of all runs that were made, over those of a full run.
    """

    missing: list[RunConfiguration]
    best: RunConfiguration | None
    spent: float


def tuning(start: Sequence[RunConfiguration], steps: int, losses: Mapping[str, float]) -> Tuning:
    """The state of a tuning, from the losses known.

    Args:
        start: Configurations of the first round.
        steps: Of a full run; a multiple of 8 makes the budget exact, others are rounded down.
        losses: Final training loss by key of the run; not finite where it diverged.
    """
    survivors, spent = list(start), 0.0
    for round_ in range(_ROUNDS):
        length = steps // 2 ** (_ROUNDS - 1 - round_)
        runs = [replace(one, steps=length, seed=round_) for one in survivors]
        missing = [run for run in runs if run.key not in losses]
        spent += length / steps * (len(runs) - len(missing))
        if missing:
            return Tuning(missing, None, spent)
        # Ties, and all that diverged, keep the order of the grid.
        ranked = sorted(runs, key=lambda run: _rank(losses[run.key]))
        survivors = ranked[: max(1, len(runs) // 2)]
    return Tuning([], survivors[0], spent)


def _rank(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
