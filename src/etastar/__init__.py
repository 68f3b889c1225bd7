"""etastar: the critical step size of SGD, exactly.

One step of SGD is judged from a handful of moments (`SplitMoments`); the criteria here say what it does to the
alignment with the dominant subspace and to the loss. ``etastar.quadratic`` is the exact laboratory that produces
such moments, ``etastar.claims`` audits the paper (arXiv 2601.11789). Importing this loads NumPy alone.
"""

from __future__ import annotations

from etastar.advice import BatchAdvice, BatchOutcome, BatchSize, batch_size_advice
from etastar.budget import StepBudget, SubspaceBudget, step_budget
from etastar.criteria import (
    CriticalStep,
    LossChange,
    LossThresholds,
    Outcome,
    Regime,
    alignment,
    alignment_after,
    alignment_change,
    chi,
    critical_step_size,
    loss_border,
    loss_change,
    loss_thresholds,
    regime_border,
)
from etastar.errors import EtastarError, InvalidArgument, InvalidFile, MissingExtra, UnstableStep
from etastar.history import History, Measurement
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.uncertainty import Estimate, jackknife

__version__ = "0.1.0"

__all__ = [
    "BatchAdvice",
    "BatchOutcome",
    "BatchSize",
    "Coupling",
    "CriticalStep",
    "CurvatureMoments",
    "Descent",
    "Estimate",
    "EtastarError",
    "History",
    "InvalidArgument",
    "InvalidFile",
    "LossChange",
    "LossThresholds",
    "Measurement",
    "MissingExtra",
    "Outcome",
    "Regime",
    "SplitMoments",
    "StepBudget",
    "SubspaceBudget",
    "SubspaceMoments",
    "UnstableStep",
    "alignment",
    "alignment_after",
    "alignment_change",
    "batch_size_advice",
    "chi",
    "critical_step_size",
    "jackknife",
    "loss_border",
    "loss_change",
    "loss_thresholds",
    "regime_border",
    "step_budget",
]
