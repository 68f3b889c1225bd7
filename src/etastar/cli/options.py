"""Kinds of options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from etastar.errors import InvalidArgument

__all__ = ["Flag", "OptionalPath", "check_seed"]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


def check_seed(seed: int) -> None:
    """Refuse a negative seed."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")
