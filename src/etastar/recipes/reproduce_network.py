"""The network part of the main job: digits-mlp trained and measured, its decay forecast, and the meter calibrated.

Real digits, a real network, and no fitted constant anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from etastar.recipes.calibration import CalibrationPlan, calibrate, calibration_section
from etastar.recipes.forecast import WITHIN, ForecastPlan, forecast_decay, forecast_section
from etastar.recipes.reproduce import Reproduction
from etastar.recipes.training import TrainingPlan, run_sections, train
from etastar.report import Check, Section

__all__ = ["reproduce_network"]

Progress = Callable[[str, int, int], None]
_RECIPE = "digits-mlp"
_LEAD = (
    "A tanh network learns to read digits by SGD at a constant step. The meter says along the way which subspace still "
    "descends, which has equilibrated and what limits it; the forecast says what decaying the step gives back, and is "
    "put to the test; the calibration compares each prediction with real mini-batch steps."
)


def reproduce_network(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Reproduction:
    """Train, forecast and calibrate; about two minutes (quick: half of one)."""
    sections: list[Section] = []
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], list[Section]]) -> None:
        begin = time.perf_counter()
        sections.extend(work())
        seconds[name] = time.perf_counter() - begin

    def trained() -> list[Section]:
        plan = TrainingPlan(_RECIPE, steps=400 if quick else 0, every=50 if quick else 0, seed=seed)
        return run_sections(train(plan, progress))

    def forecast() -> list[Section]:
        plan = ForecastPlan(_RECIPE, steps=600 if quick else 0, checkpoints=3 if quick else 10, repeats=3, seed=seed)
        run = forecast_decay(plan, progress)
        asked, near = int(0.8 * len(run.rows)), run.within("decayed")
        statement = f"at least {asked} of {len(run.rows)} forecasts lie within {WITHIN:.0%} of the drop that came"
        return [replace(forecast_section(run), checks=[Check(statement, near >= asked, f"{near} do")])]

    def calibrated() -> list[Section]:
        few = CalibrationPlan(_RECIPE, steps=600, checkpoints=3, batches=64, remeasurements=4, seed=seed)
        plan = few if quick else CalibrationPlan(_RECIPE, checkpoints=10, remeasurements=8, seed=seed)
        return [calibration_section(calibrate(plan, progress))]

    timed("training", trained)
    timed("decay forecast", forecast)
    timed("calibration", calibrated)
    title = "The meter on digits-mlp"
    return Reproduction(sections, seed, quick, seconds, title, _LEAD, "etastar reproduce --network")
