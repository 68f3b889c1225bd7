"""The plane of step size and momentum: where heavy ball comes to rest, in alignment and in loss.

Two quantities of one stationary state follow two different laws: the alignment is a function of η/(1 + β) alone,
the loss of small steps one of η/(1 − β). The trade between step size and momentum depends on which is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic import Quadratic
from etastar.recipes.diagram.cells import (
    Axis,
    Border,
    CellMap,
    Diagram,
    axis,
    described,
    positive_curvature,
    read_cells,
    read_limits,
    tiles,
)
from etastar.report import COLOURS, Column, Label, Table

__all__ = ["StepMomentum", "step_momentum"]

Array = npt.NDArray[np.float64]
_MOST_WORK = 10**10  # cells times blocks
_LEVELS = (0.1, 0.25, 0.5, 0.8)  # of the stability limit of SGD: where the drawn curves start at β = 0

_BETA = 0.9  # of the table


@dataclass(frozen=True, slots=True, eq=False)
class StepMomentum:
    """Where heavy ball comes to rest, over step size and momentum.

    Attributes:
        problem: The quadratic with its noise; all eigenvalues ≥ 0.
        title: What problem this is, in words.
        step_sizes: From and to; 0 … 4/λ₁ unless given, all that any momentum makes stable.
        momenta: From and to, 0 ≤ β < 1.
        cells: Columns and rows.

    Raises:
        InvalidArgument: A field out of range, no noise, negative curvature, or too many cells for so many eigenvalues.
    """

    problem: Quadratic
    title: str = "A quadratic"
    step_sizes: tuple[float, float] | None = None
    momenta: tuple[float, float] = (0.0, 0.99)
    cells: tuple[int, int] = (500, 500)

    def __post_init__(self) -> None:
        spectrum = positive_curvature(self.problem).spectrum
        if spectrum.eigenvalues[-1] < 0:
            lowest = float(spectrum.eigenvalues[-1])
            raise InvalidArgument("eigenvalues", lowest, "must not be negative: nothing comes to rest there")
        if self.step_sizes is None:
            object.__setattr__(self, "step_sizes", (0.0, 4.0 / float(spectrum.eigenvalues[0])))
        object.__setattr__(self, "step_sizes", read_limits("step_sizes", self.step_sizes, "from 0 on", 0.0))
        object.__setattr__(self, "momenta", read_limits("momenta", self.momenta, "from 0 on, below 1", 0.0, 1.0))
        object.__setattr__(self, "cells", read_cells(self.cells))
        columns, rows = self.cells
        if columns * rows * spectrum.eigenvalues.size > _MOST_WORK:
            most = _MOST_WORK // spectrum.eigenvalues.size
            raise InvalidArgument("cells", self.cells, f"must be at most {most:,} together for so many eigenvalues")


def step_momentum(question: StepMomentum, tile: int = 50_000) -> Diagram:
    """The diagram; about `tile` numbers, cells times blocks, are held at a time."""
    columns, rows = question.cells
    limits = read_limits("step_sizes", question.step_sizes, "from 0 on", 0.0)
    x = axis("step_size", "step size η [parameter²/loss]", "linear", limits, columns)
    y = axis("momentum", "momentum β", "linear", question.momenta, rows)
    alignment, loss = np.empty(rows * columns), np.empty(rows * columns)
    eta, beta = (grid.ravel() for grid in np.meshgrid(x.centres, y.centres))
    for part in tiles(eta.size, question.problem.spectrum.eigenvalues.size, tile):
        alignment[part], loss[part] = _at_rest(question.problem, eta[part], beta[part])
    return _told(question, x, y, alignment.reshape(rows, columns), loss.reshape(rows, columns))


def _at_rest(problem: Quadratic, eta: Array, beta: Array) -> tuple[Array, Array]:
    """Alignment and loss of heavy ball's stationary state, NaN where it has none (T16; theory §7).

    X = ακ²(1 + β)/((1 − β)(2(1 + β) − α)) is the gradient energy of a mode, α = ηλ; X/(2λ) its loss.
    """
    modes = problem.modes
    product = eta[:, None] * modes.eigenvalues
    gain = (1.0 + beta) / (1.0 - beta)
    room = 2.0 * (1.0 + beta[:, None]) - product
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = modes.variances / room
        energy = product * spread
        dominant, bulk = modes.total(energy)
        # λ = 0 carries no loss: its noise moves x, which the loss does not see.
        loss = 0.5 * eta * gain * np.where(modes.eigenvalues > 0, spread, 0.0).sum(axis=-1)
        stable = (room[:, 0] > 0) & (eta > 0)
        alignment = np.where(stable & (dominant + bulk > 0), dominant / (dominant + bulk), np.nan)
    return alignment, np.where(stable, loss, np.nan)


def _told(question: StepMomentum, x: Axis, y: Axis, alignment: Array, loss: Array) -> Diagram:
    limit = 2.0 / float(question.problem.spectrum.eigenvalues[0])
    beta = y.edges
    border = Border("stability_limit", "stable left of η λ₁ = 2(1 + β)", limit * (1.0 + beta), beta, COLOURS["exact"])
    equal = "equal θ∞: η/(1 + β) constant"
    small = "equal loss for small steps: η/(1 − β) constant"
    same_alignment = Border("equal_alignment", equal, *_fan(limit, beta, x, 1.0), COLOURS["critical"])
    same_loss = Border("equal_small_loss", small, *_fan(limit, beta, x, -1.0), COLOURS["accent"], "dash")
    unstable = _corner(limit, x, y)
    with np.errstate(divide="ignore"):
        tens = np.where(loss > 0, np.log10(loss), np.nan)
    maps = (
        CellMap("alignment", "Stationary alignment θ∞", alignment, (), "θ∞", (border, same_alignment), unstable),
        CellMap(
            "loss", "Stationary loss", tens, (), "log₁₀ expected loss", (border, same_alignment, same_loss), unstable
        ),
    )
    return Diagram(
        "step-momentum",
        f"{question.title}: where heavy ball comes to rest, over step size and momentum",
        x,
        y,
        maps,
        _finding(question.problem, limit),
        _READING,
        described(question.problem.spectrum),
        (_trade_table(question.problem, limit),),
    )


def _fan(limit: float, beta: Array, x: Axis, sign: float) -> tuple[Array, Array]:
    """Curves η = s(1 ± β) from s at β = 0, one after the other, as far as they are stable and on the map."""
    pieces: list[Array] = []
    for level in _LEVELS:
        eta = level * limit * (1.0 + sign * beta)
        eta = np.where((eta < limit * (1.0 + beta)) & (eta <= x.edges[-1]) & (eta >= x.edges[0]), eta, np.nan)
        pieces += [np.stack([eta, beta]), np.full((2, 1), np.nan)]
    both = np.concatenate(pieces, axis=1)
    return both[0], both[1]


def _corner(limit: float, x: Axis, y: Axis) -> tuple[Label, ...]:
    """The word for what is left blank, in the lower right corner where there is room for it."""
    place, height = (edges[0] + part * (edges[-1] - edges[0]) for edges, part in ((x.edges, 0.84), (y.edges, 0.12)))
    return (Label(float(place), float(height), "unstable"),) if place > 1.1 * limit * (1.0 + height) else ()


def _trade_table(problem: Quadratic, limit: float) -> Table:
    """What each of the two trades keeps, at a few steps of plain SGD."""
    starts = limit * np.array(_LEVELS)
    alignment, loss = _at_rest(problem, starts, np.zeros(starts.size))
    rows: list[list[str]] = []
    for i, level in enumerate(_LEVELS):
        steps, beta = starts[i] * np.array([1.0 + _BETA, 1.0 - _BETA]), np.full(2, _BETA)
        theta, cost = _at_rest(problem, steps, beta)
        numbers = [alignment[i], theta[0], theta[1], cost[0] / loss[i], cost[1] / loss[i]]
        rows.append([f"{level:g}", *(f"{value:.4g}" if np.isfinite(value) else "–" for value in numbers)])
    same, small = f"η = s(1 + β), β = {_BETA:g}", f"η = s(1 − β), β = {_BETA:g}"
    columns = [
        Column("s λ₁/2", "step size s of plain SGD, in units of its stability limit 2/λ₁"),
        Column("θ∞ of SGD", "its stationary alignment"),
        Column("θ∞, larger step", f"heavy ball at {same}"),
        Column("θ∞, smaller step", f"heavy ball at {small}"),
        Column("loss, larger step", f"stationary loss of heavy ball at {same}, over that of SGD at s"),
        Column("loss, smaller step", f"stationary loss of heavy ball at {small}, over that of SGD at s"),
    ]
    return Table(columns, rows, f"Plain SGD at s against heavy ball at β = {_BETA:g}: {same[:12]}, or {small[:12]}")


def _finding(problem: Quadratic, limit: float) -> str:
    ends, _ = _at_rest(problem, limit * np.array([1e-6, 0.5]), np.zeros(2))
    return (
        f"With momentum steps are stable up to 2(1 + β)/λ₁. The [[stationary alignment]] depends on η/(1 + β) alone: "
        f"{ends[0]:.3g} for small steps, {ends[1]:.3g} at half the stability limit, one at the limit. The stationary "
        "loss of small steps depends on η/(1 − β) instead."
    )


_READING = (
    "Momentum does not change which alignments can be reached, only the step at which each is: along the solid "
    "curves heavy ball and plain SGD share their stationary alignment, along the dashed ones, for small steps, their "
    "loss. Where curvature limits the step, momentum allows a step larger by 1 + β, and pays (1 + β)/(1 − β) in "
    "stationary loss; where noise limits it, keep η/(1 − β)."
)
