"""What the gauge remembers: sums over blocks of consecutive steps, one column per parameter.

Rows of a block arrive as tensors on the device and are reduced there when it closes; rows that are not finite are
left out and counted. The host sees them once, when a summary asks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["FEATURES", "Block", "Recorder"]

Array = npt.NDArray[np.float64]

# Every feature is a mean over the rows of its kind. u: update of the step; g the batch gradient there, g⁺ the next
# one; g' the second one at the same point, g'⁺ on that same second batch after the step; η the optimizer's lr.
_KINDS: dict[str, tuple[str, ...]] = {
    "step": ("u·g⁺", "u·g⁺/η", "u·g⁺/η²", "g·g"),
    "event": ("u·g'", "g·g'", "g·g'/η", "g⁺·g'", "g⁺·g'/η", "u·u", "g·g at g'", "not ηg"),
    "pair": ("u·δ", "u·δ/η", "u·δ/η²", "trapezoid gap", "Pu·HQu"),  # δ = g' − g'⁺, noise of the second batch cancels
    "micro": ("m0", "m0·η", "g·g at m0"),  # U-statistic over micro-batches
}
FEATURES: dict[str, int] = {name: i for i, name in enumerate(name for kind in _KINDS.values() for name in kind)}
_KIND_OF = np.array([i for i, kind in enumerate(_KINDS.values()) for _ in kind])


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Sums over one block of steps.

    Attributes:
        end: Steps taken when it closed.
        steps: Steps in it.
        names: Parameters, by column; one more column is the dominant subspace.
        groups: Parameter group of each, by name.
        has_basis: A basis was there all along.
        table: ``(F, L + 2)``: sums per feature, the number of finite rows last. A tensor until it is fetched.
        seen: Rows of each kind, finite or not.
    """

    end: int
    steps: int
    names: tuple[str, ...]
    groups: tuple[str, ...]
    has_basis: bool
    table: Tensor | Array
    seen: tuple[int, ...]


class Recorder:
    """Collects rows and closes blocks of them.

    Args:
        keep: Blocks kept; older ones are forgotten.
    """

    def __init__(self, keep: int) -> None:
        self.blocks: deque[Block] = deque(maxlen=keep)
        self.rows: dict[str, list[tuple[Tensor, ...]]] = {kind: [] for kind in _KINDS}

    def add(self, kind: str, *row: Tensor) -> None:
        """One row: its raw vectors, ``(L + 1,)`` each."""
        self.rows[kind].append(row)

    def close(
        self, end: int, steps: int, names: tuple[str, ...], groups: tuple[str, ...], has_basis: bool, wide: torch.dtype
    ) -> None:
        """Reduce the rows so far to one block; a block may be without rows."""
        if steps > 0:
            parts = [_reduce(kind, self.rows[kind], len(names) + 1, wide) for kind in _KINDS]
            tables = [part for kind, part in zip(_KINDS, parts, strict=True) if self.rows[kind]]
            table = torch.cat([part.to(tables[0].device) if tables else part for part in parts])
            seen = tuple(len(rows) for rows in self.rows.values())
            self.blocks.append(Block(end, steps, names, groups, has_basis, table, seen))
        self.rows = {kind: [] for kind in _KINDS}

    def last(self, count: int | None) -> list[Block]:
        """The last blocks, their tables on the host: one transfer per device and shape for all that are new."""
        new: dict[Any, list[int]] = {}
        for index, block in enumerate(self.blocks):
            if isinstance(block.table, Tensor):
                new.setdefault((block.table.device, block.table.shape), []).append(index)
        for indices in new.values():
            tables: list[Any] = [self.blocks[i].table for i in indices]
            for i, table in zip(indices, torch.stack(tables).cpu().numpy().astype(np.float64), strict=True):
                old = self.blocks[i]
                self.blocks[i] = Block(old.end, old.steps, old.names, old.groups, old.has_basis, table, old.seen)
        blocks = list(self.blocks)
        return blocks if count is None else blocks[max(0, len(blocks) - count) :]

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it back."""
        blocks = [
            [b.end, b.steps, list(b.names), list(b.groups), b.has_basis, torch.as_tensor(b.table).clone(), list(b.seen)]
            for b in self.blocks
        ]
        rows = {kind: [[t.clone() for t in row] for row in rows] for kind, rows in self.rows.items()}
        return {"blocks": blocks, "rows": rows}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state`."""
        self.blocks.clear()
        for end, steps, names, groups, has_basis, table, seen in state["blocks"]:
            self.blocks.append(Block(end, steps, tuple(names), tuple(groups), has_basis, table.clone(), tuple(seen)))
        self.rows = {k: [tuple(t.to(device, copy=True) for t in r) for r in state["rows"][k]] for k in _KINDS}


def _reduce(kind: str, rows: list[tuple[Tensor, ...]], width: int, wide: torch.dtype) -> Tensor:
    features = len(_KINDS[kind])
    if not rows:
        return torch.zeros(features, width + 1, dtype=wide)
    raw = [torch.stack(column).to(wide) for column in zip(*rows, strict=True)]
    values = torch.stack(_derive(kind, raw), 1)
    good = torch.isfinite(values).flatten(1).all(1)
    sums = torch.where(good[:, None, None], values, torch.zeros((), dtype=wide, device=values.device)).sum(0)
    return torch.cat([sums, good.sum().to(wide).expand(features, 1)], 1)


def _derive(kind: str, raw: list[Tensor]) -> list[Tensor]:
    def over(value: Tensor, step: Tensor) -> Tensor:
        return torch.where(step == 0, torch.zeros_like(value), value / step)  # such a window is never "plain"

    if kind == "step":
        c, energy, step = raw
        return [c, over(c, step), over(over(c, step), step), energy]
    if kind == "event":
        d, e, x, update, energy, wrong, step = raw
        return [d, e, over(e, step), x, over(x, step), update, energy, wrong]
    if kind == "pair":
        k, gap, step, coupling = raw
        return [k, over(k, step), over(over(k, step), step), gap, coupling]
    m0, energy, step = raw
    return [m0, m0 * step, energy]


def assemble(blocks: list[Block]) -> tuple[Array, Array, tuple[str, ...], dict[str, str]]:
    """The blocks as arrays: sums ``(n, F, L + 1)``, counts ``(n, F)``, names and the group of each name.

    A parameter that was not there yet moved by nothing: zeros. Blocks without basis have NaN for the subspace.
    """
    names = tuple(dict.fromkeys(name for block in blocks for name in block.names))
    groups = {name: group for block in blocks for name, group in zip(block.names, block.groups, strict=True)}
    column = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(blocks), len(FEATURES), len(names) + 1))
    counts = np.zeros((len(blocks), len(FEATURES)))
    for index, block in enumerate(blocks):
        table = np.asarray(block.table)
        sums[index][:, [column[name] for name in block.names]] = table[:, :-2]
        sums[index, :, -1] = table[:, -2] if block.has_basis else np.nan
        counts[index] = table[:, -1]
    return sums, counts, names, groups


def dropped(blocks: list[Block], counts: Array) -> int:
    """Rows left out because something in them was not finite."""
    first = [int(np.flatnonzero(kind == _KIND_OF)[0]) for kind in range(len(_KINDS))]
    return int(sum(sum(block.seen) for block in blocks) - counts[:, first].sum())
