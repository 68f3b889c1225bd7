"""Re-check certificates from a file, from scratch, trusting nothing in it but the instance and the claim's name.

A file holds one refuted verdict, a list of verdicts as `etastar audit --json` prints it, or an object with the list
under "verdicts". What is shown besides (sides, lift, words) is not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np

from etastar.claims.certificate import noise_values
from etastar.claims.claim import Claim
from etastar.claims.instance import Instance
from etastar.claims.registry import named
from etastar.errors import InvalidArgument, InvalidFile

__all__ = ["Check", "check_file"]

Fields: TypeAlias = dict[str, Any]

# Bounds on what a file may ask of exact arithmetic: bytes, characters a number, modes, steps, and their product.
BYTES, DIGITS, MODES, STEPS, WORK = 20_000_000, 2_000, 1_000, 64, 20_000
# Where float64 decides or confirms.
SCALES = (Fraction(1, 10**30), Fraction(10**30))
# A two-point law has 2^modes outcomes.
OUTCOME_MODES = 10
_NUMBER = re.compile(r"-?[0-9]+(/[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of re-checking one certificate.

    Attributes:
        claim: The claim's name.
        form: Its form.
        certified: Whether the instance meets the hypotheses and violates the conclusion.
        reason: Why, in words.
    """

    claim: str
    form: str
    certified: bool
    reason: str


def check_file(path: str | Path) -> list[Check]:
    """Re-check every counterexample in a file; verdicts without one are passed over.

    Args:
        path: A JSON file, see the module.

    Raises:
        InvalidFile: The file cannot be read, or a field is missing, malformed or too large to decide.
    """
    content = _loaded(Path(path))
    if isinstance(content, dict) and "sections" in content:
        content = _audit_of(content)
    if isinstance(content, dict) and "verdicts" in content:
        content = cast(Fields, content)["verdicts"]
    if isinstance(content, dict):
        return [_checked(cast(Fields, content), "")]
    if not isinstance(content, list):
        raise InvalidFile("verdicts", content, "needs a list of verdicts, or one verdict as an object")
    found: list[Check] = []
    for index, verdict in enumerate(cast(list[Any], content)):
        place = f"verdicts[{index}]."
        if not isinstance(verdict, dict):
            raise InvalidFile(place[:-1], verdict, "needs an object with claim, form and counterexample")
        if "counterexample" in verdict or verdict.get("verdict") == "refuted":
            found.append(_checked(cast(Fields, verdict), place))
    return found


def _audit_of(results: Fields) -> Any:
    """The audit inside the ``results.json`` of a reproduction."""
    sections = results["sections"] if isinstance(results["sections"], list) else []
    found = [section for section in sections if isinstance(section, dict) and section.get("name") == "audit"]
    if len(found) != 1 or not isinstance(found[0].get("data"), dict):
        raise InvalidFile("sections", f"{len(sections)} of them", "needs one named audit, with its data")
    return found[0]["data"]


def _loaded(path: Path) -> Any:
    try:
        if path.stat().st_size > BYTES:
            raise InvalidFile("file", str(path), f"needs at most {BYTES:,} bytes")
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except OSError as error:
        raise InvalidFile("file", str(path), f"needs a readable file ({error.strerror})") from None
    except RecursionError:
        raise InvalidFile("file", str(path), "is nested too deeply for a certificate") from None
    except InvalidFile:
        raise
    except ValueError as error:
        raise InvalidFile("file", str(path), f"needs JSON in UTF-8 without a byte order mark ({error})") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidFile("key", repeated, "stands twice; give each key once")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidFile("file", name, 'numbers are strings "p/q"')


def _checked(verdict: Fields, place: str) -> Check:
    name, form = (_text(verdict, key, place) for key in ("claim", "form"))
    claim = named(name, form)
    if claim is None:
        raise InvalidFile(f"{place}claim", f"{name}, {form}", "needs the name and form of a claim of the audit")
    where, fields = f"{place}counterexample", _given(verdict, "counterexample", place)
    if not isinstance(fields, dict):
        raise InvalidFile(where, fields, "needs an object with eigenvalues, rank, state and noise")
    instance = _instance(claim, cast(Fields, fields), f"{where}.")
    certified, reason = _decided(claim, instance, cast(Fields, fields), f"{where}.")
    return Check(name, form, certified, reason)


def _decided(claim: Claim, instance: Instance, fields: Fields, place: str) -> tuple[bool, str]:
    if "noise_law" in claim.enters and noise_values(instance) != _law(fields, len(instance.state), place):
        return False, "the noise law does not have the variances given"
    with np.errstate(all="ignore"):
        if not claim.applies(instance):
            return False, "the instance does not meet the claim's hypotheses"
        if claim.holds(instance):
            return False, "the claim holds on the instance"
        if not claim.refuted_by(instance):
            return False, "the claim fails for two-point noise only, not for Gaussian noise"
    return True, "the hypotheses are met and the conclusion fails, decided in " + (
        "exact arithmetic" if claim.kind == "exact" else "float64 with an error bound"
    )


def _instance(claim: Claim, fields: Fields, place: str) -> Instance:
    spectrum = _numbers(fields, "eigenvalues", place)
    state, noise = (_numbers(fields, key, place) for key in ("state", "noise"))
    step = _number(_given(fields, "step_size", place), f"{place}step_size") if "step_size" in claim.enters else 1
    time = _integer(fields, "time", place) if "time" in claim.enters else 0
    rank = _integer(fields, "rank", place)
    if not 0 <= time <= STEPS:
        raise InvalidFile(f"{place}time", time, f"needs an integer from 0 to {STEPS}")
    if claim.kind == "exact":
        work = sum(len(str(value)) for value in (*spectrum, *state, *noise, step)) * (1 + time)
        if work > WORK:
            raise InvalidFile(f"{place}eigenvalues", f"{work:,} digits", f"needs at most {WORK:,}, steps counted")
    if claim.kind == "numeric" or claim.confirm:
        for value in (*spectrum, *state, *noise, step):
            if value and not SCALES[0] <= abs(value) <= SCALES[1]:
                raise InvalidFile(f"{place}eigenvalues", str(value), "needs numbers from 1e-30 to 1e30 for this claim")
    if "noise_law" in claim.enters and len(spectrum) > OUTCOME_MODES:
        raise InvalidFile(f"{place}eigenvalues", len(spectrum), f"needs at most {OUTCOME_MODES} modes for this claim")
    try:
        return Instance(spectrum, rank, state, noise, step_size=Fraction(step), time=time)
    except InvalidArgument as error:
        raise InvalidFile(f"{place}{error.name}", error.value, error.allowed) from None


def _law(fields: Fields, size: int, place: str) -> tuple[Fraction, ...]:
    law = _given(fields, "noise_law", place)
    if not isinstance(law, dict) or cast(Fields, law).get("law") != "two-point":
        raise InvalidFile(f"{place}noise_law", law, 'needs {"law": "two-point", "values": [κ_1, …]}')
    values = _numbers(cast(Fields, law), "values", f"{place}noise_law.")
    if len(values) != size:
        raise InvalidFile(f"{place}noise_law.values", len(values), f"needs {size} numbers, as eigenvalues")
    return values


def _given(fields: Fields, key: str, place: str) -> Any:
    if key not in fields:
        raise InvalidFile(f"{place}{key}", "nothing", "is needed for this claim")
    return fields[key]


def _text(fields: Fields, key: str, place: str) -> str:
    value = _given(fields, key, place)
    if not isinstance(value, str):
        raise InvalidFile(f"{place}{key}", value, "needs a string")
    return value


def _integer(fields: Fields, key: str, place: str) -> int:
    value = _given(fields, key, place)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidFile(f"{place}{key}", value, "needs an integer")
    return value


def _numbers(fields: Fields, key: str, place: str) -> tuple[Fraction, ...]:
    values = _given(fields, key, place)
    if not isinstance(values, list) or len(cast(list[Any], values)) > MODES:
        raise InvalidFile(f"{place}{key}", values, f'needs a list of at most {MODES} strings "p/q"')
    return tuple(_each(cast(list[Any], values), f"{place}{key}"))


def _each(values: list[Any], place: str) -> Iterator[Fraction]:
    for index, value in enumerate(values):
        yield _number(value, f"{place}[{index}]")


def _number(value: Any, place: str) -> Fraction:
    if not isinstance(value, str) or len(value) > DIGITS or not _NUMBER.fullmatch(value):
        raise InvalidFile(place, value, f'needs a string "p/q" or "p" of at most {DIGITS:,} characters')
    try:
        return Fraction(value)
    except ZeroDivisionError:
        raise InvalidFile(place, value, "needs a denominator that is not zero") from None
