"""Four edges over the batch size at stationary states of the paper's spectrum, with batch sharpness sampled as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from etastar.quadratic import Edges, Noise, Quadratic, edges
from etastar.recipes.beyond.agreement import Array, standard_error
from etastar.recipes.diagram import four_edges_section
from etastar.recipes.paper_figures import PaperRuns
from etastar.report import Check, Section

__all__ = ["four_edges"]

_STEP = 0.005  # half of 1/λ₁
_SAMPLED_BATCH = 64


def four_edges(run: PaperRuns, replicas: int, seed: int) -> Section:
    """Which curvature stands at 2/η as batches grow, for Gaussian mini-batches."""
    spectrum = run.problem.spectrum
    sizes = np.unique(np.geomspace(16, 65_536, 33).astype(np.int64))
    found = edges(spectrum, _STEP, sizes)
    rows: dict[str, Any] = {
        "largest_eigenvalue": found.largest_eigenvalue,
        "batch_sharpness": found.batch_sharpness,
        "threshold_full": 2.0 / found.loss_sharpness,
        "smallest_raising": 2.0 / found.critical_sharpness,
    }
    section = four_edges_section(found.batch_size, rows, step_size=_STEP)
    few = np.isin(found.batch_size, sizes[::8])
    table = four_edges_section(
        found.batch_size[few], {k: v[few] if np.ndim(v) else v for k, v in rows.items()}, step_size=_STEP
    ).tables
    sharp = np.asarray(found.batch_sharpness / found.limit)
    score = _sampled_score(run, replicas, seed)
    return replace(
        section,
        title="Beyond the paper: four edges on one axis",
        finding=f"At a fixed step (ηλ₁ = {_STEP * found.largest_eigenvalue:g}) and stationary states: 2/η_full is at "
        f"2/η for every batch size, λ₁ at {found.largest_eigenvalue / found.limit:.2f} of it, and batch sharpness goes "
        f"from {sharp[0]:.2f} at b = {sizes[0]}, next to the border of stability (K = {found.kernel[0]:.2f}), to "
        f"{sharp[-1]:.2f} for large batches.",
        reading="2/η_full at 2/η says that the run is stationary, not what limits it. λ₁ and the sharpness along the "
        "mean gradient do not see the batch at all. Of the four only batch sharpness shows that a small batch "
        "brings the run to the border of mean-square stability. With large batches this step is far inside every "
        "limit, and only 2/η_full, which stationarity puts there, stands at 2/η.",
        checks=_checks(found, sharp, score, replicas),
        figures=[replace(figure, name="four-edges") for figure in section.figures],
        tables=table,
        data=section.data | {"kernel": found.kernel.tolist(), "worst_z": score},
    )


def _checks(found: Edges, sharp: Array, score: float, replicas: int) -> list[Check]:
    stationary = float(np.max(np.abs(found.loss_sharpness / found.limit - 1.0)))
    return [
        Check("2/η_full = 2/η at every batch size", stationary < 1e-9, f"largest relative difference {stationary:.1g}"),
        Check(
            "batch sharpness falls as batches grow, from about 2/η where K is near 1 to below λ₁",
            bool(np.all(np.diff(sharp) < 0) and sharp[0] > 0.9)
            and float(found.batch_sharpness[-1]) < found.largest_eigenvalue,
            f"{sharp[0]:.3f} to {sharp[-1]:.3f} of 2/η",
        ),
        Check(
            f"its closed form agrees with {replicas:,} sampled batches of {_SAMPLED_BATCH}",
            score <= 4.0,
            f"|[[z]]| = {score:.2f}, limit 4",
        ),
    ]


def _sampled_score(run: PaperRuns, replicas: int, seed: int) -> float:
    """|z| of E⟨g_B, H_B g_B⟩/E‖g_B‖² from drawn batches of Gaussian rows against the closed form, at one state."""
    spectrum, rng = run.problem.spectrum, np.random.default_rng(seed + 380)
    problem = Quadratic(spectrum, Noise.minibatch_least_squares(_SAMPLED_BATCH, 1.0))
    eigenvalues = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    x = 0.1 * rng.standard_normal(eigenvalues.size)
    said = float(problem.batch_sharpness(gradient=problem.gradient_at(x)))
    curved, length = np.empty(replicas), np.empty(replicas)
    for i in range(replicas):
        rows = rng.standard_normal((_SAMPLED_BATCH, eigenvalues.size)) * np.sqrt(eigenvalues)
        gradient = rows.T @ (rows @ x + rng.standard_normal(_SAMPLED_BATCH)) / _SAMPLED_BATCH
        curved[i] = np.sum((rows @ gradient) ** 2) / _SAMPLED_BATCH
        length[i] = gradient @ gradient
    return float(abs(np.mean(curved - said * length)) / standard_error(curved - said * length))
