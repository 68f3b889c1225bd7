"""Optimizers on a quadratic beside plain SGD: momentum, averaging, preconditioning.

One linear update describes them all (`rules`); everything else is written once for it.
"""

from __future__ import annotations

from etastar.quadratic.optimizers.rules import SGD, Averaged, HeavyBall, Nesterov, Optimizer, Preconditioned

__all__ = ["SGD", "Averaged", "HeavyBall", "Nesterov", "Optimizer", "Preconditioned"]
