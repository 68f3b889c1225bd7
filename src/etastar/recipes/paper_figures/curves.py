"""Figures 1, 2 and 5: the runs themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from etastar.quadratic import Phases
from etastar.recipes.paper_figures.setting import STEP_SIZE, PaperRuns
from etastar.report import COLOURS, Check, Figure, Line, Panel, Reference, Section, sequence

__all__ = ["all_ratios", "four_ratios", "two_phases"]

Array = npt.NDArray[np.float64]
Runs = Mapping[int, PaperRuns]
_STEP_LABEL = "step t + 1"  # so that t = 0 has a place on a logarithmic axis


def two_phases(run: PaperRuns, replicas: int, seed: int) -> Section:
    """Figure 1: the alignment at r = 100, with the critical step size that decides where it goes."""
    start = run.gradients[0]
    phases = run.problem.phases(gradient=start, step_size=STEP_SIZE)
    dense = run.problem.expected(gradient=start, step_size=STEP_SIZE, times=np.arange(3001))
    rising = np.diff(dense.alignment) > 0
    said = ~(np.asarray(dense.critical_step_size.value)[:-1] > STEP_SIZE)
    agree = int(np.sum(rising == said))
    some = [1, 3, 10, 27, 100, 300, 1000, 3000, 10_000, 30_000]
    worst = _worst_z(run, start, some, replicas, seed)
    turn = phases.turns[0][0]
    return Section(
        "figure-1",
        "Figure 1: two phases at r = 100",
        f"At constant step the [[alignment]] falls from {phases.alignment_start:.4f} to {phases.alignment_min:.4f} at "
        f"t = {turn}, then climbs to {phases.alignment_limit:.4f}. The [[critical step size]] decides it: θ falls "
        "while η < η*ₜ and rises once η > η*ₜ.",
        "η*ₜ dips below η and returns to it: at the stationary moments η* equals η at every constant step, so a step "
        "that looks critical late in training says “equilibrated”, not “too large”.",
        [
            Check("exactly one turn, a minimum", [kind for _, kind in phases.turns] == ["min"], f"turn at t = {turn}"),
            Check(
                "the sign of η − η*ₜ gives the direction of θ at every step",
                agree == rising.size,
                f"{agree} of {rising.size} steps",
            ),
            Check(
                f"[[sampled]] energies meet the [[exact]] ones ({replicas} runs, {len(some)} times, both subspaces)",
                worst <= 4.0,
                f"largest |[[z]]| = {worst:.2f}, limit 4",
            ),
        ],
        [
            Figure(
                "figure-1",
                "r = 100: exact curve (seed 42) over one sampled path per seed.",
                _two_phase_panels(run, phases),
            )
        ],
        data={
            "turn": turn,
            "alignment_start": phases.alignment_start,
            "alignment_min": phases.alignment_min,
            "alignment_limit": phases.alignment_limit,
            "worst_z": worst,
        },
    )


def _two_phase_panels(run: PaperRuns, phases: Phases) -> list[Panel]:
    curve, times, turn = run.exact, run.exact.times, phases.turns[0][0]
    critical = np.asarray(curve.critical_step_size.value)[0]
    theta = Panel(
        _STEP_LABEL,
        "alignment θ",
        [
            *_paths(run),
            Line(times + 1, curve.alignment[0], "exact, seed 42", COLOURS["exact"], 2.2),
            Reference(phases.alignment_limit, "y", "stationary alignment θ∞", COLOURS["dominant"]),
            Reference(turn + 1, "x", f"turn at t = {turn}", COLOURS["muted"]),
        ],
        "Alignment: falls, then rises",
        x_scale="log",
        y_range=(-0.02, 1.02),
    )
    step = Panel(
        _STEP_LABEL,
        "critical step size η*ₜ",
        [
            Line(times + 1, critical, "η*ₜ of the expected moments", COLOURS["critical"], 2.2),
            Reference(STEP_SIZE, "y", "step size η", COLOURS["exact"]),
            Reference(turn + 1, "x", "", COLOURS["muted"]),
        ],
        "Why: η below η*, then above",
        x_scale="log",
        y_scale="log",
    )
    zoom = Panel(
        _STEP_LABEL,
        "η*ₜ/η",
        [
            Line(times + 1, critical / STEP_SIZE, "η*ₜ/η", COLOURS["critical"], 2.2),
            Reference(1.0, "y", "step size η", COLOURS["exact"]),
            Reference(turn + 1, "x", "", COLOURS["muted"]),
        ],
        "The same around η",
        x_scale="log",
        y_range=(0.985, 1.015),
    )
    return [theta, step, zoom]


def four_ratios(runs: Runs) -> Section:
    """Figure 2: alignment and loss for four ratios."""
    shown = [r for r in (5, 20, 50, 200) if r in runs]
    colours = sequence(len(shown))
    alignment, loss = [], []
    for ratio, colour in zip(shown, colours, strict=True):
        run = runs[ratio]
        x = run.exact.times + 1
        alignment += [Line(x, run.sampled.alignment[0, 0], "", colour, 0.8, opacity=0.45)]
        alignment += [Line(x, run.exact.alignment[0], f"r = {ratio}", colour, 2.0)]
        loss += [Line(x, run.sampled.loss[0, 0], "", colour, 0.8, opacity=0.45)]
        loss += [Line(x, run.exact.loss[0], f"r = {ratio}", colour, 2.0)]
    panels = [
        Panel(_STEP_LABEL, "alignment θ", alignment, "Alignment", x_scale="log", y_range=(-0.02, 1.02)),
        Panel(_STEP_LABEL, "loss", loss, "Loss", x_scale="log", y_scale="log"),
    ]
    turns = {
        ratio: runs[ratio].problem.phases(gradient=runs[ratio].gradients[0], step_size=STEP_SIZE) for ratio in shown
    }
    phases = list(turns.values())
    return Section(
        "figure-2",
        "Figure 2: four ratios",
        "The larger λ_k/λ_{k+1}, the higher the [[stationary alignment]]; the loss falls through both phases, and the "
        "turn of the alignment leaves no mark on it.",
        checks=[
            Check(
                "two phases at each ratio",
                all([kind for _, kind in p.turns] == ["min"] for p in phases),
                ", ".join(f"r = {r}: t = {p.turns[0][0]}" for r, p in turns.items()),
            ),
            Check(
                "θ∞ increases with the ratio",
                bool(np.all(np.diff([p.alignment_limit for p in phases]) > 0)),
                ", ".join(f"{p.alignment_limit:.3f}" for p in phases),
            ),
        ],
        figures=[Figure("figure-2", "Exact (thick) and one sampled path (thin), seed 42.", panels)],
        data={str(r): {"turn": p.turns[0][0], "alignment_limit": p.alignment_limit} for r, p in turns.items()},
    )


def all_ratios(runs: Runs) -> Section:
    """Figure 5: the curves of all ratios."""
    colours = sequence(len(runs))
    marks = [
        Line(run.exact.times + 1, run.exact.alignment[0], f"r = {ratio}", colour, 1.8)
        for (ratio, run), colour in zip(sorted(runs.items()), colours, strict=True)
    ]
    sampled = [
        Line(run.sampled.times + 1, run.sampled.alignment[0, 0], "", colour, 0.8, opacity=0.8)
        for (_, run), colour in zip(sorted(runs.items()), colours, strict=True)
    ]
    panels = [
        Panel(_STEP_LABEL, "alignment θ", marks, "Exact", x_scale="log", y_range=(-0.02, 1.02)),
        Panel(_STEP_LABEL, "alignment θ", sampled, "Sampled", x_scale="log", y_range=(-0.02, 1.02)),
    ]
    minima = [float(run.exact.alignment[0].min()) for _, run in sorted(runs.items())]
    return Section(
        "figure-5",
        f"Figure 5: all {len(runs)} ratios",
        "Every ratio shows the same two phases; a larger ratio makes the dip shallower and the plateau higher.",
        checks=[
            Check(
                "the dip is shallower at a larger ratio",
                bool(np.all(np.diff(minima) > 0)),
                f"least θ from {minima[0]:.4f} to {minima[-1]:.4f}",
            )
        ],
        figures=[Figure("figure-5", "Seed 42: exact curves, and one sampled path for each.", panels)],
        data={"ratio": sorted(runs), "alignment_min": minima},
    )


def _paths(run: PaperRuns) -> list[Line]:
    alignments = run.sampled.alignment[0]
    return [
        Line(run.sampled.times + 1, path, "sampled paths" if i == 0 else "", COLOURS["sampled"], 0.7, opacity=0.4)
        for i, path in enumerate(alignments)
    ]


def _worst_z(run: PaperRuns, start: Array, times: list[int], replicas: int, seed: int) -> float:
    """Largest |z| of sampled mean energies against the exact ones."""
    exact = run.problem.expected(gradient=start, step_size=STEP_SIZE, times=times)
    paths = run.problem.sample(gradient=start, step_size=STEP_SIZE, times=times, replicas=replicas, seed=seed + 100)
    worst = 0.0
    for seen, part in ((paths.dominant_energy, exact.split.dominant), (paths.bulk_energy, exact.split.bulk)):
        error = seen.std(axis=0, ddof=1) / np.sqrt(replicas)
        worst = max(worst, float(np.max(np.abs(seen.mean(axis=0) - part.signal.zeroth) / error)))
    return worst
