"""Mini-batch SGD on a real least-squares problem: what the models of noise stand for.

Batches are drawn with replacement, without replacement within a batch, or by shuffled epochs; the model is
½·mean((Xw − y)²) + ½·ridge·‖w‖², whose spectrum, minimum and gradients are those of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.quadratic.arguments import read_record, single_step_size, whole_number
from etastar.quadratic.minibatch.finite import batch_of, least_squares_minimum, samples, weights_of
from etastar.quadratic.minibatch.one_step import blocks_of
from etastar.quadratic.optimizers.rules import PLAIN, SGD, Optimizer, Preconditioned, Update, update_of
from etastar.quadratic.paths import Ensemble, Paths
from etastar.quadratic.spectrum import Spectrum

__all__ = ["Sampling", "simulate_batches"]

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Sampling = Literal["replacement", "distinct", "epochs"]
_PLAIN = SGD()
_HELD = 1 << 18  # numbers of the batches of some replicas, so that they stay in the cache


def simulate_batches(
    X: Any,
    y: Any,
    *,
    rank: int,
    step_size: float,
    steps: int,
    batch_size: int,
    sampling: Sampling = "replacement",
    ridge: float = 0.0,
    start: Any = None,
    record: Any = None,
    replicas: int = 1,
    seed: int = 0,
    optimizer: Optimizer = _PLAIN,
) -> Paths:
    """Independent runs of mini-batch SGD on data ``(n, d)``; gradients and losses reported are those of all samples.

    Args:
        X: Samples, ``(n, d)``.
        y: Targets, ``(n,)``.
        rank: k of the dominant subspace of XᵀX/n + ridge·I.
        step_size: η > 0.
        steps: Steps to take.
        batch_size: b, 1 ≤ b ≤ n.
        sampling: "replacement", "distinct" (no sample twice in a batch), or "epochs" (a new order each epoch, whose
            last batch may be smaller).
        ridge: Coefficient of ½‖w‖²; it carries no noise.
        start: Weights at time 0, ``(d,)``; zero unless given.
        record: Times to record, 0 … steps; every step unless given.
        replicas: Runs.
        seed: Seed of the random stream.
        optimizer: SGD(), HeavyBall, Nesterov or Averaged, from an empty buffer.

    Raises:
        InvalidArgument: A bad argument, or a preconditioner.
    """
    data, target = samples(X, y)
    spectrum = Spectrum.from_least_squares(data, rank=rank, ridge=ridge)
    weights = np.zeros(data.shape[1]) if start is None else weights_of(start, data.shape[1])
    minimum = least_squares_minimum(data, target, spectrum)
    offset = spectrum.to_eigenbasis(weights - minimum)
    draw = _sampler(sampling, len(data), batch_size, whole_number("replicas", replicas, least=1))
    if isinstance(optimizer, Preconditioned):
        raise InvalidArgument("optimizer", "Preconditioned", "scale the columns of X instead")
    when = read_record(steps, record)
    modes = blocks_of(spectrum)
    lead = np.tile(modes.eigenvalues * offset, (replicas, 1))
    ensemble = Ensemble(modes, lead, replicas, (), modes.variances, PLAIN)
    problem = _Problem(spectrum.to_eigenbasis(data), target, spectrum.to_eigenbasis(minimum), float(ridge))
    rng = np.random.default_rng(whole_number("seed", seed, least=0))
    eta, update = single_step_size(step_size), update_of(optimizer)
    return _run(problem, ensemble, np.tile(offset, (replicas, 1)), draw(rng), eta, when, update)


class _Problem:
    """The data in the eigenbasis, for gradients of batches at x = w − w*."""

    def __init__(self, data: Array, target: Array, minimum: Array, ridge: float) -> None:
        self.data, self.residual = data, target - data @ minimum
        self.minimum, self.ridge = minimum, ridge

    def gradient(self, x: Array, rows: Rows) -> Array:
        """Gradients of the batches ``(replicas, b)`` at x ``(replicas, d)``."""
        total = np.empty_like(x)
        height = max(1, _HELD // (rows.shape[1] * x.shape[1]))
        for first in range(0, len(x), height):
            part = slice(first, first + height)
            batch = self.data[rows[part]]
            error = np.einsum("rbd,rd->rb", batch, x[part]) - self.residual[rows[part]]
            total[part] = np.einsum("rb,rbd->rd", error, batch)
        return total / rows.shape[1] + self.ridge * (x + self.minimum)


def _run(
    problem: _Problem, ensemble: Ensemble, x: Array, batches: Iterator[Rows], eta: float, when: Rows, update: Update
) -> Paths:
    modes, buffer, average = ensemble.modes, np.zeros_like(x), x
    sums = np.empty((len(x), when.size, 4))
    slot = {int(t): i for i, t in enumerate(when)}
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(int(when[-1]) + 1):
            index = slot.get(step)
            if index is not None:
                seen = x if update.averaging is None else average
                energy = np.square(modes.eigenvalues * seen)
                sums[:, index] = np.stack([*modes.total(energy), *modes.total(energy * modes.loss_weights)], axis=-1)
            if step == when[-1]:
                break
            g = problem.gradient(x, next(batches))
            h = update.fresh * g + update.stale * buffer
            buffer = update.beta * buffer + g
            x = x - eta * h
            if update.averaging is not None:
                average = update.averaging * average + (1.0 - update.averaging) * x
    taken = np.full((len(x), when.size), eta)
    taken[:, -1] = np.nan
    return ensemble.paths(when, sums, taken, None)


def _sampler(
    sampling: Any, count: int, batch_size: Any, replicas: int
) -> Callable[[np.random.Generator], Iterator[Rows]]:
    """Endless batches of indices ``(replicas, ≤ b)``, from a generator of random numbers."""
    size = batch_of(batch_size, count)
    ways = {"replacement": _replacement, "distinct": _distinct, "epochs": _epochs}
    if sampling not in ways:
        raise InvalidArgument("sampling", sampling, f"must be one of {', '.join(ways)}")
    return lambda rng: ways[sampling](rng, count, size, replicas)


def _replacement(rng: np.random.Generator, count: int, size: int, replicas: int) -> Iterator[Rows]:
    while True:
        yield rng.integers(count, size=(replicas, size))


def _distinct(rng: np.random.Generator, count: int, size: int, replicas: int) -> Iterator[Rows]:
    """The head of a Fisher-Yates shuffle, from whatever order the last one left."""
    order, run = np.tile(np.arange(count), (replicas, 1)), np.arange(replicas)
    while True:
        for place in range(size):
            other = rng.integers(place, count, size=replicas)
            order[run, place], order[run, other] = order[run, other], order[run, place].copy()
        yield order[:, :size]


def _epochs(rng: np.random.Generator, count: int, size: int, replicas: int) -> Iterator[Rows]:
    order = np.tile(np.arange(count), (replicas, 1))
    while True:
        order = rng.permuted(order, axis=1)
        for first in range(0, count, size):
            yield order[:, first : first + size]
