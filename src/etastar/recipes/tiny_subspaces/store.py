"""Stages on disk: the file of each, as `etastar.recipes.states` keeps them, and what makes it one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from etastar.errors import InvalidFile
from etastar.recipes import states
from etastar.recipes.states import save_state
from etastar.recipes.tiny_subspaces.stage import COLUMNS

__all__ = ["REMEDY", "load_state", "save_state"]

REMEDY = "is no stage of this experiment; delete it, and it is run again"
_KINDS: dict[str, type] = {
    "step": int,
    "average": float,
    "ended": bool,
    "model": dict,
    "optimizer": dict,
    "tracker": dict,
    "generator": torch.Tensor,
    "series": torch.Tensor,
    "measured": list,
}


def load_state(path: Path) -> dict[str, Any] | None:
    """A stage's state; None where there is no file yet.

    Raises:
        InvalidFile: It cannot be read, or is something else.
    """
    state = states.load_state(path, _KINDS, REMEDY)
    if state is not None and not _sound(state["series"], state["step"]):
        raise InvalidFile("out", str(path), REMEDY)
    return state


def _sound(series: torch.Tensor, step: int) -> bool:
    """Whether these are the rows of a stage that came to a step."""
    form = series.ndim == 2 and series.shape[1] == len(COLUMNS) and series.dtype == torch.float64
    return form and len(series) <= step and bool(series[:, 0].isfinite().all())
