"""Every claim: its verdict is the one that the proofs lead to expect, and its words are complete."""

import pytest

from etastar.claims import CLAIMS, audit
from etastar.claims.registry import chosen, named
from etastar.errors import InvalidArgument

INSTANCES = 600


@pytest.fixture(scope="module")
def verdicts():
    return audit(instances=INSTANCES, workers=1)


def test_every_verdict_is_as_expected(verdicts):
    assert {(v.claim, v.form): v.verdict for v in verdicts if not v.as_expected} == {}


def test_rows_of_the_paper_are_all_there_in_order(verdicts):
    keys = [(v.claim, v.form) for v in verdicts]
    assert len(set(keys)) == len(keys) == len(CLAIMS)
    names = list(dict.fromkeys(name for name, _ in keys))
    assert [n for n in names if n[0] in "TC"] == sorted(
        (n for n in names if n[0] in "TC"), key=lambda n: int(n[1:].split("-")[0])
    )
    refuted = {v.claim for v in verdicts if v.verdict == "refuted"}
    corrected = {v.claim for v in verdicts if v.form == "corrected"}
    # A refuted claim stands beside what replaces it.
    assert refuted <= corrected


def test_holding_claims_were_tried_as_often_as_asked(verdicts):
    for verdict in verdicts:
        if verdict.verdict == "holds" and verdict.kind == "exact":
            assert verdict.instances >= INSTANCES, verdict.claim


def test_refuted_exact_claims_carry_a_small_certificate(verdicts):
    for verdict in verdicts:
        assert (verdict.counterexample is not None) == (verdict.verdict == "refuted")
        if verdict.counterexample and verdict.kind == "exact":
            assert len(verdict.counterexample.instance.eigenvalues) <= 3, verdict.claim
            assert named(verdict.claim, verdict.form).refuted_by(verdict.counterexample.instance)


def test_lifts_are_violated_with_the_same_sides_under_assumption_1(verdicts):
    for verdict in verdicts:
        lift = verdict.counterexample and verdict.counterexample.lift
        if verdict.verdict == "refuted" and named(verdict.claim, verdict.form).lift != "none":
            assert lift.violated, verdict.claim
            assert lift.unchanged, verdict.claim
            assert lift.assumption_1, verdict.claim
        else:
            assert lift is None


def test_words_are_complete():
    for claim in CLAIMS:
        for text in (claim.name, claim.source, claim.statement, claim.formula, claim.hypotheses):
            assert text.strip()
        assert claim.statement.endswith((".", "'"))


def test_claims_are_asked_for_by_name():
    assert [(c.name, c.form) for c in chosen(["T8"])] == [
        ("T8", "printed"),
        ("T8", "printed-appendix"),
        ("T8", "corrected"),
    ]
    assert named("T8", "other") is None
    with pytest.raises(InvalidArgument, match=r"claims: got 'T99'; one of A1, intro, .*S7"):
        chosen(["T99"])
