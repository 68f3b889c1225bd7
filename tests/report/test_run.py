"""The report of a run, from a laboratory's history: numbers, verdicts, refusal of an empty one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from etastar import History, InvalidArgument, Measurement, loss_thresholds
from etastar.quadratic import Noise, Quadratic, Spectrum
from etastar.report import Line, run, run_section
from etastar.report.figures import Points, Shade


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


def test_a_single_measurement_is_seen(history):
    section = run_section(History([history[2]]))
    assert section.title == "1 measurement"
    for figure in section.figures[:2]:
        for panel in figure.panels:
            lines = [mark for mark in panel.marks if isinstance(mark, Line) and np.isfinite(mark.y).any()]
            points = [mark for mark in panel.marks if isinstance(mark, Points)]
            assert lines
            assert {tuple(mark.y) for mark in points} >= {tuple(line.y) for line in lines if len(line.y) == 1}


def test_a_value_between_missing_ones_is_a_point_with_its_interval(history):
    spread = np.linspace(0.9, 1.1, 5)
    seen = history[2].moments.map(lambda value: value * spread)
    lost = history[2].moments.map(lambda value: value * np.full(5, np.nan))
    rows = [Measurement(step, 0.05, moments, 8) for step, moments in enumerate([seen, lost, seen, seen, lost, seen])]
    panel = run_section(History(rows)).figures[0].panels[0]
    points = next(mark for mark in panel.marks if isinstance(mark, Points))
    assert list(points.x) == [0, 2 + 3]
    bars = next(mark for mark in panel.marks if isinstance(mark, Line))
    assert list(bars.x) == [0, 0, 0, 5, 5, 5]
    estimate = rows[0].alignment
    assert list(bars.y[:2]) == [estimate.low, estimate.high]


def test_shares_of_noise_carry_their_intervals(history):
    noisy = history[2].moments.map(lambda value: value * np.array([0.8, 1.1, 1.0]))
    row = Measurement(3, 0.05, noisy, 8)
    panel = run_section(History([row, row])).figures[1].panels[1]
    assert [type(mark).__name__ for mark in panel.marks].count("Band") == 3


def test_a_regime_is_named_only_where_it_is_resolved(history):
    seen = history[2].moments
    wide = seen.map(lambda value: value * np.ones(3))
    bulk = replace(wide.bulk, noise=replace(wide.bulk.noise, second=wide.dominant.noise.second * [-90.0, 100.0, 1.0]))
    row = Measurement(0, 0.05, replace(wide, bulk=bulk), 8)
    section = run_section(History([row, row]))
    assert section.tables[0].rows[0][1] == "unresolved"
    assert not [mark for mark in section.figures[0].panels[0].marks if isinstance(mark, Shade)]
