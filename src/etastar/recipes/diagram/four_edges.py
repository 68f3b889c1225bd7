"""Four edges on one axis: the curvatures that could limit a step, against 2/η, as the batch size grows.

The numbers come from elsewhere; here they are put on one axis and told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import real_array
from etastar.report import COLOURS, Column, Figure, Line, Panel, Section, Table

__all__ = ["EDGES", "four_edges_section"]

Array = npt.NDArray[np.float64]
EDGES = {
    "largest_eigenvalue": ("λ₁", "largest eigenvalue of the Hessian: a full-batch step is unstable above 2/η"),
    "batch_sharpness": ("batch sharpness", "E⟨g_B, H_B g_B⟩/E‖g_B‖², curvature along mini-batch gradients"),
    "threshold_full": ("2/η_full", "the step that keeps the expected loss, from moments, as a curvature"),
    "smallest_raising": ("2/(smallest loss-raising step)", "the smallest step that raises the loss, as a curvature"),
}
_COLOURS = [COLOURS["exact"], COLOURS["sampled"], COLOURS["full"], COLOURS["dominant"]]
_SIZE = (6.4, 4.4)
_DASHES: list[Literal["solid", "dash", "dot"]] = ["solid", "solid", "dash", "dot"]


def four_edges_section(batch_sizes: Any, rows: Mapping[str, Any], *, step_size: Any) -> Section:
    """A section with the four edges over the batch size.

    Args:
        batch_sizes: b, rising, ``(B,)``.
        rows: By name, one number or ``(B,)`` each; NaN where there is none. ``largest_eigenvalue`` and
            ``batch_sharpness`` are curvatures [loss/parameter²]; ``threshold_full`` and ``smallest_raising`` are
            step sizes [parameter²/loss] and drawn as 2/step.
        step_size: η in use, one number or ``(B,)``.

    Raises:
        InvalidArgument: An edge missing or unknown, a shape that does not fit, or a number that is not positive.
    """
    batch = _positive("batch_sizes", batch_sizes)
    if batch.ndim != 1 or batch.size < 2 or np.any(~np.isfinite(batch)) or np.any(np.diff(batch) <= 0):
        raise InvalidArgument("batch_sizes", batch_sizes, "must be at least two, finite and rising")
    if set(rows) != set(EDGES):
        raise InvalidArgument("rows", sorted(rows), f"must be {', '.join(EDGES)}")
    edges = {name: _along(name, rows[name], batch) for name in EDGES}
    for name in ("threshold_full", "smallest_raising"):
        edges[name] = 2.0 / edges[name]
    used = 2.0 / _along("step_size", step_size, batch)
    lines = [Line(batch, used, "2/η", COLOURS["accent"], 4.4)]  # below the others: an edge may lie on it
    lines += [
        Line(batch, edges[name], EDGES[name][0], colour, 2.2, dash)
        for name, colour, dash in zip(EDGES, _COLOURS, _DASHES, strict=True)
    ]
    panel = Panel("batch size b [samples]", "curvature [loss/parameter²]", lines, x_scale="log", y_scale="log")
    ratios = {name: edge / used for name, edge in edges.items()}
    return Section(
        "four-edges",
        "Four edges on one axis",
        _finding(batch, ratios),
        _READING,
        figures=[Figure("four_edges", "Curvatures that could limit a step, over the batch size.", [panel], size=_SIZE)],
        tables=[_table(batch, ratios)],
        data={"batch_size": batch.tolist(), **{name: _plain(edge) for name, edge in (edges | {"used": used}).items()}},
    )


def _finding(batch: Array, ratios: Mapping[str, Array]) -> str:
    """Which edge is nearest to 2/η at either end."""
    said: list[str] = []
    for place in (0, -1):
        known = {name: ratio[place] for name, ratio in ratios.items() if np.isfinite(ratio[place])}
        if known:
            name = min(known, key=lambda name: abs(np.log(known[name])))
            said.append(f"at b = {batch[place]:g} {EDGES[name][0]} is nearest to 2/η, {known[name]:.3g} of it")
    return f"{_capital('; '.join(said))}." if said else "None of the four edges is known at either end."


def _table(batch: Array, ratios: Mapping[str, Array]) -> Table:
    columns = [Column("b", "batch size")]
    columns += [Column(f"{short} / (2/η)", f"{meaning}; over 2/η") for short, meaning in EDGES.values()]
    rows = [
        [f"{b:g}", *(f"{ratio[i]:.4g}" if np.isfinite(ratio[i]) else "–" for ratio in ratios.values())]
        for i, b in enumerate(batch.tolist())
    ]
    return Table(columns, rows, "Each edge over 2/η: above 1 the step in use is beyond it")


def _along(name: str, value: Any, batch: Array) -> Array:
    array = _positive(name, value)
    if array.shape not in ((), batch.shape):
        raise InvalidArgument(name, array.shape, f"must be one number, or one for each of {batch.size} batch sizes")
    return np.broadcast_to(array, batch.shape).copy()


def _positive(name: str, value: Any) -> Array:
    array = real_array(name, value)
    if np.any(array <= 0) or np.any(np.isinf(array)):
        raise InvalidArgument(name, value, "must be positive and finite, or NaN where there is none")
    return array


def _plain(values: Array) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_READING = (
    "An edge above 2/η means that the step in use is beyond it. The four agree only where gradient noise is "
    "negligible; at small batches they answer different questions, and which one training settles at tells what "
    "limits the step."
)
