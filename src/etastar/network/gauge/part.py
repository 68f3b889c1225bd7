"""One part of a step, all parameters, a group, a layer or a subspace, and what its numbers say in words.

At a constant step everything ends at its threshold: a stationary state reads η/η_S = 1 at *every* stable step. So the
words are "has equilibrated", never "too large" (theory §3, "the trap of a constant step").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from etastar.measurement import EQUILIBRATED, undecided
from etastar.uncertainty import Estimate

__all__ = ["GaugeOutcome", "GaugePart", "in_words"]


class GaugeOutcome(Enum):
    """How far a window could be read."""

    RESOLVED = "read"
    TOO_FEW_STEPS = "not enough steps yet: let the run go on, or give the gauge a smaller `every`"
    NOT_FINITE = "most numbers of the window are not finite: the run has diverged"
    NO_SECOND = "no second gradients in the window: call gauge.second(...) whenever gauge.due"
    NO_CURVATURE = (
        "curvature along the update unknown: give second() a function instead of gradients, "
        "or declare sampling='independent' if every batch is a fresh draw"
    )
    DEPENDENT = (
        "consecutive batches are not independent, as when epochs are shuffled: read from the second gradients alone; "
        "pass sampling='shuffled'"
    )


@dataclass(frozen=True, slots=True)
class GaugePart:
    """One step, on average over the window, along one part of the parameters: all of them, a group, a subspace.

    Attributes:
        name: The parameter, the group, "total", "dominant" or "bulk".
        threshold_fraction: η/η_S, the step over its loss threshold: the loss falls below 1, most at ½. Of a subspace:
            of the update projected onto it, as the meter's, where `second` is given functions; of a layer, and of a
            subspace otherwise: of its share in the whole update, coupling included.
        loss_change: Per step, by the trapezoid, [loss]; adds up over parameters, groups or subspaces.
        slope: D = E⟨u, g⟩, first-order decrease per step, [loss].
        curvature: K = E⟨u, Hu⟩, [loss].
        update_energy: E‖u‖², [parameter²].
        gradient_energy: E‖g‖² of the run's batches, m0 + q0, [loss²/parameter²].
        signal_energy: ‖∇L‖², m0.
        noise_scale: Simple noise scale b·q0/m0, [samples]; q0/m0 without a batch size. With shuffled epochs it
            cannot be told beyond the size of the dataset.
        noise_share: q1/(m1 + q1): 1 where noise limits the step, 0 where curvature does. Plain SGD only.
        curvature_noise_scale: b·q1/m1, [samples]. Plain SGD only.
        verdict: In words.
    """

    name: str
    threshold_fraction: Estimate
    loss_change: Estimate
    slope: Estimate
    curvature: Estimate
    update_energy: Estimate
    gradient_energy: Estimate
    signal_energy: Estimate
    noise_scale: Estimate
    noise_share: Estimate
    curvature_noise_scale: Estimate
    verdict: str


def in_words(fraction: Estimate, noise_share: Estimate, slope: Estimate) -> str:
    """Which it is: still descending, equilibrated, raised; and what limits it."""
    if not fraction.resolved:
        if slope.resolved and slope.high < 0:
            return "the update points uphill"
        return "not resolved: the slope along the update is lost in the noise of the batches"
    low, high = EQUILIBRATED
    step = f"the step is {fraction.value:.2g} of its loss threshold"
    limit, remedy = "", "a smaller step would lower the loss further"
    if noise_share.resolved and noise_share.low > 0.5:
        limit, remedy = ", limited by noise", "a smaller step or a larger batch would lower the loss further"
    elif noise_share.resolved and noise_share.high < 0.5:
        limit, remedy = ", limited by curvature", "a smaller step would lower the loss further, a larger batch not"
    if slope.resolved and slope.high < 0:
        return "the update points uphill"
    if fraction.high < low:
        return f"still descends ({step})"
    if fraction.low > high:
        return f"is raised by this step ({step}){limit}: {remedy}"
    if low <= fraction.low and fraction.high <= high:
        return f"has equilibrated at this step ({step}){limit}: {remedy}"
    told = undecided(float(fraction.low), float(fraction.high))
    return f"{told} ({step}, {fraction.low:.2g} to {fraction.high:.2g})"
