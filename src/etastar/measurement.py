"""A measurement: the moments of one step, the verdict drawn from them, and where they came from.

Exact moments give exact criteria; replicated ones give each an interval. A measurement is one line of JSON, whose
numbers survive to the last bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from etastar.budget import StepBudget, step_budget
from etastar.criteria import Outcome, Regime, alignment, as_step_size, critical_step_size, loss_thresholds
from etastar.errors import InvalidArgument
from etastar.moments import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments
from etastar.uncertainty import Estimate, critical_step_interval, exactly, jackknife, mean_of

__all__ = ["EQUILIBRATED", "Measurement", "ThresholdEstimates", "decode", "encode", "undecided"]

Array = npt.NDArray[np.float64]
Plain = str | int | float | bool
EQUILIBRATED = (0.8, 1.25)  # η/η_S inside this band counts as equilibrated
# digits-mlp, both losses, 20 checkpoints: below it η* is always where real steps turn; where none do, 0.41 at least.
_TRUSTED_SHIFT = 0.2
_SPELT_OUT = ("nan", "inf", "-inf")  # JSON has no numbers for them


@dataclass(frozen=True, slots=True)
class ThresholdEstimates:
    """The loss thresholds η_D, η_B and η_full with their intervals, [parameter²/loss]."""

    dominant: Estimate
    bulk: Estimate
    full: Estimate


@dataclass(frozen=True, slots=True)
class Measurement:
    """The moments of one step with what they say.

    Attributes:
        step: Steps taken before it.
        step_size: η in use, [parameter²/loss].
        moments: Batch shape ``()`` when exact, or ``(replicates,)``: then every criterion gets an interval.
        batch_size: b behind the noise moments, or None where there is none (a laboratory).
        provenance: What made it: names and plain numbers.
        recoverable: ½ Σ_D g_i²/λ_i of each replicate, shape of the moments or ``()``, [loss]; None where no basis was.
        certificate: Of the basis behind the moments: names and plain numbers.
        cost: What it took: names and plain numbers.

    Raises:
        InvalidArgument: A count that is none, a step size that is negative or not finite, provenance that is not plain.
    """

    step: int
    step_size: float
    moments: SplitMoments
    batch_size: int | None = None
    provenance: Mapping[str, Plain] = field(default_factory=dict[str, Plain])
    recoverable: Array | float | None = None
    certificate: Mapping[str, Plain] = field(default_factory=dict[str, Plain])
    cost: Mapping[str, Plain] = field(default_factory=dict[str, Plain])

    def __post_init__(self) -> None:
        if len(self.moments.shape) > 1:
            raise InvalidArgument("moments", self.moments.shape, "must be one measurement or one axis of replicates")
        if self.moments.shape in ((0,), (1,)):
            raise InvalidArgument("moments", self.moments.shape, "an interval needs two replicates")
        size = as_step_size(self.step_size)
        if size.ndim:
            raise InvalidArgument("step_size", self.step_size, "must be one number")
        object.__setattr__(self, "step", _count("step", self.step, 0))
        object.__setattr__(self, "step_size", float(size))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", _count("batch_size", self.batch_size, 1))
        if self.recoverable is not None:
            object.__setattr__(self, "recoverable", _recoverable(self.recoverable, self.moments.shape))
        for name in ("certificate", "cost", "provenance"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    @property
    def alignment(self) -> Estimate:
        """θ, its interval within [0, 1]; unresolved where a de-biased estimate of it lies outside.

        Where the certificate tells of it, the interval includes what the error of the basis leaves open.
        """
        found = self.estimate(alignment)
        error = self._basis_error("alignment_error")
        low, high = found.low - error, found.high + error
        if not (found.resolved and 0 <= found.value <= 1 and error < 1):
            nan = float("nan")
            return Estimate(nan, nan, found.bias, nan, nan, found.level, False)
        return replace(found, low=max(low, 0.0), high=min(high, 1.0))

    @property
    def critical_step_size(self) -> Estimate:
        """η*, [parameter²/loss]; with replicates, the interval is Fieller's."""
        if self.moments.shape == ():
            return exactly(critical_step_size(self.moments).value)
        return critical_step_interval(self.moments)

    @property
    def loss_thresholds(self) -> ThresholdEstimates:
        """η_D, η_B and η_full; intervals of the first two include the error of the basis, as that of θ does."""

        def all_three(split: SplitMoments) -> Array:
            bounds = loss_thresholds(split)
            return np.stack([bounds.dominant, bounds.bulk, bounds.full], axis=-1)

        found = self.estimate(all_three)

        def one(k: int, basis: str = "") -> Estimate:
            numbers = (found.value, found.standard_error, found.bias, found.low, found.high)
            value, error, bias, low, high = (number[k] for number in numbers)
            more = self._basis_error(basis) * abs(value)
            return Estimate(value, error, bias, low - more, high + more, found.level, found.resolved[k])

        return ThresholdEstimates(one(0, "threshold_dominant_error"), one(1, "threshold_bulk_error"), one(2))

    @property
    def recoverable_loss(self) -> Estimate | None:
        """What decaying the step would give back in the dominant subspace, ½ Σ_D g_i²/λ_i, [loss]."""
        if self.recoverable is None:
            return None
        return mean_of(self.recoverable)

    @property
    def regime(self) -> Regime:
        """The regime at the mean moments; UNDEFINED where there is no curvature."""
        return Regime.UNDEFINED if self._flat else critical_step_size(self._mean).regime

    @property
    def step_budget(self) -> StepBudget:
        """The step budget at the mean moments; noise scales take one sample for a batch where none is given."""
        return step_budget(self._mean, self.step_size, self.batch_size or 1)

    @property
    def expansion_holds(self) -> bool:
        """Whether orders beyond the quadratic model, if measured, move η* by little; else it is not to be trusted."""
        return float(self.certificate.get("third_derivative_shift", 0.0)) <= _TRUSTED_SHIFT

    @property
    def verdict(self) -> str:
        """Which subspace still descends, which has equilibrated, and what limits it, in words."""
        if self._flat:
            return "no curvature: the Hessian is zero here, and no subspace is dominant"
        bounds, eta = loss_thresholds(self._mean), self.step_size
        thresholds = self.loss_thresholds
        dominant = thresholds.dominant if bounds.dominant_outcome is Outcome.BELOW else None
        bulk = thresholds.bulk if bounds.bulk_outcome is Outcome.BELOW else None
        return "; ".join(
            [
                _subspace_verdict("dominant", eta, dominant, self.noise_share("dominant")),
                _subspace_verdict("bulk", eta, bulk, self.noise_share("bulk"), self.bulk_stability_limit),
            ]
        )

    @property
    def bulk_stability_limit(self) -> float:
        """2/λ_{k+1}, beyond which η_B is extrapolated [parameter²/loss]; NaN where the certificate tells of none."""
        last, gap = (float(self.certificate.get(name, math.nan)) for name in ("smallest_dominant_eigenvalue", "gap"))
        return 2.0 / (last - gap) if last > gap else math.nan

    def noise_share(self, part: str) -> Estimate:
        """q₁/(m₁ + q₁) of the "dominant" subspace, the "bulk" or the "full" step: 1 where noise limits, 0 curvature."""
        size = self.batch_size or 1  # shares do not depend on it
        return self.estimate(lambda split: getattr(step_budget(split, self.step_size, size), part).noise_share)

    def estimate(self, criterion: Callable[[SplitMoments], Any], level: float = 0.9) -> Estimate:
        """Any criterion of these moments, with its interval where there are replicates."""
        if self.moments.shape == ():
            return exactly(criterion(self.moments), level)
        return jackknife(criterion, self.moments, level=level)

    def _basis_error(self, name: str) -> float:
        return float(self.certificate.get(name, 0.0))

    @property
    def _flat(self) -> bool:
        return self.certificate.get("outcome") == "FLAT"

    @property
    def _mean(self) -> SplitMoments:
        return self.moments if self.moments.shape == () else self.moments.mean(0)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InvalidArgument(name, value, f"must be a whole number, at least {least}")
    return int(value)


def _recoverable(value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), shape):
        raise InvalidArgument("recoverable", array.shape, f"must be a number or have the shape {shape} of the moments")
    return array


def _plain(name: str, given: Mapping[str, Any]) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for key, value in given.items():
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidArgument(f"{name}.{key}", value, "must be text or a finite number")
        plain[str(key)] = value
    return plain


def _subspace_verdict(
    name: str, step_size: float, threshold: Estimate | None, noise_share: Estimate, stable: float = math.nan
) -> str:
    if threshold is None or not threshold.resolved or (threshold.low <= 0 < threshold.high):
        return f"{name}: no threshold resolved"
    ratio, low, high = (step_size / x if x else math.inf for x in (threshold.value, threshold.high, threshold.low))
    limit = "limited by " + ("noise" if noise_share.low > 0.5 else "curvature")
    if not (noise_share.low > 0.5 or noise_share.high < 0.5):
        limit = "what limits it unresolved between noise and curvature"
    if high < EQUILIBRATED[0]:
        word = "still descends"
    elif low > EQUILIBRATED[1]:
        word = f"is raised by this step, {limit}"
    elif EQUILIBRATED[0] <= low and high <= EQUILIBRATED[1]:
        word = f"has equilibrated, {limit}"
    else:
        word = undecided(low, high)
    far = f", extrapolated beyond 2/λ_{{k+1}} = {stable:.3g}" if threshold.value > stable else ""
    return f"{name}: {word} (step is {ratio:.3g} of its loss threshold{far})"


def undecided(low: float, high: float) -> str:
    """Between which of descending, equilibrated and raised an interval of η/η_S leaves it open, in words."""
    ends = (
        "descending" if low < EQUILIBRATED[0] else "equilibrated",
        "raised" if high > EQUILIBRATED[1] else "equilibrated",
    )
    return f"unresolved between {ends[0]} and {ends[1]}"


def encode(measurement: Measurement) -> str:
    """One line of JSON."""

    def plain(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            return (
                [x if math.isfinite(x) else repr(x) for x in value.ravel().tolist()] if value.ndim else plain(value[()])
            )
        return float(value) if math.isfinite(value) else repr(float(value))

    def part(side: SubspaceMoments) -> dict[str, Any]:
        return {
            "signal": [plain(x) for x in side.signal.leaves()],
            "noise": [plain(x) for x in side.noise.leaves()],
            "descent": None if side.descent is None else [plain(x) for x in side.descent.leaves()],
        }

    moments = measurement.moments
    record = {
        "step": measurement.step,
        "step_size": plain(measurement.step_size),
        "batch_size": measurement.batch_size,
        "dominant": part(moments.dominant),
        "bulk": part(moments.bulk),
        "coupling": None if moments.coupling is None else [plain(x) for x in moments.coupling.leaves()],
        "recoverable": plain(measurement.recoverable),
        "certificate": dict(measurement.certificate),
        "cost": dict(measurement.cost),
        "provenance": dict(measurement.provenance),
    }
    return json.dumps(record, allow_nan=False)


def decode(record: dict[str, Any]) -> Measurement:
    """Inverse of `encode`, after parsing; ValueError, KeyError or TypeError where it is none."""

    def number(value: Any) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not plain and not (isinstance(value, str) and value in _SPELT_OUT):
            raise TypeError("not a number as `encode` writes it")
        return float(value)

    def numbers(values: list[Any]) -> list[Any]:
        return [np.array([number(x) for x in v]) if isinstance(v, list) else number(v) for v in _typed(values, list)]

    def part(side: dict[str, Any]) -> SubspaceMoments:
        descent = None if side["descent"] is None else Descent(*numbers(side["descent"]))
        return SubspaceMoments(
            CurvatureMoments(*numbers(side["signal"])), CurvatureMoments(*numbers(side["noise"])), descent
        )

    coupling = None if record["coupling"] is None else Coupling(*numbers(record["coupling"]))
    return Measurement(
        step=record["step"],
        step_size=number(record["step_size"]),
        moments=SplitMoments(part(record["dominant"]), part(record["bulk"]), coupling),
        batch_size=record["batch_size"],
        recoverable=None if record.get("recoverable") is None else numbers([record["recoverable"]])[0],
        certificate=_typed(record.get("certificate", {}), dict),
        cost=_typed(record.get("cost", {}), dict),
        provenance=_typed(record["provenance"], dict),
    )


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"not a {kind.__name__}")
    return value
