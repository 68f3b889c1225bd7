"""The page in a real browser: figures are drawn, hostile names do nothing, and nobody outside is asked."""

import pytest

from etastar.report import Check, Section, render_html
from report.pages import Elements, every_field, every_figure

MADE = "hostile-made-this"


def payloads(port):
    """Names that would rename the page, add an element or ask our server, if anything ran or rendered them."""
    act = f"document.title='hacked';document.body.append(document.createElement('{MADE}'))"
    away = f"http://127.0.0.1:{port}"
    return {
        "script": f"</script><script>{act}</script>",
        "title": f"</title><script>{act}</script>",
        "style": f"</style><script>{act}</script>",
        "comment": f"<!--<script><!-- --><script>{act}</script>",
        "image": f'"><img src={away}/image onerror={act}><x y="',
        "single quotes": f"' onmouseover='{act}' tabindex='0' onfocus='{act}' autofocus x='",
        "svg": f"<svg onload={act}><animate onbegin={act} attributeName=x dur=1s></svg>",
        "javascript link": f'<a href="javascript:{act}">link</a>',
        "outside link": f'<a href="{away}/link" target="_blank">link</a><link rel=stylesheet href="{away}/style">',
        "plotly html": f'<b>bold</b><br><span style="background:url({away}/css)">styled</span><sub>sub</sub>',
        "entities": f"&lt;img src=x onerror={act}&gt; &amp;lt;script&amp;gt; &#60;b&#62;",
        "template": "%{x}<extra></extra> @style@ @payload@ @draw@ [[alignment]] [[<img src=x>|<b>]] ${1+1} {{7*7}}",
        "tex": f"$\\href{{javascript:{act}}}{{x}}$ $\\frac{{$",
        "prototype": "__proto__",
        "controls": "a\x00b\x1b[31m\u2028\u2029\u202e\ufeff",
    }


def hostile_page(port):
    sections = [section for name in payloads(port).values() for section in every_field(name)]
    first = list(payloads(port).values())
    # Four figures a name are a lot to draw; one pair of scales will do.
    kept = [Section(s.name, s.title, s.finding, s.reading, s.checks, s.figures[:1], s.tables, s.data) for s in sections]
    return render_html("".join(first), "".join(first), kept, "".join(first))


@pytest.fixture(scope="module")
def hostile(browser):
    asked = len(browser.requests)
    elements = browser.elements(hostile_page(browser.port))
    return elements, browser.requests[asked:]


def test_an_open_page_would_be_noticed(browser):
    """Without this, the silence of the page below would prove nothing."""
    names = payloads(browser.port)
    asked = len(browser.requests)
    page = "<!doctype html><title>calm</title><body>" + names["image"] + names["script"] + names["outside link"]
    elements = browser.elements(page)
    assert elements.named("title")[0][1] == "hacked"
    assert elements.named(MADE)
    assert {"/image", "/style"} <= set(browser.requests[asked:])


def test_no_name_runs(hostile):
    elements, _ = hostile
    assert "hacked" not in {text for _, text in elements.named("title")}
    assert not elements.named(MADE)
    for _, attributes, _ in elements.found:
        assert not [name for name in attributes if name.startswith("on")]


def test_no_name_asks_outside(hostile):
    elements, asked = hostile
    assert asked == []
    for tag, attributes, _ in elements.found:
        assert tag not in ("img", "link", "iframe", "object", "embed", "form", "base")
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("xlink:href", "#").startswith("#")


def test_names_are_shown_as_text(hostile, browser):
    elements, _ = hostile
    name = payloads(browser.port)["plotly html"]
    texts = ["".join(text) for tag, _, text in elements.found if tag in ("text", "h2", "td", "figcaption", "tspan")]
    assert sum(text == name for text in texts) > 8  # headings, cells, captions, axes, legends
    assert payloads(browser.port)["tex"] in texts


def test_all_figures_with_hostile_names_are_drawn(hostile, browser):
    elements, _ = hostile
    plots = [a for a, _ in elements.named("div") if "js-plotly-plot" in a.get("class", "")]
    assert len(plots) == len(payloads(browser.port))


@pytest.fixture(scope="module")
def drawn(browser):
    return browser.elements(render_html("Figures", "", [Section("a", "A", "", figures=every_figure())]))


def test_every_mark_is_drawn_on_every_scale(drawn):
    classes = [a.get("class", "").split() for _, a, _ in drawn.found]

    def count(name):
        return sum(name in names for names in classes)

    figures, panels = 4, 8
    assert count("js-plotly-plot") == figures
    assert count("legend") == figures
    paths = [a for a, _ in drawn.named("path") if "js-line" in a.get("class", "") and "L" in a.get("d", "")]
    lines = [a for a in paths if "stroke-width: 0" not in a["style"]]  # neither bands nor the legend's own
    assert len(lines) == panels * 4 * 2  # the gap parts each in two
    assert all("NaN" not in a["d"] for a in lines)
    assert count("errorbar") >= panels * 2
    assert count("js-fill") == panels + figures  # one in each legend
    shapes = [a for a, _ in drawn.named("path") if "data-index" in a and a.get("d")]
    assert len(shapes) == panels * 3  # two references and a stripe; those at NaN are left out
    assert all("NaN" not in a["d"] for a in shapes)


def test_every_label_is_in_the_legend(drawn):
    shown = [text for a, text in drawn.named("text") if "legendtext" in a.get("class", "")]
    for label in ("solid", "dash", "dot", "points", "error bars", "band", "across", "upright", "shade"):
        assert shown.count(f"name {label}") == 4, label


def test_no_button_sends_a_figure_away(drawn):
    buttons = {a["data-title"] for a, _ in drawn.named("a") + drawn.named("button") if "data-title" in a}
    assert any("PNG" in title for title in buttons)
    assert not [title for title in buttons if "share" in title.lower() or "cloud" in title.lower()]


def test_a_page_without_figures_opens(browser):
    elements = browser.elements(render_html("Words", "only", [Section("a", "A", "b", checks=[Check("c", True, "d")])]))
    assert isinstance(elements, Elements)
    assert "1 of 1 checks passed" in elements.text
