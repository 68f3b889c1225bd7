"""Stages on disk: one file each, written whole or not at all, and never executed when it is read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from etastar.errors import InvalidFile
from etastar.files import write_bytes
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


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a stage's state.

    Raises:
        InvalidFile: The path cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """A stage's state; None where there is no file yet.

    Raises:
        InvalidFile: It cannot be read, or is something else.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise InvalidFile("out", str(path), "is not a regular file")
        state: Any = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    except OSError as error:
        raise InvalidFile("out", str(path), f"cannot be read: {error.strerror or error}") from None
    except InvalidFile:
        raise
    except Exception:  # torch names what is wrong with a damaged or hostile file in many ways
        raise InvalidFile("out", str(path), REMEDY) from None
    if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in _KINDS.items()):
        raise InvalidFile("out", str(path), REMEDY)
    if state["series"].ndim != 2 or state["series"].shape[1] != len(COLUMNS):
        raise InvalidFile("out", str(path), REMEDY)
    return state
