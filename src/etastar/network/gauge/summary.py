"""What a window of steps says: is the step near its loss threshold, what does it do to the loss, what limits it.

For the update u that an optimizer made, C = E⟨u, g⁺⟩ with the next gradient, D = E⟨u, g'⟩ with a second one where
the step began, K = E⟨u, Hu⟩ = D − C (theory §8): the fraction of the loss threshold used is η/η_full = ½K/D, the loss
changes by −½(C + D) = −(D − ½K) a step (trapezoid), and both are sums over parameters. For plain SGD, u = ηg, also
m0 = D/η, m1 + q1 = K/η², and ⟨g', g⁺⟩ = m0 − ηm1 takes m1 and q1 apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from etastar.network.gauge.estimate import LEAST_UNITS, Mean, absent, cut, linear, ratio, scatter, significant
from etastar.network.gauge.part import GaugeOutcome, GaugePart, in_words
from etastar.network.gauge.window import FEATURES, Block, assemble, dropped
from etastar.uncertainty import Estimate

__all__ = ["GaugeSummary", "Sampling", "summarise"]

Array = npt.NDArray[np.float64]
Sampling = Literal["independent", "shuffled"]
_DEPENDENT = 0.999  # level at which two estimates of D must disagree before batches are called dependent


@dataclass(frozen=True, slots=True)
class GaugeSummary:
    """A window of steps, read.

    Attributes:
        outcome: How far it could be read; its text names the remedy.
        first: Steps taken before the window.
        last: Steps taken at its end.
        total: The whole update.
        groups: By parameter group.
        layers: By parameter.
        dominant: In the span of the basis; None without one.
        bulk: The rest of the whole.
        loss_change: Over all steps of the window, [loss].
        trapezoid_gap: What the trapezoid misses per step, measured on the second batches, [loss]; small against
            ``total.loss_change`` where it can be trusted.
        plain: Every update seen was lr × the batch gradient: plain SGD at one learning rate, nothing clipped.
        second_gradients: Second points in the window.
        dropped: Rows left out because a number was not finite.
    """

    outcome: GaugeOutcome
    first: int
    last: int
    total: GaugePart
    groups: tuple[GaugePart, ...]
    layers: tuple[GaugePart, ...]
    dominant: GaugePart | None
    bulk: GaugePart | None
    loss_change: Estimate
    trapezoid_gap: Estimate
    plain: bool
    second_gradients: int
    dropped: int

    @property
    def verdict(self) -> str:
        """Which part still descends, which has equilibrated, what limits it, in words."""
        if self.outcome not in (GaugeOutcome.RESOLVED, GaugeOutcome.DEPENDENT):
            return self.outcome.value
        parts = [part for part in (self.dominant, self.bulk) if part is not None] or [self.total]
        words = "; ".join(part.verdict for part in parts)
        return words if self.outcome is GaugeOutcome.RESOLVED else f"{words} ({self.outcome.value})"


def summarise(blocks: list[Block], sampling: Sampling, batch_size: int | None, level: float) -> GaugeSummary:
    """Read a window of blocks; see `StepGauge.summary`."""
    window = _Window.of(blocks, sampling, batch_size, level)
    names = window.names
    whole = np.append(np.ones(len(names)), 0.0)
    based = (
        _Window.of([b for b in blocks if b.has_basis], sampling, batch_size, level)
        if any(b.has_basis for b in blocks)
        else None
    )
    inside = None if based is None else np.append(np.zeros(len(based.names)), 1.0)
    groups = {group: np.zeros(len(names) + 1) for group in window.groups.values()}
    for column, name in enumerate(names):
        groups[window.groups[name]][column] = 1.0
    each = np.eye(len(names), len(names) + 1)
    steps = sum(block.steps for block in blocks)
    change, lost = window.mean_change(whole), dropped(blocks, window.block_counts)
    diverged = window.outcome is GaugeOutcome.TOO_FEW_STEPS and 2 * lost > sum(sum(block.seen) for block in blocks)
    return GaugeSummary(
        outcome=GaugeOutcome.NOT_FINITE if diverged else window.outcome,
        first=blocks[0].end - blocks[0].steps if blocks else 0,
        last=blocks[-1].end if blocks else 0,
        total=window.part("total", whole),
        groups=tuple(window.part(group, columns) for group, columns in groups.items()),
        layers=tuple(window.part(name, columns) for name, columns in zip(names, each, strict=True)),
        dominant=None if based is None or inside is None else based.part("dominant", inside),
        bulk=None if based is None or inside is None else based.part("bulk", np.append(np.ones(inside.size - 1), -1.0)),
        loss_change=absent(level) if change is None else linear(change * steps, level),
        trapezoid_gap=linear(window.mean("trapezoid gap", whole), level) if window.has("u·δ") else absent(level),
        plain=window.plain,
        second_gradients=int(window.counts[:, FEATURES["u·g'"]].sum()) if blocks else 0,
        dropped=lost,
    )


@dataclass(frozen=True, slots=True)
class _Window:
    """Sums per unit, and which identities may be used on them."""

    names: tuple[str, ...]
    groups: dict[str, str]
    sums: Array  # (n, F, L + 1)
    counts: Array  # (n, F)
    block_counts: Array
    usable: Array  # (F,), bool
    plain: bool
    independent: bool
    outcome: GaugeOutcome
    batch_size: int | None
    level: float

    @classmethod
    def of(cls, blocks: list[Block], sampling: Sampling, batch_size: int | None, level: float) -> _Window:
        sums, counts, names, groups = assemble(blocks)
        # A kind seen in a few blocks only has no error of its own: it is left aside.
        usable = (counts > 0).sum(0) >= max(LEAST_UNITS, len(blocks) / 4)
        units = cut(np.where(usable, counts, 0.0)) if np.any(usable) else []
        total = np.array([sums[unit].sum(0) for unit in units]).reshape(len(units), *sums.shape[1:])
        rows = np.array([counts[unit].sum(0) for unit in units]).reshape(len(units), counts.shape[1])
        wrong, seen = FEATURES["not ηg"], counts.sum(0)
        plain = bool(seen[wrong] > 0 and sums[:, wrong, :-1].sum() == 0)
        draft = cls(
            names, groups, total, rows, counts, usable, plain, sampling == "independent", GaugeOutcome.RESOLVED,
            batch_size, level,
        )  # fmt: skip
        return draft.judged(len(units))

    def judged(self, units: int) -> _Window:
        """With its outcome, and consecutive batches believed independent only where the numbers allow it."""
        whole = np.append(np.ones(len(self.names)), 0.0)
        outcome, independent = self.outcome, self.independent and self.has("u·g⁺")
        if independent and self.has("u·g'") and self.has("u·δ"):
            gap = self.mean("u·g'", whole) - self.mean("u·g⁺", whole) - self.mean("u·δ", whole)
            if significant(gap, _DEPENDENT):
                outcome, independent = GaugeOutcome.DEPENDENT, False
        seconds = self.block_counts[:, FEATURES["u·g'"]].sum()
        if len(self.block_counts) < LEAST_UNITS:
            outcome = GaugeOutcome.TOO_FEW_STEPS
        elif seconds == 0:
            outcome = GaugeOutcome.NO_SECOND
        elif units < LEAST_UNITS or not self.has("u·g'"):
            outcome = GaugeOutcome.TOO_FEW_STEPS
        elif not self.has("u·δ") and not independent:
            outcome = GaugeOutcome.NO_CURVATURE
        return replace(self, independent=independent, outcome=outcome)

    def has(self, feature: str) -> bool:
        return bool(self.usable[FEATURES[feature]])

    def mean(self, feature: str, columns: Array) -> Mean:
        index = FEATURES[feature]
        some = columns != 0  # columns without a number (no basis) must not reach the others
        return Mean.of(self.sums[:, index][:, some] @ columns[some], self.counts[:, index])

    def slope_and_curvature(self, columns: Array) -> tuple[Mean | None, Mean | None]:
        """D and K by the most precise way that is open."""
        slope, curvature = self.first_of(("u·g'",), columns), self.first_of(("u·δ",), columns)
        if slope is None or not self.independent:
            return slope, curvature
        if curvature is not None:
            # Noise of batches: C from every step beats D from few. Steps that differ much (curvature that swings, at
            # the edge of stability): D and K of the same step. The loss change decides, for all parts alike.
            k = {"u·δ": 1.0}
            direct, around = {"u·g'": 1.0}, {"u·g⁺": 1.0, "u·δ": 1.0}
            ways = [({"u·δ": 0.5, "u·g'": -1.0}, direct), ({"u·δ": -0.5, "u·g⁺": -1.0}, around)]
            return self.combination(self.best(ways), columns), self.combination(k, columns)
        if self.plain and self.has("m0"):
            slope = self.mean("m0·η", columns)  # u = ηg, and every step gives one
        return slope, slope - self.mean("u·g⁺", columns)

    def mean_change(self, columns: Array) -> Mean | None:
        slope, curvature = self.slope_and_curvature(columns)
        return None if slope is None or curvature is None else curvature * 0.5 - slope

    def signal(self, columns: Array) -> tuple[Mean | None, Mean | None, Mean | None]:
        """m0, and, where the update is lr times the gradient, m1 and m1 + q1."""
        m0, both = self.first_of(("m0", "g·g'"), columns), self.first_of(("u·δ/η²",), columns)
        if not (self.plain and self.has("u·g'")):
            return m0, None, None
        first = {"g·g'/η": 1.0, "g⁺·g'/η": -1.0}
        if both is None or not self.independent:
            return m0, self.combination(first, columns), both
        around = {"u·g⁺/η²": 1.0, "u·δ/η²": 1.0, "g⁺·g'/η": -1.0}
        if not self.has("m0"):
            ways = [{"g·g'": 1.0}, {"u·g⁺/η": 1.0, "u·δ/η": 1.0}]
            m0 = self.combination(self.best([(way, way) for way in ways]), columns)
        return m0, self.combination(self.best([(first, first), (around, around)]), columns), both

    def combination(self, weights: dict[str, float], columns: Array) -> Mean:
        """A weighted sum of feature means."""
        first, *rest = (self.mean(feature, columns) * weight for feature, weight in weights.items())
        for mean in rest:
            first += mean
        return first

    def best(self, ways: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
        """Of several ways to one number, that with the least scatter on the whole of what is in its first place."""
        whole = np.append(np.ones(len(self.names)), 0.0)
        return min(ways, key=lambda way: scatter(self.combination(way[0], whole)))[1]

    def part(self, name: str, columns: Array) -> GaugePart:
        """All numbers of one part; those that cannot be had are unresolved."""
        if self.outcome is GaugeOutcome.TOO_FEW_STEPS:
            no = absent(self.level)
            return GaugePart(name, no, no, no, no, no, no, no, no, no, no, f"{name}: {self.outcome.value}")
        slope, curvature = self.slope_and_curvature(columns)
        m0, m1, bend = self.signal(columns)
        energy = self.first_of(("g·g", "g·g at m0", "g·g at g'"), columns)
        q0 = None if energy is None or m0 is None else energy - m0
        q1 = None if bend is None or m1 is None else bend - m1
        batch = float(self.batch_size or 1)
        fraction = self._ratio(self.of_the_projection(curvature, columns), slope, 0.5)
        share, along = self._ratio(q1, bend), self._linear(slope)
        readable = self.outcome in (GaugeOutcome.RESOLVED, GaugeOutcome.DEPENDENT)
        return GaugePart(
            name=name,
            threshold_fraction=fraction,
            loss_change=self._linear(self.mean_change(columns)),
            slope=along,
            curvature=self._linear(curvature),
            update_energy=self._linear(self.first_of(("u·u",), columns)),
            gradient_energy=self._linear(energy),
            signal_energy=self._linear(m0),
            noise_scale=self._ratio(q0, m0, batch),
            noise_share=share,
            curvature_noise_scale=self._ratio(q1, m1, batch),
            verdict=f"{name}: {in_words(fraction, share, along) if readable else self.outcome.value}",
        )

    def of_the_projection(self, curvature: Mean | None, columns: Array) -> Mean | None:
        """K of a subspace without what the rest of the update adds, ⟨Pu, HQu⟩ or ⟨Qu, HPu⟩; of all else K itself."""
        if curvature is None or columns[-1] == 0 or not self.has("Pu·HQu"):
            return curvature
        return curvature - self.mean("Pu·HQu", columns)

    def first_of(self, features: tuple[str, ...], columns: Array) -> Mean | None:
        """The mean of the first feature that the window has."""
        return next((self.mean(feature, columns) for feature in features if self.has(feature)), None)

    def _linear(self, mean: Mean | None) -> Estimate:
        return absent(self.level) if mean is None else linear(mean, self.level)

    def _ratio(self, top: Mean | None, bottom: Mean | None, factor: float = 1.0) -> Estimate:
        return absent(self.level) if top is None or bottom is None else ratio(top * factor, bottom, self.level)
