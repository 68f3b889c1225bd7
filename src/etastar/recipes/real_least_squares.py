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
from etastar.quadratic import Noise, Quadratic, Spectrum
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
    panels, rows, checks = [], [], []
    data: dict[str, Any] = {}
    cases: tuple[tuple[DataName, int], ...] = (("digits", 20_000), ("diabetes", 3_000))
    for name, steps in cases:
        case = load_least_squares(name)
        eta = 0.5 / float(case.problem.spectrum.eigenvalues[0])
        runs = 20 if quick else 60
        watched = np.unique(np.geomspace(1, steps // (10 if quick else 4), 18).astype(np.int64))
        times = np.unique(np.concatenate([np.arange(30), np.geomspace(30, steps, 200).astype(np.int64)]))
        curve = case.problem.expected(gradient=case.start, step_size=eta, times=times)
        phases = case.problem.phases(gradient=case.start, step_size=eta)
        real = minibatch_alignment(case, eta, watched, runs, seed)
        reference = case.problem.expected(gradient=case.start, step_size=eta, times=watched).alignment
        distance = float(np.max(np.abs(real - reference)))
        panels += _panels(case, curve, watched, real, eta)
        rows.append(
            [
                name,
                f"{case.X.shape[0]:,} × {case.X.shape[1]}",
                f"{case.problem.spectrum.ratio:.1f}",
                f"{eta:.4f}",
                ", ".join(f"{kind} at {t:,}" for t, kind in phases.turns) or "none",
                f"{phases.alignment_start:.3f} → {phases.alignment_min:.3f} → {phases.alignment_limit:.3f}",
                f"{distance:.3f}",
            ]
        )
        checks.append(
            Check(
                f"{name}: the alignment falls, then rises to its stationary value",
                bool(phases.turns) and phases.turns[0][1] == "min",
                phases.shape.partition(" (")[0],
            )
        )
        data[name] = {
            "turns": [list(turn) for turn in phases.turns],
            "limit": phases.alignment_limit,
            "distance": distance,
        }
    return Section(
        "real-data",
        "Real least squares",
        "Ridge regression on real data has the same two phases. The [[exact]] curve takes the noise as it is at "
        "the minimum; real mini-batch SGD on the same data is drawn beside it.",
        "Where they part, the noise of real mini-batches depends on the state: far from the minimum it is larger than "
        "the additive model says, so that the dip of the dominant subspace is shallower and later runs agree again.",
        checks,
        [Figure("real-data", "Exact curve of the additive-noise model, real mini-batch SGD, and η*ₜ/η.", panels)],
        [
            Table(
                [
                    Column("data", "scikit-learn data set", numeric=False),
                    Column("samples × features"),
                    Column("λ₁/λ₂", "ratio at the cut, k = 1"),
                    Column("η", "step size, half of 1/λ₁"),
                    Column("turns", "turning times of the exact curve", numeric=False),
                    Column("θ", "alignment at the start, at its least, and stationary"),
                    Column("distance", "largest difference between real mini-batch SGD and the exact curve, in θ"),
                ],
                rows,
            )
        ],
        data,
    )


def minibatch_alignment(case: LeastSquares, eta: float, times: Any, runs: int, seed: int) -> Array:
    """Alignment of mean energies over real mini-batch SGD runs (with replacement), ``(T,)``."""
    rng = np.random.default_rng(seed)
    n, d = case.X.shape
    weights = np.zeros((runs, d))
    record = np.empty(len(times))
    slot = {int(t): i for i, t in enumerate(times)}
    basis = case.problem.spectrum.to_eigenbasis(np.eye(d))
    eigenvalues = case.problem.spectrum.eigenvalues
    for step in range(int(times[-1]) + 1):
        if step in slot:
            energy = np.mean((((weights - case.minimum) @ basis) * eigenvalues) ** 2, axis=0)
            record[slot[step]] = energy[: case.problem.spectrum.rank].sum() / energy.sum()
        drawn = rng.integers(n, size=(runs, case.batch_size))
        rows = case.X[drawn]
        residual = np.matmul(rows, weights[:, :, None])[..., 0] - case.y[drawn]
        gradient = np.matmul(residual[:, None, :], rows)[:, 0] / case.batch_size + case.ridge * weights
        weights -= eta * gradient
    return record


def _panels(case: LeastSquares, curve: Any, watched: Any, real: Array, eta: float) -> list[Panel]:
    theta = Panel(
        "step t + 1",
        "alignment θ",
        [
            Line(curve.times + 1, curve.alignment, "exact, additive noise", COLOURS["exact"], 2.2),
            Line(watched + 1, real, f"real mini-batch SGD, b = {case.batch_size}", COLOURS["sampled"], 1.8, "dash"),
        ],
        case.name,
        x_scale="log",
        y_range=(-0.02, 1.02),
    )
    critical = np.asarray(curve.critical_step_size.value) / eta
    marks = [Line(curve.times + 1, critical, "η*ₜ/η", COLOURS["critical"], 2.0), Reference(1.0, "y", "η")]
    return [theta, Panel("step t + 1", "η*ₜ/η", marks, f"{case.name}: η*ₜ/η", x_scale="log", y_scale="log")]
