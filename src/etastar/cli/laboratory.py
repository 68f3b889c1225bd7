"""``etastar lab`` and ``etastar diagram``: one question to the exact laboratory, or a plane of them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import tyro

from etastar.cli.options import Flag, OptionalPath, check_seed
from etastar.errors import InvalidArgument
from etastar.terminal import console, print_json, print_section, print_table

__all__ = ["diagram", "lab"]

Pair = tuple[float, float]


def lab(
    dimension: int = 500,
    rank: int = 0,
    ratio: float = 100.0,
    two_level: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FLOAT FLOAT")] = None,
    data: Annotated[Literal["digits", "diabetes"] | None, tyro.conf.arg(metavar="{digits,diabetes}")] = None,
    spectrum: OptionalPath = None,
    step_size: float = 0.003,
    optimizer: Literal["sgd", "heavy-ball", "nesterov"] = "sgd",
    momentum: float = 0.9,
    averaging: float = 0.0,
    expectation: Literal["ratio-of-means", "mean-of-ratio"] = "ratio-of-means",
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
      etastar lab --ratio 20 --optimizer heavy-ball --momentum 0.9

    Args:
        dimension: d, of the paper's spectrum or of two levels.
        rank: k; 0 takes 50, or 1 with --data.
        ratio: The paper's r (the eigenvalue ratio comes out as r + 0.1).
        two_level: Two eigenvalues instead, dominant and bulk.
        data: Ridge regression on this data set instead.
        spectrum: JSON file with eigenvalues, rank and maybe multiplicities instead.
        step_size: Step size η.
        optimizer: What runs.
        momentum: β of heavy ball and Nesterov.
        averaging: ω of an exponential moving average of the iterates, which is then what is looked at; 0 for none.
        expectation: θ as the ratio of expected energies, or E θ beside it (plain SGD).
        noise: Variance of the gradient noise per coordinate (with --data it is measured).
        batch_size: Batch size behind the measured noise (--data).
        ridge: Ridge coefficient (--data).
        times: The last step, or several times.
        seed: Seed of the start x₀ ~ N(0, I) (with --data the start is w = 0).
        out: Directory for curve.csv, lab.png and lab.html.
        json: Print the answer on stdout as JSON.
    """
    from etastar.files import output_directory
    from etastar.recipes.lab import LabQuestion, ask, write_answer

    check_seed(seed)
    if out is not None:
        output_directory(out)
    answer = ask(
        LabQuestion(
            dimension,
            rank,
            ratio,
            two_level,
            data,
            spectrum,
            batch_size,
            ridge,
            step_size,
            noise,
            times,
            seed,
            optimizer,
            momentum,
            averaging,
            expectation,
        )
    )
    if out is not None:
        write_answer(answer, out)
    if json:
        print_json(answer.to_json())
        return 0
    screen = console()
    screen.print(f"[bold]{answer.title}[/]")
    screen.print(f"d = {answer.dimension:,}, k = {answer.rank}, λ_k/λ_(k+1) = {answer.ratio:.4g}")
    screen.print(f"η = {step_size:g}, stable below {answer.stability_limit:.4g}")
    screen.print(f"θ {answer.phases.shape}.\n")
    print_table([column.name for column in answer.columns], answer.rows())
    screen.print(f"\n{answer.reading}")
    if not math.isfinite(answer.curve.loss[-1]):
        screen.print("Rows end where the loss leaves the range of float64: the step is unstable.")
    return 0


def diagram(
    kind: tyro.conf.Positional[Literal["step-batch", "step-momentum", "alignment-ratio"]],
    dimension: int = 500,
    rank: int = 0,
    ratio: float = 100.0,
    two_level: Annotated[Pair | None, tyro.conf.arg(metavar="FLOAT FLOAT")] = None,
    data: Annotated[Literal["digits", "diabetes"] | None, tyro.conf.arg(metavar="{digits,diabetes}")] = None,
    spectrum: OptionalPath = None,
    noise: float = 0.25,
    batch_size: int = 32,
    at: int = 0,
    warm_up: Annotated[tuple[float, int] | None, tyro.conf.arg(metavar="FLOAT INT")] = None,
    step_sizes: Annotated[Pair | None, tyro.conf.arg(metavar="LOW HIGH")] = None,
    batch_sizes: Annotated[Pair, tyro.conf.arg(metavar="LOW HIGH")] = (1.0, 4096.0),
    momenta: Annotated[Pair, tyro.conf.arg(metavar="LOW HIGH")] = (0.0, 0.99),
    alignments: Annotated[Pair, tyro.conf.arg(metavar="LOW HIGH")] = (0.0, 1.0),
    ratios: Annotated[Pair, tyro.conf.arg(metavar="LOW HIGH")] = (1.0, 100.0),
    gradient_energy: float = 100.0,
    cells: Annotated[tuple[int, int], tyro.conf.arg(metavar="COLUMNS ROWS")] = (500, 500),
    seed: int = 42,
    out: OptionalPath = None,
    json: Flag = False,
) -> int:
    """Phase diagrams, exact cell by cell: over step and batch size, step and momentum, alignment and eigenvalue ratio.

    For example:
      etastar diagram step-batch --ratio 20 --warm-up 0.003 2000 --out etastar-out/diagram
      etastar diagram step-momentum --two-level 100 1
      etastar lab diagram alignment-ratio --noise 1

    Args:
        kind: The plane.
        dimension: d, of the paper's spectrum or of two levels.
        rank: k; 0 takes 50, or 1 with --data.
        ratio: The paper's r.
        two_level: Two eigenvalues instead, dominant and bulk.
        data: Ridge regression on this data set instead.
        spectrum: JSON file with eigenvalues, rank and maybe multiplicities instead.
        noise: Variance of the gradient noise per coordinate at batch size 1 (with --data it is measured).
        batch_size: Batch size behind the measured noise (--data).
        at: Steps that each cell of step-batch takes on its own before the step that is judged.
        warm_up: Step size and steps of a run that all cells of step-batch share first.
        step_sizes: Range; 0.01 to 1.5 times the stability limit unless given.
        batch_sizes: Range.
        momenta: Range.
        alignments: Range of θ.
        ratios: Range of λ_k/λ_(k+1).
        gradient_energy: ‖g‖² of alignment-ratio.
        cells: Columns and rows.
        seed: Seed of the start x₀ ~ N(0, I).
        out: Directory for diagram.json, diagram.png and diagram.html.
        json: Print the diagram on stdout as JSON.
    """
    from json import dumps

    from etastar.files import output_directory
    from etastar.recipes.diagram import (
        AlignmentRatio,
        StepBatch,
        StepMomentum,
        alignment_ratio,
        step_batch,
        step_momentum,
    )
    from etastar.recipes.lab import LabQuestion, pose

    check_seed(seed)
    if out is not None:
        output_directory(out)
    if kind == "alignment-ratio":
        for name, value in {"two_level": two_level, "data": data, "spectrum": spectrum}.items():
            if value is not None:
                remedy = "alignment-ratio takes two levels at every ratio; leave it out, or draw another plane"
                raise InvalidArgument(name, value, remedy)
        found = alignment_ratio(
            AlignmentRatio(dimension, rank or 50, gradient_energy, noise, alignments, ratios, cells)
        )
    else:
        asked = LabQuestion(dimension, rank, ratio, two_level, data, spectrum, batch_size, 1e-3, 1.0, noise, (1,), seed)
        posed = pose(asked)
        if kind == "step-momentum":
            found = step_momentum(StepMomentum(posed.problem, posed.title, step_sizes, momenta, cells))
        else:
            reference = float(batch_size) if data is not None else 1.0
            found = step_batch(
                StepBatch(
                    posed.problem, posed.start, posed.title, reference, warm_up, at, step_sizes, batch_sizes, cells
                )
            )
    if out is not None:
        found.write(out)
    if json:
        print(dumps(found.to_json(), allow_nan=False, ensure_ascii=False, separators=(",", ":")))
    else:
        print_section(found.section())
    return 0
