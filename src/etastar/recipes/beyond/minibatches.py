"""Real mini-batches: where their noise, which grows with the loss, parts from additive noise and from Gaussian rows.

Least squares on a data set is exact too (``FiniteLeastSquares``); mini-batch runs on the data stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

import etastar
from etastar.quadratic import Noise, Quadratic
from etastar.quadratic.minibatch.batches import simulate_batches
from etastar.quadratic.minibatch.finite import FiniteLeastSquares
from etastar.recipes.beyond.agreement import Array, standard_error
from etastar.recipes.real_least_squares import DataName, LeastSquares, load_least_squares
from etastar.report import COLOURS, Check, Column, Figure, Line, Panel, Points, Reference, Section, Table
from etastar.report.figures import Mark

__all__ = ["minibatches"]

_STEP = 0.5  # ηλ₁ of all stationary states and runs
_BATCHES = np.array([1, 2, 4, 8, 16, 32, 64])
_RUN = (2, 8, 32)


def minibatches(quick: bool, seed: int) -> Section:
    """Energy, stationary alignment and stability border over the batch size: data, Gaussian rows, additive noise."""
    few = _BATCHES[[0] if quick else [0, 2, 4]]
    cases = [_Case.of("diabetes", _BATCHES, _BATCHES), _Case.of("digits", _BATCHES, few)]
    runs = [_runs(batch, 100 if quick else 200, seed) for batch in _RUN]
    worst = max(run.score_data for run in runs)
    small, large = runs[0], runs[-1]
    diabetes, digits = cases
    return Section(
        "mini-batches",
        "Beyond the paper: real mini-batches",
        f"At ηλ₁ = {_STEP:g} the energy that mini-batch SGD sustains on diabetes is {diabetes.energy[0]:.1f} times "
        f"what additive noise says at b = 1, {diabetes.energy[2]:.2f} times at b = 4 and {diabetes.energy[5]:.2f} "
        f"times at b = 32; steps are stable up to ηλ₁ = {diabetes.border[0]:.2f}, {diabetes.border[2]:.2f} and "
        f"{diabetes.border[5]:.2f}, not 2. The [[stationary alignment]] moves by "
        f"{abs(diabetes.alignment[0] - diabetes.alignment_additive):.2f} at most.",
        "Mini-batch noise grows with the loss and so feeds itself; the effect fades like 1/b. It multiplies all "
        "energies by nearly one factor, which [[alignment]] does not see: regimes and θ∞ survive the change of model, "
        "losses and stability limits do not. Gaussian rows are a model too: they miss the alignment of diabetes at "
        f"every batch size, and at b = 1 say {digits.border_gaussian[0]:.2f} for the border of digits, where it is "
        f"{digits.border[0]:.2f}.",
        [
            Check(
                "diabetes: mini-batch runs agree with the exact curve of the data at b = 2, 8, 32 "
                f"({small.replicas} runs each)",
                worst <= 4.0,
                f"largest |[[z]]| of the loss = {worst:.2f}, limit 4",
            ),
            Check(
                "the same runs reject additive noise at b = 2, and are within 5 % of it at b = 32",
                small.score_additive > 4.0 and large.distance_additive < 0.05,
                f"|[[z]]| = {small.score_additive:.0f} at b = 2; exact loss differs by "
                f"{large.distance_additive:.1%} at b = 32",
            ),
            Check(
                "the energy in excess of additive noise falls like 1/b",
                bool(np.all(np.diff(diabetes.energy) < 0)) and 0.4 < _halving(diabetes.energy) < 0.6,
                f"doubling b from 32 multiplies it by {_halving(diabetes.energy):.3f}",
            ),
            Check(
                "in both data sets θ∞ moves less than the energy does, at every b",
                all(case.alignment_is_steadier for case in cases),
                ", ".join(f"{c.name}: at most {c.moved:.3f}" for c in cases),
            ),
        ],
        [Figure("mini-batches", "Ridge regression on real data, k = 1; batches with replacement.", _panels(cases))],
        [_table(cases)],
        {case.name: case.to_json() for case in cases} | {"worst_z": worst},
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """Stationary states at ηλ₁ = 0.5 and stability borders, ηλ₁, over batch sizes; energies over additive noise's."""

    name: str
    energy: Array
    energy_gaussian: Array
    alignment: Array
    alignment_gaussian: Array
    alignment_additive: float
    batch_border: Array
    border: Array
    border_gaussian: Array

    @classmethod
    def of(cls, name: DataName, batches: Array, batch_border: Array) -> _Case:
        cases = {int(b): load_least_squares(name, batch_size=int(b)) for b in batches.tolist()}
        rows = [_states(case) for case in cases.values()]
        borders = [_border(cases[int(b)]) for b in batch_border.tolist()]
        energy, energy_gaussian, alignment, alignment_gaussian, additive = np.array(rows).T
        border, border_gaussian = np.array(borders).T
        gathered = (energy, energy_gaussian, alignment, alignment_gaussian, float(additive[0]))
        return cls(name, *gathered, batch_border, border, border_gaussian)

    @property
    def moved(self) -> float:
        """Largest distance of the data's θ∞ from additive noise's."""
        return float(np.max(np.abs(self.alignment - self.alignment_additive)))

    @property
    def alignment_is_steadier(self) -> bool:
        """In relative change, at every batch size."""
        return bool(np.all(np.abs(self.alignment / self.alignment_additive - 1.0) < np.abs(self.energy - 1.0)))

    def to_json(self) -> dict[str, object]:
        names = ("energy", "energy_gaussian", "alignment", "alignment_gaussian", "border", "border_gaussian")
        told: dict[str, object] = {each: getattr(self, each).tolist() for each in names}
        batches = {"batch_size": _BATCHES.tolist(), "batch_size_border": self.batch_border.tolist()}
        return batches | told | {"alignment_additive": self.alignment_additive}


def _finite(case: LeastSquares) -> FiniteLeastSquares:
    return FiniteLeastSquares.of(case.X, case.y, rank=1, batch_size=case.batch_size, ridge=case.ridge)


def _gaussian(case: LeastSquares) -> Quadratic:
    """Gaussian rows of the same spectrum, with the mean squared residual at the minimum as label variance."""
    residual = case.y - case.X @ case.minimum
    model = Noise.minibatch_least_squares(case.batch_size, float(np.mean(residual**2)))
    return Quadratic(case.problem.spectrum, model)


def _step(case: LeastSquares) -> float:
    return _STEP / float(case.problem.spectrum.eigenvalues[0])


def _states(case: LeastSquares) -> list[float]:
    eta, additive = _step(case), case.problem.stationary(_step(case))
    splits = [_finite(case).stationary(eta), _gaussian(case).stationary(eta)]
    energies = [_energy(split) / _energy(additive) for split in splits]
    return [*energies, *(float(etastar.alignment(split)) for split in (*splits, additive))]


def _energy(split: etastar.SplitMoments) -> float:
    return float(split.dominant.signal.zeroth + split.bulk.signal.zeroth)


def _border(case: LeastSquares) -> list[float]:
    """Largest stable ηλ₁ on the data, where K(η) = 1, and for Gaussian rows."""
    top, data = float(case.problem.spectrum.eigenvalues[0]), _finite(case)

    def beyond(product: float) -> float:
        return float(np.log(data.kernel(product / top)))

    exact: Any = brentq(beyond, 1e-3, 2.0 - 1e-9, xtol=1e-6)
    return [float(exact), _gaussian(case).stability(1e-6).largest_step * top]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs on diabetes against two exact curves of the loss."""

    replicas: int
    score_data: float
    score_additive: float
    distance_additive: float


def _runs(batch_size: int, replicas: int, seed: int) -> _Runs:
    case = load_least_squares("diabetes", batch_size=batch_size)
    times, eta = np.arange(100, 1001, 100), _step(case)
    paths = simulate_batches(
        case.X,
        case.y,
        rank=1,
        step_size=eta,
        steps=int(times[-1]),
        batch_size=batch_size,
        ridge=case.ridge,
        record=times,
        replicas=replicas,
        seed=seed + 360 + batch_size,
    )
    data = _finite(case).expected(step_size=eta, times=times).loss
    additive = case.problem.expected(gradient=case.start, step_size=eta, times=times).loss
    mean, error = paths.loss.mean(axis=0), standard_error(paths.loss)
    near, far = (float(np.max(np.abs(mean - curve) / error)) for curve in (data, additive))
    return _Runs(replicas, near, far, float(np.max(np.abs(data / additive - 1.0))))


def _halving(energy: Array) -> float:
    """What the last doubling of b multiplies the excess over additive noise by."""
    return float((energy[-1] - 1.0) / (energy[-2] - 1.0))


def _panels(cases: list[_Case]) -> list[Panel]:
    energy: list[Mark] = []
    border: list[Mark] = []
    theta: list[Mark] = []
    for case, colour in zip(cases, (COLOURS["dominant"], COLOURS["bulk"]), strict=True):
        energy.append(Line(_BATCHES, case.energy, f"{case.name}: data", colour, 2.2))
        energy.append(Line(_BATCHES, case.energy_gaussian, f"{case.name}: Gaussian rows", colour, 1.6, "dash"))
        border.append(Points(case.batch_border, case.border, f"{case.name}: data", colour))
        border.append(Line(case.batch_border, case.border_gaussian, f"{case.name}: Gaussian rows", colour, 1.6, "dash"))
        theta.append(Line(_BATCHES, case.alignment, f"{case.name}: data", colour, 2.2))
        theta.append(Line(_BATCHES, case.alignment_gaussian, f"{case.name}: Gaussian rows", colour, 1.6, "dash"))
        theta.append(Reference(case.alignment_additive, "y", f"{case.name}: additive", colour))
    energy.append(Reference(1.0, "y", "additive noise"))
    border.append(Reference(2.0, "y", "additive noise"))
    shared: dict[str, Any] = {"x_scale": "log"}
    return [
        Panel(
            "batch size b", "E‖g‖² over additive", energy, f"Energy at rest, ηλ₁ = {_STEP:g}", y_scale="log", **shared
        ),
        Panel("batch size b", "largest stable ηλ₁", border, "Stability border", y_range=(0.0, 2.15), **shared),
        Panel("batch size b", "θ∞", theta, f"Stationary alignment, ηλ₁ = {_STEP:g}", **shared),
    ]


def _table(cases: list[_Case]) -> Table:
    columns = [
        Column("data", "scikit-learn data set", numeric=False),
        Column("b", "batch size"),
        Column("energy, data", "stationary E‖g‖² of batches from the data, over that of additive noise"),
        Column("Gaussian", "the same for Gaussian rows of the same spectrum"),
        Column("θ∞, data", "stationary alignment"),
        Column("Gaussian", "the same for Gaussian rows"),
        Column("additive", "the same for additive noise, at every b"),
    ]
    rows = [
        [
            case.name,
            str(int(_BATCHES[i])),
            *(
                f"{value:.4g}"
                for value in (case.energy[i], case.energy_gaussian[i], case.alignment[i], case.alignment_gaussian[i])
            ),
            f"{case.alignment_additive:.4g}",
        ]
        for case in cases
        for i in (0, 2, 5)
    ]
    return Table(columns, rows, f"Stationary states at ηλ₁ = {_STEP:g}; exact for the data")
