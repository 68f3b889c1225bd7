"""The definitions that reports show on hover: one sentence each, with formula and source."""

from __future__ import annotations

__all__ = ["GLOSSARY"]

GLOSSARY = {
    "alignment": "θ = ‖Pg‖²/‖g‖²: the share of the gradient's energy in the dominant subspace, the span of the top k "
    "Hessian eigenvectors. √θ is Song et al.'s χ.",
    "dominant": "The dominant subspace: the span of the k eigenvectors of the Hessian with the largest eigenvalues.",
    "bulk": "The bulk: the orthogonal complement of the dominant subspace.",
    "critical step size": "η* = 2N/M (paper eq. 2): the step at which the alignment of expected energies neither rises "
    "nor falls. Not the stability limit 2/λ₁, and not the smallest step that raises the loss.",
    "regime": "How θ responds to the step: LOW falls below η* and rises above it; HIGH falls for every step; "
    "RISES and REVERSED are the mirror images; NEUTRAL stays.",
    "dominant threshold": "η_D: the step below which the update projected on the dominant subspace lowers the expected "
    "loss (T10).",
    "bulk threshold": "η_B: the step below which the update projected on the bulk lowers the expected loss (T10).",
    "bulk-only interval": "(η_D, η_B): steps at which the bulk update lowers and the dominant update raises the loss.",
    "noise share": "q₁/(m₁ + q₁) of a subspace: 1 where noise limits the step, 0 where curvature does.",
    "recoverable loss": "½ Σ_D g_i²/λ_i: the loss in the dominant subspace above its minimum, which decaying the step "
    "would give back, as far as the loss is quadratic there.",
    "exact": "Closed form of the expected energies at that time; no sampling, no stepping.",
    "sampled": "Random runs drawn exactly in law at the recorded times only.",
    "stationary alignment": "θ_∞ = Σ_D f/Σ f, f = ηλκ²/(2 − ηλ) (T16): the alignment of expected energies as t → ∞.",
    "odds": "θ/(1 − θ): the ratio of dominant to bulk energy.",
    "s.e.": "Standard error: the standard deviation of an estimate over repetitions.",
    "z": "(sampled − exact)/standard error: of size about 1 when both agree; we ask for at most 4.",
    "certified": "Shown in exact rational arithmetic: a proof, not a floating-point observation. Any instance can be "
    "re-checked with etastar audit --check FILE.",
    "vacuous": "Its hypotheses are never met, so that it says nothing.",
    "DSGD": "SGD with the update projected on the dominant subspace (paper eq. 3).",
    "BSGD": "SGD with the update projected on the bulk (paper eq. 4).",
    "ratio": "λ_k/λ_{k+1}. The paper's r gives a spectrum whose ratio is r + 0.1.",
}
