"""All claims in the order of the paper, our own after them, and how they are asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from etastar.claims import critical, dynamics, empirical, expectation, loss, own, stationary, step
from etastar.claims.claim import Claim
from etastar.errors import InvalidArgument

__all__ = ["CLAIMS", "chosen", "named"]

_ORDER = (
    "A1",
    "intro",
    "T2",
    "T3",
    "T4",
    "T5",
    "T6",
    "stable-interval",
    "T7",
    "T7-remark",
    "T8",
    "C9",
    "T10",
    "T10-order",
    "T11",
    "T12",
    "T12-conditioning",
    "T13",
    "T13-upper",
    "T13-remark",
    "T15",
    "T15-sharp",
    "T16",
    "T16-small-step",
    "T16-ratio",
    "T16-limits",
    "conclusion",
    "DSGD",
    "B.3",
    "B.3-rates",
    "B.4",
    "B.4-curve",
    "S7",
    "one-turn",
    "borders",
    "two-level",
    "turning-time",
    "turning-time-upper",
    "heavy-ball",
    "label-variance",
)
_MODULES = (expectation, step, critical, loss, dynamics, stationary, empirical, own)
_FORMS = ("printed", "printed-appendix", "corrected", "own")


def _place(claim: Claim) -> tuple[int, int]:
    return _ORDER.index(claim.name), _FORMS.index(claim.form)


#: Every claim, in the order of the paper; the printed form before the corrected one.
CLAIMS: tuple[Claim, ...] = tuple(sorted(chain.from_iterable(module.CLAIMS for module in _MODULES), key=_place))


def chosen(names: Sequence[str] | None) -> list[Claim]:
    """Return the claims of these names, in every form, in the order of the paper; all for None.

    Raises:
        InvalidArgument: A name is unknown.
    """
    for name in names or ():
        if name not in _ORDER:
            raise InvalidArgument("claims", name, f"one of {', '.join(_ORDER)}")
    return [claim for claim in CLAIMS if names is None or claim.name in names]


def named(name: str, form: str) -> Claim | None:
    """Return the claim of this name and form, None if there is none."""
    return next((claim for claim in CLAIMS if (claim.name, claim.form) == (name, form)), None)
