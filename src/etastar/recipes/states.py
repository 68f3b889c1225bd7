"""States of unfinished runs on disk: written whole or not at all, and never executed when they are read.

A run that was killed goes on from its last state, and ends where it would have ended.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from etastar.errors import InvalidFile
from etastar.files import write_bytes

__all__ = ["load_state", "save_state"]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values.

    Raises:
        InvalidFile: The path cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, kinds: dict[str, type], remedy: str) -> dict[str, Any] | None:
    """A state; None where there is no file yet.

    Args:
        path: Of the file.
        kinds: Entries that it must have, and of which type each must be.
        remedy: What to do about a file that is something else.

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
        raise InvalidFile("out", str(path), remedy) from None
    if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise InvalidFile("out", str(path), remedy)
    return state
