"""Does this installation measure right? Preflight, the meter and the gauge on a linear regression known exactly.

The exact quadratic gives θ and η* without any network, and η/η_full at every step of a run; what PyTorch makes of
them here must agree within its own intervals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from etastar.criteria import alignment, critical_step_size
from etastar.network import AlignmentMeter, StepGauge, preflight
from etastar.quadratic import Noise, Quadratic, Spectrum

__all__ = ["check_gauge", "check_meter", "check_preflight"]

Array = npt.NDArray[np.float64]
_SAMPLES, _BATCH, _RANK, _STEP = 60, 10, 1, 0.06
_SCALES = (4.0, 3.0, 1.0, 0.7, 0.5, 0.2)
_ERRORS = 4.0  # standard errors allowed; seeds are fixed, so that an installation passes or does not


def check_preflight() -> tuple[str, bool]:
    """A sound network raises no alarm, and the same one with dropout does."""
    generator = torch.Generator().manual_seed(0)
    batch = tuple(torch.randn(12, size, generator=generator) for size in (6, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sound = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    defect = nn.Sequential(*sound, nn.Dropout(0.5))
    reports = [preflight(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [batch]) for model in (sound, defect)]
    right = reports[0].ok and "dropout in training mode" in reports[1]
    return ("a sound network passes, a seeded defect is caught" if right else str(reports[0])), right


def check_meter() -> tuple[str, bool]:
    """θ and η* of a network against the exact quadratic."""
    model, X, y = _regression()
    at = model.weight.detach()[0].numpy()
    spectrum = Spectrum.from_least_squares(X, rank=_RANK)
    noise = Noise.from_least_squares(X, y, at=at, batch_size=_BATCH)
    exact = Quadratic(spectrum, noise).moments(gradient=spectrum.to_eigenbasis(X.T @ (X @ at - y) / _SAMPLES))
    batches = [(torch.tensor(X[rows]), torch.tensor(y[rows])) for rows in (slice(0, 25), slice(25, None))]
    meter = AlignmentMeter(model, _squared, batches, _RANK, tolerance=1e-8, probes=32)
    seen = meter.measure(_STEP, _BATCH)
    theta, turn = float(alignment(exact)), float(critical_step_size(exact).value)
    step = seen.critical_step_size
    right = abs(seen.alignment.value - theta) < 1e-9 and abs(step.value - turn) <= _ERRORS * step.standard_error
    said = f"θ {seen.alignment.value:.6f}, exactly {theta:.6f}; η* {step.value:.4g} ± {step.standard_error:.1g}"
    return f"{said}, exactly {turn:.4g}", bool(right)


def check_gauge(steps: int = 800) -> tuple[str, bool]:
    """η/η_full of a run from its mini-batch gradients, against the moments at every step of it."""
    model, X, y = _regression()
    inputs, targets = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.SGD(model.parameters(), lr=_STEP)
    gauge = StepGauge(optimizer, every=2, batch_size=_BATCH, sampling="independent")
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(_SAMPLES, (_BATCH,), generator=generator)
        return inputs[rows], targets[rows]

    bend, energy = 0.0, 0.0
    for _ in range(steps):
        m0, m1, q1 = _moments(X, y, model.weight.detach()[0].numpy())
        bend, energy = bend + m1 + q1, energy + m0
        if gauge.due:
            other = draw()
            gauge.second(lambda batch=other: _squared(model, batch))
        optimizer.zero_grad()
        _squared(model, draw()).backward()
        optimizer.step()
    seen, exact = gauge.summary().total.threshold_fraction, _STEP * bend / (2.0 * energy)
    right = seen.resolved and abs(seen.value - exact) <= _ERRORS * seen.standard_error
    return f"η/η_full {seen.value:.3f} ± {seen.standard_error:.1g}, exactly {exact:.3f}", bool(right)


def _regression() -> tuple[nn.Linear, Array, Array]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((_SAMPLES, len(_SCALES))) * np.array(_SCALES)
    best = rng.standard_normal(len(_SCALES))
    y = X @ best + 0.3 * rng.standard_normal(_SAMPLES)
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(len(_SCALES), 1, bias=False, dtype=torch.float64)
    near = best + 0.1 * rng.standard_normal(len(_SCALES))  # where signal and noise are of one size
    with torch.no_grad():
        model.weight.copy_(torch.tensor(near[None]))
    return model, X, y


def _squared(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()


def _moments(X: Array, y: Array, weights: Array) -> tuple[float, float, float]:
    """m0, m1 and q1 of the whole at these weights, by their definitions."""
    rows = X * (X @ weights - y)[:, None]
    g = rows.mean(axis=0)
    seen = (rows - g) @ X.T  # tr(HΣ) = Σ‖X(∇ℓ_i − g)‖²/(n² b)
    q1 = float(np.sum(seen**2)) / _SAMPLES**2 / _BATCH
    return float(g @ g), float(np.sum((X @ g) ** 2)) / _SAMPLES, q1
