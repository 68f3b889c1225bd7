"""Make a counterexample small: fewest modes first, then the roundest numbers, certified again after every step.

Deterministic and greedy: a variant is taken if it is simpler and still refutes the claim, and all moves are repeated
until none helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from math import isqrt, log10
from typing import Any, TypeAlias

from etastar.claims.claim import Claim
from etastar.claims.instance import Instance
from etastar.errors import InvalidArgument

__all__ = ["complexity", "shrunk", "weight"]

Move: TypeAlias = Callable[[Instance], Iterator[Instance]]

PASSES = 12
VECTORS = ("eigenvalues", "state", "noise")


def weight(number: Fraction) -> int:
    """How far from round a number is: 0 for 0, small for small integers, then for small denominators."""
    return abs(number.numerator) + 8 * (number.denominator - 1)


def shrunk(claim: Claim, instance: Instance) -> Instance:
    """Return the simplest instance found that still refutes the claim, starting from one that does.

    A claim about a setting of its own keeps it.

    Args:
        claim: The refuted claim.
        instance: A certified counterexample to it.
    """
    if claim.draw:
        return instance
    if "step_size" not in claim.enters:
        instance = replace(instance, step_size=Fraction(1))
    if "time" not in claim.enters:
        instance = replace(instance, time=0)
    for _ in range(PASSES):
        before = instance
        for move in (*_SWEEPING, *_coordinate_moves(len(instance.eigenvalues))):
            instance = _improved(claim, instance, move)
        if instance == before:
            break
    return instance


def _improved(claim: Claim, instance: Instance, move: Move) -> Instance:
    """Take the move's first variant that is simpler and still refutes; else keep the instance."""
    size = complexity(instance)
    return next((v for v in move(instance) if complexity(v) < size and claim.refuted_by(v)), instance)


def complexity(instance: Instance) -> tuple[int, int]:
    """What shrinking reduces: the dimension first, then the sum of weights."""
    numbers = (*instance.eigenvalues, *instance.state, *instance.noise, instance.step_size)
    return len(instance.eigenvalues), sum(map(weight, numbers)) + instance.time


def _variants(instance: Instance, changes: Iterator[dict[str, Any]]) -> Iterator[Instance]:
    """Apply each change that leaves a valid instance."""
    for change in changes:
        try:
            yield replace(instance, **change)
        except InvalidArgument:
            continue


def _without_a_mode(instance: Instance) -> Iterator[Instance]:
    def changes() -> Iterator[dict[str, Any]]:
        for index in range(len(instance.eigenvalues)):
            kept = {name: _without(getattr(instance, name), index) for name in VECTORS}
            yield {**kept, "rank": instance.rank - (index < instance.rank)}

    return _variants(instance, changes())


def _without(values: tuple[Fraction, ...], index: int) -> tuple[Fraction, ...]:
    return values[:index] + values[index + 1 :]


def _rescaled(instance: Instance) -> Iterator[Instance]:
    """The claims do not depend on the units of curvature (λ, 1/η, κ) and of length (x, κ): measure by each entry."""

    def changes() -> Iterator[dict[str, Any]]:
        for unit in filter(None, instance.eigenvalues):
            yield {
                "eigenvalues": tuple(value / unit for value in instance.eigenvalues),
                "noise": tuple(value / unit**2 for value in instance.noise),
                "step_size": instance.step_size * unit,
            }
        for unit in filter(None, instance.state):
            yield {
                "state": tuple(value / unit for value in instance.state),
                "noise": tuple(value / unit**2 for value in instance.noise),
            }

    return _variants(instance, changes())


def _levelled(instance: Instance) -> Iterator[Instance]:
    """All entries of a vector alike, whole or on one block."""

    def changes() -> Iterator[dict[str, Any]]:
        rank, size = instance.rank, len(instance.state)
        for name in VECTORS:
            values = getattr(instance, name)
            for level in (Fraction(0), Fraction(1), *values):
                yield {name: (level,) * size}
                yield {name: (level,) * rank + values[rank:]}
                yield {name: values[:rank] + (level,) * (size - rank)}

    return _variants(instance, changes())


def _coordinate_moves(size: int) -> Iterator[Move]:
    for name in VECTORS:
        for index in range(size):
            yield lambda instance, name=name, index=index: _rounder_entry(instance, name, index)
    for index in range(size):
        yield lambda instance, index=index: _rounder_mode(instance, index)
        yield lambda instance, index=index: _rounder_pace(instance, index)
    yield _rounder_step
    yield _earlier


def _rounder_entry(instance: Instance, name: str, index: int) -> Iterator[Instance]:
    if index >= len(instance.state):
        return iter(())
    values = getattr(instance, name)
    return _variants(
        instance,
        ({name: _replaced(values, index, value)} for value in _rounder(values[index])),
    )


def _rounder_mode(instance: Instance, index: int) -> Iterator[Instance]:
    """State and noise of one mode together, for a claim that needs them in proportion."""
    if index >= len(instance.state):
        return iter(())
    pairs = ((Fraction(x), Fraction(root) ** 2) for x, root in product(range(7), repeat=2))
    return _variants(
        instance,
        (
            {"state": _replaced(instance.state, index, x), "noise": _replaced(instance.noise, index, square)}
            for x, square in pairs
        ),
    )


def _rounder_pace(instance: Instance, index: int) -> Iterator[Instance]:
    """The step size and one eigenvalue together."""
    if index >= len(instance.state):
        return iter(())
    paces = (Fraction(p, q) for p, q in product(range(1, 5), repeat=2))
    return _variants(
        instance,
        (
            {"step_size": pace, "eigenvalues": _replaced(instance.eigenvalues, index, Fraction(value))}
            for pace, value in product(sorted(set(paces), key=weight), range(1, 7))
        ),
    )


def _replaced(values: tuple[Fraction, ...], index: int, value: Fraction) -> tuple[Fraction, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _rounder_step(instance: Instance) -> Iterator[Instance]:
    return _variants(instance, ({"step_size": value} for value in _rounder(instance.step_size)))


def _earlier(instance: Instance) -> Iterator[Instance]:
    return _variants(instance, ({"time": time} for time in range(instance.time)))


@cache
def _simple() -> tuple[Fraction, ...]:
    small = {Fraction(p, q) for p in range(10) for q in range(1, 5)}
    return tuple({*small, *map(Fraction, (10, 12, 16, 20, 25, 36, 49, 64, 81, 100, 1000))})


def _rounder(value: Fraction) -> list[Fraction]:
    """Candidates that are simpler than a number, simplest first: a fixed stock, and its own approximations."""
    near = {value.limit_denominator(q) for q in (1, 2, 4, 10, 32, 100)}
    root = Fraction(isqrt(value.numerator * 10**8 // value.denominator), 10**4) if value > 0 else Fraction(0)
    near |= {root.limit_denominator(q) ** 2 for q in (1, 2, 4, 10)}
    if value > 0:
        digit = Fraction(10) ** (int(log10(value.numerator) - log10(value.denominator)) - 1)
        near |= {round(value / (digit * step)) * digit * step for step in (1, 5, 10)}
    signed = {-other if value < 0 else other for other in _simple()}
    return sorted((v for v in signed | near if weight(v) < weight(value)), key=lambda v: (weight(v), v))


_SWEEPING: tuple[Move, ...] = (_without_a_mode, _rescaled, _levelled)
