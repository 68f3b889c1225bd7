"""Optimizers from their definitions: one step on a single mode, in any arithmetic; second moments and laws follow.

A state is (g, m, ḡ) whatever the optimizer. What a step does to it is read off by stepping unit vectors, and second
moments by the affine map on g², gm, …: nothing here knows a closed form.
"""

from dataclasses import dataclass

import mpmath
import numpy as np
from mpmath import mpf

from oracles.stepping import gaussian

PARTS = 3


@dataclass(frozen=True)
class Rule:
    """kind: "heavy ball" or "nesterov", as PyTorch's SGD(momentum=beta, nesterov=…); beta = 0 is SGD. omega: EMA."""

    kind: str
    beta: float = 0.0
    omega: float | None = None

    def step(self, state, noise, alpha):
        """(g, m, ḡ) after a step of ηλ = alpha with gradient noise `noise`."""
        g, m, average = state
        beta, seen = self.beta, g + noise
        m = beta * m + seen
        g = g - alpha * (m if self.kind == "heavy ball" else seen + beta * m)
        if self.omega is not None:
            average = self.omega * average + (1 - self.omega) * g
        return [g, m, average]

    @property
    def observed(self):
        return 0 if self.omega is None else 2

    def in_mpmath(self):
        return Rule(self.kind, mpf(self.beta), None if self.omega is None else mpf(self.omega))


def affine_map(rule, alpha, variance):
    """The map of (1, second moments) over a step, as an mpmath matrix: column by column from unit states."""
    rule, alpha, variance = rule.in_mpmath(), mpf(alpha), mpf(variance)
    zero = mpf(0)
    columns = [rule.step([mpf(i == j) for i in range(PARTS)], zero, alpha) for j in range(PARTS)]
    added = rule.step([zero] * PARTS, mpf(1), alpha)
    size = PARTS * PARTS
    matrix = mpmath.zeros(size + 1, size + 1)
    matrix[0, 0] = 1
    for i in range(PARTS):
        for j in range(PARTS):
            row = 1 + PARTS * i + j
            matrix[row, 0] = variance * added[i] * added[j]
            for k in range(PARTS):
                for n in range(PARTS):
                    matrix[row, 1 + PARTS * k + n] = columns[k][i] * columns[n][j]
    return matrix


def second_moments(rule, alpha, variance, energy, times):
    """E zzᵀ at each time as nested lists, from g = √energy with an empty buffer and ḡ = g."""
    size = PARTS * PARTS
    step = affine_map(rule, alpha, variance)
    start = mpmath.zeros(size + 1, 1)
    start[0] = 1
    for i in (0, 2):
        for j in (0, 2):
            start[1 + PARTS * i + j] = mpf(energy)
    found, at, vector, doublings = [], 0, start, [step]
    for time in times:
        for bit in range(int(time - at).bit_length()):
            while len(doublings) <= bit:
                doublings.append(doublings[-1] * doublings[-1])
            if (time - at) >> bit & 1:
                vector = doublings[bit] * vector
        at = time
        found.append([[vector[1 + PARTS * i + j] for j in range(PARTS)] for i in range(PARTS)])
    return found


def direction_row(rule):
    """h as a row on (g, m): what the step follows without its own noise."""
    beta = rule.beta
    return (1, beta) if rule.kind == "heavy ball" else (1 + beta, beta * beta)


def run(rng, rule, eigenvalues, covariance, gradient, step_size, times, runs):
    """Observed gradients at `times` by stepping, ``(T, runs, d)``, dense noise."""
    state = [np.tile(gradient, (runs, 1)), np.zeros((runs, gradient.size)), np.tile(gradient, (runs, 1))]
    found = []
    for step in range(max(times) + 1):
        if step in set(times):
            found.append(state[rule.observed].copy())
        state = rule.step(state, gaussian(rng, covariance, runs), step_size * eigenvalues)
    return np.array(found)
