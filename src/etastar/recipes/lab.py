"""One question to the laboratory, as the command line asks it: curve, η*_t, regimes and phases of a quadratic.

Builds the problem from options, a file or a real data set, and tells the answer as text, JSON or a page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import etastar
from etastar.errors import InvalidArgument, InvalidFile
from etastar.files import parse_json, read_text, write_together
from etastar.quadratic import Curve, Noise, Phases, Quadratic, Spectrum
from etastar.recipes.real_least_squares import load_least_squares
from etastar.report import (
    COLOURS,
    Column,
    Figure,
    Line,
    Panel,
    Reference,
    Section,
    Shade,
    Table,
    render_html,
    render_png,
)

__all__ = ["LabAnswer", "LabQuestion", "ask", "read_spectrum", "write_answer"]

_LAST_STEP = 10**15
_MAX_DIMENSION = 10_000_000


@dataclass(frozen=True, slots=True)
class LabQuestion:
    """What is asked; the options of ``etastar lab``."""

    dimension: int
    rank: int
    ratio: float
    two_level: tuple[float, float] | None
    data: Literal["digits", "diabetes"] | None
    spectrum: Path | None
    batch_size: int
    ridge: float
    step_size: float
    noise: float
    times: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class LabAnswer:
    """The exact answer.

    Attributes:
        title: What was computed, in words.
        curve: The expected curve from one start.
        phases: Its turns, limit and bounds.
        dimension: d.
        rank: k.
        ratio: λ_k/λ_{k+1}.
        stability_limit: 2/λ₁.
    """

    title: str
    curve: Curve
    phases: Phases
    dimension: int
    rank: int
    ratio: float
    stability_limit: float

    def rows(self, most: int = 16) -> list[list[str]]:
        """Formatted rows of the curve, thinned to `most`."""
        curve, step, bounds = self.curve, self.curve.critical_step_size, self.curve.loss_thresholds
        last = curve.times.size - 1
        turns = np.flatnonzero(np.isin(curve.times, [t for t, _ in self.phases.turns]))
        with np.errstate(divide="ignore", invalid="ignore"):  # a threshold may be zero, or none
            over_dominant, over_bulk = curve.step_size / bounds.dominant, curve.step_size / bounds.bulk
        picked = np.union1d(np.linspace(0, last, min(most, last + 1)).round().astype(int), turns)
        picked = picked[np.isfinite(curve.loss[picked])]  # beyond float64 there is nothing to show
        return [
            [
                f"{curve.times[i]:,}",
                _shown(curve.alignment[i]),
                _shown(step.value[i]),
                step.regime[i].name,
                _shown(over_dominant[i]),
                _shown(over_bulk[i]),
                _shown(curve.loss[i]),
            ]
            for i in picked.tolist()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where a number does not exist."""
        curve, step, bounds, phases = self.curve, self.curve.critical_step_size, self.curve.loss_thresholds, self.phases
        return {
            "title": self.title,
            "dimension": self.dimension,
            "rank": self.rank,
            "ratio": _plain(self.ratio),
            "step_size": curve.step_size,
            "stability_limit": _plain(self.stability_limit),
            "times": curve.times.tolist(),
            "alignment": [_plain(x) for x in curve.alignment],
            "loss": [_plain(x) for x in curve.loss],
            "critical_step_size": [_plain(x) for x in step.value],
            "regime": [regime.name for regime in step.regime],
            "threshold_dominant": [_plain(x) for x in bounds.dominant],
            "threshold_bulk": [_plain(x) for x in bounds.bulk],
            "threshold_full": [_plain(x) for x in bounds.full],
            "phases": {
                "turns": [list(turn) for turn in phases.turns],
                "complete": phases.complete,
                "alignment_start": _plain(phases.alignment_start),
                "alignment_min": _plain(phases.alignment_min),
                "alignment_limit": _plain(phases.alignment_limit),
                "turn_bounds": list(phases.turn_bounds) if phases.turn_bounds else None,
                "t_star": phases.t_star,
                "t_star_sharp": phases.t_star_sharp,
                "stability": phases.stability,
                "shape": phases.shape,
            },
        }

    def section(self) -> Section:
        """The answer as a section of a report."""
        curve, phases = self.curve, self.phases
        x = curve.times + 1
        turns = [Reference(t + 1, "x", f"turn at t = {t:,}") for t, _ in phases.turns]
        theta = [Line(x, curve.alignment, "exact θ", COLOURS["exact"], 2.2), *turns]
        if np.isfinite(phases.alignment_limit):
            theta.append(Reference(phases.alignment_limit, "y", "stationary θ∞", COLOURS["dominant"]))
        ratio = [
            Line(x, np.asarray(curve.critical_step_size.value) / curve.step_size, "η*ₜ/η", COLOURS["critical"], 2.2),
            Reference(1.0, "y", "η"),
            *_regime_stripes(curve),
        ]
        panels = [
            Panel("step t + 1", "alignment θ", list(theta), "Alignment", x_scale="log", y_range=(-0.02, 1.02)),
            Panel("step t + 1", "η*ₜ/η", list(ratio), "Critical step size over η", x_scale="log", y_scale="log"),
            Panel(
                "step t + 1",
                "loss",
                [Line(x, curve.loss, "expected loss", COLOURS["full"], 2.2)],
                "Loss",
                x_scale="log",
                y_scale="log",
            ),
        ]
        return Section(
            "lab",
            self.title,
            f"The [[alignment]] {phases.shape}.",
            figures=[Figure("lab", "Closed form of the expected run.", panels)],
            tables=[Table(COLUMNS, self.rows(40))],
            data=self.to_json(),
        )


COLUMNS = [
    Column("t", "steps taken"),
    Column("θ", "alignment of expected energies"),
    Column("η*", "critical step size of the next step; – where the regime has none"),
    Column("regime", "how θ responds to the step size", numeric=False),
    Column("η/η_D", "step over the dominant loss threshold; 1 means equilibrated"),
    Column("η/η_B", "step over the bulk loss threshold"),
    Column("loss", "expected loss above the minimum"),
]


def ask(question: LabQuestion) -> LabAnswer:
    """Build the problem, and answer.

    Raises:
        InvalidArgument: An option out of range, or two sources of a spectrum.
        InvalidFile: A spectrum file that is none.
    """
    title, problem, start = _build(question)
    phases = problem.phases(**start, step_size=question.step_size)
    times = _times(question.times, [t for t, _ in phases.turns])
    curve = problem.expected(**start, step_size=question.step_size, times=times)
    spectrum = problem.spectrum
    top = float(spectrum.eigenvalues[0])
    limit = 2.0 / top if top > 0 else float("inf")
    return LabAnswer(title, curve, phases, spectrum.dimension, spectrum.rank, spectrum.ratio, limit)


def write_answer(answer: LabAnswer, out: str | Path) -> list[Path]:
    """Write ``curve.csv``, ``lab.png`` and ``lab.html`` into a directory, all or none; returns their paths."""
    section = answer.section()
    page = render_html("etastar lab", "Exact, in closed form.", [section])
    return write_together(
        out,
        {
            "curve.csv": answer.curve.to_csv,
            "lab.png": lambda path: path.write_bytes(render_png(section.figures[0])),
            "lab.html": lambda path: path.write_text(page, encoding="utf-8"),
        },
    )


def read_spectrum(path: Path) -> Spectrum:
    """A spectrum from JSON: {"eigenvalues": […], "rank": k, "multiplicities": […]}; the last may be left out."""
    try:
        fields = parse_json(read_text(path, "spectrum"))
    except InvalidFile:
        raise
    except ValueError as error:
        raise InvalidFile("spectrum", str(path), str(error)) from None
    allowed = ("eigenvalues", "rank", "multiplicities")
    if not isinstance(fields, dict):
        raise InvalidFile("spectrum", str(path), f"must be an object with {', '.join(allowed)}")
    unknown = next((name for name in fields if name not in allowed), None)
    if unknown is not None:
        raise InvalidFile("spectrum", unknown, f"is an unknown key; allowed: {', '.join(allowed)}")
    missing = next((name for name in allowed[:2] if name not in fields), None)
    if missing is not None:
        raise InvalidFile("spectrum", str(path), f"has no {missing!r}")
    for name in ("eigenvalues", "multiplicities"):
        values = fields.get(name, [])
        if not isinstance(values, list) or not all(type(x) in (int, float) for x in values):
            raise InvalidFile(f"spectrum.{name}", values, "must be a list of numbers")
    counts: Any = fields.get("multiplicities")
    return Spectrum(fields["eigenvalues"], fields["rank"], counts)


def _build(question: LabQuestion) -> tuple[str, Quadratic, dict[str, Any]]:
    given = {"two-level": question.two_level, "data": question.data, "spectrum": question.spectrum}
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) > 1:
        raise InvalidArgument("--" + ", --".join(sources), "together", "give one source of the spectrum")
    if question.data is not None:
        case = load_least_squares(question.data, _rank(question, 1), question.batch_size, question.ridge)
        title = f"Ridge regression on {case.name}, batch {case.batch_size}, ridge {case.ridge:g}, from w = 0"
        return title, case.problem, {"gradient": case.start}
    if question.spectrum is not None:
        name = os.fsencode(question.spectrum.name).decode("utf-8", "replace")  # a name may be any bytes
        spectrum, title = read_spectrum(question.spectrum), f"Spectrum of {name}"
    elif question.two_level is not None:
        spectrum = Spectrum.two_level(question.dimension, _rank(question, 50), *question.two_level)
        title = f"Two levels, {question.two_level[0]:g} and {question.two_level[1]:g}"
    else:
        if question.dimension > _MAX_DIMENSION:
            raise InvalidArgument("dimension", question.dimension, f"at most {_MAX_DIMENSION} without --two-level")
        spectrum = Spectrum.paper(question.ratio, question.dimension, _rank(question, 50))
        title = f"The paper's spectrum at r = {question.ratio:g}"
    if not (np.isfinite(question.noise) and question.noise >= 0):
        raise InvalidArgument("noise", question.noise, "a variance must be finite and not negative")
    problem = Quadratic(spectrum, Noise.isotropic(question.noise))
    return f"{title}, noise variance {question.noise:g}", problem, _start(spectrum, question.seed)


def _start(spectrum: Spectrum, seed: int) -> dict[str, Any]:
    """Gradient energies of x₀ ~ N(0, I): a χ² of each block's multiplicity."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")
    rng = np.random.default_rng(seed)
    if np.all(spectrum.multiplicities == 1):
        return {"gradient": spectrum.eigenvalues * rng.standard_normal(spectrum.dimension)}
    return {"energy": spectrum.eigenvalues**2 * 2.0 * rng.standard_gamma(spectrum.multiplicities / 2.0)}


def _rank(question: LabQuestion, default: int) -> int:
    return question.rank or default


def _times(times: tuple[int, ...], turns: list[int]) -> npt.NDArray[np.int64]:
    """One number is the last step, shown on a logarithmic grid with the turns; several are the times themselves."""
    outside = next((t for t in times if not 0 <= t <= _LAST_STEP), None)
    if outside is not None:
        raise InvalidArgument("times", outside, f"must be between 0 and {_LAST_STEP}")
    if len(times) != 1:
        return np.array(times, dtype=np.int64)
    last = times[0]
    if last < 1:
        raise InvalidArgument("times", last, "the last step must be at least 1")
    grid = np.geomspace(1, last + 1, 400).round().astype(np.int64) - 1
    inside = [turn for turn in turns if turn <= last]
    return np.unique(np.concatenate([np.arange(min(last, 30) + 1), grid, [last], np.array(inside, dtype=np.int64)]))


def _regime_stripes(curve: Curve) -> list[Shade]:
    """Shade the times at which the next step raises the alignment."""
    change = np.asarray(etastar.alignment_change(curve.split, curve.step_size))
    rising = np.concatenate([[False], change > 0, [False]])
    starts, ends = np.flatnonzero(~rising[:-1] & rising[1:]), np.flatnonzero(rising[:-1] & ~rising[1:])
    x = curve.times + 1
    return [
        Shade(float(x[a]), float(x[min(b, x.size - 1)]), "θ rises" if i == 0 else "")
        for i, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
    ]


def _shown(value: Any) -> str:
    return f"{float(value):.5g}" if np.isfinite(value) else "–"


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
