"""Claims on the expectation of the ratio, E θ': Assumption 1 with Lemma 20, and Theorems 2 and 3 as printed.

Two laws make E θ' computable. Independent two-point noise ξ_i = ±κ_i makes it a finite rational sum, decided in
fractions. Gaussian noise makes it one integral, taken by the trapezoidal rule with its error bound.
"""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import numpy as np

from etastar.claims.border import low_border
from etastar.claims.claim import Claim, at_most, equal, less
from etastar.claims.instance import Instance
from etastar.claims.instances import Instances
from etastar.claims.number import Bounded, Number, Truth, root

__all__ = ["CLAIMS", "gaussian_alignment", "two_point_alignment"]

# Independent copies would average the noise away; copies that share one draw keep the law of both block energies.
SHARED = "shared noise"


def _outcomes(s: Instances) -> tuple[Number, Number]:
    """Dominant and total gradient energy after the step, for each sign pattern: two arrays (n, 2^modes).

    Copies of one base mode (a lift) share their sign.
    """
    modes = s.dimension // s.copies
    signs = np.array(list(product((1, -1), repeat=modes)), dtype=object).repeat(s.copies, axis=1)
    step, spectrum = s.step_size[:, None], s.eigenvalues
    drifted, kicked = spectrum * (1 - step * spectrum) * s.state, spectrum * step * root(s.noise)
    energy = (drifted[:, None] - kicked[:, None] * signs) ** 2
    return energy[..., : s.rank].sum(-1), energy.sum(-1)


def two_point_alignment(s: Instances) -> Number:
    """E θ' after one step with independent noise ξ_i = ±κ_i of equal probability, shape (n,)."""
    dominant, total = _outcomes(s)
    patterns = 2 ** (s.dimension // s.copies)
    return (dominant / total).sum(1) / patterns


def _two_point(s: Instances) -> Truth:
    """κ_i rational, and no outcome without gradient."""
    return (root(s.noise).min(-1) >= 0) & (_outcomes(s)[1].min(1) > 0)


def gaussian_alignment(s: Instances, *, spacing: float = 0.125) -> Bounded:
    """E θ' after one step with Gaussian noise of variances κ_i², and a bound on the error of the integral.

    E θ' = ∫₀^∞ Σ_D(τ²/w + y²/w²) Π w^{−½} e^{−sy²/w} ds with w = 1 + 2sτ², τ = ηλκ, y = λ(1−ηλ)x. In log s the
    integrand is analytic with exponential tails, where the trapezoidal rule converges geometrically. What is cut off
    is at most s_min E‖g'‖² on the left and E e^{−s_max‖g'‖²} on the right; halving the spacing estimates the rest.
    """
    step, spectrum = s.step_size[:, None], s.eigenvalues
    drifted = _grouped(s, spectrum**2 * (1 - step * spectrum) ** 2 * s.square)
    kicked = _grouped(s, spectrum**2 * step**2 * s.noise)
    rank = s.rank // s.copies
    grid = np.arange(-320, 721) * spacing
    scale = (drifted + kicked).sum(-1, keepdims=True)
    points = np.exp(grid)[None, :] / scale
    stretch = 1 + 2 * points[..., None] * kicked[:, None, :]
    damping = points[..., None] * drifted[:, None, :] / stretch
    law = np.exp(-0.5 * np.log(stretch).sum(-1) - damping.sum(-1))
    share = (kicked[:, None, :rank] / stretch[..., :rank] + drifted[:, None, :rank] / stretch[..., :rank] ** 2).sum(-1)
    integrand = points * share * law
    value, coarse = integrand.sum(1) * spacing, integrand[:, ::2].sum(1) * 2 * spacing
    cut = points[:, 0] * scale[:, 0] + law[:, -1]
    return Bounded(value, np.abs(value - coarse) + cut + 1e-12)


def _grouped(s: Instances, energies: Number) -> Any:
    values = Bounded.of(energies).value
    return values.reshape(len(s), -1, s.copies).sum(-1)


def _rises_under_gaussian_noise(instance: Instance) -> bool:
    s = Instances.exact([instance]).bounded()
    return bool(cast(Any, gaussian_alignment(s) > s.alignment).true[0])


def _falls_under_gaussian_noise(instance: Instance) -> bool:
    s = Instances.exact([instance]).bounded()
    return bool(cast(Any, gaussian_alignment(s) < s.alignment).true[0])


def _ratio_of_expectations(s: Instances) -> Number:
    return s.next_energy().share


A1 = Claim(
    name="A1",
    form="printed",
    source="Assumption 1 with Lemma 20",
    statement="The expected alignment after a step tends to the alignment of the expected energies.",
    formula="lim_d E[θ'] = lim_d E s_D'/(E s_D' + E s_B')",
    hypotheses="Assumption 1, ξ ~ N(0, Σ)",
    expected="refuted",
    when=(Instances.is_moving, Instances.is_noisy),
    then=lambda s: [equal(gaussian_alignment(s), _ratio_of_expectations(s))],
    kind="numeric",
    enters=("step_size", "gaussian"),
    lift=SHARED,
    largest=3,
    samples=1000,
    note="Tr Σ finite lets a few directions carry the noise at every dimension; then the ratio does not concentrate.",
)

A1_CORRECTED = Claim(
    name="A1",
    form="corrected",
    source="Assumption 1 with Lemma 20",
    statement="The expected alignment after a step is within an explicit distance of that of the expected energies.",
    formula="|E θ' − θ̄| ≤ 2η√(‖HΣH‖/E‖g'‖²)",
    hypotheses="ξ ~ N(0, Σ)",
    expected="holds",
    when=(Instances.is_moving, Instances.is_noisy),
    then=lambda s: [
        at_most(
            (gaussian_alignment(s) - _ratio_of_expectations(s)) ** 2 * s.next_energy().total,
            4 * s.step_size**2 * (s.eigenvalues**2 * s.noise).max(-1),
        )
    ],
    kind="numeric",
    enters=("step_size", "gaussian"),
    largest=6,
    samples=1000,
)

T2 = Claim(
    name="T2",
    form="printed",
    source="Theorem 2",
    statement="A step below the critical one lowers the expected alignment (the expectation of the ratio).",
    formula="0 < η < η* ⇒ lim E θ' < θ",
    hypotheses="N, M > 0, 0 < η < η*, independent noise ±κ_i",
    expected="refuted",
    when=(Instances.is_low, lambda s: s.step_size * s.kick < 2 * s.drift, _two_point),
    then=lambda s: [less(two_point_alignment(s), s.alignment)],
    enters=("step_size", "noise_law"),
    lift=SHARED,
    largest=3,
    confirm=_rises_under_gaussian_noise,
    note="True of the ratio model (see the corrected form). Gaussian noise of the same variances violates it too "
    "(numeric). Copies that share their noise carry it to d → ∞ with Tr Σ fixed.",
)

T3 = Claim(
    name="T3",
    form="printed",
    source="Theorem 3",
    statement="At low alignment a step above the critical one raises the expected alignment (the expectation of the "
    "ratio), at every dimension.",
    formula="θ ≤ g_gap and η > η* ⇒ E θ' > θ",
    hypotheses="Σ ≻ 0, θ ≤ g_gap, η > η*, independent noise ±κ_i",
    expected="refuted",
    when=(
        Instances.is_moving,
        Instances.is_noisy_throughout,
        lambda s: s.signal(2).at_most(low_border(s)),
        lambda s: s.step_size * s.kick > 2 * s.drift,
        _two_point,
    ),
    then=lambda s: [less(s.alignment, two_point_alignment(s))],
    enters=("step_size", "noise_law"),
    lift="none",
    largest=3,
    confirm=_falls_under_gaussian_noise,
    note="True of the ratio model (see the corrected form). False at finite d only: θ ≤ g_gap bounds s_max/s_min, so "
    "that with Tr Σ finite and θ fixed the ratio concentrates as d → ∞ and the limit is the ratio model's.",
)

CLAIMS = (A1, A1_CORRECTED, T2, T3)
