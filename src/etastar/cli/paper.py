"""``etastar reproduce`` and ``etastar audit``: the paper, from one command."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from etastar.cli.options import Flag, OptionalPath, check_seed
from etastar.errors import InvalidArgument
from etastar.terminal import (
    console,
    json_text,
    print_json,
    print_table,
    progress_bar,
    without_marks,
    writer_of,
)

__all__ = ["audit", "reproduce"]


def reproduce(
    out: Path = Path("etastar-out/reproduce"),
    network: Flag = False,
    quick: Flag = False,
    seed: int = 0,
    json: Flag = False,
) -> int:
    """Reproduce and audit the paper: one report, PNGs, results.json (about 35 seconds).

    For example:
      etastar reproduce
      etastar reproduce --quick --out /tmp/first-look
      etastar reproduce --network --out etastar-out/network

    Args:
        out: Directory for report.html, results.json and the PNGs.
        network: Instead of the paper, the meter on digits-mlp: trained, forecast and calibrated (under 3 minutes).
        quick: Fewer runs and instances: about 12 seconds.
        seed: Seed of everything that is drawn.
        json: Print results.json on stdout instead of a summary.
    """
    from etastar.files import output_directory
    from etastar.recipes.reproduce import reproduce as run
    from etastar.recipes.reproduce import write_reproduction

    if network:
        import etastar.network  # noqa: F401  # pyright: ignore[reportUnusedImport]  # names the extra where it is missing

    check_seed(seed)
    output_directory(out)
    with progress_bar() as told:
        if network:
            from etastar.recipes.reproduce_network import reproduce_network

            result = reproduce_network(quick, seed, told)
        else:
            result = run(quick, seed, told, os.cpu_count() or 1)
    paths = write_reproduction(result, out)
    if json:
        print_json(result.results())
        return 0 if result.passed else 1
    screen = console()
    for section in result.sections:
        screen.print(f"[bold]{without_marks(section.title)}[/]")
        for check in section.checks:
            mark = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            statement = f"  {mark}  {without_marks(check.statement)} [dim]({without_marks(check.measured)})[/]"
            screen.print(statement, soft_wrap=True)
    failed = sum(not check.passed for section in result.sections for check in section.checks)
    total = sum(len(section.checks) for section in result.sections)
    screen.print(f"\n{total - failed} of {total} checks passed in {sum(result.seconds.values()):.0f} s.")
    screen.print(f"Report: {paths[-1]}", soft_wrap=True)
    return 0 if result.passed else 1


def audit(
    claims: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    instances: int = 100_000,
    check: OptionalPath = None,
    out: OptionalPath = None,
    seed: int = 0,
    workers: int = 2,
    json: Flag = False,
) -> int:
    """Put the paper's claims to the test; every reported counterexample is a proof in exact arithmetic.

    For example:
      etastar audit
      etastar audit --claims T8 C9 --json > certificates.json
      etastar audit --check certificates.json

    Args:
        claims: Names such as T8 or C9; all unless given.
        instances: Random instances for each algebraic claim.
        check: Re-check the certificates in a file, from scratch, instead of searching.
        out: Directory for audit.json and audit.html.
        seed: Seed of the draws.
        workers: Processes.
        json: Print the verdicts on stdout as JSON.
    """
    if check is not None:
        return _check_certificates(check, json)
    from etastar.claims import audit as run
    from etastar.files import output_directory, write_together
    from etastar.recipes.claims_audit import audit_json, audit_section
    from etastar.report import render_html

    check_seed(seed)
    if claims == ():
        raise InvalidArgument("claims", claims, "name at least one, such as T8")
    if out is not None:
        output_directory(out)
    with progress_bar() as told:
        verdicts = run(claims, instances, seed, workers, told)
    section = audit_section(verdicts)
    if out is not None:
        lead = "Each numbered claim as printed and corrected, put to exact arithmetic."
        texts = {
            "audit.json": json_text(audit_json(verdicts)),
            "audit.html": render_html("The paper's claims, audited", lead, [section]),
        }
        write_together(out, {name: writer_of(text) for name, text in texts.items()})
    if json:
        print_json(audit_json(verdicts))
    else:
        _print_audit(verdicts, section)
    return 0 if section.passed else 1


def _check_certificates(path: Path, as_json: bool) -> int:
    from etastar.claims import check_file

    results = check_file(path)
    if as_json:
        print_json([asdict(result) for result in results])
    elif not results:
        console().print(f"No counterexample to check in {without_marks(path.name)}.")
    else:
        rows = [[r.claim, r.form, "certified" if r.certified else "NOT certified", r.reason] for r in results]
        print_table(["claim", "form", "result", "reason"], rows)
    return 0 if all(result.certified for result in results) else 1


def _print_audit(verdicts: Any, section: Any) -> None:
    from etastar.recipes.claims_audit import AUDIT_HEADS, audit_rows

    print_table(AUDIT_HEADS, audit_rows(verdicts))
    for check in section.checks:
        statement = without_marks(f"{check.statement}: {check.measured}")
        console().print(("pass  " if check.passed else "FAIL  ") + statement, soft_wrap=True)
