"""Least squares on fresh Gaussian batches, independently: moments mode by mode in mpmath, and rows drawn one by one."""

from dataclasses import dataclass

import mpmath
import numpy as np
from mpmath import mpf


@dataclass(frozen=True)
class Rows:
    """Rows N(0, diag λ), mode by mode; labels of noise variance s²; batches of b."""

    eigenvalues: np.ndarray
    cut: int
    batch_size: int
    label_variance: float

    def variances(self, energies):
        """κ²_i at E g_i², from E x_i² = E g_i²/λ_i²."""
        lam = [mpf(float(v)) for v in self.eigenvalues]
        risk = mpmath.fsum(e / v for e, v in zip(energies, lam, strict=True)) + mpf(self.label_variance)
        return [(e + risk * v) / self.batch_size for e, v in zip(energies, lam, strict=True)]

    def run(self, start, eta, times, beta=0.0, nesterov=False):
        """(X, Y, Z) = E g², E gm, E m² of every mode at the times, by stepping the definition m' = βm + g + ξ."""
        lam, eta, beta = [mpf(float(v)) for v in self.eigenvalues], mpf(float(eta)), mpf(float(beta))
        state = [(mpf(float(e)), mpf(0), mpf(0)) for e in start]
        found = {}
        for step in range(max(times) + 1):
            if step in times:
                found[step] = state
            kappa = self.variances([x for x, _, _ in state])
            state = [mode_step(eta * v, beta, nesterov, *xyz, k) for v, xyz, k in zip(lam, state, kappa, strict=True)]
        return [found[t] for t in times]

    def moments(self, state, beta=0.0, nesterov=False):
        """Per subspace m0, m1, m2, q0, q1, q2, slope, bend of a step, and the loss of all."""
        a, c = (1 + mpf(beta), mpf(beta) ** 2) if nesterov else (mpf(1), mpf(beta))
        lam = [mpf(float(v)) for v in self.eigenvalues]
        kappa = [a * a * k for k in self.variances([x for x, _, _ in state])]
        gg = [x for x, _, _ in state]
        gh = [a * x + c * y for x, y, _ in state]
        hh = [a * a * x + 2 * a * c * y + c * c * z for x, y, z in state]
        found = []
        for part in (slice(None, self.cut), slice(self.cut, None)):

            def total(values, power, part=part):
                return mpmath.fsum(v**power * value for v, value in zip(lam[part], values[part], strict=True))

            signal = [total(gg, 0), total(gh, 1), total(hh, 2)]
            noise = [total(kappa, power) for power in range(3)]
            found.append([*signal, *noise, total(gh, 0), total(hh, 1)])
        return found, mpmath.fsum(x / (2 * v) for x, v in zip(gg, lam, strict=True))


def mode_step(alpha, beta, nesterov, X, Y, Z, kappa):
    """One step of a mode from matrices: the mean map, and the noise that enters g and m together."""
    a, c = (1 + beta, beta**2) if nesterov else (mpf(1), beta)
    # g' = (1 − αa)g − αc·m − αa·ξ, m' = g + βm + ξ
    p, q, r = 1 - alpha * a, -alpha * c, -alpha * a
    return (
        p * p * X + 2 * p * q * Y + q * q * Z + r * r * kappa,
        p * X + (p * beta + q) * Y + q * beta * Z + r * kappa,
        X + 2 * beta * Y + beta * beta * Z + kappa,
    )


def draw(rng, eigenvalues, x, batch_size, label_variance):
    """Rows ``(…, b, d)`` and batch gradients ``(…, d)`` at x ``(…, d)``, by their definition."""
    shape = (*x.shape[:-1], batch_size)
    rows = rng.standard_normal((*shape, x.shape[-1])) * np.sqrt(eigenvalues)[..., None, :]
    error = np.einsum("...bd,...d->...b", rows, x) - np.sqrt(label_variance) * rng.standard_normal(shape)
    return rows, np.einsum("...b,...bd->...d", error, rows) / batch_size


def every_batch(eigenvalues, x, batch_size, label_variance):
    """Rows, batch gradients and weights of a Gauss-Hermite rule that is exact up to degree 7 in each variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    size = batch_size * (x.size + 1)
    grid = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), axis=-1).reshape(-1, batch_size, x.size + 1)
    weight = np.prod(np.stack(np.meshgrid(*[weights] * size, indexing="ij"), axis=-1).reshape(-1, size), axis=1)
    rows = grid[..., :-1] * np.sqrt(eigenvalues)
    error = rows @ x - np.sqrt(label_variance) * grid[..., -1]
    return rows, np.einsum("gb,gbd->gd", error, rows) / batch_size, weight / weight.sum()
