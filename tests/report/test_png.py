"""Figures as PNGs: every mark is drawn, the same data give the same bytes, and any text is only text."""

import io

import matplotlib.image
import numpy as np
import pytest

from etastar.report import Band, Figure, Line, Panel, Points, render_png, sequence
from etastar.report.figures import COLOURS
from etastar.report.interactive import plotly_figure
from report.pages import every_figure, every_mark


def pixels(figure, dpi=60):
    return matplotlib.image.imread(io.BytesIO(render_png(figure, dpi)))


def one_panel(*marks, **more):
    return Figure("f", "", [Panel("x", "y", marks, **more)])


@pytest.mark.parametrize("figure", every_figure(), ids=lambda figure: figure.name)
def test_all_marks_on_all_scales(figure):
    first, second = render_png(figure, 60), render_png(figure, 60)
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    image = matplotlib.image.imread(io.BytesIO(first))
    assert image.shape[:2] == (216, 576)  # 3.6 × 9.6 inches
    assert np.unique(image.reshape(-1, image.shape[2]), axis=0).shape[0] > 20


@pytest.mark.parametrize("mark", [mark for mark in every_mark() if "nowhere" not in mark.label][:-1], ids=repr)
def test_each_mark_leaves_its_colour(mark):
    frame = pixels(one_panel(Line([1, 1000], [0, 5], width=0.0), legend=False, y_range=(0.0, 5.0)))
    drawn = pixels(one_panel(Line([1, 1000], [0, 5], width=0.0), mark, legend=False, y_range=(0.0, 5.0)))
    assert frame.shape == drawn.shape
    changed = np.abs(drawn - frame).max(axis=2) > 0.05
    assert changed.sum() > 20


def test_the_resolution_is_that_asked_for():
    assert pixels(one_panel(Line([0, 1], [0, 1])), 30).shape[0] == 108


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_diverging_run_is_drawn_as_far_as_it_can_be(scale):
    values = np.array([1e-308, 1.0, 1e150, 1e250, 1.7e308, np.inf, np.nan])
    steps = np.arange(1, 8)
    marks = [Line(steps, values), Points(steps, values, error=values), Band(steps, values / 2, values)]
    for part in marks:
        assert render_png(one_panel(part, y_scale=scale)).startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["$\\frac{$", "$a$ and $b$", "_hidden", "<b>", "a\nb", "%s %d {0}", "\\alpha"])
def test_text_is_no_markup(text):
    figure = Figure("f", "", [Panel(text, text, [Line([0, 1], [0, 1], text), Points([0], [1], text)], text)])
    assert render_png(figure).startswith(b"\x89PNG")


def test_colours_of_a_family_span_the_ramp():
    assert sequence(0) == []
    assert sequence(1) == ["#440154"]
    for count in range(2, 10):
        colours = sequence(count)
        assert len(set(colours)) == count
        assert (colours[0], colours[-1]) == ("#440154", "#d8c51b")
    assert len(sequence(30)) == 30


def test_colours_have_one_meaning_each():
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_gaps_and_overflow_are_null_in_the_page():
    line = Line([1, 2, 3, 4], [1.23456789, np.nan, np.inf, -np.inf], "a")
    (trace,) = plotly_figure(one_panel(line))["data"]
    assert trace["y"] == [1.23457, None, None, None]


def test_a_band_has_an_outline_around_each_stretch_without_a_gap():
    band = Band([1, 2, 3, 4, 5], [1, 2, np.nan, 4, 5], [2, 3, 4, 5, 6])
    (trace,) = plotly_figure(one_panel(band))["data"]
    assert trace["x"] == [1, 2, 2, 1, None, 4, 5, 5, 4, None]
    assert trace["y"] == [1, 2, 3, 2, None, 4, 5, 6, 5, None]
    (nothing,) = plotly_figure(one_panel(Band([1, 2], [np.nan] * 2, [1, 2]), Band([], [], [])))["data"][:1]
    assert nothing["x"] == []


def test_one_legend_lists_a_label_of_several_panels_once():
    panel = Panel("x", "y", [Line([0], [0], "a"), Line([0], [0], "b"), Line([0], [1], "a", colour="#123456")])
    data = plotly_figure(Figure("f", "", [panel, panel]))["data"]
    assert [trace["showlegend"] for trace in data] == [True, True, True, False, False, False]
    assert not any(
        trace["showlegend"]
        for trace in plotly_figure(Figure("f", "", [Panel("x", "y", panel.marks, legend=False)]))["data"]
    )


def test_narrow_panels_label_whole_powers_only():
    panel = Panel("x", "y", [Line([1, 1000], [1, 2])], x_scale="log", y_scale="log")
    for count in (1, 2, 3, 4):
        layout = plotly_figure(Figure("f", "", [panel] * count))["layout"]
        assert ("dtick" in layout["xaxis"]) == (count > 2)
        assert "dtick" not in layout["yaxis"]


def test_limits_of_a_logarithmic_axis_are_exponents():
    layout = plotly_figure(one_panel(Line([1], [1]), y_scale="log", y_range=(0.1, 100.0)))["layout"]
    assert layout["yaxis"]["range"] == [-1.0, 2.0]
    layout = plotly_figure(one_panel(Line([1], [1]), y_range=(0.1, 100.0)))["layout"]
    assert layout["yaxis"]["range"] == [0.1, 100.0]
