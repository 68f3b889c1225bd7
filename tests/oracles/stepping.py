"""Brute force: dense matrices, one step after another, one Gaussian vector a step."""

import numpy as np


def gaussian(rng, covariance, runs):
    """Samples of N(0, covariance), by NumPy's own SVD sampler (singular covariances included)."""
    return rng.multivariate_normal(np.zeros(len(covariance)), covariance, size=runs, method="svd", check_valid="ignore")


def run(rng, H, covariance, gradient, step_size, times, runs, moving=None):
    """Gradients at `times`, shape ``(T, runs, d)``: x' = x − η·S(g + ξ), so g' = g − η·H·S(g + ξ)."""
    S = np.eye(len(H)) if moving is None else moving
    g = np.tile(gradient, (runs, 1))
    found = []
    for step in range(max(times) + 1):
        if step in set(times):
            found.append(g.copy())
        eta = step_size(step, g) if callable(step_size) else step_size
        g = g - np.asarray(eta).reshape(-1, 1) * ((g + gaussian(rng, covariance, runs)) @ S.T @ H.T)
    return np.array(found)


def random_orthogonal(rng, size):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def random_covariance(rng, size, rank=None):
    root = rng.standard_normal((size, size if rank is None else rank))
    return root @ root.T / size


def standard_errors(sample, mean):
    """How many standard errors the mean of a sample ``(runs, …)`` is off, element by element."""
    deviation = np.std(sample, axis=0, ddof=1) / np.sqrt(len(sample))
    difference = np.abs(np.mean(sample, axis=0) - mean)
    return np.where(difference == 0, 0.0, difference / np.where(deviation == 0, 1e-300, deviation))
