"""Certificate files: genuine ones pass, tampered ones fail, hostile ones are one line that names the field."""

import copy
import json
from dataclasses import replace

import pytest

from etastar.claims import audit, check_file
from etastar.claims.registry import named
from etastar.errors import InvalidFile


@pytest.fixture(scope="module")
def verdicts():
    return [v.to_json() for v in audit(instances=150, workers=1)]


@pytest.fixture(scope="module")
def refuted(verdicts):
    return {(v["claim"], v["form"]): v for v in verdicts if v["verdict"] == "refuted"}


@pytest.fixture
def check(tmp_path):
    def write_and_check(content):
        path = tmp_path / "certificate.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, allow_nan=True).encode())
        return check_file(path)

    return write_and_check


def test_the_whole_audit_is_certified_again(check, verdicts, refuted):
    for content in (verdicts, {"schema": 1, "verdicts": verdicts}):
        results = check(content)
        assert [(r.claim, r.form) for r in results] == list(refuted)
        assert all(r.certified for r in results), [r for r in results if not r.certified]


def test_one_verdict_and_none_at_all(check, refuted):
    assert [r.certified for r in check(refuted["T8", "printed"])] == [True]
    assert check([]) == []


def test_numbers_may_be_written_with_or_without_a_denominator(check, refuted):
    changed = copy.deepcopy(refuted["T8", "printed"])
    fields = changed["counterexample"]
    for key in ("eigenvalues", "state", "noise"):
        fields[key] = [v if "/" in v else f"{v}/1" for v in fields[key]]
    assert check(changed)[0].certified


@pytest.mark.parametrize(
    ("key", "changes", "reason"),
    [
        (("T8", "printed"), {"noise": ["0", "0"]}, "hypotheses"),
        (("T8", "printed"), {"noise": ["1000", "0"]}, "holds"),
        (("T16-limits", "printed"), {"step_size": "1000"}, "hypotheses"),
        (("T2", "printed"), {"noise": ["1", "81/16"]}, "noise law"),
        (("B.3", "printed"), {"step_size": "1/300"}, "hypotheses"),
        (
            ("S7", "printed"),
            {"eigenvalues": ["2", "1"], "state": ["1", "1"], "noise": ["1", "1"], "rank": 1},
            "hypotheses",
        ),
        (("A1", "printed"), {"noise": ["0", "0"]}, "hypotheses"),
    ],
)
def test_a_tampered_certificate_fails(check, refuted, key, changes, reason):
    changed = copy.deepcopy(refuted[key])
    changed["counterexample"] |= changes
    result = check(changed)[0]
    assert not result.certified
    assert reason in result.reason


def test_what_is_shown_is_not_trusted(check, refuted):
    changed = copy.deepcopy(refuted["T8", "printed"])
    changed["form"] = "corrected"
    assert not check(changed)[0].certified


def test_a_two_point_refutation_must_also_stand_under_gaussian_noise(check, refuted, monkeypatch):
    claim = named("T2", "printed")
    monkeypatch.setattr("etastar.claims.check.named", lambda *_: replace(claim, confirm=lambda instance: False))
    result = check(refuted["T2", "printed"])[0]
    assert not result.certified
    assert "two-point noise only" in result.reason


def test_numbers_that_float64_cannot_hold_are_refused_where_it_decides(check, refuted):
    changed = copy.deepcopy(refuted["A1", "printed"])
    changed["counterexample"]["state"] = ["1" + "0" * 400, "1"]
    with pytest.raises(InvalidFile, match="1e-30 to 1e30"):
        check(changed)


FIELD_CASES = [
    ("claim", None, "claim"),
    ("claim", 7, "claim"),
    ("claim", "T99", "claim"),
    ("form", "printed-twice", "claim"),
    ("counterexample", None, "counterexample"),
    ("counterexample", [], "counterexample"),
]
COUNTEREXAMPLE_CASES = [
    ("eigenvalues", None, "eigenvalues"),
    ("eigenvalues", "2", "eigenvalues"),
    ("eigenvalues", [2, 1], "eigenvalues[0]"),
    ("eigenvalues", ["2", "1/0"], "eigenvalues[1]"),
    ("eigenvalues", ["2", "nan"], "eigenvalues[1]"),
    ("eigenvalues", ["2", "1e5"], "eigenvalues[1]"),
    ("eigenvalues", ["2", "1.5"], "eigenvalues[1]"),
    ("eigenvalues", ["9" * 10**7, "1"], "eigenvalues[0]"),
    ("eigenvalues", ["2", "1\n"], "eigenvalues[1]"),
    ("eigenvalues", ["2", "\u0661"], "eigenvalues[1]"),
    ("eigenvalues", ["1"] * 10**5, "eigenvalues"),
    ("eigenvalues", [], "rank"),
    ("eigenvalues", ["1", "2"], "eigenvalues"),
    ("eigenvalues", ["9" * 1900 + "/7"] * 12, "eigenvalues"),
    ("state", ["1"], "state"),
    ("noise", ["1", "-1", "0"], "noise"),
    ("noise", ["1", "-1"], "noise"),
    ("rank", True, "rank"),
    ("rank", "1", "rank"),
    ("rank", 1.0, "rank"),
    ("rank", 2, "rank"),
    ("time", -1, "time"),
    ("time", 10**9, "time"),
    ("step_size", "0", "step_size"),
    ("step_size", None, "step_size"),
]


@pytest.mark.parametrize(("key", "value", "field"), FIELD_CASES)
def test_a_hostile_field_is_named(check, refuted, key, value, field):
    changed = copy.deepcopy(refuted["DSGD", "printed"])
    changed[key] = value
    if value is None:
        del changed[key]
    with pytest.raises(InvalidFile) as caught:
        check([changed])
    assert caught.value.name.startswith(f"verdicts[0].{field}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value", "field"), COUNTEREXAMPLE_CASES)
def test_a_hostile_number_is_named(check, refuted, key, value, field):
    changed = copy.deepcopy(refuted["DSGD", "printed"])
    changed["counterexample"][key] = value
    if value is None:
        del changed["counterexample"][key]
    with pytest.raises(InvalidFile) as caught:
        check(changed)
    assert caught.value.name == f"counterexample.{field}"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "law",
    [
        None,
        "two-point",
        {"law": "gaussian"},
        {"law": "two-point"},
        {"law": "two-point", "values": ["1"]},
        {"law": "two-point", "values": ["1", "x"]},
    ],
)
def test_a_hostile_noise_law_is_named(check, refuted, law):
    changed = copy.deepcopy(refuted["T2", "printed"])
    changed["counterexample"]["noise_law"] = law
    with pytest.raises(InvalidFile, match="noise_law"):
        check(changed)


def test_a_law_with_too_many_outcomes_is_refused(check, refuted):
    changed = copy.deepcopy(refuted["T2", "printed"])
    fields = changed["counterexample"]
    fields |= {"eigenvalues": ["2"] + ["1"] * 40, "state": ["1"] * 41, "noise": ["1"] * 41}
    with pytest.raises(InvalidFile, match="at most 10 modes"):
        check(changed)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"\xef\xbb\xbf[]",
        b"{",
        b"null",
        b"3",
        b"[1]",
        b'{"claim": "T8", "claim": "T9"}',
        b'{"verdicts": {}}',
        b'{"rank": NaN}',
        b'{"rank": ' + b"9" * 10**5 + b"}",
        b"[" * 10**5,
    ],
)
def test_a_hostile_file_is_one_line(check, content):
    with pytest.raises(InvalidFile) as caught:
        check(content)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InvalidFile, match="file"):
            check_file(path)
    monkeypatch.setattr("etastar.claims.check.BYTES", 1)
    (tmp_path / "large.json").write_text("[]")
    with pytest.raises(InvalidFile, match="at most 1 bytes"):
        check_file(tmp_path / "large.json")


def test_the_audit_inside_the_results_of_a_reproduction_is_checked(tmp_path):
    verdicts = [verdict.to_json() for verdict in audit(["T8"], 50)]
    path = tmp_path / "results.json"
    path.write_text(
        json.dumps({"sections": [{"name": "figure-1", "data": {}}, {"name": "audit", "data": {"verdicts": verdicts}}]})
    )
    assert [(check.claim, check.certified) for check in check_file(path)] == [("T8", True), ("T8", True)]
    path.write_text(json.dumps({"sections": [{"name": "figure-1"}]}))
    with pytest.raises(InvalidFile, match="needs one named audit"):
        check_file(path)
