"""The audit as a section of a report: what holds first, then what is refuted and what replaces it.

The verdicts come from ``etastar.claims``; here they are only told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from etastar.claims import Verdict
from etastar.report import Check, Column, Section, Table

__all__ = ["AUDIT_HEADS", "audit_json", "audit_rows", "audit_section", "short_counterexample"]

_FORMS = {
    "printed": "as printed",
    "printed-appendix": "as printed (appendix)",
    "corrected": "corrected",
    "own": "our own",
}


def audit_section(verdicts: Sequence[Verdict]) -> Section:
    """The audit's findings: what holds, what is refuted with its smallest counterexample, what the search covered."""
    holding = [v for v in verdicts if v.verdict == "holds"]
    refuted = [v for v in verdicts if v.verdict == "refuted"]
    vacuous = [v for v in verdicts if v.verdict == "vacuous"]
    surprises = [v for v in verdicts if not v.as_expected]
    tried = sum(v.instances for v in verdicts)
    as_printed = ", ".join(v.claim for v in holding if v.form == "printed")
    own = sum(v.form == "own" for v in holding)
    exact = sum(v.kind == "exact" for v in refuted)
    return Section(
        "audit",
        "The paper's claims, audited",
        f"{len(holding)} statements hold on every instance tried, {own} of them our own; as printed these: "
        f"{as_printed or 'none of them'}. "
        f"{len(refuted)} fail as printed, {exact} of them by a [[certified]] counterexample; a corrected form of each "
        f"holds.{f' {len(vacuous)} are [[vacuous]].' if vacuous else ''}",
        "The refuted statements are details of a good paper: bounds printed upside down, a power of λ, limits in "
        "the wrong order. Its picture stands: a critical step size, two phases, thresholds that part the subspaces.\n"
        "Symbols: s_S = ‖Sg‖² and s = ‖g‖², τ_S = ⟨Sg, Hg⟩, e_S = tr(SHΣH), n_S = tr(SHΣ) for S = D (dominant) or "
        "B (bulk); a_S = τ_S/s_S, κ_i² noise variances, s_min and s_max the extreme ones, ψ_S = Σ_S λ², Tr_S = Σ_S κ², "
        "ρ = k/(d − k), r = λ_k/λ_{k+1}, β_i = ηκ_i²/(2λ_i − ηλ_i²), ϱ_D = Σ_D(x_i² − β_i), m = s(λ₁² − λ_d²), "
        "A = s_min·ψ_B, h = s_max·ψ_D; θ* and g_gap are the paper's borders (T4, T3).",
        [
            Check(
                f"every verdict is the one that the proofs lead to expect ({tried:,} instances decided)",
                not surprises,
                "none differs" if not surprises else ", ".join(f"{v.claim} {v.form}: {v.verdict}" for v in surprises),
            )
        ],
        tables=[_holding_table(holding), _refuted_table(refuted)],
        data={"verdicts": audit_json(verdicts)},
    )


def audit_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as plain JSON values."""
    return json.loads(json.dumps([verdict.to_json() for verdict in verdicts], allow_nan=False))


AUDIT_HEADS = ["claim", "form", "verdict (instances)", "kind", "counterexample, dominant | bulk"]


def audit_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """The verdicts as rows under `AUDIT_HEADS`: what holds first."""
    ordered = sorted(verdicts, key=lambda v: ("holds", "vacuous", "refuted").index(v.verdict))
    words = {"holds": "holds on", "refuted": "refuted after", "vacuous": "vacuous in"}
    return [[v.claim, v.form, f"{words[v.verdict]} {v.instances:,}", v.kind, short_counterexample(v)] for v in ordered]


def short_counterexample(verdict: Verdict) -> str:
    """A counterexample in one line."""
    if verdict.counterexample is None:
        return ""
    found = verdict.counterexample
    fields = found.to_json()
    k = found.instance.rank

    def listed(values: list[str]) -> str:
        return f"{', '.join(values[:k])} | {', '.join(values[k:])}"

    if len(fields["eigenvalues"]) > 12:
        return f"the paper's spectrum: {found.left} {found.relation} {found.right} fails"
    names = {"λ": "eigenvalues", "x": "state", "κ²": "noise"}
    parts = [f"{symbol} = {listed(fields[name])}" for symbol, name in names.items()]
    if "step_size" in fields:
        parts.append(f"η = {fields['step_size']}")
    if "time" in fields:
        parts.append(f"t = {fields['time']}")
    return "; ".join(parts) + f": {found.left} {found.relation} {found.right} fails"


def _holding_table(verdicts: Sequence[Verdict]) -> Table:
    columns = [
        Column("claim", "number in the paper, or a word where it has none", numeric=False),
        Column("form", numeric=False),
        Column("says", numeric=False),
        Column("kind", "exact: decided in rational arithmetic; numeric: within a stated error bound", numeric=False),
        Column("instances", "instances that meet the hypotheses; it holds on all of them"),
    ]
    rows = [[v.claim, _FORMS[v.form], f"{v.statement}\n{v.formula}", v.kind, f"{v.instances:,}"] for v in verdicts]
    return Table(columns, rows, "What holds")


def _refuted_table(verdicts: Sequence[Verdict]) -> Table:
    columns = [
        Column("claim", "number in the paper, or a word where it has none", numeric=False),
        Column("form", numeric=False),
        Column("said", numeric=False),
        Column("kind", "exact: the counterexample is a proof in rational arithmetic", numeric=False),
        Column(
            "smallest counterexample found",
            "eigenvalues λ, state x and noise variances κ² in the eigenbasis, dominant | bulk; the comparison that "
            "should hold and does not",
            numeric=False,
        ),
        Column(
            "lifted to",
            "copies of every mode (x_i² and κ_i² divided by r, or as the certificate says) at which the violation was "
            "checked again, with the paper's Assumption 1: the way to every larger dimension",
            numeric=False,
        ),
    ]
    rows = [
        [v.claim, _FORMS[v.form], f"{v.statement}\n{v.formula}", v.kind, short_counterexample(v), _lift(v)]
        for v in verdicts
    ]
    return Table(columns, rows, "What fails as printed; a corrected form of each is above")


def _lift(verdict: Verdict) -> str:
    lift = verdict.counterexample.lift if verdict.counterexample else None
    return f"r = {', '.join(map(str, lift.copies))}" if lift is not None and lift.violated else "–"
