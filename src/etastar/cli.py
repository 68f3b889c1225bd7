"""The command line: parses, calls recipes, prints. Nothing is computed here.

Exit codes: 0 success, 1 the run's own verdict failed, 2 bad input (one line on stderr, no file written),
130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from etastar import __version__
from etastar.errors import EtastarError, InvalidArgument
from etastar.terminal import (
    console,
    end_workers,
    json_text,
    one_line,
    print_json,
    print_table,
    printable,
    progress_bar,
    without_marks,
    writer_of,
)

__all__ = ["main"]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


def reproduce(out: Path = Path("etastar-out/reproduce"), quick: Flag = False, seed: int = 0, json: Flag = False) -> int:
    """Reproduce and audit the paper: one report, PNGs, results.json (about 40 seconds).

    For example:
      etastar reproduce
      etastar reproduce --quick --out /tmp/first-look

    Args:
        out: Directory for report.html, results.json and the PNGs.
        quick: Fewer runs and instances: under 10 seconds.
        seed: Seed of everything that is drawn.
        json: Print results.json on stdout instead of a summary.
    """
    from etastar.files import output_directory
    from etastar.recipes.reproduce import reproduce as run
    from etastar.recipes.reproduce import write_reproduction

    _check_seed(seed)
    output_directory(out)
    with progress_bar() as told:
        result = run(quick, seed, told, os.cpu_count() or 1)
    paths = write_reproduction(result, out)
    if json:
        print_json(result.results())
        return 0 if result.passed else 1
    screen = console()
    for section in result.sections:
        screen.print(f"[bold]{without_marks(section.title)}[/]")
        for check in section.checks:
            mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            statement = f"  {mark}  {without_marks(check.statement)} [dim]({without_marks(check.measured)})[/]"
            screen.print(statement, soft_wrap=True)
    failed = sum(not check.passed for section in result.sections for check in section.checks)
    total = sum(len(section.checks) for section in result.sections)
    screen.print(f"\n{total - failed} of {total} checks passed in {sum(result.seconds.values()):.0f} s.")
    screen.print(f"Report: {paths[-1]}", soft_wrap=True)
    return 0 if result.passed else 1


def audit(
    claims: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    instances: int = 100_000,
    check: OptionalPath = None,
    out: OptionalPath = None,
    seed: int = 0,
    workers: int = 2,
    json: Flag = False,
) -> int:
    """Put the paper's claims to the test; every reported counterexample is a proof in exact arithmetic.

    For example:
      etastar audit
      etastar audit --claims T8 C9 --json > certificates.json
      etastar audit --check certificates.json

    Args:
        claims: Names such as T8 or C9; all unless given.
        instances: Random instances for each algebraic claim.
        check: Re-check the certificates in a file, from scratch, instead of searching.
        out: Directory for audit.json and audit.html.
        seed: Seed of the draws.
        workers: Processes.
        json: Print the verdicts on stdout as JSON.
    """
    if check is not None:
        return _check_certificates(check, json)
    from etastar.claims import audit as run
    from etastar.files import output_directory, write_together
    from etastar.recipes.claims_audit import audit_json, audit_section
    from etastar.report import render_html

    _check_seed(seed)
    if claims == ():
        raise InvalidArgument("claims", claims, "name at least one, such as T8")
    if out is not None:
        output_directory(out)
    with progress_bar() as told:
        verdicts = run(claims, instances, seed, workers, told)
    section = audit_section(verdicts)
    if out is not None:
        lead = "Each numbered claim as printed and corrected, put to exact arithmetic."
        texts = {
            "audit.json": json_text(audit_json(verdicts)),
            "audit.html": render_html("The paper's claims, audited", lead, [section]),
        }
        write_together(out, {name: writer_of(text) for name, text in texts.items()})
    if json:
        print_json(audit_json(verdicts))
    else:
        _print_audit(verdicts, section)
    return 0 if section.passed else 1


def lab(
    dimension: int = 500,
    rank: int = 0,
    ratio: float = 100.0,
    two_level: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FLOAT FLOAT")] = None,
    data: Annotated[Literal["digits", "diabetes"] | None, tyro.conf.arg(metavar="{digits,diabetes}")] = None,
    spectrum: OptionalPath = None,
    step_size: float = 0.003,
    noise: float = 0.25,
    batch_size: int = 32,
    ridge: float = 1e-3,
    times: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = (30_000,),
    seed: int = 42,
    out: OptionalPath = None,
    json: Flag = False,
) -> int:
    """Ask the exact laboratory: curve, critical step sizes, regimes and phases of a quadratic.

    For example:
      etastar lab --ratio 20
      etastar lab --two-level 100 1 --dimension 1000000000 --rank 10 --noise 1e-9 --step-size 0.01
      etastar lab --data digits --step-size 0.05

    Args:
        dimension: d, of the paper's spectrum or of two levels.
        rank: k; 0 takes 50, or 1 with --data.
        ratio: The paper's r (the eigenvalue ratio comes out as r + 0.1).
        two_level: Two eigenvalues instead, dominant and bulk.
        data: Ridge regression on this data set instead.
        spectrum: JSON file with eigenvalues, rank and maybe multiplicities instead.
        step_size: Step size η of SGD.
        noise: Variance of the gradient noise per coordinate (with --data it is measured).
        batch_size: Batch size behind the measured noise (--data).
        ridge: Ridge coefficient (--data).
        times: The last step, or several times.
        seed: Seed of the start x₀ ~ N(0, I) (with --data the start is w = 0).
        out: Directory for curve.csv, lab.png and lab.html.
        json: Print the answer on stdout as JSON.
    """
    from etastar.files import output_directory
    from etastar.recipes.lab import COLUMNS, LabQuestion, ask, write_answer

    if out is not None:
        output_directory(out)
    answer = ask(
        LabQuestion(dimension, rank, ratio, two_level, data, spectrum, batch_size, ridge, step_size, noise, times, seed)
    )
    if out is not None:
        write_answer(answer, out)
    if json:
        print_json(answer.to_json())
        return 0
    screen = console()
    limit = f"2/λ₁ = {answer.stability_limit:.4g}"
    screen.print(f"[bold]{answer.title}[/]")
    screen.print(f"d = {answer.dimension:,}, k = {answer.rank}, λ_k/λ_(k+1) = {answer.ratio:.4g}")
    screen.print(f"η = {step_size:g}, {limit}")
    screen.print(f"θ {answer.phases.shape}.\n")
    print_table([column.name for column in COLUMNS], answer.rows())
    screen.print("\nη* is the critical step size of the next step; η/η_D and η/η_B are steps over the loss thresholds,")
    screen.print("1 where a subspace has equilibrated.")
    if not math.isfinite(answer.curve.loss[-1]):
        screen.print("Rows end where the loss leaves the range of float64: the step is unstable.")
    return 0


def train(
    recipe: tyro.conf.Positional[Literal["digits-mlp", "digits-cnn"]],
    loss: Literal["mse", "cross-entropy"] = "mse",
    meter: Annotated[bool, tyro.conf.FlagConversionOff] = True,
    steps: int = 2000,
    step_size: float = 0.0,
    batch_size: int = 0,
    rank: int = 0,
    every: int = 50,
    curvature_samples: int = 500,
    seed: int = 0,
    out: OptionalPath = None,
    json: Flag = False,
) -> int:
    """Train a small network on real data with constant-step SGD, measured while it trains.

    For example:
      etastar train digits-mlp
      etastar train digits-cnn --loss cross-entropy --steps 1000 --out etastar-out/cnn

    Args:
        recipe: The network and its data.
        loss: Mean squared error or cross-entropy.
        meter: Whether to measure.
        steps: Steps of SGD.
        step_size: η; 0 takes the recipe's.
        batch_size: b; 0 takes the recipe's.
        rank: k; 0 takes the recipe's.
        every: Steps between measurements.
        curvature_samples: Training samples that the curvature is taken over.
        seed: Of the initialisation and the mini-batches.
        out: Directory for history.jsonl, run.png and run.html.
        json: Print losses and measurements on stdout as JSON.
    """
    import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing
    from etastar.files import output_directory
    from etastar.recipes.train import TrainingPlan
    from etastar.recipes.train import train as run
    from etastar.recipes.train_report import write_run

    _check_seed(seed)
    if out is not None:
        output_directory(out)
    plan = TrainingPlan(recipe, loss, steps, step_size, batch_size, rank, every, None, curvature_samples, meter, seed)
    with progress_bar() as told:
        result = run(plan, told)
    if out is not None:
        write_run(result, out)
    if json:
        print_json(result.to_json())
        return 0
    if len(result.history):
        print_table(["step", "θ", "η* (90 % interval)", "verdict"], result.rows())
    if result.gauge is not None:
        console().print(f"gauge, gradients alone: {without_marks(result.gauge.verdict)}", soft_wrap=True)
    console().print(f"training loss {result.training_loss[-1]:.4g}, held out {result.held_out_loss[-1]:.4g}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {"reproduce": reproduce, "audit": audit, "lab": lab, "train": train}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is no reason to fail
    if arguments is None:  # a process of our own: ended from outside, it cleans up and takes its workers along
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = _parse_and_run(commands, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except EtastarError as error:
        text = str(error)
        if isinstance(error, InvalidArgument):  # named as the option is
            text = text.replace(error.name, error.name.replace("_", "-"), 1)
        print(f"etastar: {printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        end_workers()
        print("etastar: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has closed it; python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parse_and_run(commands: dict[str, Callable[..., int]], arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"etastar {__version__}")
        return 0
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            run = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog="etastar",
                description="The critical step size of SGD, exactly.",
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return 0
        print(f"etastar: {one_line(complaint.getvalue())}", file=sys.stderr)
        return 2
    return run()


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Parsing returns the call to make, so that what the command itself prints is not captured."""
    import functools

    @functools.wraps(command)
    def parse(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: command(*args, **kwargs)

    return parse


def _check_certificates(path: Path, as_json: bool) -> int:
    from etastar.claims import check_file

    results = check_file(path)
    if as_json:
        print_json([asdict(result) for result in results])
    elif not results:
        console().print(f"No counterexample to check in {without_marks(path.name)}.")
    else:
        rows = [[r.claim, r.form, "certified" if r.certified else "NOT certified", r.reason] for r in results]
        print_table(["claim", "form", "result", "reason"], rows)
    return 0 if all(result.certified for result in results) else 1


def _print_audit(verdicts: Any, section: Any) -> None:
    from etastar.recipes.claims_audit import AUDIT_HEADS, audit_rows

    print_table(AUDIT_HEADS, audit_rows(verdicts))
    for check in section.checks:
        statement = without_marks(f"{check.statement}: {check.measured}")
        console().print(("pass  " if check.passed else "FAIL  ") + statement, soft_wrap=True)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")


if __name__ == "__main__":
    sys.exit(main())
