"""Three demonstrations of the criteria: one step against η*, the bulk-only interval, and the constant step.

Each prediction is made from moments alone and then sampled.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import etastar
from etastar.quadratic import Quadratic
from etastar.recipes.paper_figures import PaperRuns
from etastar.recipes.paper_figures.setting import STEP_SIZE
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table, sequence

__all__ = ["demonstrations"]

Array = npt.NDArray[np.float64]


def demonstrations(run: PaperRuns, quick: bool, seed: int) -> list[Section]:
    """All three, on the paper's quadratic at r = 100."""
    replicas = 2_000 if quick else 10_000
    return [
        alignment_against_step(run, replicas, seed),
        bulk_only_interval(run, replicas, seed),
        every_step_looks_critical(run),
    ]


def alignment_against_step(run: PaperRuns, replicas: int, seed: int) -> Section:
    """The change of alignment by one step against η/η*, at states along a run, predicted and sampled."""
    moments_of_the_run = (3, 15, 27, 600)
    path = run.problem.sample(
        gradient=run.gradients[0], step_size=STEP_SIZE, times=moments_of_the_run, seed=seed + 7, keep_gradient=True
    )
    states = _gradients(path)[0]
    ratios = np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    fine = np.linspace(0.05, 2.2, 120)
    panels, rows, scores = [], [], []
    resolved, right = 0, 0
    for number, (time, state) in enumerate(zip(moments_of_the_run, states, strict=True)):
        split = run.problem.moments(gradient=state)
        critical = float(etastar.critical_step_size(split).value)
        predicted = np.asarray(etastar.alignment_change(split, ratios * critical))
        measured, error = _one_step_alignment(run.problem, state, ratios * critical, replicas, seed + 50 * number)
        change = measured - float(etastar.alignment(split))
        z = (change - predicted) / error
        scores.append(float(np.max(np.abs(z))))
        clear = np.abs(predicted) > 4 * error
        resolved += int(np.sum(clear))
        right += int(np.sum(np.sign(change[clear]) == np.sign(predicted[clear])))
        rows.append(
            [
                str(time),
                f"{float(etastar.alignment(split)):.4f}",
                f"{critical:.5f}",
                f"{STEP_SIZE / critical:.3f}",
                f"{change[3]:+.5f} ± {error[3]:.5f}",
                f"{scores[-1]:.2f}",
            ]
        )
        marks = [
            Line(fine, etastar.alignment_change(split, fine * critical), "predicted", COLOURS["critical"], 2.0),
            Points(ratios, change, "sampled ± 2 s.e.", COLOURS["sampled"], 2 * error),
            Reference(0.0),
            Reference(1.0, "x"),
        ]
        panels.append(Panel("η/η*", "θ′ − θ", marks, f"t = {time}", legend=time == moments_of_the_run[0]))
    return Section(
        "one-step",
        "One step against η*",
        "From four states of a sampled run, the change of the [[alignment]] by one step of size η, predicted from the "
        "moments and sampled: it crosses zero at η = η*.",
        checks=[
            Check(
                f"predicted and sampled changes agree at {len(ratios) * len(rows)} steps ({replicas:,} runs each)",
                max(scores) <= 4.0,
                f"largest |[[z]]| = {max(scores):.2f}, limit 4",
            ),
            Check(
                "no resolved sign is predicted wrongly",
                right == resolved,
                f"{right} of {resolved} changes beyond 4 standard errors",
            ),
        ],
        figures=[Figure("one-step", "Change of alignment by one step against η/η*, r = 100.", panels)],
        tables=[
            Table(
                [
                    Column("t", "step of the run at which the state was taken"),
                    Column("θ", "alignment of that state"),
                    Column("η*", "its critical step size"),
                    Column("η/η*", "the run's own step in units of it"),
                    Column("change at η*", "sampled change of alignment at η = η*, ± standard error; exact value 0"),
                    Column("|z|", "largest deviation from the prediction over the seven steps, in standard errors"),
                ],
                rows,
            )
        ],
        data={"worst_z": scores},
    )


def bulk_only_interval(run: PaperRuns, replicas: int, seed: int) -> Section:
    """DSGD and BSGD at steps across (η_D, η_B): inside it the one raises and the other lowers the loss."""
    problem, time = run.problem, 300
    path = problem.sample(
        gradient=run.gradients[0], step_size=STEP_SIZE, times=[time], seed=seed + 11, keep_gradient=True
    )
    state = _gradients(path)[0, 0]
    split = problem.moments(gradient=state)
    bounds = etastar.loss_thresholds(split)
    low, high = float(bounds.dominant), float(bounds.bulk)
    steps = np.geomspace(0.3 * low, 3.0 * high, 11)
    before = float(np.sum(problem.modes.loss_weights * state**2))
    marks: list[Any] = []
    scores, pattern = [], []
    right, resolved = 0, 0
    fine = np.geomspace(steps[0], steps[-1], 120)
    sides: tuple[tuple[Literal["dominant", "bulk"], Any, str], ...] = (
        ("dominant", split.dominant, "DSGD"),
        ("bulk", split.bulk, "BSGD"),
    )
    for name, energy, label in sides:
        slope = float(energy.signal.zeroth)
        predicted = np.asarray(getattr(etastar.loss_change(split, steps), name)) / (steps * slope)
        change = np.empty(steps.size)
        error = np.empty(steps.size)
        for index, eta in enumerate(steps.tolist()):
            after = problem.simulate(
                gradient=state,
                step_size=eta,
                steps=1,
                record=[1],
                projection=name,
                replicas=replicas,
                seed=seed + index + (100 if name == "bulk" else 200),
            ).loss[:, 0]
            change[index] = (after.mean() - before) / (eta * slope)
            error[index] = after.std(ddof=1) / np.sqrt(replicas) / (eta * slope)
        z = (change - predicted) / error
        scores.append(float(np.max(np.abs(z))))
        clear = np.abs(predicted) > 4 * error
        right += int(np.sum(np.sign(change[clear]) == np.sign(predicted[clear])))
        resolved += int(np.sum(clear))
        inside = (steps > low) & (steps < high)
        pattern.append(bool(np.all((predicted[inside] > 0) == (name == "dominant"))))
        curve = np.asarray(getattr(etastar.loss_change(split, fine), name)) / (fine * slope)
        marks += [
            Line(fine, curve, f"{label} predicted", COLOURS[name], 2.0),
            Points(steps, change, f"{label} sampled ± 2 s.e.", COLOURS[name], 2 * error),
        ]
    marks += [
        Reference(0.0),
        Reference(low, "x", "η_D", COLOURS["dominant"]),
        Reference(high, "x", "η_B", COLOURS["bulk"]),
    ]
    panel = Panel(
        "step size η",
        "loss change/(η·‖Sg‖²)",
        marks,
        "Below zero the update lowers the loss",
        x_scale="log",
        y_range=(-1.15, 4.0),
    )
    inside_share, drawn = _share_inside(run, 400, seed)
    return Section(
        "bulk-only",
        "The bulk-only interval",
        f"At one state of the run (t = {time}) [[DSGD]] raises and [[BSGD]] lowers the loss for every step between "
        f"η_D = {low:.5f} and η_B = {high:.4f}; below, both lower it; above, both raise it.",
        "“The dominant update raises the loss” is true of single states: of "
        f"{drawn} states drawn from the stationary law, {inside_share:.0%} have the run's step inside their "
        "[[bulk-only interval]]. On average it is not: at the stationary moments η_D = η_B = η, and it is empty.",
        [
            Check(
                f"predicted and sampled loss changes agree at 11 steps ({replicas:,} runs each)",
                max(scores) <= 4.0,
                f"largest |[[z]]| = {max(scores):.2f}, limit 4",
            ),
            Check(
                "inside the interval DSGD raises and BSGD lowers the loss, outside not",
                right == resolved and all(pattern),
                f"{right} of {resolved} changes beyond 4 standard errors have the predicted sign",
            ),
            Check(
                "at the stationary moments the interval is empty",
                _stationary_gap(run.problem) < 1e-9,
                f"|η_B/η_D − 1| = {_stationary_gap(run.problem):.1g}",
            ),
        ],
        [Figure("bulk-only", "Loss change by one projected step, in units of its first-order decrease.", [panel])],
        data={"threshold_dominant": low, "threshold_bulk": high, "worst_z": scores, "share_inside": inside_share},
    )


def every_step_looks_critical(run: PaperRuns) -> Section:
    """The trap of a constant step: η/η_D settles at one for every step; η/η_B later, when the bulk settles."""
    steps = (0.0004, 0.002, 0.01)
    times = np.unique(np.geomspace(1, 1_000_000, 300).astype(np.int64))
    dominant_marks, bulk_marks, rows, ratios, behind, at_end = [], [], [], [], [], []
    for eta, colour in zip(steps, sequence(len(steps)), strict=True):
        bounds = run.problem.expected(gradient=run.gradients[0], step_size=eta, times=times).loss_thresholds
        dominant, bulk = eta / np.asarray(bounds.dominant), eta / np.asarray(bounds.bulk)
        settled = int(np.argmax(np.abs(dominant - 1) < 0.01))
        ratios.append(float(dominant[settled]))
        behind.append(float(bulk[settled]))
        at_end.append(float(bulk[-1]))
        dominant_marks.append(Line(times, dominant, f"η = {eta}", colour, 2.0))
        bulk_marks.append(Line(times, bulk, f"η = {eta}", colour, 2.0))
        rows.append([f"{eta}", f"{times[settled]:,}", f"{ratios[-1]:.3f}", f"{behind[-1]:.4f}", f"{at_end[-1]:.4f}"])
    panels = [
        Panel("step t", "η/η_D", [*dominant_marks, Reference(1.0)], "Dominant", x_scale="log", y_range=(0, 1.1)),
        Panel("step t", "η/η_B", [*bulk_marks, Reference(1.0)], "Bulk", x_scale="log", y_range=(0, 1.1)),
    ]
    return Section(
        "constant-step",
        "Every constant step looks critical",
        f"For steps that span {steps[-1] / steps[0]:.0f}×, η/η_D of the expected moments settles at 1 all the same. "
        "The ratio then says “equilibrated”, not “too large”. η/η_B stays below 1 until the bulk has settled too.",
        "So average the moments over a window before forming ratios, and read them as: which subspace still descends "
        "(ratio well below 1), which has equilibrated (at 1).",
        [
            Check(
                "η/η_D settles within 1 % of 1 for every step",
                all(abs(r - 1) < 0.01 for r in ratios),
                ", ".join(f"{r:.3f}" for r in ratios),
            ),
            Check("at that time the bulk still descends", max(behind) < 0.5, f"η/η_B at most {max(behind):.3f}"),
            Check(
                "and settles in the end",
                all(abs(r - 1) < 0.01 for r in at_end),
                f"η/η_B after a million steps: {', '.join(f'{r:.3f}' for r in at_end)}",
            ),
        ],
        [Figure("constant-step", "r = 100, expected moments, three constant steps.", panels)],
        [
            Table(
                [
                    Column("η", "the constant step"),
                    Column("dominant settles at", "first recorded step with η/η_D within 1 % of 1"),
                    Column("η/η_D there", "step over the dominant threshold"),
                    Column("η/η_B there", "step over the bulk threshold"),
                    Column("η/η_B at 10⁶", "the same after a million steps"),
                ],
                rows,
            )
        ],
        {"step_size": list(steps), "bulk_when_dominant_settles": behind, "bulk_at_end": at_end},
    )


def _gradients(path: Any) -> Array:
    if path.gradient is None:
        raise AssertionError("the record was asked to keep its gradients")
    return path.gradient


def _one_step_alignment(
    problem: Quadratic, state: Array, steps: Array, replicas: int, seed: int
) -> tuple[Array, Array]:
    """Ratio of mean energies after one step, with its standard error (first-order propagation)."""
    value, error = np.empty(steps.size), np.empty(steps.size)
    for index, eta in enumerate(steps.tolist()):
        paths = problem.sample(gradient=state, step_size=eta, times=[1], replicas=replicas, seed=seed + index)
        dominant, bulk = paths.dominant_energy[:, 0], paths.bulk_energy[:, 0]
        theta = dominant.mean() / (dominant.mean() + bulk.mean())
        influence = ((1 - theta) * dominant - theta * bulk) / (dominant.mean() + bulk.mean())
        value[index], error[index] = theta, influence.std(ddof=1) / np.sqrt(replicas)
    return value, error


def _share_inside(run: PaperRuns, draws: int, seed: int) -> tuple[float, int]:
    """Share of states of the stationary law whose bulk-only interval holds the run's own step."""
    settled = run.problem.sample(
        gradient=run.gradients[0],
        step_size=STEP_SIZE,
        times=[1_000_000],
        replicas=draws,
        seed=seed + 13,
        keep_gradient=True,
    )
    bounds = etastar.loss_thresholds(run.problem.moments(gradient=_gradients(settled)[:, 0]))
    inside = (np.asarray(bounds.dominant) < STEP_SIZE) & (np.asarray(bounds.bulk) > STEP_SIZE)
    return float(inside.mean()), draws


def _stationary_gap(problem: Quadratic) -> float:
    bounds = etastar.loss_thresholds(problem.stationary(STEP_SIZE))
    return abs(float(bounds.bulk) / float(bounds.dominant) - 1.0)
