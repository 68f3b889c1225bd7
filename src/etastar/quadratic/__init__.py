"""The exact laboratory: quadratics of any dimension, in closed form or sampled exactly in law.

Start with ``Quadratic(Spectrum(...), Noise(...))``; its methods are the laboratory.
"""

from __future__ import annotations

from etastar.quadratic.bounds import PaperBounds, guaranteed_ratio, paper_bounds
from etastar.quadratic.curve import Curve
from etastar.quadratic.expectation import (
    RatioExpectation,
    corrected_critical_step,
    expected_alignment,
    expected_alignment_after,
    expected_alignment_stationary,
    ratio_bound,
)
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.sharpness import Edges, edges
from etastar.quadratic.minibatch.stability import Stability
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers import SGD, Averaged, HeavyBall, Nesterov, Preconditioned
from etastar.quadratic.paths import Paths
from etastar.quadratic.phases import Phases
from etastar.quadratic.problem import Quadratic
from etastar.quadratic.spectrum import Spectrum
from etastar.quadratic.stepping import SimulationState

__all__ = [
    "SGD",
    "Averaged",
    "Curve",
    "Edges",
    "HeavyBall",
    "MinibatchNoise",
    "Nesterov",
    "Noise",
    "PaperBounds",
    "Paths",
    "Phases",
    "Preconditioned",
    "Quadratic",
    "RatioExpectation",
    "SimulationState",
    "Spectrum",
    "Stability",
    "corrected_critical_step",
    "edges",
    "expected_alignment",
    "expected_alignment_after",
    "expected_alignment_stationary",
    "guaranteed_ratio",
    "paper_bounds",
    "ratio_bound",
]
