"""The report of a run, from a laboratory's history: numbers, verdicts, refusal of an empty one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from etastar import History, InvalidArgument, Measurement, loss_thresholds
from etastar.quadratic import Noise, Quadratic, Spectrum
from etastar.report import Line, run, run_section
from etastar.report.figures import Shade


@pytest.fixture
def history():
    q = Quadratic(Spectrum.two_level(100, 5, 10.0, 1.0), Noise.isotropic(0.01))
    curve = q.expected(energy=[50.0, 5.0], step_size=0.05, times=[0, 5, 20, 100, 1000])
    rows = [Measurement(int(t), 0.05, curve.split[i], 8) for i, t in enumerate(curve.times)]
    return History(rows)


def test_the_section_says_what_the_last_measurement_says(history):
    section = run_section(history)
    assert "has equilibrated" in section.finding
    assert section.tables[0].rows[0][1] == "LOW"
    assert "still descends" in section.tables[0].rows[0][2]


def test_page_and_picture_are_written(history, tmp_path):
    *pictures, page = run(history, tmp_path / "new")
    assert [picture.name for picture in pictures] == ["run.png", "limits.png", "curvature.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "η in use" in page.read_text(encoding="utf-8")


def test_stripes_of_equal_regime_cover_the_run_and_are_named_once(history):
    alignment = run_section(history).figures[0].panels[0]
    stripes = [mark for mark in alignment.marks if isinstance(mark, Shade)]
    assert (stripes[0].low, stripes[-1].high) == (0, 1000)
    assert all(left.high == right.low for left, right in itertools.pairwise(stripes))
    assert [stripe.label for stripe in stripes].count("LOW") == 1


def test_the_step_over_its_threshold_is_that_of_the_moments(history):
    panel = run_section(history).figures[1].panels[0]
    shown = next(mark for mark in panel.marks if isinstance(mark, Line) and mark.label == "dominant")
    expected = [0.05 / float(loss_thresholds(row.moments).dominant) for row in history]
    np.testing.assert_allclose(shown.y, expected, rtol=1e-12)


def test_an_expansion_that_fails_is_named_where_the_regime_would_be(history):
    rows = [replace(row, certificate={"third_derivative_shift": 0.5}) for row in history]
    alignment = run_section(History(rows)).figures[0].panels[0]
    assert [mark.label for mark in alignment.marks if isinstance(mark, Shade)] == ["η* not to be trusted"]


def test_an_empty_history_is_refused():
    with pytest.raises(InvalidArgument, match="history: got 0; is empty"):
        run_section(History())


def test_long_histories_are_judged_by_windows(history):
    rows = list(history)
    long = History([Measurement(t, 0.05, rows[t % 5].moments, 8) for t in range(12)])
    section = run_section(long, window=4)
    assert len(section.tables[0].rows) == 9
    assert section.tables[0].rows[0][2] == long.rolling(4)[0].verdict
    assert "windows of 4 measurements" in section.figures[0].caption
