"""The experiment as a section of a report: each of its claims a check with numbers, and what explains it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from etastar.recipes.tiny_subspaces.findings import Findings, findings
from etastar.recipes.tiny_subspaces.pictures import pictures
from etastar.recipes.tiny_subspaces.run import SeedRun, TinySubspacesRun
from etastar.recipes.tiny_subspaces.stage import SWITCH
from etastar.report import Check, Column, Section, Table, write_report
from etastar.uncertainty import Estimate, mean_of

__all__ = ["tiny_subspaces_section", "write_tiny_subspaces"]

_STANDS, _FOLLOWS = 0.25, 0.75  # shares of SGD's fall
_GONE = 0.5  # of SGD's χ
_DESCENDS = 0.8  # η/η_S below which a subspace still descends, as in the verdicts of measurements
_COLUMNS = [
    Column("seed", "of initialisation and mini-batches"),
    Column("switch", "steps of SGD before the moving average of χ passes 0.95"),
    Column("loss", "mean over the first 50 steps of SGD after the switch, all training samples"),
    Column("SGD", "mean loss over the last tenth of the run"),
    Column("Dom-SGD", "the same for the update projected on the dominant subspace"),
    Column("Bulk-SGD", "the same for the update projected on the bulk"),
    Column("GD", "the same for full-batch gradient descent"),
    Column("χ of SGD, GD", "medians over the second half of GD's steps before its λ₁ reaches 2/η"),
    Column("η/η_D", "step over the dominant loss threshold, window after the switch, 90 % interval"),
    Column("η/η_B", "step over the bulk loss threshold, the same"),
    Column("noise share", "q₁/(m₁ + q₁) in the dominant subspace, the same"),
    Column("ηλ₁/2", "1 is the edge of stability: mean over that window, and over the last tenth of SGD"),
]


def tiny_subspaces_section(run: TinySubspacesRun) -> Section:
    """Checks, figures and one table."""
    plan = run.plan
    rows = [found for one in run.seeds if (found := findings(one, plan.step_size)) is not None]
    checks = list(_checks(run, rows))
    passed = sum(check.passed for check in checks)
    own = plan.protocol
    return Section(
        "tiny-subspaces",
        "Does SGD happen in a tiny subspace?",
        f"{own.recipe}, {own.loss}: η = {plan.step_size:g}, b = {own.batch_size}, k = {own.rank}, {plan.steps:,} steps"
        "; those after the switch are taken four times, from the same parameters, with the same mini-batches. "
        f"{plan.seeds} seed{'s' * (plan.seeds > 1)}. {passed} of {len(checks)} statements hold.",
        reading=_reading(run, rows),
        checks=checks,
        figures=pictures(run, rows),
        tables=[Table(_COLUMNS, [_row(found) for found in rows])] if rows else [],
        data={
            "data": plan.data,
            "steps": plan.steps,
            "step_size": plan.step_size,
            "batch_size": own.batch_size,
            "rank": own.rank,
            "curvature_samples": plan.curvature_samples,
            "checks": [{"statement": c.statement, "passed": c.passed, "measured": c.measured} for c in checks],
            "seeds": [found.to_json() for found in rows],
        },
    )


def write_tiny_subspaces(run: TinySubspacesRun, out: Path) -> list[Path]:
    """Write ``results.json``, the pictures and, last, ``run.html``: the same bytes for the same run."""
    section = tiny_subspaces_section(run)
    lead = (
        "The experiment of Song, Ahn and Yun (ICLR 2025, arXiv 2405.16002): once the gradient of SGD lies in the "
        "[[dominant]] subspace, the training that goes on happens in the [[bulk]]."
    )
    results = json.dumps(section.data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    title = f"Tiny subspaces: {run.plan.data}"
    return write_report(out, "run.html", title, lead, [section], files={"results.json": results})


def _checks(run: TinySubspacesRun, rows: list[Findings]) -> Iterator[Check]:
    switches = [one.switch for one in run.seeds]
    told = ", ".join(_switch(one) for one in run.seeds)
    first = f"; mean χ of the first 10 steps {np.mean([one.first_chi for one in rows]):.2f}" if rows else ""
    yield Check(
        f"χ = √θ rises near 1: its moving average (0.9, from 0) passes {SWITCH}",
        None not in switches,
        f"{told}{first}",
    )
    if not rows:
        if any(switch is not None for switch in switches):
            lasts = "SGD goes on after the switch, for as long as its loss thresholds are measured"
            yield Check(lasts, False, "it diverged there, in every seed that got to the switch")
        return
    whole = len(rows) == len(switches) - switches.count(None)  # the others diverged at once
    for name, statement, holds in (
        ("dominant", f"Dom-SGD's loss no longer falls: at most {_STANDS:g} of SGD's fall, in log", _stands),
        ("bulk", f"Bulk-SGD's loss falls like SGD's: at least {_FOLLOWS:g} of its fall, in log", _follows),
    ):
        shares = [one.share(name) for one in rows]
        yield Check(statement, whole and all(map(holds, shares)), _over_seeds(shares, ".2f", "share"))
    yield Check(
        f"SGD → GD makes the alignment go: below λ₁ = 2/η, χ of GD is at most {_GONE:g} of SGD's",
        whole and all(one.gd_chi <= _GONE * one.sgd_chi for one in rows),
        _over_seeds([one.gd_chi for one in rows], ".3f", "χ of GD")
        + "; "
        + _over_seeds([one.sgd_chi for one in rows], ".3f", "of SGD"),
    )
    yield Check(
        f"Loss thresholds at the switch foretell it: η/η_D ≥ {_DESCENDS:g}, the dominant part no longer descends, and "
        f"η/η_B ≤ {_DESCENDS:g}, the bulk still does (ends of the 90 % intervals)",
        whole and all(one.dominant.low >= _DESCENDS and one.bulk.high <= _DESCENDS for one in rows),
        "; ".join(f"{_told(one.dominant)} and {_told(one.bulk)}" for one in rows),
    )
    yield Check(
        "Noise is at work at the switch, not the edge of stability: λ₁ < 2/η, so that GD would contract there",
        whole and all(one.edge[0] < 1 for one in rows),
        _over_seeds([one.edge[0] for one in rows], ".2f", "ηλ₁/2")
        + "; "
        + f"noise share {', '.join(_told(one.noise_share) for one in rows)}",
    )


def _switch(one: SeedRun) -> str:
    if one.switch is not None:
        return f"at step {one.switch:,}"
    return "not in the first half" if one.approach.complete else f"not before it diverged at step {len(one.approach):,}"


def _stands(share: float) -> bool:
    return share <= _STANDS


def _follows(share: float) -> bool:
    return share >= _FOLLOWS


def _reading(run: TinySubspacesRun, rows: list[Findings]) -> str:
    plan = run.plan
    if not rows:
        return f"Without SGD after a switch there is nothing more to be seen. {_basis(run)}"
    edge = [one for one in rows if one.calm < plan.steps - one.switch]
    late = (
        f"In {len(edge)} of {len(rows)} seeds GD's λ₁ reaches 2/η later, after "
        f"{', '.join(f'{one.calm:,}' for one in edge)} steps; at the end its χ is "
        f"{', '.join(f'{one.late_chi:.2f}' for one in edge)}: what the edge does is self-stabilization (Damian et al., "
        "arXiv 2209.15594), a matter of third derivatives, and not explained by the quadratic theory. "
        if edge
        else "GD's λ₁ stays below 2/η throughout. "
    )
    return (
        "Alignment by noise is what the quadratic theory explains: mini-batch noise keeps the dominant modes at their "
        "floor, where η = η_D on average, while η is far below η_B. Take the noise away and those modes contract. "
        f"{late}{_turns(rows)}"
        f"Hessian, basis and noise are those of the first {plan.curvature_samples:,} training samples, the basis "
        f"refreshed at every step to an estimated error of 1 %; losses and gradients are those of all. {_basis(run)}"
    )


def _turns(rows: list[Findings]) -> str:
    turned = [one for one in rows if one.bulk_turn is not None]
    if not turned:
        return ""
    told = "; ".join(
        f"seed {one.seed}: {loss:.3g} after {steps:,} steps, ηλ₁/2 = {edge:.1f}"
        for one in turned
        if one.bulk_turn is not None
        for steps, loss, edge in (one.bulk_turn,)
    )
    return (
        f"In {len(turned)} of {len(rows)} seeds Bulk-SGD's loss rises again after its lowest mean over 50 steps "
        f"({told}): λ₁ goes on growing where no step is taken that could hold it down. "
    )


def _basis(run: TinySubspacesRun) -> str:
    parts = [series for one in run.seeds for series in (one.approach, *one.branches.values()) if len(series)]
    if not parts:
        return "The loss was not finite at the start."
    errors, products = (np.concatenate([series[name] for series in parts]) for name in ("basis_error", "products"))
    return (
        f"Over {len(errors):,} refreshes: {products.mean():.1f} products each, estimated error "
        f"{np.median(errors):.1e} (median), {errors.max():.1e} (worst)."
    )


def _row(found: Findings) -> list[str]:
    ends = [f"{found.ends[name]:.4g}" for name in ("sgd", "dominant", "bulk", "gd")]
    return [
        str(found.seed),
        f"{found.switch:,}",
        f"{found.loss:.4g}",
        *("diverged" if end == "inf" else end for end in ends),
        f"{_value(found.sgd_chi, '.3f')}, {_value(found.gd_chi, '.3f')}",
        _told(found.dominant),
        _told(found.bulk),
        _told(found.noise_share),
        f"{found.edge[0]:.2f}, {found.edge[1]:.2f}",
    ]


def _over_seeds(values: list[float], form: str, name: str) -> str:
    """Mean with its 90 % interval over the seeds; each value where there is one, or one of them does not exist."""
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return f"{name} {', '.join(_value(value, form) for value in values)}"
    mean = mean_of(values)
    return f"{name} {mean.value:{form}} ({mean.low:{form}} to {mean.high:{form}}, {len(values)} seeds)"


def _value(value: float, form: str) -> str:
    """A number; where there is none, that: SGD's own loss does not fall, or GD is at its edge from the start."""
    return "diverged" if math.isinf(value) else "none to judge" if math.isnan(value) else format(value, form)


def _told(estimate: Estimate) -> str:
    if not estimate.resolved:
        return "unresolved"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
