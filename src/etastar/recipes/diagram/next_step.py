"""What the next step does, as one of a few named categories: how θ answers, and which projected updates lower the loss.

A subspace descends where η is below its loss threshold by more than one per cent: nearer than that it is at rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.criteria import Outcome, Regime, critical_step_size, loss_thresholds
from etastar.moments import SplitMoments
from etastar.recipes.diagram.cells import GREY, Category

__all__ = ["CATEGORIES", "DESCENDS", "EQUILIBRATED", "ROUND_OFF", "Positions", "category_codes", "positions_of"]

Array = npt.NDArray[np.float64]
EQUILIBRATED = 0.01  # |log(η/η_S)| up to which a subspace is at rest
ROUND_OFF = 1e-9  # nearer to a threshold than this only round-off says on which side
_REST = float(np.tanh(EQUILIBRATED / 2.0))  # the same in (η − η_S)/(η + η_S)
_ALWAYS = {Outcome.ALWAYS: -1.0, Outcome.NEVER: 1.0}
DESCENDS = ("both", "bulk", "dominant", "none")
_FALLS = ("#e3f2f1", "#b5dcd9", "#7fbfba", "#4c9f99")
_RISES = ("#fdf3da", "#f8dfa3", "#ecc468", "#cf9a2e")


def _categories() -> tuple[Category, ...]:
    words = {"both": "both descend", "bulk": "only the bulk descends", "dominant": "only the dominant descends"}
    words["none"] = "neither descends"
    short = words | {"bulk": "bulk only", "dominant": "dominant only"}
    kinds = [
        Category(f"{way}_{kind}", f"θ {way}, {words[kind]}", f"θ {way}\n{short[kind]}", colour)
        for way, colours in (("falls", _FALLS), ("rises", _RISES))
        for kind, colour in zip(DESCENDS, colours, strict=True)
    ]
    rest = Category("equilibrated", "equilibrated: η ≈ η_D ≈ η_B", "equilibrated", "#e9e4f1")
    none = Category("undefined", "undefined: no gradient, or nothing changes", "undefined", "#8a8a8a")
    return (*kinds, rest, none, Category("unstable", "unstable: η ≥ 2/λ₁", "unstable", GREY))


CATEGORIES = _categories()
_INDEX = {category.key: index for index, category in enumerate(CATEGORIES)}


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where η stands to each threshold, (η − η_S)/(η + η_S): −1 far below, 0 at it, 1 far above; ``(y, x)``."""

    critical: Array
    dominant: Array
    bulk: Array
    full: Array

    @property
    def at_rest(self) -> npt.NDArray[np.bool_]:
        """Cells whose run has equilibrated: η within 1 % of η_D and of η_B."""
        return (np.abs(self.dominant) <= _REST) & (np.abs(self.bulk) <= _REST)


def positions_of(split: SplitMoments, step_size: Array) -> Positions:
    """From the criteria of each cell; ±1 where every step lies on one side of the threshold."""
    step, bounds = critical_step_size(split), loss_thresholds(split)
    always = {Regime.HIGH: -1.0, Regime.RISES: 1.0}
    return Positions(
        _position(step_size, step.value, step.regime, always, Regime.REVERSED),
        *(
            _position(step_size, getattr(bounds, name), getattr(bounds, f"{name}_outcome"), _ALWAYS, Outcome.ABOVE)
            for name in ("dominant", "bulk", "full")
        ),
    )


def _position(eta: Array, threshold: Array, outcome: Any, always: Mapping[Any, float], mirrored: Any) -> Array:
    # A half each, so that the sum of two large numbers stays one.
    place = (0.5 * eta - 0.5 * threshold) / (0.5 * eta + 0.5 * threshold)
    place = np.where(outcome == mirrored, -place, place)
    return np.select([outcome == kind for kind in always], list(always.values()), place)


def category_codes(positions: Positions, unstable: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The category of each cell, by its index."""
    dominant, bulk = positions.dominant < -_REST, positions.bulk < -_REST
    codes = np.select([dominant & bulk, bulk, dominant], [0, 1, 2], 3) + np.where(positions.critical > 0, 4, 0)
    unknown = np.isnan(positions.critical) | np.isnan(positions.dominant) | np.isnan(positions.bulk)
    codes[unknown] = _INDEX["undefined"]
    codes[positions.at_rest] = _INDEX["equilibrated"]
    codes[:, unstable] = _INDEX["unstable"]
    return codes.astype(np.uint8)
