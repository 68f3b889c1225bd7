"""Phase diagrams of the exact laboratory: regimes and thresholds over a plane of settings, cell by cell.

A question (``StepBatch``, ``StepMomentum``, ``AlignmentRatio``) gets its ``Diagram`` from the function of its name.
"""

from __future__ import annotations

from etastar.recipes.diagram.alignment_ratio import AlignmentRatio, alignment_ratio
from etastar.recipes.diagram.cells import Diagram
from etastar.recipes.diagram.four_edges import EDGES, four_edges_section
from etastar.recipes.diagram.step_batch import StepBatch, step_batch
from etastar.recipes.diagram.step_momentum import StepMomentum, step_momentum

__all__ = [
    "EDGES",
    "AlignmentRatio",
    "Diagram",
    "StepBatch",
    "StepMomentum",
    "alignment_ratio",
    "four_edges_section",
    "step_batch",
    "step_momentum",
]
