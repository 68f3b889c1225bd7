"""Moments and expectations of one step straight from matrices: H, an orthogonal projector P that need not commute with
it, and a noise covariance Σ.
"""

import numpy as np

from etastar import Coupling, CurvatureMoments, Descent, SplitMoments, SubspaceMoments


def split_moments(H, P, covariance, gradient, direction=None):
    """The record of theory §2, every entry by its definition."""
    identity = np.eye(len(H))
    Q = identity - P
    h = gradient if direction is None else direction

    def part(S):
        signal = CurvatureMoments(gradient @ S @ gradient, gradient @ S @ H @ h, h @ H.T @ S @ H @ h)
        noise = [np.trace(S @ covariance), np.trace(S @ H @ covariance), np.trace(S @ H @ covariance @ H)]
        descent = None if direction is None else Descent(gradient @ S @ h, h @ S @ H @ S @ h)
        return SubspaceMoments(signal, CurvatureMoments(*noise), descent)

    coupling = Coupling((P @ h) @ H @ (Q @ h), np.trace(P @ H @ Q @ covariance))
    return SplitMoments(part(P), part(Q), coupling)


def energy_after(H, S, covariance, gradient, direction, eta):
    """E‖S g'‖², g' = g − ηH(h + ξ): the mean squared, plus the spread."""
    mean, spread = S @ (gradient - eta * H @ direction), eta * S @ H
    return mean @ mean + np.trace(spread @ covariance @ spread.T)


def loss_change(H, S, covariance, gradient, direction, eta):
    """E L(x − ηS(h + ξ)) − L(x), with H x = g."""
    move = eta * S @ direction
    spread = eta * S
    return -gradient @ move + 0.5 * move @ H @ move + 0.5 * np.trace(H @ spread @ covariance @ spread.T)
