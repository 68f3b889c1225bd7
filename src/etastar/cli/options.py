"""Kinds of options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from etastar.errors import InvalidArgument

__all__ = ["Flag", "OptionalPath", "check_seed"]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
_SEEDS = 1 << 62  # PyTorch takes 64 bits; room for streams of their own beside a seed


def check_seed(seed: int) -> None:
    """Refuse a seed outside 0 … 2^62 − 1."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")
    if seed >= _SEEDS:
        raise InvalidArgument("seed", seed, f"must be below 2^62 = {_SEEDS}")
