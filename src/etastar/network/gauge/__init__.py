"""The gauge: what every step of any optimizer does to the loss, from gradients alone.

``step_gauge`` attaches to an optimizer; ``observer`` watches its steps through ``event``, ``held`` and ``vectors``;
``window`` keeps what was seen, and ``summary`` reads it with the errors of ``estimate``.
"""

from __future__ import annotations

from etastar.network.gauge.part import GaugeOutcome, GaugePart
from etastar.network.gauge.step_gauge import StepGauge
from etastar.network.gauge.summary import GaugeSummary

__all__ = ["GaugeOutcome", "GaugePart", "GaugeSummary", "StepGauge"]
