"""PyTorch networks: curvature along a run, its dominant subspace, and what a step does to either.

A network is one more producer of moments. Start with ``preflight(model, loss_fn, batches)``; then
``HessianOperator(model, loss_fn, batches)`` is the curvature and ``SubspaceTracker(operator, rank=10)`` follows its
top eigenvectors. Needs PyTorch: ``pip install 'etastar[network]'``.
"""

from __future__ import annotations

from etastar.errors import MissingExtra

try:
    import torch as _torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:
    raise MissingExtra("etastar.network", "network") from error

from etastar.network.curvature import GaussNewtonOperator, HessianOperator
from etastar.network.decisions import Decision, DecisionOutcome, load_decisions
from etastar.network.explored import SymmetricOperator
from etastar.network.findings import Finding, PreflightReport, Severity
from etastar.network.forecast import DecayForecast, ForecastOutcome, LossForecast, decay_forecast
from etastar.network.gauge import GaugeOutcome, GaugePart, GaugeSummary, StepGauge
from etastar.network.ledger import UpdateLedger
from etastar.network.ledger_entries import LedgerEntry, LedgerSummary, ledger_columns, ledger_summary, load_ledger
from etastar.network.meter import AlignmentMeter, MeterHandle, Tracker
from etastar.network.parameters import ParameterVector
from etastar.network.preflight import preflight
from etastar.network.projection import ProjectedOptimizer, ScaledOptimizer
from etastar.network.schedule import CriticalStepSizeLR
from etastar.network.search import Goal
from etastar.network.subspace import Subspace, SubspaceOutcome, SubspaceTracker
from etastar.network.two_rate import RateOutcome, Rates, TwoRateSGD

__all__ = [
    "AlignmentMeter",
    "CriticalStepSizeLR",
    "DecayForecast",
    "Decision",
    "DecisionOutcome",
    "Finding",
    "ForecastOutcome",
    "GaugeOutcome",
    "GaugePart",
    "GaugeSummary",
    "GaussNewtonOperator",
    "Goal",
    "HessianOperator",
    "LedgerEntry",
    "LedgerSummary",
    "LossForecast",
    "MeterHandle",
    "ParameterVector",
    "PreflightReport",
    "ProjectedOptimizer",
    "RateOutcome",
    "Rates",
    "ScaledOptimizer",
    "Severity",
    "StepGauge",
    "Subspace",
    "SubspaceOutcome",
    "SubspaceTracker",
    "SymmetricOperator",
    "Tracker",
    "TwoRateSGD",
    "UpdateLedger",
    "decay_forecast",
    "ledger_columns",
    "ledger_summary",
    "load_decisions",
    "load_ledger",
    "preflight",
]
