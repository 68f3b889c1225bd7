"""What ``etastar train`` writes: history, decisions, ledger, the pictures, and one page with control, meter and gauge.

Further sections (decay forecast, calibration) come from their own recipes and join the same page.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from etastar.errors import InvalidArgument, InvalidFile
from etastar.files import output_directory
from etastar.network.decisions import DecisionFile
from etastar.network.gauge.part import GaugePart
from etastar.network.gauge.summary import GaugeSummary
from etastar.network.ledger_entries import save_ledger
from etastar.recipes.control_report import ControlledRun, control_sections
from etastar.recipes.training.run import RUNNING, STATE
from etastar.recipes.training.trained import TrainedRun
from etastar.report import COLOURS, Column, Figure, Line, Panel, Section, Table, run_section, write_report
from etastar.uncertainty import Estimate

__all__ = ["run_sections", "unfinished", "write_run"]

_GAUGE_COLUMNS = [
    Column("part", "the whole update, a subspace, or one parameter tensor", numeric=False),
    Column("η/η_S", "the step over the loss threshold of this part: 1 where it has equilibrated"),
    Column("loss change per step", "by the trapezoid of two gradients; adds up over layers"),
    Column("noise share", "q₁/(m₁ + q₁): 1 where noise limits the step, 0 where curvature does"),
    Column("noise scale", "simple noise scale b·q₀/m₀, in samples"),
]


@contextmanager
def unfinished(out: Path | None) -> Generator[Path | None]:
    """Where a run that will be written to `out` keeps its measurements and its state while it goes.

    Both are removed once the run is written. A run that is killed leaves them: ``running.jsonl`` for `History.load`,
    ``running.pt`` for the same command to go on from. A run that is refused leaves nothing.
    """
    if out is None:
        yield None
        return
    live = output_directory(out) / RUNNING
    missing, before = [folder for folder in (out, *out.parents) if not folder.exists()], live.exists()
    if live.is_dir():
        raise InvalidFile("out", str(live), "is a directory; name another place")
    try:
        yield out
    except InvalidArgument:
        if not before:
            live.unlink(missing_ok=True)
        with suppress(OSError):  # made on the way, and in use by others since
            for folder in missing:
                folder.rmdir()
        raise
    for name in (RUNNING, STATE):
        (out / name).unlink(missing_ok=True)


def write_run(run: TrainedRun, out: Path, further: Sequence[Section] = ()) -> list[Path]:
    """Write ``history.jsonl``, the pictures and, last, ``run.html``; returns their paths.

    Args:
        run: What was trained.
        out: The directory; made where it is missing.
        further: Sections of other recipes, after the run's own.
    """
    sections = [*run_sections(run), *further]
    plan, steps = run.plan, run.looks.steps[-1]
    who = "TwoRateSGD" if plan.optimizer == "two-rate" else "SGD"
    title = f"{plan.recipe}, {plan.loss}: {steps:,} step{'' if steps == 1 else 's'} of {who}"
    settings = f"Step size {plan.step_size:g}, batch size {plan.batch_size}, seed {plan.seed}"
    if plan.policy is not None:
        settings += f", policy {plan.policy} ({'acting' if plan.act else 'advising'})"
    files: dict[str, Callable[[Path], object]] = {"history.jsonl": run.history.save}
    if run.decisions:
        files["decisions.jsonl"] = lambda path: DecisionFile(path, run.decisions)
    if run.ledger:
        files["ledger.jsonl"] = lambda path: save_ledger(run.ledger, path)
    lead = f"{settings}; what the meter saw on the way."
    return write_report(out, "run.html", title, lead, sections, files=files)


def run_sections(run: TrainedRun) -> list[Section]:
    """Losses, what the meter saw, and what the gauge says of the end."""
    measured = [run_section(run.history)] if len(run.history) else []
    gauged = [] if run.gauge is None else [_gauge_section(run.gauge, run.gauge_verdict)]
    if not run.plan.controlled:
        return [_loss_section(run), *measured, *gauged]
    looks = run.looks
    controlled = ControlledRun(
        run.plan.recipe,
        looks.steps,
        looks.training_loss,
        looks.step_sizes,
        run.history,
        run.decisions,
        looks.held_out_loss,
        run.ledger,
        looks.rates,
    )
    return [*control_sections(controlled), *measured, *gauged]


def _loss_section(run: TrainedRun) -> Section:
    looks = run.looks
    marks = [
        Line(looks.steps, looks.training_loss, "training samples", COLOURS["exact"], 2.0),
        Line(looks.steps, looks.held_out_loss, "held out", COLOURS["accent"], 2.0, "dash"),
    ]
    panel = Panel("step", "loss", marks, y_scale="log")
    return Section(
        "losses",
        "Losses",
        f"The training loss ends at {looks.training_loss[-1]:.4g}, the held-out loss at {looks.held_out_loss[-1]:.4g}.",
        figures=[Figure("losses", "Over all samples of each set.", [panel])],
    )


def _gauge_section(summary: GaugeSummary, verdict: str) -> Section:
    parts = [summary.total, *(part for part in (summary.dominant, summary.bulk) if part), *summary.layers]
    return Section(
        "gauge",
        "From gradients alone",
        f"The gauge over steps {summary.first:,} to {summary.last:,}: {verdict}.",
        tables=[Table(_GAUGE_COLUMNS, [_gauge_row(part) for part in parts])],
        data={"second_gradients": summary.second_gradients},
    )


def _gauge_row(part: GaugePart) -> list[str]:
    shown = (part.threshold_fraction, part.loss_change, part.noise_share, part.noise_scale)
    return [part.name, *map(_in_short, shown)]


def _in_short(estimate: Estimate) -> str:
    if not estimate.resolved:
        return "unresolved"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
