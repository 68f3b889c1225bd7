"""What is kept of a verdict: the counterexample as a proof in fractions, its lift to large d, and JSON.

Every number is a string "p/q" (an integer as "p"), so that a certificate can be re-checked without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np

from etastar.claims.claim import Claim, Comparison, Form, Kind, LiftKind, Outcome
from etastar.claims.expectation import gaussian_alignment
from etastar.claims.instance import Instance
from etastar.claims.instances import Instances
from etastar.claims.number import Bounded, root

__all__ = ["Counterexample", "Lift", "Verdict", "certify", "noise_values", "verdict_of"]

# Perfect squares, so that x_i/√r stays rational.
COPIES = (4, 9)
_WORDS: dict[LiftKind, str] = {
    "independent copies": "repeat every mode r times, divide x_i² and κ_i² by r",
    "shared noise": "repeat every mode r times, divide x_i² and κ_i² by r; the copies of a mode share one noise draw",
    "state kept": "repeat every mode r times, keep x_i, divide κ_i² by r",
    "none": "",
}


@dataclass(frozen=True, slots=True)
class Lift:
    """How a counterexample carries over to every dimension r·d.

    Attributes:
        how: What is repeated and what is divided.
        copies: The values of r at which it was checked, exactly where the claim is exact.
        violated: Whether the claim applies and fails at each of them.
        unchanged: Whether both sides of the violated comparison are the same numbers there.
        assumption_1: Whether k/(d−k), Tr Σ and the block means of λ^p, p ∈ {2,3,4,6,8}, are the same there, and the
            mean of x_i² no larger: what Assumption 1 asks of the limit.
    """

    how: str
    copies: tuple[int, ...]
    violated: bool
    unchanged: bool
    assumption_1: bool

    def to_json(self) -> dict[str, Any]:
        """Return the lift as plain JSON values."""
        return {
            "how": self.how,
            "copies": list(self.copies),
            "violated": self.violated,
            "sides_unchanged": self.unchanged,
            "assumption_1": self.assumption_1,
        }


@dataclass(frozen=True, slots=True)
class Counterexample:
    """An instance on which a claim applies and fails.

    Attributes:
        instance: The problem, in fractions.
        enters: Which of step_size, time, noise_law and gaussian the claim depends on.
        left: Left side of the comparison that fails, as text.
        relation: The relation that should hold.
        right: Right side.
        error: Bound on the error of both sides together; "0" for exact claims.
        shown: What the sides stand for, where they are values of a polynomial.
        lift: How it carries over to large d, if it does.
    """

    instance: Instance
    enters: tuple[str, ...]
    left: str
    relation: str
    right: str
    error: str
    shown: dict[str, Any]
    lift: Lift | None

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain JSON values, numbers as strings."""
        problem = self.instance
        fields: dict[str, Any] = {
            "eigenvalues": _strings(problem.eigenvalues),
            "rank": problem.rank,
            "state": _strings(problem.state),
            "noise": _strings(problem.noise),
        }
        if "step_size" in self.enters:
            fields["step_size"] = str(problem.step_size)
        if "time" in self.enters:
            fields["time"] = problem.time
        if "noise_law" in self.enters:
            fields["noise_law"] = {
                "law": "two-point",
                "values": _strings(noise_values(problem)),
                "meaning": "ξ_i = +values_i or -values_i, probability 1/2 each, independently",
            }
            fields["gaussian"] = _gaussian(problem)
        if "gaussian" in self.enters:
            fields["noise_law"] = {"law": "gaussian"}
        fields |= {"left": self.left, "relation": self.relation, "right": self.right, "error": self.error}
        fields |= self.shown
        return fields | {"lift": self.lift.to_json() if self.lift else None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the search found about one claim.

    Attributes:
        claim: The claim's name.
        form: "printed", "printed-appendix" or "corrected".
        verdict: "holds" on every instance, "refuted" by a certified counterexample, or "vacuous".
        kind: "exact" or "numeric".
        instances: Instances that met the hypotheses and were decided, the refuting one included.
        statement: The claim in words.
        formula: The claim in symbols.
        hypotheses: What an instance must meet.
        source: Where the paper says it.
        expected: The verdict that the proofs lead to expect.
        note: What the reader should know besides.
        counterexample: For a refuted claim.
    """

    claim: str
    form: Form
    verdict: Outcome
    kind: Kind
    instances: int
    statement: str
    formula: str
    hypotheses: str
    source: str
    expected: Outcome
    note: str = ""
    counterexample: Counterexample | None = None

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one that the proofs lead to expect."""
        return self.verdict == self.expected

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        names = ("claim", "form", "verdict", "kind", "instances", "expected", "statement", "formula", "hypotheses")
        fields: dict[str, Any] = {name: getattr(self, name) for name in (*names, "source", "note")}
        if self.counterexample:
            fields["counterexample"] = self.counterexample.to_json()
        return fields


def verdict_of(claim: Claim, outcome: Outcome, instances: int, counterexample: Counterexample | None = None) -> Verdict:
    """Put a claim's words and what was found together."""
    return Verdict(
        claim=claim.name,
        form=claim.form,
        verdict=outcome,
        kind=claim.kind,
        instances=instances,
        statement=claim.statement,
        formula=claim.formula,
        hypotheses=claim.hypotheses,
        source=claim.source,
        expected=claim.expected,
        note=claim.note,
        counterexample=counterexample,
    )


def certify(claim: Claim, instance: Instance) -> Counterexample | None:
    """Return the certificate that an instance refutes a claim, None if it does not."""
    if not claim.refuted_by(instance):
        return None
    failed = _failed(claim, instance)
    left, right, error = _sides(failed)
    return Counterexample(
        instance=instance,
        enters=claim.enters,
        left=_text(left),
        relation=failed.relation,
        right=_text(right),
        error=repr(error) if error else "0",
        shown=failed.shown() if failed.shown else {},
        lift=_lift(claim, instance),
    )


def noise_values(instance: Instance) -> tuple[Fraction, ...]:
    """κ_i, the values ±κ_i of the two-point law; -1 where κ_i² is no square of a rational."""
    return tuple(root(Instances.exact([instance]).noise[0]))  # pyright: ignore[reportArgumentType]


def _failed(claim: Claim, instance: Instance) -> Comparison:
    """The comparison that fails on a refuting instance."""
    return cast(Comparison, claim.violation(instance))


def _sides(comparison: Comparison) -> tuple[Any, Any, float]:
    """Left and right side and the bound on their errors together, of one instance."""
    sides = (comparison.left, comparison.right)
    left, right = (np.broadcast_to(_value(side), (1,))[0] for side in sides)
    return left, right, float(sum(side.error.max() for side in sides if isinstance(side, Bounded)))


def _value(side: Any) -> Any:
    return side.value if isinstance(side, Bounded) else np.asarray(side, dtype=object)


def _text(number: Any) -> str:
    return repr(float(number)) if isinstance(number, float) else str(number)


def _strings(numbers: tuple[Fraction, ...]) -> list[str]:
    return [str(number) for number in numbers]


def _gaussian(instance: Instance) -> dict[str, str]:
    value = gaussian_alignment(Instances.exact([instance]).bounded())
    return {"expected_alignment": repr(float(value.value[0])), "error": repr(float(value.error[0])), "kind": "numeric"}


def _lift(claim: Claim, instance: Instance) -> Lift | None:
    if claim.lift == "none":
        return None
    lifted = [instance.repeated(copies, keep_state=claim.lift == "state kept") for copies in COPIES]
    violated = all(claim.refuted_by(problem) for problem in lifted)
    unchanged = violated and all(_same_sides(_failed(claim, p), _failed(claim, instance)) for p in lifted)
    bounded = all(_fits_assumption_1(instance, problem) for problem in lifted)
    return Lift(_WORDS[claim.lift], COPIES, violated, unchanged, bounded)


def _same_sides(one: Comparison, other: Comparison) -> bool:
    """Whether both comparisons have equal sides, up to their error bounds."""
    left, right, error = _sides(one)
    other_left, other_right, other_error = _sides(other)
    return max(abs(left - other_left), abs(right - other_right)) <= error + other_error


def _fits_assumption_1(base: Instance, lifted: Instance) -> bool:
    return _invariants(base) == _invariants(lifted) and _mean_square(lifted) <= _mean_square(base)


def _invariants(problem: Instance) -> tuple[Fraction, ...]:
    dominant, bulk = problem.eigenvalues[: problem.rank], problem.eigenvalues[problem.rank :]
    means = (
        sum((v**p for v in block), Fraction(0)) / len(block) for p in (2, 3, 4, 6, 8) for block in (dominant, bulk)
    )
    return (Fraction(len(dominant), len(bulk)), sum(problem.noise, Fraction(0)), *means)


def _mean_square(problem: Instance) -> Fraction:
    return sum((x**2 for x in problem.state), Fraction(0)) / len(problem.state)
