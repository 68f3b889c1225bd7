"""The record of one claim: its words, its hypotheses and its conclusion as formulas that can be executed.

A `Claim` says *when* it applies and *what then* holds, as functions of `Instances`; the same two functions screen in
float64 with error bounds and decide in fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from etastar.claims.instance import Instance
from etastar.claims.instances import Instances
from etastar.claims.number import Bounded, Number, Truth, Undecided, as_number

__all__ = ["Claim", "Comparison", "at_most", "equal", "less", "same_sign", "surely"]

Form: TypeAlias = Literal["printed", "printed-appendix", "corrected", "own"]
Kind: TypeAlias = Literal["exact", "numeric"]
Outcome: TypeAlias = Literal["holds", "refuted", "vacuous"]
Relation: TypeAlias = Literal["<", "<=", "=", "same sign as"]
LiftKind: TypeAlias = Literal["independent copies", "shared noise", "state kept", "none"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """left relation right, for every instance of a batch.

    Attributes:
        left: A number, or one for each instance.
        relation: What should hold between the sides.
        right: Like `left`.
        shown: For one exact instance, what the sides stand for: a reader sees 1 − θ* rather than a polynomial's value.
    """

    left: Any
    relation: Relation
    right: Any
    shown: Callable[[], dict[str, Any]] | None = None

    def holds(self) -> Truth:
        """Answer the comparison, element by element."""
        left, right = _pair(self.left, self.right)
        match self.relation:
            case "<":
                return left < right
            case "<=":
                return left <= right
            case "=":
                return (left <= right) & (left >= right)
            case "same sign as":
                up, down = (left > 0) & (right > 0), (left < 0) & (right < 0)
                return up | down | ((left <= 0) & (left >= 0) & (right <= 0) & (right >= 0))


def less(left: Any, right: Any) -> Comparison:
    """State that left < right."""
    return Comparison(left, "<", right)


def at_most(left: Any, right: Any) -> Comparison:
    """State that left ≤ right."""
    return Comparison(left, "<=", right)


def equal(left: Any, right: Any) -> Comparison:
    """State that left = right."""
    return Comparison(left, "=", right)


def same_sign(left: Any, right: Any) -> Comparison:
    """State that left and right are both positive, both negative or both zero."""
    return Comparison(left, "same sign as", right)


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper, its correction, or one of our own, that can be put to the test.

    Attributes:
        name: "T8" for Theorem 8, "C9" for Corollary 9; a short word where the paper has no number.
        form: "printed", "printed-appendix" where the appendix differs, "corrected", or "own": not in the paper.
        source: Where the paper says it.
        statement: In words.
        formula: In symbols.
        hypotheses: In words and symbols, what `when` tests.
        expected: The verdict that the audit's proofs lead to expect.
        when: The hypotheses as formulas; each is evaluated only where those before it may hold, so that it may
            divide by what they exclude from being zero.
        then: The conclusions as comparisons, all of which must hold.
        kind: "exact" where fractions decide, "numeric" where an error bound does.
        enters: Which of "step_size", "time", "noise_law" the claim depends on.
        lift: How a counterexample carries over to d → ∞.
        largest: Largest dimension to draw.
        samples: Fewer instances than asked for, where each is expensive.
        draw: Draws instances in the claim's own way; None for the common one.
        confirm: A further test that a counterexample must pass to be reported.
        note: What a reader of the verdict should know besides.
    """

    name: str
    form: Form
    source: str
    statement: str
    formula: str
    hypotheses: str
    expected: Outcome
    when: Sequence[Callable[[Instances], Truth]]
    then: Callable[[Instances], Sequence[Comparison]]
    kind: Kind = "exact"
    enters: tuple[str, ...] = ()
    lift: LiftKind = "independent copies"
    largest: int = 12
    samples: int | None = None
    draw: Callable[[np.random.Generator, int], Instances] | None = None
    confirm: Callable[[Instance], bool] | None = None
    note: str = ""

    def applies(self, instance: Instance) -> bool:
        """Whether the hypotheses are met, decided as `kind` says."""
        _, sure = self.applying(self.numbers([instance]))
        return bool(sure.any())

    def applying(self, s: Instances) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the rows where no hypothesis surely fails, and whether all of them surely hold there."""
        rows, sure = np.arange(len(s)), np.ones(len(s), dtype=bool)
        for hypothesis in self.when:
            if not len(rows):
                break
            truth = hypothesis(s[rows])
            possible = ~surely(~truth)
            rows, sure = rows[possible], (sure & surely(truth))[possible]
        return rows, sure

    def holds(self, instance: Instance) -> bool:
        """Whether the conclusions hold; ask only where the claim applies."""
        return self.violation(instance) is None

    def violation(self, instance: Instance) -> Comparison | None:
        """Return the first conclusion that certainly fails, None where all hold or where none surely fails."""
        for comparison in self.then(self.numbers([instance])):
            if surely(~comparison.holds())[0]:
                return comparison
        return None

    def refuted_by(self, instance: Instance) -> bool:
        """Whether the claim applies and certainly fails; for exact claims, this is the proof."""
        if not self.applies(instance) or self.holds(instance):
            return False
        return self.confirm is None or self.confirm(instance)

    def numbers(self, problems: Sequence[Instance]) -> Instances:
        """Stack problems of one shape in the arithmetic that decides this claim."""
        exact = Instances.exact(problems)
        return exact if self.kind == "exact" else exact.bounded()


def _pair(left: Any, right: Any) -> tuple[Number, Number]:
    if isinstance(left, Bounded) or isinstance(right, Bounded):
        return Bounded.of(left), Bounded.of(right)
    return as_number(np.asarray(left, dtype=object)), as_number(np.asarray(right, dtype=object))


def surely(truth: Truth) -> NDArray[np.bool_]:
    """Return where the answer is certainly yes."""
    answers: Any = truth
    return truth.true if isinstance(truth, Undecided) else np.asarray(answers, dtype=bool)
