"""What the gauge holds of a step in progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Micro", "Seen", "Source"]


@dataclass(slots=True)
class Seen:
    """The batch gradient at the present point, reduced to its products."""

    versions: tuple[tuple[int, int], ...]
    inverse: Any  # 1 / scale
    energy: Tensor | None = None  # ‖g‖²
    along: Tensor | None = None  # ⟨u, g⟩, u of the step before
    second: Tensor | None = None  # ⟨g', g⟩, g' of the point before
    here: Tensor | None = None  # ⟨g', g⟩, g' of this point
    micro: Tensor | None = None  # m0 over micro-batches


@dataclass(slots=True)
class Micro:
    """Micro-batches of the step so far."""

    scatter: Tensor  # Σ‖w_i g_i‖²
    weight: float
    squares: float
    count: int
    versions: tuple[tuple[int, int], ...]

    def add(self, energy: Tensor, weight: float, versions: tuple[tuple[int, int], ...]) -> None:
        """Take one more micro-batch."""
        self.scatter = self.scatter + energy
        self.weight += weight
        self.squares += weight**2
        self.count += 1
        self.versions = versions

    def goes_on(self, versions: tuple[tuple[int, int], ...]) -> bool:
        """The same gradients were added to since; otherwise they were zeroed and another step began."""
        pairs = zip(self.versions, versions, strict=True)
        return all(old == (0, 0) or (old[0] == new[0] and old[1] < new[1]) for old, new in pairs)

    def signal(self, energy: Tensor, inverse: Any, versions: tuple[tuple[int, int], ...]) -> Tensor | None:
        """U-statistic of m0; None with one micro-batch, or where the last one was not announced."""
        if self.count < 2 or versions != self.versions:
            return None
        return (energy - self.scatter * inverse * inverse) / (1.0 - self.squares / self.weight**2)


@dataclass(slots=True)
class Source:
    """The function behind g', to be called again after the step."""

    closure: Callable[[], Any]
    model: torch.nn.Module | None
    seed: int
    loss: Tensor
