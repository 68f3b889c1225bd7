"""The report of a run, from a laboratory's history: numbers, verdicts, refusal of an empty one."""

import pytest

from etastar import History, InvalidArgument, Measurement
from etastar.quadratic import Noise, Quadratic, Spectrum
from etastar.report import run, run_section


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
    picture, page = run(history, tmp_path / "new")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "η in use" in page.read_text(encoding="utf-8")


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
