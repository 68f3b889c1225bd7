"""Maps of cells and words on them: alike in the PNG and in a real browser, and hostile names stay text."""

import base64
import io
import json

import matplotlib.image
import numpy as np
import pytest

from etastar.report import Cells, Figure, Label, Line, Panel, Section, render_html, render_png
from etastar.report.figures import present
from etastar.report.interactive import plotly_figure
from report.test_page_in_browser import MADE, payloads

COLOURS = ("#e3f2f1", "#cf9a2e", "#7b2fbe")
X, Y = np.geomspace(1.0, 100.0, 9), np.geomspace(0.1, 10.0, 7)
CODES = np.where(np.arange(8)[None, :] + np.arange(6)[:, None] > 6, 1, 0)
NUMBERS = np.where(CODES == 1, np.nan, np.add.outer(np.arange(6.0), np.arange(8.0)))


def named_map(name="name"):
    return Cells(X, Y, CODES, (f"{name} one", f"{name} two", f"{name} absent"), COLOURS)


def figures(name="name"):
    """Both kinds of map, on each pair of scales, with words and a line on them."""
    scales = [("linear", "linear"), ("log", "linear"), ("linear", "log"), ("log", "log")]
    marks = [Line([1.0, 100.0], [0.1, 10.0], f"{name} line"), Label(5.0, 1.0, f"{name}\nbelow")]
    return [
        Figure(
            name,
            name,
            [
                Panel(name, name, [named_map(name), *marks], name, *scale),
                Panel(name, name, [Cells(X, Y, NUMBERS, label=f"{name} scale"), *marks], name, *scale),
            ],
            size=(5.0, 4.0),
        )
        for scale in scales
    ]


def image(figure, dpi=60):
    return matplotlib.image.imread(io.BytesIO(render_png(figure, dpi)))[..., :3]


def share(pixels, colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.mean(np.abs(pixels - rgb).max(axis=2) < 0.01))


@pytest.mark.parametrize("figure", figures(), ids=lambda f: "-".join((f.panels[0].x_scale, f.panels[0].y_scale)))
def test_maps_on_all_scales(figure):
    assert render_png(figure, 60) == render_png(figure, 60)
    assert image(figure).shape == (240, 624, 3)  # 4 × 10.4 inches


def test_each_category_covers_its_cells():
    panel = Panel("x", "y", [named_map()], x_scale="log", y_scale="log", legend=False)
    pixels = image(Figure("f", "", [panel], size=(4.0, 4.0)), 100)
    one, two = share(pixels, COLOURS[0]), share(pixels, COLOURS[1])
    assert one / (one + two) == pytest.approx(np.mean(CODES == 0), abs=0.01)
    assert share(pixels, COLOURS[2]) == 0.0
    # The first row of values is the lowest: there the first category reaches to the right.
    rows = np.flatnonzero((np.abs(pixels - np.array([227, 242, 241]) / 255).max(axis=2) < 0.01).any(axis=1))
    width = [(np.abs(pixels[row] - np.array([227, 242, 241]) / 255).max(axis=1) < 0.01).sum() for row in rows]
    assert width[-5] > 2 * width[5]


def test_the_map_sets_the_limits_and_the_legend_stands_beside_it():
    beyond = Line([1e-9, 1e9], [1e-9, 1e9], "far")
    panel = Panel("x", "y", [named_map(), beyond], x_scale="log", y_scale="linear")
    layout = plotly_figure(Figure("f", "", [panel]))["layout"]
    assert layout["xaxis"]["range"] == [0.0, 2.0]
    assert layout["yaxis"]["range"] == [0.1, 10.0]
    assert layout["legend"]["x"] > 1.0
    assert "orientation" not in layout["legend"]
    for legend in (True, False):
        panel = Panel("x", "y", [named_map()], x_scale="log", y_scale="log", legend=legend)
        drawn = image(Figure("f", "", [panel], size=(6.0, 4.0)), 100)
        inside = np.abs(drawn - np.array([227, 242, 241]) / 255).max(axis=2) < 0.01
        # Every pixel of the map is one of the two colours: nothing lies on it.
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside[200:].any(axis=0))
        body = drawn[rows[5] : rows[-5], columns[5] : columns[5] + 60]
        assert share(body, COLOURS[0]) + share(body, COLOURS[1]) > 0.999


def test_what_the_page_is_given():
    data = plotly_figure(Figure("f", "", [Panel("x", "y", [named_map(), Cells(X, Y, NUMBERS, label="n")])]))["data"]
    first, *squares, second = data
    assert [square["name"] for square in squares] == ["name one", "name two"]  # the absent one is left out
    for trace, values, kind in ((first, CODES, "u1"), (second, NUMBERS, "<f4")):
        packed = np.frombuffer(base64.b64decode(trace["z"]["bdata"]), dtype=kind)
        assert trace["z"]["shape"] == "6, 8"
        assert np.array_equal(packed.reshape(6, 8), values.astype(np.float32), equal_nan=True)
        assert (len(trace["x"]), len(trace["y"])) == (9, 7)
    assert [step for step, _ in first["colorscale"]] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert (first["zmin"], first["zmax"]) == (-0.5, 2.5)
    json.dumps(data, allow_nan=False)


def test_a_category_may_be_missing_in_places():
    cells = Cells(X, Y, np.where(CODES == 1, np.nan, 0.0), ("a", "b"), COLOURS[:2])
    assert present(cells) == [0]
    figure = Figure("f", "", [Panel("x", "y", [cells])])
    assert plotly_figure(figure)["data"][0]["z"]["dtype"] == "f4"
    assert share(image(figure), COLOURS[1]) == 0.0


def test_a_map_without_any_number_is_blank():
    cells = Cells(X, Y, np.full((6, 8), np.nan), label="n")
    figure = Figure("f", "", [Panel("x", "y", [cells])])
    assert render_png(figure).startswith(b"\x89PNG")
    json.dumps(plotly_figure(figure), allow_nan=False)


@pytest.mark.parametrize("text", ["$\\frac{$", "$a$ and $b$", "_hidden", "<b>", "a\nb", "%s %d {0}", ""])
def test_words_are_no_markup(text):
    for figure in figures(text)[:1]:
        assert render_png(figure).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def drawn(browser):
    return browser.elements(render_html("Maps", "", [Section("a", "A", "", figures=figures())]))


def test_maps_are_drawn_in_the_browser(drawn):
    images = [a for a, _ in drawn.named("image")]
    maps = [a for a in images if a.get("xlink:href", a.get("href", "")).startswith("data:image/png;base64,")]
    assert len(maps) == 8
    assert all(float(a["width"]) > 100 and float(a["height"]) > 100 for a in maps)
    legend = [text for a, text in drawn.named("text") if "legendtext" in a.get("class", "")]
    assert sorted(set(legend)) == ["name line", "name one", "name two"]
    words = "".join(text for _, text in drawn.named("text")) + drawn.text
    assert "name scale" in words
    assert "below" in words


def test_hostile_names_on_maps_stay_text(browser):
    names = payloads(browser.port)
    asked = len(browser.requests)
    sections = [Section(f"s{i}", "", "", figures=figures(name)[:1]) for i, name in enumerate(names.values())]
    elements = browser.elements(render_html("calm", "", sections))
    assert browser.requests[asked:] == []
    assert elements.named("title")[0][1] == "calm"
    assert not elements.named(MADE)
    for tag, attributes, _ in elements.found:
        assert tag not in ("img", "link", "iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for link in ("href", "xlink:href"):
            assert attributes.get(link, "#").startswith(("#", "data:image/png;base64,"))
    texts = ["".join(text) for tag, _, text in elements.found if tag in ("text", "tspan")]
    assert any(text == f"{names['plotly html']} line" for text in texts)
    assert any(text == f"{names['plotly html']} one" for text in texts)
    assert any(text.startswith(names["plotly html"]) and "scale" in text for text in texts)
