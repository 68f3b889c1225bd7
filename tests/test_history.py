"""Histories: saved to the last bit, hostile files refused and never executed."""

import ast
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import etastar
from etastar import (
    Coupling,
    CurvatureMoments,
    History,
    InvalidFile,
    Measurement,
    MissingExtra,
    SplitMoments,
    SubspaceMoments,
    alignment,
    critical_step_size,
    loss_thresholds,
)
from etastar.history import HistoryFile
from etastar.quantities import ESTIMATES, metrics
from oracles.strategies import parts

ANY = st.one_of(
    st.floats(width=64),
    st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, -0.0, 1 / 3, 1.7976931348623157e308]),
)


def splits_of(numbers):
    coupling = st.one_of(st.none(), st.builds(Coupling, numbers, numbers))
    plain, directed = parts(numbers), parts(numbers, numbers)
    return st.one_of(
        st.builds(SplitMoments, plain, plain, coupling), st.builds(SplitMoments, directed, directed, coupling)
    )


@st.composite
def replicated(draw):
    """Moments with an axis of replicates, some fields without it."""
    count = draw(st.integers(2, 4))
    array = st.lists(ANY, min_size=count, max_size=count).map(np.array)
    return draw(splits_of(st.one_of(ANY, array)))


MEASUREMENTS = st.builds(
    Measurement,
    step=st.integers(0, 10**18),
    step_size=st.floats(0, 1e300),
    moments=st.one_of(splits_of(ANY), replicated()),
    batch_size=st.one_of(st.none(), st.integers(1, 10**9)),
    provenance=st.dictionaries(
        st.text(max_size=8),
        st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
        max_size=3,
    ),
)


def bits(moments):
    """Shapes and bytes; every NaN counts as the same."""
    return [(leaf.shape, np.where(np.isnan(leaf), np.nan, leaf).tobytes()) for leaf in moments.leaves()]


@given(st.lists(MEASUREMENTS, max_size=4))
def test_a_history_comes_back_to_the_last_bit(tmp_path_factory, measurements):
    path = tmp_path_factory.mktemp("history") / "run.jsonl"
    History(measurements).save(path)
    loaded = History.load(path)
    assert len(loaded) == len(measurements)
    for before, after in zip(measurements, loaded, strict=True):
        assert (before.step, before.step_size, before.batch_size) == (after.step, after.step_size, after.batch_size)
        assert dict(before.provenance) == dict(after.provenance)
        assert [type(v) for v in before.provenance.values()] == [type(v) for v in after.provenance.values()]
        assert bits(before.moments) == bits(after.moments)
        assert before.moments.shape == after.moments.shape
        assert (before.moments.dominant.descent is None) == (after.moments.dominant.descent is None)
        assert (before.moments.coupling is None) == (after.moments.coupling is None)
    assert all(json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())  # strict JSON


def moments(dominant=(1.0, 4.0, 16.0), bulk=(3.0, 3.0, 3.0), noise=(0.5, 2.0, 8.0), **more):
    return SplitMoments(
        SubspaceMoments(CurvatureMoments(*dominant), CurvatureMoments(*noise)),
        SubspaceMoments(CurvatureMoments(*bulk), CurvatureMoments(*noise)),
        **more,
    )


@pytest.fixture
def history():
    return History([Measurement(t, 0.1, moments(), 8, {"model": "quadratic", "run": t}) for t in (0, 10, 20)])


@pytest.fixture
def saved(history, tmp_path):
    path = tmp_path / "history.jsonl"
    history.save(path)
    return path


def test_a_history_is_a_sequence(history):
    assert len(history) == 3
    assert [m.step for m in history] == [0, 10, 20]
    assert history[-1].provenance == {"model": "quadratic", "run": 20}
    history.append(Measurement(30, 0.1, moments()))
    assert history[3].batch_size is None


def test_the_file_is_one_line_a_measurement_under_a_header(saved):
    lines = saved.read_text().splitlines()
    assert json.loads(lines[0]) == {"schema": "etastar.history", "version": 1}
    assert [json.loads(line)["step"] for line in lines[1:]] == [0, 10, 20]


def test_a_torn_last_line_is_dropped_wherever_it_is_torn(saved):
    text = saved.read_text()
    last = text.rstrip("\n").rindex("\n") + 1
    for end in range(last, len(text) - 1, 7):
        saved.write_text(text[:end])
        assert [m.step for m in History.load(saved)] == [0, 10]
    saved.write_text(text[:-1])  # nothing but the line's end is missing
    assert len(History.load(saved)) == 3


def test_a_damaged_line_before_the_last_is_refused_with_its_number(saved):
    lines = saved.read_text().splitlines()
    saved.write_text("\n".join([*lines[:2], lines[2][:50], lines[3]]))
    with pytest.raises(InvalidFile, match="line 3 is damaged"):
        History.load(saved)


def record(**changes):
    line = {
        "step": 1,
        "step_size": 0.1,
        "batch_size": None,
        "dominant": {"signal": [1, 2, 3], "noise": [1, 2, 3], "descent": None},
        "bulk": {"signal": [1, 2, 3], "noise": [1, 2, 3], "descent": None},
        "coupling": None,
        "provenance": {},
    }
    return json.dumps(line | changes)


NESTED = "[" * 100_000 + "]" * 100_000
HEADER = '{"schema": "etastar.history", "version": 1}'
PART = {"signal": [1, 2, 3], "noise": [1, 2, 3], "descent": None}
HOSTILE_LINES = {
    "nested": NESTED,
    "nested inside": record().replace("null", NESTED, 1),
    "number": "17",
    "null": "null",
    "list": "[]",
    "empty": "{}",
    "blank": "",
    "duplicate key": record()[:-1] + ', "step": 2}',
    "nan literal": record().replace("0.1", "NaN"),
    "huge step": record().replace('"step": 1', '"step": 1e999'),
    "huge number": record().replace("0.1", "1" + "0" * 400),
    "more digits than Python reads": record().replace("0.1", "1" * 5_000),
    "float beyond float64": record().replace("0.1", "1e999"),
    "code": record(step="__import__('os').abort()"),
    "fractional step": record(step=1.5),
    "boolean step": record(step=True),
    "negative step": record(step=-1),
    "text step size": record(step_size="0.1"),
    "negative step size": record(step_size=-0.1),
    "no batch": record(batch_size=0),
    "boolean moment": record(dominant=PART | {"signal": [True, 2, 3]}),
    "text moment": record(dominant=PART | {"signal": ["1", 2, 3]}),
    "infinite step size": record(step_size="inf"),
    "text for a list": record(dominant=PART | {"signal": "123"}),
    "object for a list": record(dominant=PART | {"signal": {"nan": 1, "inf": 2, "-inf": 3}}),
    "two moments": record(dominant=PART | {"signal": [1, 2]}),
    "four moments": record(dominant=PART | {"signal": [1, 2, 3, 4]}),
    "ragged replicates": record(dominant=PART | {"signal": [[1, 2], [1, 2, 3], 3]}),
    "nested replicates": record(dominant=PART | {"signal": [[[1]], 2, 3]}),
    "one descent": record(dominant=PART | {"descent": [1, 2]}),
    "part is a list": record(bulk=[1, 2, 3]),
    "part is missing": record(bulk=None),
    "coupling is a number": record(coupling=3),
    "recoverable is text": record(recoverable="much"),
    "recoverable of another shape": record(recoverable=[1.0, 2.0]),
    "certificate is a list": record(certificate=[]),
    "cost is nested": record(cost={"a": []}),
    "provenance is a list": record(provenance=[["a", 1]]),
    "provenance is nested": record(provenance={"a": {"b": 1}}),
}


@pytest.mark.parametrize("line", HOSTILE_LINES.values(), ids=HOSTILE_LINES)
def test_a_hostile_line_is_refused_even_at_the_end_of_a_whole_file(tmp_path, line):
    path = tmp_path / "hostile.jsonl"
    path.write_text(f"{HEADER}\n{record()}\n{line}\n")
    with pytest.raises(InvalidFile, match="line 3 is damaged"):
        History.load(path)
    path.write_text(f"{HEADER}\n{line}\n{record()}")
    with pytest.raises(InvalidFile, match="line 2 is damaged"):
        History.load(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (NESTED, "does not start with an etastar history header"),
        ("[]", "does not start"),
        ("17", "does not start"),
        ("\n\n{}", "does not start"),
        ("\x80PICKLE", "does not start"),
        ('{"schema": "etastar.history"}', "does not start"),
        ('{"schema": "etastar.history", "version": 1, "version": 1}', "does not start"),
        ('{"schema": "etastar.history", "version": 2}', "another schema; this reads etastar.history 1"),
        ('{"schema": "etastar.reproduction", "version": 1}', "another schema"),
        ('{"schema": ' + "[" * 900 + "]" * 900 + ', "version": 1}', "another schema|does not start"),
        ("", "is empty"),
    ],
)
def test_what_is_no_history_is_refused(tmp_path, text, complaint):
    path = tmp_path / "no-history"
    path.write_text(text)
    with pytest.raises(InvalidFile, match=complaint) as caught:
        History.load(path)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    path = tmp_path / "pickle.jsonl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InvalidFile):
        History.load(path)
    path.write_bytes(HEADER.encode() + b"\n" + pickle.dumps(Bomb(), 0) + record().encode())
    with pytest.raises(InvalidFile):
        History.load(path)
    assert not (tmp_path / "executed").exists()


def test_no_module_of_ours_can_execute_a_file():
    executing = {"pickle", "marshal", "shelve", "dill", "joblib", "yaml", "eval", "exec", "compile", "__import__"}
    for path in Path(etastar.__file__).parent.rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {getattr(node, "id", getattr(node, "name", getattr(node, "module", None))) for node in tree}
        assert not names & executing, path


def test_columns_hold_the_criteria_of_each_row(history):
    columns = history.columns()
    split, bounds = moments(), loss_thresholds(moments())
    assert columns["step"].tolist() == [0, 10, 20]
    assert columns["step_size"].tolist() == [0.1] * 3
    assert columns["regime"].tolist() == [critical_step_size(split).regime.name] * 3
    assert columns["regime_resolved"].tolist() == [True] * 3
    expected = {
        "alignment": alignment(split),
        "chi": math.sqrt(alignment(split)),
        "critical_step_size": critical_step_size(split).value,
        "threshold_dominant": bounds.dominant,
        "threshold_bulk": bounds.bulk,
        "threshold_full": bounds.full,
        "step_over_critical": 0.1 / critical_step_size(split).value,
        "step_over_dominant": 0.1 / bounds.dominant,
        "step_over_bulk": 0.1 / bounds.bulk,
        "step_over_full": 0.1 / bounds.full,
        "noise_share_dominant": 2 / (4 + 2),
        "noise_share_bulk": 2 / (3 + 2),
        "noise_share_full": 4 / (7 + 4),
        "recoverable_loss": math.nan,
    }
    assert set(expected) == set(ESTIMATES)
    for name, value in expected.items():
        for column in (name, f"{name}_low", f"{name}_high"):  # exact moments have no width
            np.testing.assert_allclose(columns[column], [value] * 3, rtol=1e-14)
    assert {len(column) for column in columns.values()} == {3}
    assert all(len(column) == 0 for column in History().columns().values())


def replicates(*slopes, **more):
    """Noise of several slopes: what a training measurement looks like."""
    return Measurement(5, 0.1, SplitMoments.stack([moments(noise=(0.5, q, 4 * q)) for q in slopes]), 8, **more)


def test_columns_turn_intervals_over_and_take_the_eigenvalue_from_the_certificate():
    certificate = {"largest_eigenvalue": 40.0, "third_derivative_shift": 0.03}
    row = replicates(1.9, 2.0, 2.1, certificate=certificate, recoverable=np.array([1.0, 2.0, 3.0]))
    columns = {name: column[0] for name, column in History([row]).columns().items()}
    assert (columns["largest_eigenvalue"], columns["stability_limit"]) == (40.0, 0.05)
    assert columns["third_derivative_shift"] == 0.03
    critical = row.critical_step_size
    assert columns["step_over_critical_low"] == 0.1 / critical.high
    assert columns["step_over_critical_high"] == 0.1 / critical.low
    ratio = columns["step_over_dominant"]
    assert columns["step_over_dominant_low"] < ratio < columns["step_over_dominant_high"]
    np.testing.assert_allclose(ratio, 0.1 * (4 + 2) / (2 * 1.0))
    # η/η_D is linear in the noise here, so that its jackknife is the textbook interval of a mean.
    error = 0.1 / 2 * np.std([1.9, 2.0, 2.1], ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(columns["step_over_dominant_high"] - ratio, 2.9199855803537 * error)
    assert columns["recoverable_loss"] == 2.0


def test_what_is_not_resolved_stays_away_from_trackers():
    shift = {"third_derivative_shift": 0.01}
    clear = metrics(replicates(1.9, 2.0, 2.1, certificate=shift))
    assert clear["regime"] == "LOW"
    assert {"critical_step_size", "step_over_critical_low", "alignment", "third_derivative_shift"} <= set(clear)
    assert "largest_eigenvalue" not in clear  # no certificate, no number
    assert "recoverable_loss" not in clear
    bent = metrics(replicates(1.9, 2.0, 2.1, certificate={"third_derivative_shift": 3.0}))
    assert not any(name.startswith(("critical_step", "step_over_critical")) for name in bent)
    wide = replicates(-40.0, 2.0, 44.0)  # M may have either sign
    assert not wide.critical_step_size.resolved
    seen = metrics(wide)
    assert "regime" not in seen
    assert not any(name.startswith(("critical_step", "step_over_critical")) for name in seen)
    assert all(math.isfinite(value) for value in seen.values())
    exact = metrics(Measurement(0, 0.1, moments()))
    assert exact["critical_step_size"] == exact["critical_step_size_low"]


@pytest.fixture
def growing(history, tmp_path):
    file = HistoryFile(tmp_path / "run.jsonl")
    for row in history:
        file.append(row)
    return tmp_path / "run.jsonl"


def test_a_file_that_grows_is_the_file_that_is_saved(growing, saved):
    assert growing.read_text() == saved.read_text()


def test_a_killed_process_leaves_every_measurement_it_made(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_history import HistoryFile, Measurement, moments
file = HistoryFile({str(tmp_path / "run")!r})
for step in range(5):
    file.append(Measurement(step, 0.1, moments()))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert [row.step for row in History.load(tmp_path / "run")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", HEADER[:20], HEADER, HEADER + "\n"])
def test_a_file_without_measurements_is_begun_again(tmp_path, text):
    (tmp_path / "run").write_text(text)
    HistoryFile(tmp_path / "run").append(Measurement(1, 0.1, moments()))
    assert [row.step for row in History.load(tmp_path / "run")] == [1]


@pytest.mark.parametrize("text", ["notes", "notes\n", HEADER + "\n" + '{"step', HEADER[:-1] + ' , "more": 1}\n', "\n"])
def test_a_file_with_anything_else_is_refused_and_kept(tmp_path, growing, text):
    (tmp_path / "run").write_text(text)
    with pytest.raises(InvalidFile, match="exists and holds another history; name a new file"):
        HistoryFile(tmp_path / "run")
    assert (tmp_path / "run").read_text() == text
    before = growing.read_text()
    with pytest.raises(InvalidFile, match="another history"):
        HistoryFile(growing)
    other = History([Measurement(0, 0.2, moments())])
    with pytest.raises(InvalidFile, match="another history"):
        HistoryFile(growing, other)
    assert growing.read_text() == before


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_resumed_file_loses_what_lies_beyond_the_state(growing, history, kept, torn):
    growing.write_text(growing.read_text()[: -torn or None])
    file = HistoryFile(growing, History(list(history)[:kept]))
    assert len(History.load(growing)) == kept
    file.append(Measurement(99, 0.1, moments()))
    assert [row.step for row in History.load(growing)] == [*[0, 10, 20][:kept], 99]


def test_a_resumed_run_may_have_lost_its_file(tmp_path, history):
    HistoryFile(tmp_path / "run", history)
    assert len(History.load(tmp_path / "run")) == 3


def test_two_writers_do_not_destroy_each_other(growing, history):
    first = HistoryFile(growing, history)
    second = HistoryFile(growing, history)
    first.append(Measurement(30, 0.1, moments()))
    with pytest.raises(InvalidFile, match="was changed by somebody else"):
        second.append(Measurement(40, 0.1, moments()))
    assert [row.step for row in History.load(growing)] == [0, 10, 20, 30]


def test_places_that_cannot_be_written_are_named(tmp_path, growing):
    (tmp_path / "file").write_text("x")
    for path, complaint in (
        (tmp_path, "is no regular file"),
        (Path("/dev/full"), "is no regular file"),
        (tmp_path / "file" / "run", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        with pytest.raises(InvalidFile, match=complaint):
            HistoryFile(path)
    file = HistoryFile(tmp_path / "gone")
    (tmp_path / "gone").unlink()
    with pytest.raises(InvalidFile, match="cannot be written"):
        file.append(Measurement(1, 0.1, moments()))


def test_an_xarray_dataset_holds_the_columns_along_the_steps(history):
    dataset = history.to_xarray()
    columns = history.columns()
    assert dataset["step"].values.tolist() == [0, 10, 20]
    assert set(dataset.data_vars) == set(columns) - {"step"}
    for name in dataset.data_vars:
        assert dataset[name].dims == ("step",)
        np.testing.assert_array_equal(dataset[name].values, columns[name])
    assert dataset["threshold_full"].attrs["long_name"] == "loss threshold η_full [parameter²/loss]"


def test_a_missing_xarray_is_named(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'etastar\[xarray\]'"):
        history.to_xarray()
