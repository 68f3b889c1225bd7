"""The plane of step size and batch size: what the next step does to the alignment and to the loss, cell by cell.

Each cell is a run of its own, from one start; expected moments at one time decide. They are affine in 1/b at
every step size (noise enters energies linearly), so that one pair of exact curves serves a whole column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import CurvatureMoments, SplitMoments, SubspaceMoments
from etastar.quadratic import Noise, Quadratic
from etastar.quadratic.arguments import finite_number, whole_number
from etastar.quadratic.exact import Decay
from etastar.quadratic.modes import read_state
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
from etastar.recipes.diagram.next_step import (
    CATEGORIES,
    DESCENDS,
    EQUILIBRATED,
    ROUND_OFF,
    Positions,
    category_codes,
    positions_of,
)
from etastar.report import COLOURS, Column, Table

__all__ = ["StepBatch", "step_batch"]

Array = npt.NDArray[np.float64]
_LAST_STEP = 10**15
_POWERS = ("zeroth", "first", "second")


_NONE = np.empty(0)
_LINES = {
    "critical": Border("critical_step_size", "η = η*", _NONE, _NONE, COLOURS["critical"], width=4.4),  # η_D runs near
    "dominant": Border("threshold_dominant", "η = η_D", _NONE, _NONE, COLOURS["dominant"]),
    "bulk": Border("threshold_bulk", "η = η_B", _NONE, _NONE, COLOURS["bulk"]),
    "full": Border("threshold_full", "η = η_full", _NONE, _NONE, COLOURS["full"], "dash"),
}


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """What the next step does, over step size and batch size.

    Attributes:
        problem: The quadratic, with the noise of `reference_batch`; at batch size b it is divided by b/reference_batch.
        start: The common start: {"gradient": …} or {"energy": …}, one state.
        title: What problem this is, in words.
        reference_batch: Batch size behind the noise of `problem`.
        warm_up: Step size and steps of a run at the reference batch that all share first.
        at: Steps that each cell takes on its own before the step that is judged; 0 judges the first one.
        step_sizes: From and to, logarithmic; 0.01 … 1.5 times the stability limit 2/λ₁ unless given.
        batch_sizes: From and to, logarithmic.
        cells: Columns and rows.

    Raises:
        InvalidArgument: A field out of range, no noise, or no positive curvature.
    """

    problem: Quadratic
    start: Mapping[str, Any]
    title: str = "A quadratic"
    reference_batch: float = 1.0
    warm_up: tuple[float, int] | None = None
    at: int = 0
    step_sizes: tuple[float, float] | None = None
    batch_sizes: tuple[float, float] = (1.0, 4096.0)
    cells: tuple[int, int] = (500, 500)

    def __post_init__(self) -> None:
        positive_curvature(self.problem)
        if finite_number("reference_batch", self.reference_batch) <= 0:
            raise InvalidArgument("reference_batch", self.reference_batch, "must be positive")
        if whole_number("at", self.at, least=0) > _LAST_STEP:
            raise InvalidArgument("at", self.at, f"must be at most {_LAST_STEP}")
        if self.warm_up is not None:
            object.__setattr__(self, "warm_up", _read_warm_up(self.warm_up))
        if self.step_sizes is None:
            limit = 2.0 / float(self.problem.spectrum.eigenvalues[0])
            object.__setattr__(self, "step_sizes", (0.01 * limit, 1.5 * limit))
        tiny = np.finfo(float).tiny
        object.__setattr__(self, "step_sizes", read_limits("step_sizes", self.step_sizes, "above 0", tiny))
        object.__setattr__(self, "batch_sizes", read_limits("batch_sizes", self.batch_sizes, "above 0", tiny))
        object.__setattr__(self, "cells", read_cells(self.cells))
        if set(self.start) not in ({"gradient"}, {"energy"}):
            raise InvalidArgument("start", list(self.start), 'must be {"gradient": …} or {"energy": …}')
        if self.energy.ndim > 1:
            raise InvalidArgument("start", "a batch of states", "must be a single one")

    @property
    def energy(self) -> Array:
        """Expected ‖g‖² per block where the cells part, ``(blocks,)``: after the warm-up, if there is one (theory §4).

        Raises:
            InvalidArgument: A warm-up at an unstable step size.
        """
        energy = read_state(self.problem.spectrum, self.start.get("gradient"), self.start.get("energy")).energy
        if self.warm_up is None:
            return energy
        decay, steps = Decay.of(self.problem.modes, self.warm_up[0]), self.warm_up[1]
        if not decay.stable:
            raise InvalidArgument("warm_up", self.warm_up, "its step size is unstable; use one below 2/λ₁")
        exponent = steps * decay.log_ratio
        return energy * np.exp(exponent) - decay.floor * np.expm1(exponent)


def _read_warm_up(value: Any) -> tuple[float, int]:
    try:
        step_size, steps = value
    except (TypeError, ValueError):
        raise InvalidArgument("warm_up", value, "must be a step size and a number of steps") from None
    if finite_number("warm_up", step_size) <= 0:
        raise InvalidArgument("warm_up", value, "its step size must be positive")
    return float(step_size), whole_number("warm_up", steps, least=0)


def step_batch(question: StepBatch, tile: int = 65_536) -> Diagram:
    """The diagram; `tile` cells are held at a time."""
    columns, rows = question.cells
    limits = read_limits("step_sizes", question.step_sizes, "above 0", np.finfo(float).tiny)
    x = axis("step_size", "step size η [parameter²/loss]", "log", limits, columns)
    y = axis("batch_size", "batch size b [samples]", "log", question.batch_sizes, rows)
    column = _columns(question, x.centres)
    positions = Positions(*(np.empty((rows, columns)) for _ in range(4)))
    for part in tiles(rows, columns, tile):
        split = column.at(question.reference_batch / y.centres[part])
        found = positions_of(split, x.centres)
        for name in _LINES:
            getattr(positions, name)[part] = getattr(found, name)
    limit = 2.0 / float(question.problem.spectrum.eigenvalues[0])
    codes = category_codes(positions, x.centres >= limit)
    borders = [_contour(name, x, y, getattr(positions, name)) for name in _LINES]
    borders.append(_upright(limit, x, y))
    return _told(question, x, y, codes, tuple(borders), positions)


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Moments at the chosen time, per step size: of the start alone, of noise alone at the reference batch."""

    quiet: SplitMoments
    loud: SplitMoments

    def at(self, noise: Array) -> SplitMoments:
        """The moments at these multiples of the reference noise, ``(noise, step sizes)``."""
        scale = noise[:, None]

        def part(quiet: SubspaceMoments, loud: SubspaceMoments) -> SubspaceMoments:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                pairs = [(getattr(quiet.signal, p), getattr(loud.signal, p)) for p in _POWERS]
                signal = CurvatureMoments(*(start + scale * added for start, added in pairs))
                return SubspaceMoments(signal, CurvatureMoments(*(scale * getattr(loud.noise, p) for p in _POWERS)))

        return SplitMoments(part(self.quiet.dominant, self.loud.dominant), part(self.quiet.bulk, self.loud.bulk))


def _columns(question: StepBatch, step_sizes: Array) -> _Columns:
    problem, times = question.problem, [question.at]
    start, still = question.energy, np.zeros(problem.spectrum.eigenvalues.size)
    noiseless = Quadratic(problem.spectrum, Noise.isotropic(0.0))
    quiet = [noiseless.expected(energy=start, step_size=eta, times=times).split for eta in step_sizes.tolist()]
    loud = [problem.expected(energy=still, step_size=eta, times=times).split for eta in step_sizes.tolist()]
    return _Columns(SplitMoments.stack(quiet)[:, 0], SplitMoments.stack(loud)[:, 0])


def _contour(name: str, x: Axis, y: Axis, place: Array) -> Border:
    """Where η crosses a threshold, between the centres of cells; not where rest leaves only round-off."""
    from contourpy import contour_generator

    field = np.ma.masked_where(~np.isfinite(place) | (np.abs(place) < ROUND_OFF), place)
    lines = contour_generator(np.log(x.centres), np.log(y.centres), field).lines(0.0)
    pieces = [np.vstack([np.exp(np.asarray(line)), [[np.nan, np.nan]]]) for line in lines]
    path = np.concatenate(pieces) if pieces else np.empty((0, 2))
    return replace(_LINES[name], x=path[:, 0], y=path[:, 1])


def _upright(limit: float, x: Axis, y: Axis) -> Border:
    """The stability limit, where it is on the map."""
    inside = bool(x.edges[0] <= limit <= x.edges[-1])
    place, height = (np.full(2, limit), y.edges[[0, -1]]) if inside else (np.empty(0), np.empty(0))
    return Border("stability_limit", "η = 2/λ₁", place, height, COLOURS["exact"], "dot")


def _crossing(places: Array, centres: Array) -> float:
    """The smallest step size at which a row passes from below a threshold to above it; NaN where it does not."""
    up = np.flatnonzero((places[:-1] < -ROUND_OFF) & (places[1:] > ROUND_OFF))
    if up.size == 0:
        return float("nan")
    i, logs = int(up[0]), np.log(centres)
    return float(np.exp(logs[i] - places[i] * (logs[i + 1] - logs[i]) / (places[i + 1] - places[i])))


def _told(
    question: StepBatch, x: Axis, y: Axis, codes: npt.NDArray[np.uint8], borders: tuple[Border, ...], p: Positions
) -> Diagram:
    picked = np.unique(np.linspace(0, y.centres.size - 1, 5).round().astype(int)).tolist()
    found = [[_crossing(getattr(p, name)[row], x.centres) for name in _LINES] for row in picked]
    rows = [
        [f"{y.centres[row]:.4g}", *(f"{value:.3g}" if np.isfinite(value) else "–" for value in values)]
        for row, values in zip(picked, found, strict=True)
    ]
    heads = [("b", "batch size of the row"), ("η*", "critical step size"), ("η_D", "dominant loss threshold")]
    heads += [("η_B", "bulk loss threshold"), ("η_full", "threshold of the whole update")]
    where = "smallest step size on the map at which a row of cells crosses it; – where none does"
    columns = [Column(name, text if name == "b" else f"{text}: {where}") for name, text in heads]
    shared = "" if question.warm_up is None else " after {1:,} shared steps at η = {0:g}".format(*question.warm_up)
    when = f"the first step{shared}" if question.at == 0 else f"the step that follows {question.at:,} steps of each run"
    title = f"{question.title}: {when}, over step size and batch size"
    one = CellMap("next_step", f"What {when} does", codes, CATEGORIES, borders=borders)
    settings: dict[str, Any] = {"at": question.at, "reference_batch": float(question.reference_batch)}
    settings["warm_up"] = None if question.warm_up is None else list(question.warm_up)
    return Diagram(
        "step-batch",
        title,
        x,
        y,
        (one,),
        f"{_finding(one, question.at)} {_moved(rows)}".strip(),
        _READING_FIRST if question.at == 0 else _READING_LATER,
        settings | {"equilibrated_within": EQUILIBRATED} | described(question.problem.spectrum),
        (Table(columns, rows, "Thresholds along five rows of the map"),),
    )


def _finding(one: CellMap, at: int) -> str:
    """How the stable part of the map divides."""
    stable = 1.0 - one.share("unstable")
    if stable == 0:
        return "Every step size on the map is unstable (η ≥ 2/λ₁)."
    bulk_only = one.share("falls_bulk", "rises_bulk") / stable
    rises = one.share(*(f"rises_{kind}" for kind in DESCENDS)) / stable
    rest = one.share("equilibrated") / stable
    said = [f"Of the stable part of the map, as drawn, {bulk_only:.0%} lowers the loss in the [[bulk]] only"]
    said.append(f"in {rises:.0%} the next step raises the [[alignment]]")
    if at:
        said.append(f"{rest:.0%} has equilibrated, which is where [[critical step size|η*]] and all thresholds equal η")
    return ", ".join(said) + "."


def _moved(rows: list[list[str]]) -> str:
    """How far the batch size moves η_D, from rows as in the table."""
    known = [(row[0], row[2]) for row in rows if row[2] != "–"]
    if len(known) < 2:
        return ""
    (low, short), (high, long) = known[0], known[-1]
    return f"[[dominant threshold|η_D]] goes from {short} at b = {low} to {long} at b = {high}."


_READING_FIRST = (
    "Left of η* the step lowers the alignment, right of it the step raises it; between η_D and η_B only the bulk "
    "gains, and the dominant subspace pays for it. Where a line slants, noise sets it: a larger batch moves the step "
    "that you may take. Where it is upright, curvature does, and only a smaller step helps. A subspace within 1 % of "
    "its threshold counts as at rest, not as descending."
)
_READING_LATER = (
    "Every cell is its own run, so a line here is where a run meets its own threshold. In the equilibrated part "
    "η = η* = η_D = η_B for every stable step: those ratios say that the run has come to rest, not that its step is "
    "too large; a smaller step or a larger batch would lower the loss further. A subspace within 1 % of its threshold "
    "counts as at rest, not as descending."
)
