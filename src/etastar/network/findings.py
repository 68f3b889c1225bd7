"""What preflight reports: findings, each with a name, how serious it is, its cause and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from etastar.errors import InvalidArgument

__all__ = ["Finding", "PreflightReport", "Severity"]


class Severity(Enum):
    """What a finding means for the numbers."""

    REFUSED = "the curvature would be wrong, random or undefined"
    HANDLED = "the operators deal with it"
    NOTE = "the curvature is right; good to know"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a model, its loss or its data that matters for curvature.

    Attributes:
        name: What it is, in two or three words; the same for the same defect.
        severity: ``Severity``.
        cause: Where it was seen.
        remedy: What to do, or what has been done.
    """

    name: str
    severity: Severity
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity.name.lower()}: {self.name}: {self.cause}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """All findings, the refusals first. As text, one line each.

    Attributes:
        findings: In order of severity.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is refused."""
        return not self.refused

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that forbid using the curvature."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.REFUSED)

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    def __str__(self) -> str:
        verdict = "preflight: sound" if self.ok else f"preflight: {len(self.refused)} refused"
        return "\n".join([verdict, *(f"  {finding}" for finding in self.findings)])

    def require(self) -> None:
        """Do nothing where the report is ok.

        Raises:
            InvalidArgument: Something is refused; the first of it, in one line.
        """
        for finding in self.refused[:1]:
            raise InvalidArgument(finding.name, finding.cause, finding.remedy)
