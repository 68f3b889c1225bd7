"""The plane of alignment and eigenvalue ratio, for two levels: the regime, and whether η_D lies below η_B.

The gradient energy and the noise are fixed, so that one picture shows both borders, θ† and θ_loss, and the
conditioning that guarantees η_D < η_B whatever the rest of the spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.criteria import Regime, critical_step_size, loss_border, loss_thresholds, regime_border
from etastar.errors import InvalidArgument
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.quadratic import guaranteed_ratio
from etastar.quadratic.arguments import finite_number, whole_number
from etastar.recipes.diagram.cells import (
    Axis,
    Border,
    Category,
    CellMap,
    Diagram,
    axis,
    read_cells,
    read_limits,
    tiles,
)
from etastar.report import COLOURS, Column, Table

__all__ = ["AlignmentRatio", "alignment_ratio"]

Array = npt.NDArray[np.float64]
_RANGE = 1e50  # of ratios and relative noise, so that no moment overflows
_CATEGORIES = (
    Category("low_guaranteed", "LOW, and η_D < η_B", "LOW\nη_D < η_B", "#e3f2f1"),
    Category("low", "LOW, but η_B ≤ η_D", "LOW\nη_B ≤ η_D", "#7fbfba"),
    Category("high", "HIGH (then η_B ≤ η_D)", "HIGH\nη_B ≤ η_D", "#ecc468"),
    Category("other", "neither: round-off at the border", "", "#8a8a8a"),
)


@dataclass(frozen=True, slots=True, eq=False)
class AlignmentRatio:
    """Regimes of a two-level quadratic with isotropic noise, over alignment and eigenvalue ratio.

    Attributes:
        dimension: d.
        rank: k.
        gradient_energy: G = ‖g‖², [loss²/parameter²].
        noise: Variance σ² of the gradient noise per coordinate, the same unit; only σ²/G matters.
        alignments: From and to, inside 0 … 1.
        ratios: From and to of λ_k/λ_{k+1}, logarithmic, from 1.
        cells: Columns and rows.

    Raises:
        InvalidArgument: A field out of range.
    """

    dimension: int = 500
    rank: int = 50
    gradient_energy: float = 100.0
    noise: float = 0.25
    alignments: tuple[float, float] = (0.0, 1.0)
    ratios: tuple[float, float] = (1.0, 100.0)
    cells: tuple[int, int] = (500, 500)

    def __post_init__(self) -> None:
        size, k = whole_number("dimension", self.dimension, least=2), whole_number("rank", self.rank)
        if not 0 < k < size:
            raise InvalidArgument("rank", k, f"must be at least 1 and less than the dimension {size}")
        for name in ("gradient_energy", "noise"):
            if finite_number(name, getattr(self, name)) <= 0:
                raise InvalidArgument(name, getattr(self, name), "must be positive")
        if not 1.0 / _RANGE < self.relative_noise * size < _RANGE:
            raise InvalidArgument(
                "noise", self.noise, f"its energy over ‖g‖² must be within {1 / _RANGE:g} … {_RANGE:g}"
            )
        low, high = read_limits("alignments", self.alignments, "within 0 … 1", 0.0, 1.0 + np.finfo(float).eps)
        object.__setattr__(self, "alignments", (low, high))
        object.__setattr__(
            self, "ratios", read_limits("ratios", self.ratios, f"from 1 on, below {_RANGE:g}", 1.0, _RANGE)
        )
        object.__setattr__(self, "cells", read_cells(self.cells))

    @property
    def relative_noise(self) -> float:
        """σ²/G, on which alone the regimes depend."""
        return self.noise / self.gradient_energy


def alignment_ratio(question: AlignmentRatio, tile: int = 65_536) -> Diagram:
    """The diagram; `tile` cells are held at a time."""
    columns, rows = question.cells
    x = axis("alignment", "alignment θ", "linear", question.alignments, columns)
    y = axis("ratio", "eigenvalue ratio λ_k/λ_(k+1)", "log", question.ratios, rows)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for part in tiles(rows, columns, tile):
        codes[part] = _codes(_moments(question, x.centres, y.centres[part, None]))
    low, high = question.ratios
    # Closer together near the lowest ratio, where the borders may run across the whole map.
    borders = _borders(question, np.union1d(y.edges, low + (high - low) * np.geomspace(1e-9, 1.0, 1000)))
    return _told(question, CellMap("regime", "Two levels", codes, _CATEGORIES, borders=borders), x, y)


def _moments(question: AlignmentRatio, alignment: Array, ratio: Array) -> SplitMoments:
    """The moments at bulk eigenvalue 1 and dominant eigenvalue `ratio`, in units of G; broadcast."""

    def part(energy: Array, size: int, eigenvalue: Array) -> SubspaceMoments:
        noise, square = question.relative_noise * size, eigenvalue**2
        signal = CurvatureMoments(energy, energy * eigenvalue, energy * square)
        return SubspaceMoments(signal, CurvatureMoments(np.asarray(noise), noise * eigenvalue, noise * square))

    bulk = part(1.0 - alignment, question.dimension - question.rank, np.ones_like(ratio))
    return SplitMoments(part(alignment, question.rank, ratio), bulk)


def _codes(split: SplitMoments) -> npt.NDArray[np.uint8]:
    regime, bounds = critical_step_size(split).regime, loss_thresholds(split)
    low, below = regime == Regime.LOW, bounds.dominant < bounds.bulk
    return np.select([low & below, low, (regime == Regime.HIGH) & ~below], [0, 1, 2], 3).astype(np.uint8)


def _borders(question: AlignmentRatio, ratio: Array) -> tuple[Border, ...]:
    """θ†, θ_loss at each ratio, and the guaranteed ratio at alignments; parts outside the map are left out."""
    middle = _moments(question, np.asarray(0.5), ratio)
    alignment = np.linspace(*question.alignments, 2001)[1:-1]
    needed = guaranteed_ratio(question.dimension, question.rank, question.relative_noise, alignment, 1.0 - alignment)
    inside = (needed > question.ratios[0]) & (needed <= question.ratios[1])

    def within(theta: Array) -> Array:
        low, high = question.alignments
        return np.where((theta >= low) & (theta <= high), theta, np.nan)

    regime, loss = within(regime_border(middle)), within(loss_border(middle))
    enough = np.where(inside, needed, np.nan)
    return (
        Border("regime_border", "θ†: LOW to the left, HIGH to the right", regime, ratio, COLOURS["critical"]),
        Border("loss_border", "θ_loss: η_D < η_B to the left", loss, ratio, COLOURS["dominant"], width=4.4),
        Border(
            "guaranteed_ratio",
            "enough for η_D < η_B in every spectrum",
            alignment,
            enough,
            COLOURS["exact"],
            "dot",
        ),
    )


def _told(question: AlignmentRatio, one: CellMap, x: Axis, y: Axis) -> Diagram:
    part = question.noise * question.dimension
    settings = {"dimension": question.dimension, "rank": question.rank}
    return Diagram(
        "alignment-ratio",
        f"Two levels, d = {question.dimension:,}, k = {question.rank:,}: regimes over alignment and eigenvalue ratio",
        x,
        y,
        (one,),
        f"With a noise energy σ²d = {part:.4g} against a gradient energy ‖g‖² = {question.gradient_energy:.4g}, "
        f"{one.share('low_guaranteed', 'low'):.0%} of the map is LOW (a step below [[critical step size|η*]] lowers "
        f"the [[alignment]], one above raises it) and {one.share('low_guaranteed'):.0%} has η_D < η_B besides; the "
        "rest is HIGH, where every step lowers it.",
        _READING,
        settings | {"gradient_energy": float(question.gradient_energy), "noise": float(question.noise)},
        (_table(question),),
    )


def _table(question: AlignmentRatio) -> Table:
    ratio = np.geomspace(*question.ratios, 6)[1:]
    middle = _moments(question, np.asarray(0.5), ratio)
    rows = [
        [f"{r:.4g}", f"{low:.4g}", f"{below:.4g}"]
        for r, low, below in zip(ratio, regime_border(middle), loss_border(middle), strict=True)
    ]
    columns = [
        Column("λ_k/λ_(k+1)", "eigenvalue ratio"),
        Column("θ†", "alignment below which the regime is LOW"),
        Column("θ_loss", "alignment below which η_D < η_B"),
    ]
    return Table(columns, rows, "Borders at five ratios")


_READING = (
    "η_D < η_B implies LOW: θ_loss lies left of θ† at every ratio, so there is no fourth region. The dotted curve is "
    "the ratio that suffices for every spectrum at this state; for two levels it is also necessary, which is why it "
    "runs along θ_loss. It grows without bound as θ → 1: no conditioning makes η_D < η_B hold at all states."
)
