"""``etastar train``: a named network trained on real data, measured while it trains, and controlled where asked.

`plan` says what to run, `run` runs it and goes on where it was stopped, `trained` is what came of it, `section` its
page.
"""

from etastar.recipes.training.plan import OptimizerName, TrainingPlan
from etastar.recipes.training.run import train
from etastar.recipes.training.section import run_sections, unfinished, write_run
from etastar.recipes.training.trained import Looks, TrainedRun

__all__ = [
    "Looks",
    "OptimizerName",
    "TrainedRun",
    "TrainingPlan",
    "run_sections",
    "train",
    "unfinished",
    "write_run",
]
