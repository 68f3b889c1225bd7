"""Questions to the laboratory: the answers against `Quadratic`, each option, and hostile files one by one."""

import csv
import html
import json

import numpy as np
import pytest

from etastar import InvalidArgument, InvalidFile
from etastar.quadratic import Noise, Quadratic, Spectrum
from etastar.recipes.lab import LabQuestion, ask, read_spectrum, write_answer

DEFAULTS = {
    "dimension": 60,
    "rank": 5,
    "ratio": 20.0,
    "two_level": None,
    "data": None,
    "spectrum": None,
    "batch_size": 32,
    "ridge": 1e-3,
    "step_size": 0.003,
    "noise": 0.25,
    "times": (0, 10, 1000),
    "seed": 42,
}


def question(**changes):
    return LabQuestion(**(DEFAULTS | changes))


def start(spectrum, seed=42):
    return spectrum.eigenvalues * np.random.default_rng(seed).standard_normal(spectrum.dimension)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ratio": 5.0}, {"dimension": 30, "rank": 2}, {"step_size": 0.01}, {"noise": 0.0}, {"seed": 7}],
    ids=str,
)
def test_the_answer_is_that_of_the_quadratic(changes):
    asked = question(**changes)
    spectrum = Spectrum.paper(asked.ratio, asked.dimension, asked.rank)
    problem, gradient = Quadratic(spectrum, Noise.isotropic(asked.noise)), start(spectrum, asked.seed)
    curve = problem.expected(gradient=gradient, step_size=asked.step_size, times=asked.times)
    phases = problem.phases(gradient=gradient, step_size=asked.step_size)
    told = ask(asked).to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["times"] == list(asked.times)
    assert told["alignment"] == curve.alignment.tolist()
    assert told["loss"] == curve.loss.tolist()
    step, bounds = curve.critical_step_size, curve.loss_thresholds
    for name, values in (
        ("critical_step_size", step.value),
        ("threshold_dominant", bounds.dominant),
        ("threshold_bulk", bounds.bulk),
        ("threshold_full", bounds.full),
    ):
        assert told[name] == [None if np.isnan(value) else value for value in values]
    assert told["regime"] == [regime.name for regime in step.regime]
    assert told["phases"]["turns"] == [list(turn) for turn in phases.turns]
    assert told["phases"]["complete"] == phases.complete
    assert (told["dimension"], told["rank"]) == (asked.dimension, asked.rank)
    assert told["stability_limit"] == 2 / spectrum.eigenvalues[0]


def test_rank_zero_takes_the_default():
    assert ask(question(dimension=500, rank=0)).rank == 50
    assert ask(question(two_level=(10.0, 1.0), rank=0)).rank == 50
    assert ask(question(data="diabetes", rank=0)).rank == 1


def test_one_time_is_the_last_step_with_the_turns():
    answer = ask(question(times=(1000,)))
    times = answer.curve.times
    assert (times[0], times[-1]) == (0, 1000)
    assert np.all(np.diff(times) > 0)
    assert {t for t, _ in answer.phases.turns if t <= 1000} <= set(times.tolist())
    assert ask(question(times=(1,))).curve.times.tolist() == [0, 1]


@pytest.mark.parametrize("dimension", [1_000, 10**9, 10**12])
def test_two_levels_cost_the_same_in_any_dimension(dimension):
    answer = ask(question(two_level=(100.0, 1.0), dimension=dimension, noise=1e-9, step_size=0.01, times=(100_000,)))
    spectrum = Spectrum.two_level(dimension, 5, 100.0, 1.0)
    limit = Quadratic(spectrum, Noise.isotropic(1e-9)).stationary(0.01)
    energies = [float(part.signal.zeroth) for part in (limit.dominant, limit.bulk)]
    assert answer.dimension == dimension
    assert answer.phases.alignment_limit == pytest.approx(energies[0] / sum(energies))
    assert answer.ratio == 100.0


@pytest.mark.parametrize("data", ["digits", "diabetes"])
def test_real_data(data):
    answer = ask(question(data=data, rank=2, batch_size=8, ridge=0.1, step_size=0.01, times=(0, 5)))
    assert data in answer.title
    assert "batch 8, ridge 0.1" in answer.title
    assert (answer.rank, answer.dimension) == (2, 64 if data == "digits" else 10)


def test_a_spectrum_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"eigenvalues": [9, 4.5, 1], "rank": 3, "multiplicities": [1, 2, 97]}')
    answer = ask(question(spectrum=path))
    assert answer.title == "Spectrum of mine.json, noise variance 0.25"
    assert (answer.dimension, answer.rank, answer.ratio) == (100, 3, 4.5)


def test_a_file_whose_name_is_no_text_can_be_asked_of_and_told(tmp_path):
    path = tmp_path / "\udcff.json"  # a name of the byte 0xff
    path.write_text('{"eigenvalues": [9, 1], "rank": 1}')
    answer = ask(question(spectrum=path))
    assert answer.title.encode() == "Spectrum of \ufffd.json, noise variance 0.25".encode()


def test_a_million_eigenvalues_are_read(tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"eigenvalues": list(range(1_000_000, 0, -1)), "rank": 1}))
    assert read_spectrum(path).dimension == 1_000_000


def test_an_unstable_step_is_told_in_words():
    answer = ask(question(step_size=0.5, times=(0, 10, 2_000)))
    told = answer.to_json()
    assert told["phases"]["stability"] != "stable"
    assert all(value is None or np.isfinite(value) for value in told["alignment"] + told["loss"])
    assert answer.section().figures


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dimension": 10**12}, "dimension"),
        ({"dimension": 1}, "dimension"),
        ({"dimension": 0}, "dimension"),
        ({"rank": -1}, "rank"),
        ({"rank": 60}, "rank"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"two_level": (1.0, 2.0)}, "eigenvalues[1]"),
        ({"two_level": (1.0, 1.0)}, "rank"),
        ({"two_level": (float("inf"), 1.0)}, "eigenvalues[0]"),
        ({"two_level": (2.0, 1.0), "data": "digits"}, "--two-level, --data"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("inf")}, "noise"),
        ({"times": ()}, "times"),
        ({"times": (0,)}, "times"),
        ({"times": (-1,)}, "times"),
        ({"times": (10**18,)}, "times"),
        ({"times": (5, 3)}, "times"),
        ({"times": (3, 3)}, "times"),
        ({"times": (-1, 3)}, "times"),
        ({"times": (0, 10**30)}, "times"),
        ({"times": (-(10**30), 0)}, "times"),
        ({"seed": -1}, "seed"),
        ({"data": "diabetes", "batch_size": 0}, "batch_size"),
        ({"data": "diabetes", "ridge": -1.0}, "ridge"),
        ({"data": "diabetes", "rank": 10}, "rank"),
    ],
    ids=str,
)
def test_bad_options_are_named(changes, name):
    with pytest.raises(InvalidArgument) as caught:
        ask(question(**changes))
    assert caught.value.name == name
    assert "\n" not in str(caught.value)


HOSTILE = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "not json": (b"eigenvalues: [3, 1]", "is not JSON"),
    "python": (b"__import__('os').abort()", "is not JSON"),
    "list": (b"[3, 1]", "must be an object"),
    "number": (b"3", "must be an object"),
    "null": (b"null", "must be an object"),
    "duplicate key": (b'{"eigenvalues": [3, 1], "rank": 1, "rank": 1}', "holds the key 'rank' twice"),
    "misspelt key": (b'{"eigenvalue": [3, 1], "rank": 1}', "'eigenvalue'; is an unknown key; allowed: eigenvalues"),
    "unknown key": (b'{"eigenvalues": [3, 1], "rank": 1, "name": 1}', "'name'; is an unknown key"),
    "hostile key": (b'{"a\\nb\\u001b[31m": 1}', "is an unknown key"),
    "no rank": (b'{"eigenvalues": [3, 1]}', "has no 'rank'"),
    "no eigenvalues": (b'{"rank": 1}', "has no 'eigenvalues'"),
    "nan": (b'{"eigenvalues": [NaN, 1], "rank": 1}', "holds NaN, which is not JSON"),
    "infinity": (b'{"eigenvalues": [Infinity, 1], "rank": 1}', "holds Infinity"),
    "huge exponent": (b'{"eigenvalues": [1e999, 1], "rank": 1}', "must be finite"),
    "huge integer": (b'{"eigenvalues": [1' + b"0" * 400 + b', 1], "rank": 1}', "must be real numbers"),
    "too many digits": (b'{"eigenvalues": [1' + b"0" * 5000 + b', 1], "rank": 1}', "digits"),
    "text numbers": (b'{"eigenvalues": ["3", 1], "rank": 1}', "must be a list of numbers"),
    "booleans": (b'{"eigenvalues": [true, false], "rank": 1}', "must be a list of numbers"),
    "null numbers": (b'{"eigenvalues": [3, null], "rank": 1}', "must be a list of numbers"),
    "nested list": (b'{"eigenvalues": [[3], [1]], "rank": 1}', "must be a list of numbers"),
    "text list": (b'{"eigenvalues": "31", "rank": 1}', "must be a list of numbers"),
    "empty list": (b'{"eigenvalues": [], "rank": 1}', "must be a non-empty"),
    "rising": (b'{"eigenvalues": [1, 3], "rank": 1}', "must be sorted"),
    "no gap": (b'{"eigenvalues": [1, 1], "rank": 1}', "no gap"),
    "float rank": (b'{"eigenvalues": [3, 1], "rank": 1.0}', "must be a whole number"),
    "boolean rank": (b'{"eigenvalues": [3, 1], "rank": true}', "must be a whole number"),
    "text rank": (b'{"eigenvalues": [3, 1], "rank": "1"}', "must be a whole number"),
    "null rank": (b'{"eigenvalues": [3, 1], "rank": null}', "must be a whole number"),
    "rank of d": (b'{"eigenvalues": [3, 1], "rank": 2}', "must be at least 1 and less than"),
    "huge rank": (b'{"eigenvalues": [3, 1], "rank": 1' + b"0" * 400 + b"}", "must be at least 1 and less than"),
    "null counts": (b'{"eigenvalues": [3, 1], "rank": 1, "multiplicities": null}', "must be a list of numbers"),
    "zero count": (b'{"eigenvalues": [3, 1], "rank": 1, "multiplicities": [1, 0]}', "whole numbers of at least 1"),
    "half a count": (b'{"eigenvalues": [3, 1], "rank": 1, "multiplicities": [1, 1.5]}', "whole numbers"),
    "one count": (b'{"eigenvalues": [3, 1], "rank": 1, "multiplicities": [1]}', "one entry for each"),
    "huge count": (b'{"eigenvalues": [3, 1], "rank": 1, "multiplicities": [1, 1' + b"0" * 400 + b"]}", "real"),
    "nested": (b"[" * 100_000, "is nested too deeply"),
    "nested value": (b'{"eigenvalues": ' + b"[" * 900 + b"]" * 900 + b', "rank": 1}', "must be a list|too deeply"),
    "many keys": (b"{" + b", ".join(b'"%d": 1' % i for i in range(200_000)) + b"}", "'0'; is an unknown key"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spectrum_is_refused_in_one_line(tmp_path, name):
    content, complaint = HOSTILE[name]
    path = tmp_path / "spectrum.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        read_spectrum(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_byte_order_mark_is_no_part_of_a_spectrum(tmp_path):
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"eigenvalues": [3, 1], "rank": 1}')
    assert read_spectrum(tmp_path / "bom.json").rank == 1
    with pytest.raises(InvalidFile, match="No such file"):
        read_spectrum(tmp_path / "missing.json")


def test_table_and_page_hold_the_curve(tmp_path):
    answer = ask(question(times=(30_000,)))
    rows, section = answer.rows(), answer.section()
    assert 16 <= len(rows) <= 18
    assert {f"{t:,}" for t, _ in answer.phases.turns} <= {row[0] for row in rows}
    assert all(len(row) == len(section.tables[0].columns) for row in rows)
    assert all(column.definition for column in section.tables[0].columns)
    paths = write_answer(answer, tmp_path / "new")
    assert [path.name for path in paths] == ["curve.csv", "lab.png", "lab.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["curve.csv", "lab.html", "lab.png"]
    table = list(csv.DictReader((tmp_path / "new" / "curve.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["alignment"]) for row in table] == answer.curve.alignment.tolist()
    assert [int(row["time"]) for row in table] == answer.curve.times.tolist()
    assert html.escape(answer.title) in (tmp_path / "new" / "lab.html").read_text(encoding="utf-8")


def test_a_regime_without_a_critical_step_is_a_dash():
    answer = ask(question(two_level=(10.0, 0.0), times=(0, 1, 2)))
    assert [row[2:4] for row in answer.rows()] == [["–", "NEUTRAL"]] * 3
    assert answer.to_json()["critical_step_size"] == [None] * 3
    assert answer.to_json()["ratio"] is None


def test_another_optimizer_runs_on_the_same_question():
    plain = ask(question(times=(50,)))
    momentum = ask(question(times=(50,), optimizer="heavy-ball", momentum=0.5))
    assert momentum.stability_limit == pytest.approx(1.5 * plain.stability_limit)
    assert "heavy ball, β = 0.5" in momentum.title
    assert momentum.curve.alignment[20] != plain.curve.alignment[20]
    averaged = ask(question(times=(50,), averaging=0.9))
    assert averaged.curve.loss[-1] != plain.curve.loss[-1]


def test_an_averaged_iterate_is_not_said_to_come_to_rest_at_its_thresholds():
    answer = ask(question(times=(30_000,), averaging=0.9))
    assert answer.curve.critical_step_size.value[-1] < 0.9 * answer.curve.step_size
    assert "equilibrated" not in answer.reading
    assert "equilibrated" not in str(answer.section())
    assert "equilibrated" in ask(question(times=(30_000,))).reading


def test_many_turns_are_told_by_the_first_and_the_last():
    """The legend of a picture has no room for all of them."""
    answer = ask(question(times=(30_000,), optimizer="heavy-ball", step_size=0.01))
    times = [t for t, _ in answer.phases.turns]
    assert len(times) > 20
    marks = answer.section().figures[0].panels[0].marks
    told = [mark for mark in marks if "turn" in mark.label]
    assert [(mark.low, mark.high) for mark in told] == [(times[0] + 1, times[-1] + 1)]
    assert told[0].label.startswith(f"{len(times)} turns")
    assert len(answer.rows()) <= 18


def test_the_expectation_of_the_ratio_stands_beside_the_ratio_of_expectations():
    answer = ask(question(times=(10, 1000), expectation="mean-of-ratio"))
    assert [column.name for column in answer.columns][1:3] == ["θ", "E θ"]
    assert len(answer.rows()[0]) == len(answer.columns)
    assert np.all(answer.mean_of_ratio < answer.curve.alignment)
    np.testing.assert_allclose(answer.mean_of_ratio, answer.curve.alignment, atol=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"averaging": -0.1}, "averaging: got -0.1"),
        ({"averaging": 0.5, "expectation": "mean-of-ratio"}, "expectation: got 'mean-of-ratio'"),
        (
            {"dimension": 20_000, "expectation": "mean-of-ratio", "times": (30_000,)},
            r"expectation: got 'mean-of-ratio'; takes \d,\d{3},000 integrands.*at most 2,000,000: give a few --times",
        ),
    ],
)
def test_optimizer_options_out_of_range_are_named(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        ask(question(**wrong))
