"""The command line: parses, calls recipes, prints. Nothing is computed here.

Exit codes: 0 success, 1 the run's own verdict failed, 2 bad input (one line on stderr, no file written),
130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from etastar.errors import EtastarError, InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

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
    with _progress() as told:
        result = run(quick, seed, told, os.cpu_count() or 1)
    paths = write_reproduction(result, out)
    if json:
        _print_json(result.results())
        return 0 if result.passed else 1
    console = _console()
    for section in result.sections:
        console.print(f"[bold]{_plain(section.title)}[/]")
        for check in section.checks:
            mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            console.print(f"  {mark}  {_plain(check.statement)} [dim]({_plain(check.measured)})[/]")
    failed = sum(not check.passed for section in result.sections for check in section.checks)
    total = sum(len(section.checks) for section in result.sections)
    console.print(f"\n{total - failed} of {total} checks passed in {sum(result.seconds.values()):.0f} s.")
    console.print(f"Report: {paths[-1]}", soft_wrap=True)
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
    with _progress() as told:
        verdicts = run(claims, instances, seed, workers, told)
    section = audit_section(verdicts)
    if out is not None:
        lead = "Each numbered claim as printed and corrected, put to exact arithmetic."
        texts = {
            "audit.json": _json_text(audit_json(verdicts)),
            "audit.html": render_html("The paper's claims, audited", lead, [section]),
        }
        write_together(out, {name: _writer(text) for name, text in texts.items()})
    if json:
        _print_json(audit_json(verdicts))
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
        step_size: η.
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
        _print_json(answer.to_json())
        return 0
    console = _console()
    limit = f"2/λ₁ = {answer.stability_limit:.4g}"
    console.print(f"[bold]{answer.title}[/]")
    console.print(f"d = {answer.dimension:,}, k = {answer.rank}, λ_k/λ_(k+1) = {answer.ratio:.4g}")
    console.print(f"η = {step_size:g}, {limit}")
    console.print(f"θ {answer.phases.shape}.\n")
    _print_table([column.name for column in COLUMNS], answer.rows())
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
    from etastar.files import output_directory
    from etastar.recipes.train import TrainingPlan, write_run
    from etastar.recipes.train import train as run

    _check_seed(seed)
    if out is not None:
        output_directory(out)
    plan = TrainingPlan(recipe, loss, steps, step_size, batch_size, rank, every, None, curvature_samples, meter, seed)
    with _progress() as told:
        result = run(plan, told)
    if out is not None:
        write_run(result, out)
    if json:
        _print_json(result.to_json())
        return 0
    rows = [
        [f"{row.step:,}", f"{row.alignment.value:.4f}", _interval(row.critical_step_size), row.verdict]
        for row in list(result.history)[:: max(1, len(result.history) // 16)]
    ]
    if rows:
        _print_table(["step", "θ", "η* (90 % interval)", "verdict"], rows)
    _console().print(f"training loss {result.training_loss[-1]:.4g}, held out {result.held_out_loss[-1]:.4g}")
    return 0


def _interval(estimate: Any) -> str:
    if not estimate.resolved:
        return "unresolved"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {"reproduce": reproduce, "audit": audit, "lab": lab, "train": train}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is no reason to fail
    try:
        code = _parse_and_run(commands, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except EtastarError as error:
        text = str(error)
        if isinstance(error, InvalidArgument):  # named as the option is
            text = text.replace(error.name, error.name.replace("_", "-"), 1)
        print(f"etastar: {_printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _end_workers()
        print("etastar: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has closed it; python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parse_and_run(commands: dict[str, Callable[..., int]], arguments: list[str]) -> int:
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
        print(f"etastar: {_one_line(complaint.getvalue())}", file=sys.stderr)
        return 2
    return run()


def _end_workers() -> None:
    """Python would wait at exit until each worker has finished what it is at, which may take minutes."""
    from multiprocessing import active_children

    for worker in active_children():
        worker.terminate()


def _printable(text: str) -> str:
    """One line without control characters, whatever a hostile file put into it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Parsing returns the call to make, so that what the command itself prints is not captured."""
    import functools

    @functools.wraps(command)
    def parse(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return lambda: command(*args, **kwargs)

    return parse


def _one_line(complaint: str) -> str:
    """What tyro says in a box, as one line: the complaint and the nearest names, without help and inner details."""
    boxed = [line for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    rows = [line.strip("│ ") for line in boxed]
    blocks = " ".join("\n" if row and set(row) <= {"─", "-"} else row for row in rows).split("\n")
    if "╭" not in complaint:  # without its frame, where the terminal has none, the title is a block of its own
        del blocks[0]
    kept = [" ".join(b.split()) for b in blocks if not b.strip().startswith(("Argument helptext", "For full helptext"))]
    line = "; ".join(block.partition(" Got errors:")[0] for block in kept if block) or "bad arguments"
    return line.replace("{None}|", "").replace(", 'None')", ")").replace("('None', ", "(")


def _check_certificates(path: Path, as_json: bool) -> int:
    from etastar.claims import check_file

    results = check_file(path)
    if as_json:
        _print_json([asdict(result) for result in results])
    elif not results:
        _console().print(f"No counterexample to check in {_plain(path.name)}.")
    else:
        rows = [[r.claim, r.form, "certified" if r.certified else "NOT certified", r.reason] for r in results]
        _print_table(["claim", "form", "result", "reason"], rows)
    return 0 if all(result.certified for result in results) else 1


def _print_audit(verdicts: Any, section: Any) -> None:
    from etastar.recipes.claims_audit import short_counterexample

    console = _console()
    ordered = sorted(verdicts, key=lambda v: ("holds", "vacuous", "refuted").index(v.verdict))
    words = {"holds": "holds on", "refuted": "refuted after", "vacuous": "vacuous in"}
    rows = [[v.claim, v.form, f"{words[v.verdict]} {v.instances:,}", v.kind, short_counterexample(v)] for v in ordered]
    _print_table(["claim", "form", "verdict (instances)", "kind", "counterexample, dominant | bulk"], rows)
    for check in section.checks:
        statement = _plain(f"{check.statement}: {check.measured}")
        console.print(("pass  " if check.passed else "FAIL  ") + statement, soft_wrap=True)


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # answered by `main`; rich's own answer is the exit code of a failed verdict

    width = None if sys.stdout.isatty() else 160
    return Output(file=sys.stdout, width=width, highlight=False)


@contextlib.contextmanager
def _progress() -> Generator[Callable[[str, int, int], None]]:
    """A bar on stderr where it is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _name, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")


def _plain(text: str) -> str:
    """Text of a report without its [[term]] marks, safe for rich."""
    from rich.markup import escape

    parts = text.split("[[")
    out = parts[0]
    for part in parts[1:]:
        inside, closed, rest = part.partition("]]")
        out += (inside.partition("|")[2] or inside.partition("|")[0]) + rest if closed else "[[" + part
    return escape(out)


def _writer(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


def _print_json(value: Any) -> None:
    print(_json_text(value), end="")


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
