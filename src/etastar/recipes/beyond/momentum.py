"""Heavy ball and Nesterov: curves beside runs, and the two steps of plain SGD that heavy ball is compared with.

η/(1 + β) gives the same stationary alignment, exactly; η/(1 − β) the same course where noise limits the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import etastar
from etastar.quadratic import SGD, HeavyBall, Nesterov, Noise, Quadratic
from etastar.recipes.beyond.agreement import Array, energy_scores
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table
from etastar.report.figures import Mark

__all__ = ["momentum"]

_BETA = 0.9
_BATCHES = np.array([1, 4, 16, 64, 256, 1024, 4096, 16384, 65536])
_COLOURS = {"SGD": COLOURS["exact"], "heavy ball": COLOURS["dominant"], "Nesterov": COLOURS["bulk"]}
_OPTIMIZERS = {"SGD": SGD(), "heavy ball": HeavyBall(_BETA), "Nesterov": Nesterov(_BETA)}


def momentum(run: PaperRuns, replicas: int, seed: int) -> Section:
    """Exact curves beside sampled runs; η/(1 + β) and η/(1 − β), where each holds and where not."""
    curves, worst = _curves(run, replicas, seed)
    settled, gap, apart = _stationary(run.problem)
    border, ends = _borders(run.problem)
    course = _course(run)
    noisy, curved = course[0][1], course[-1][1]
    return Section(
        "momentum",
        "Beyond the paper: momentum",
        f"At β = {_BETA:g} the [[alignment]] comes to rest after some hundred steps instead of ten thousand. Heavy "
        "ball ends at exactly the [[stationary alignment]] of SGD at η/(1 + β), with (1 + β)/(1 − β) times its loss. It "  # noqa: E501
        "allows "
        "steps (1 + β) times as long with large batches only: at b = 1 the longest stable step is "
        f"{ends[0]:.2f} of SGD's.",
        "Two rules of thumb, each right for something. In its course and its loss heavy ball is SGD at η/(1 − β) as long "  # noqa: E501
        "as ηλ₁ ≪ (1 − β)²: the small steps that small batches force. Where curvature limits the step, and for the "
        "stationary alignment always, it is SGD at η/(1 + β). Nesterov's momentum damps steep directions more than "
        "flat ones: no rescaled step of SGD has its alignment.",
        [
            Check(
                f"heavy ball and Nesterov: exact curves agree with sampled ones ({replicas} runs each)",
                worst <= 4.0,
                f"largest |[[z]]| of the energies of both subspaces = {worst:.2f}, limit 4",
            ),
            Check(
                "heavy ball: θ∞(η, β) = θ∞ of SGD at η/(1 + β), for three β across all stable steps",
                gap < 1e-12,
                f"largest difference {gap:.1g}",
            ),
            Check("Nesterov: not so", apart > 0.01, f"largest difference {apart:.3f}"),
            Check(
                "the largest stable step goes from (1 − β) to (1 + β) times SGD's as batches grow",
                abs(ends[0] / (1 - _BETA) - 1) < 0.05 and abs(ends[1] / (1 + _BETA) - 1) < 0.01,
                f"{ends[0]:.4f} at b = {_BATCHES[0]}, {ends[1]:.4f} at b = {_BATCHES[-1]:,}",
            ),
            Check(
                "the loss follows SGD at η/(1 − β) for small steps, not for large ones",
                noisy < 0.05 and curved > 0.5,
                f"largest difference {noisy:.1%} at ηλ₁/(1 − β) = {course[0][0]:g}, {curved:.0%} at {course[-1][0]:g}",
            ),
        ],
        [Figure("momentum", f"The paper's quadratic, r = {run.ratio}, β = {_BETA:g}.", [curves, settled, border])],
        [_table(course)],
        {"worst_z": worst, "stationary_gap": gap, "nesterov_gap": apart, "largest_stable": ends, "course": course},
    )


def _curves(run: PaperRuns, replicas: int, seed: int) -> tuple[Panel, float]:
    """The alignment of mean energies in time, and the worst |z| of the two with momentum."""
    fine = np.unique(np.geomspace(1, 30_000, 240).astype(np.int64))
    few = np.unique(np.geomspace(1, 30_000, 16).astype(np.int64))
    marks: list[Mark] = []
    worst = 0.0
    for number, (name, optimizer) in enumerate(_OPTIMIZERS.items()):
        start: dict[str, Any] = {"gradient": run.gradients[0], "step_size": STEP_SIZE, "optimizer": optimizer}
        marks.append(Line(fine, run.problem.expected(**start, times=fine).alignment, name, _COLOURS[name], 2.0))
        if name == "SGD":
            continue
        paths = run.problem.sample(**start, times=few, replicas=replicas, seed=seed + 300 + number)
        worst = max(worst, energy_scores(paths, run.problem.expected(**start, times=few)))
        dominant, bulk = paths.dominant_energy.mean(axis=0), paths.bulk_energy.mean(axis=0)
        label = "sampled" if name == "Nesterov" else ""
        marks.append(Points(few, dominant / (dominant + bulk), label))
    title = f"η = {STEP_SIZE:g}: exact curves, sampled runs"
    return Panel("step t", "alignment θ", marks, title, x_scale="log", y_range=(-0.02, 1.02)), worst


def _stationary(problem: Quadratic) -> tuple[Panel, float, float]:
    """θ∞ over η/(1 + β), with the largest distance from SGD's of heavy ball and of Nesterov."""
    top = float(problem.spectrum.eigenvalues[0])
    steps = np.linspace(0.02, 0.98, 25) * 2.0 / top
    plain = np.asarray(etastar.alignment(problem.stationary(steps)))
    marks: list[Mark] = [Line(steps * top, plain, "SGD, heavy ball: any β", COLOURS["exact"], 2.2)]
    gap = 0.0
    for beta in (0.5, 0.9, 0.99):
        theta = np.asarray(etastar.alignment(problem.stationary(steps * (1.0 + beta), optimizer=HeavyBall(beta))))
        gap = max(gap, float(np.max(np.abs(theta - plain))))
        if beta == _BETA:
            marks.append(Points(steps[::3] * top, theta[::3], f"heavy ball, β = {beta:g}", COLOURS["dominant"]))
    product = steps * (1.0 + _BETA)
    stable = product < 2.0 * (1.0 + _BETA) / (1.0 + 2.0 * _BETA) / top
    nesterov = np.asarray(etastar.alignment(problem.stationary(product[stable], optimizer=Nesterov(_BETA))))
    marks.append(Line(steps[stable] * top, nesterov, f"Nesterov, β = {_BETA:g}", COLOURS["bulk"], 1.8, "dash"))
    panel = Panel("ηλ₁/(1 + β)", "θ∞", marks, "Stationary alignment over η/(1 + β)")
    return panel, gap, float(np.max(np.abs(nesterov - plain[stable])))


def _borders(problem: Quadratic) -> tuple[Panel, list[float]]:
    """Largest stable step of heavy ball over SGD's with Gaussian mini-batches; at the ends for β = 0.9."""
    marks: list[Mark] = []
    ends: list[float] = []
    plain = _largest(problem, SGD())
    for beta, colour in ((0.5, COLOURS["sampled"]), (_BETA, COLOURS["dominant"])):
        ratio = _largest(problem, HeavyBall(beta)) / plain
        marks.append(Line(_BATCHES, ratio, f"β = {beta:g}", colour, 2.2))
        marks += [Reference(1.0 - beta), Reference(1.0 + beta, "y", "1 ± β" if beta == _BETA else "")]
        ends = [float(ratio[0]), float(ratio[-1])]
    title = "Longest stable step over SGD's"
    return Panel("batch size b", "ratio", marks, title, x_scale="log", y_scale="log"), ends


def _largest(problem: Quadratic, optimizer: SGD | HeavyBall) -> Array:
    noises = [Noise.minibatch_least_squares(size, 1.0) for size in _BATCHES.tolist()]
    models = [Quadratic(problem.spectrum, noise) for noise in noises]
    return np.array([model.stability(1e-6, optimizer=optimizer).largest_step for model in models])


def _course(run: PaperRuns) -> list[list[float]]:
    """Heavy ball against SGD at η/(1 − β): largest relative difference of the loss along a run, and loss at rest."""
    top = float(run.problem.spectrum.eigenvalues[0])
    times = np.unique(np.geomspace(1, 1e10, 500).astype(np.int64))
    rows: list[list[float]] = []
    for product in (0.001, 0.01, 0.1, 1.0):
        start: dict[str, Any] = {"gradient": run.gradients[0], "times": times}
        plain = run.problem.expected(**start, step_size=product / top).loss
        heavy = run.problem.expected(**start, step_size=product * (1 - _BETA) / top, optimizer=HeavyBall(_BETA)).loss
        rows.append([product, float(np.max(np.abs(heavy / plain - 1.0))), float(heavy[-1] / plain[-1])])
    return rows


def _table(course: list[list[float]]) -> Table:
    columns = [
        Column("ηλ₁/(1 − β)", "the step of SGD that heavy ball at η is held against, over curvature"),
        Column("course", "largest relative difference of the expected losses, any time from step 1 on"),
        Column("loss at rest", "stationary loss of heavy ball over that of SGD"),
    ]
    rows = [[f"{row[0]:g}", f"{row[1]:.1%}", f"{row[2]:.4f}"] for row in course]
    return Table(columns, rows, f"Heavy ball at η, β = {_BETA:g}, against plain SGD at η/(1 − β)")
