"""``etastar train``: real networks on real data, measured."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from etastar.cli.options import Flag, OptionalPath, check_seed
from etastar.terminal import console, print_json, print_table, progress_bar, without_marks

__all__ = ["train"]


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

    check_seed(seed)
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
