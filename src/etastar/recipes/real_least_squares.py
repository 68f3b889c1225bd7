"""Quadratics from real data: ridge regression on scikit-learn's digits and diabetes, with their true spectra.

The loss is ½·mean((Xw − y)²) + ½·ridge·‖w‖²; noise is the per-sample gradient covariance at the minimum over
the batch size. Real mini-batch SGD on the same data stands beside the exact curve of the additive-noise model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic import Curve, Noise, Phases, Quadratic, Spectrum
from etastar.quadratic.minibatch.batches import simulate_batches
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Reference, Section, Table

__all__ = ["LeastSquares", "load_least_squares", "real_section"]

Array = npt.NDArray[np.float64]
DataName = Literal["digits", "diabetes"]


@dataclass(frozen=True, slots=True, eq=False)
class LeastSquares:
    """A ridge regression as a quadratic.

    Attributes:
        name: The data set.
        X: Features, ``(n, d)``.
        y: Target, ``(n,)``.
        ridge: Coefficient of ½‖w‖².
        batch_size: b of the gradient noise.
        minimum: The ridge solution, ``(d,)``.
        problem: The quadratic, noise taken at the minimum.
        start: Gradient at w = 0, in the eigenbasis.
    """

    name: str
    X: Array
    y: Array
    ridge: float
    batch_size: int
    minimum: Array
    problem: Quadratic
    start: Array


def load_least_squares(name: DataName, rank: int = 1, batch_size: int = 32, ridge: float = 1e-3) -> LeastSquares:
    """Ridge regression on a data set that scikit-learn ships.

    digits: 1,797 images, 64 pixels in [0, 1], not centred (the dominant direction is the mean image); the target
    is the digit, over its standard deviation. diabetes: 442 patients, 10 features, all standardised.

    Raises:
        InvalidArgument: An unknown name, or a rank, batch size or ridge outside its range.
    """
    from sklearn import datasets  # lazy: seconds to import

    if name == "digits":
        pixels, digit = map(np.asarray, datasets.load_digits(return_X_y=True))
        data, target = pixels / 16.0, digit / digit.std()
    elif name == "diabetes":
        features, progression = map(np.asarray, datasets.load_diabetes(return_X_y=True))
        data = (features - features.mean(axis=0)) / features.std(axis=0)
        target = (progression - progression.mean()) / progression.std()
    else:
        raise InvalidArgument("data", name, "must be digits or diabetes")
    spectrum = Spectrum.from_least_squares(data, rank=rank, ridge=ridge)
    pull = data.T @ target / len(data)
    minimum = spectrum.from_eigenbasis(spectrum.to_eigenbasis(pull) / spectrum.eigenvalues)
    noise = Noise.from_least_squares(data, target, at=minimum, batch_size=batch_size)
    start = spectrum.to_eigenbasis(-pull)
    return LeastSquares(name, data, target, ridge, batch_size, minimum, Quadratic(spectrum, noise), start)


def real_section(quick: bool, seed: int) -> Section:
    """Both data sets: exact curve, real mini-batch runs, critical step and phases."""
    runs, share = (20, 10) if quick else (60, 4)
    lengths: dict[DataName, int] = {"digits": 20_000, "diabetes": 3_000}
    cases = [_compare(load_least_squares(name), steps, steps // share, runs, seed) for name, steps in lengths.items()]
    return Section(
        "real-data",
        "Real least squares",
        "Ridge regression on real data has the same two phases. The [[exact]] curve takes the noise as it is at "
        "the minimum; real mini-batch SGD on the same data is drawn beside it.",
        "Where they part, the noise of real mini-batches depends on the state: far from the minimum it is larger than "
        "the additive model says, so that the dip of the dominant subspace is shallower and later runs agree again.",
        [case.check() for case in cases],
        [
            Figure(
                "real-data",
                "Exact curve of the additive-noise model, real mini-batch SGD, and η*ₜ/η.",
                [panel for case in cases for panel in case.panels()],
            )
        ],
        [Table(_COLUMNS, [case.row() for case in cases])],
        {case.data.name: case.to_json() for case in cases},
    )


_COLUMNS = [
    Column("data", "scikit-learn data set", numeric=False),
    Column("samples × features"),
    Column("λ₁/λ₂", "ratio at the cut, k = 1"),
    Column("η", "step size, half of 1/λ₁"),
    Column("turns", "turning times of the exact curve", numeric=False),
    Column("θ", "alignment at the start, at its least, and stationary"),
    Column("distance", "largest difference between real mini-batch SGD and the exact curve, in θ"),
]


@dataclass(frozen=True, slots=True, eq=False)
class _Comparison:
    """One data set: the exact curve of the additive-noise model, and real mini-batch runs at some of its times."""

    data: LeastSquares
    step_size: float
    curve: Curve
    phases: Phases
    watched: npt.NDArray[np.int64]
    real: Array
    distance: float

    def check(self) -> Check:
        """Whether the exact curve has the paper's two phases."""
        turns, shape = self.phases.turns, self.phases.shape.partition(" (")[0]
        told = f"{self.data.name}: the alignment falls, then rises to its stationary value"
        return Check(told, bool(turns) and turns[0][1] == "min", shape)

    def row(self) -> list[str]:
        """The row of the table, as `_COLUMNS`."""
        phases, (samples, features) = self.phases, self.data.X.shape
        return [
            self.data.name,
            f"{samples:,} × {features}",
            f"{self.data.problem.spectrum.ratio:.1f}",
            f"{self.step_size:.4f}",
            ", ".join(f"{kind} at {t:,}" for t, kind in phases.turns) or "none",
            f"{phases.alignment_start:.3f} → {phases.alignment_min:.3f} → {phases.alignment_limit:.3f}",
            f"{self.distance:.3f}",
        ]

    def panels(self) -> list[Panel]:
        """Alignment and η*ₜ/η over the steps."""
        label, times = f"real mini-batch SGD, b = {self.data.batch_size}", self.curve.times + 1
        theta = [
            Line(times, self.curve.alignment, "exact, additive noise", COLOURS["exact"], 2.2),
            Line(self.watched + 1, self.real, label, COLOURS["sampled"], 1.8, "dash"),
        ]
        critical = np.asarray(self.curve.critical_step_size.value) / self.step_size
        ratio = [Line(times, critical, "η*ₜ/η", COLOURS["critical"], 2.0), Reference(1.0, "y", "η")]
        name = self.data.name
        return [
            Panel("step t + 1", "alignment θ", theta, name, x_scale="log", y_range=(-0.02, 1.02)),
            Panel("step t + 1", "η*ₜ/η", ratio, f"{name}: η*ₜ/η", x_scale="log", y_scale="log"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Turns, stationary alignment, and the distance of the real runs."""
        turns = [list(turn) for turn in self.phases.turns]
        return {"turns": turns, "limit": self.phases.alignment_limit, "distance": self.distance}


def _compare(case: LeastSquares, steps: int, watched_steps: int, runs: int, seed: int) -> _Comparison:
    eta = 0.5 / float(case.problem.spectrum.eigenvalues[0])
    watched = np.unique(np.geomspace(1, watched_steps, 18).astype(np.int64))
    times = np.unique(np.concatenate([np.arange(30), np.geomspace(30, steps, 200).astype(np.int64)]))
    start: dict[str, Any] = {"gradient": case.start, "step_size": eta}
    curve, phases = case.problem.expected(**start, times=times), case.problem.phases(**start)
    real = minibatch_alignment(case, eta, watched, runs, seed)
    distance = float(np.max(np.abs(real - case.problem.expected(**start, times=watched).alignment)))
    return _Comparison(case, eta, curve, phases, watched, real, distance)


def minibatch_alignment(case: LeastSquares, eta: float, times: Any, runs: int, seed: int) -> Array:
    """Alignment of mean energies over real mini-batch SGD runs (with replacement), ``(T,)``."""
    paths = simulate_batches(
        case.X,
        case.y,
        rank=case.problem.spectrum.rank,
        step_size=eta,
        steps=int(times[-1]),
        batch_size=case.batch_size,
        ridge=case.ridge,
        record=times,
        replicas=runs,
        seed=seed,
    )
    dominant, bulk = paths.dominant_energy.mean(axis=0), paths.bulk_energy.mean(axis=0)
    return dominant / (dominant + bulk)
