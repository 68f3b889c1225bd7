"""English prose that every Python has: the help topics of the standard library, as character sequences.

The first nine tenths of the text, topics in alphabetical order, train; the rest is held out. The text differs a
little between Python versions, the codes do not: printable ASCII, the line break, and one code for all else.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch

from etastar.errors import InvalidArgument
from etastar.recipes.networks.network import Samples

__all__ = ["CONTEXT", "VOCABULARY", "load_text"]

CONTEXT = 32
VOCABULARY = 97
_TRAINING, _HELD_OUT = 1000, 500


def load_text() -> tuple[Samples, Samples]:
    """1,000 training and 500 held-out sequences of 32 characters, each with the characters that follow.

    Sequences are spread evenly over their part of the text and do not overlap.

    Raises:
        InvalidArgument: A Python without its help topics.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        remedy = "needs the help topics of the standard library, pydoc_data, which this Python was built without"
        raise InvalidArgument("recipe", "text-transformer", remedy) from None
    codes = encode("".join(topics[name] for name in sorted(topics)))
    cut = len(codes) * 9 // 10
    return _sequences(codes[:cut], _TRAINING), _sequences(codes[cut:], _HELD_OUT)


def encode(text: str) -> torch.Tensor:
    """Codes of the characters, ``(n,)``: 0 for others, 1 for the line break, 2 to 96 for space to tilde."""
    points = torch.tensor(np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64))
    printable = torch.where((points >= 32) & (points < 127), points - 30, 0)
    return torch.where(points == 10, 1, printable)


def _sequences(codes: torch.Tensor, number: int) -> Samples:
    starts = torch.arange(number) * (len(codes) - 1 - CONTEXT) // (number - 1)
    windows = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]
