"""The page: well-formed, self-contained, every number with its definition."""

import ast
import json
import re
from pathlib import Path

import pytest

import etastar
from etastar.report import Check, Column, Section, Table, render_html
from etastar.report.document import _marked
from etastar.report.glossary import GLOSSARY
from report.pages import Elements, every_field, every_figure

SOURCES = Path(etastar.__file__).parent


def without_plotly(page):
    """The page with the longest script, plotly's, cut out."""
    longest = max(re.findall(r"<script>.*?</script>", page, flags=re.DOTALL), key=len)
    return page.replace(longest, "<script></script>")


@pytest.fixture(scope="module")
def page():
    return render_html("A title", "A lead on [[alignment]].", every_field(), "A footer")


def test_elements_nest(page):
    assert Elements(without_plotly(page)).unbalanced == []
    assert page.startswith("<!doctype html>")
    assert page.count("</script>") == 3  # plotly's own text does not end its element


def test_nothing_is_fetched_from_outside(page):
    elements = Elements(without_plotly(page))
    policy = next(a["content"] for a, _ in elements.named("meta") if "http-equiv" in a)
    assert policy.split("; ")[0] == "default-src 'none'"
    assert "base-uri 'none'" in policy
    assert "form-action 'none'" in policy
    assert not re.search(r"https?:", policy)
    for tag, attributes, _ in elements.found:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form"), tag
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page[: page.index("</style>")]
    assert "@import" not in page[: page.index("</style>")]


def test_links_lead_to_the_sections(page):
    elements = Elements(without_plotly(page))
    targets = [a["href"] for a, _ in elements.named("a")]
    assert targets == [f"#{a['id']}" for a, _ in elements.named("section")] == ["#name", "#name empty"]


def test_the_figures_in_the_page_are_strict_json(page):
    payload = next(text for a, text in Elements(without_plotly(page)).named("script") if a.get("id") == "figures")
    figures = json.loads(payload, parse_constant=pytest.fail)
    assert len(figures) == len(every_figure())
    assert all(set(figure) == {"data", "layout"} for figure in figures)


def test_checks_are_counted():
    def page(*passed):
        return render_html("", "", [Section("a", "A", "", checks=[Check("c", p, "m") for p in passed])])

    assert '<p class="summary pass">2 of 2 checks passed</p>' in page(True, True)
    assert '<p class="summary fail">1 of 2 checks passed</p>' in page(True, False)
    assert "checks passed" not in page()
    assert not Section("a", "A", "", checks=[Check("c", False, "m")]).passed


def test_a_page_of_nothing():
    page = render_html("Nothing", "", [])
    elements = Elements(page)
    assert elements.unbalanced == []
    assert elements.named("h1") == [({}, "Nothing")]
    assert len(page) < 20_000  # no plotly without figures


def test_table_heads_and_cells_carry_their_definition():
    table = Table([Column("θ", "the alignment"), Column("regime", numeric=False)], [["0.5", "LOW"]], "A caption")
    elements = Elements(render_html("", "", [Section("a", "A", "", tables=[table])]))
    assert elements.named("th") == [({"class": "number"}, ""), ({"class": "words"}, "regime")]
    defined = [(a["data-definition"], a["tabindex"], text) for a, text in elements.named("span")]
    assert defined == [("the alignment", "0", "θ")]
    assert elements.named("td") == [
        ({"class": "number", "title": "the alignment"}, "0.5"),
        ({"class": "words"}, "LOW"),
    ]
    assert elements.named("caption") == [({}, "A caption")]


def test_a_row_that_does_not_fit_its_columns_is_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        render_html("", "", [Section("a", "A", "", tables=[Table([Column("a")], [["1", "2"]])])])


@pytest.mark.parametrize("term", GLOSSARY)
def test_every_term_can_be_marked(term):
    (element,) = Elements(_marked(f"[[{term}]]")).found
    assert element == ("span", {"class": "term", "tabindex": "0", "data-definition": GLOSSARY[term]}, [term])
    assert Elements(_marked(f"[[{term}|shown]]")).text == "shown"


@pytest.mark.parametrize(
    "text", ["[[unknown]]", "[[alignment", "]]", "[[", "[[ ]]", "[[|x]]", "[[<b>|x]]", "a [[ b [["]
)
def test_what_is_no_term_is_shown_as_it_is(text):
    elements = Elements(f"<p>{_marked(text)}</p>")
    assert elements.text == text
    assert [tag for tag, _, _ in elements.found] == ["p"]


def test_every_marked_term_of_ours_is_defined():
    marked = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{" not in node.value:
                marked |= {found.partition("|")[0] for found in re.findall(r"\[\[([^\[\]]+)\]\]", node.value)}
    marked -= {"term"}  # in docstrings
    assert marked >= {"alignment", "critical step size", "certified", "z"}
    assert marked <= set(GLOSSARY)


def test_filled_in_text_is_not_filled_again():
    text = "@style@ @payload@ @title@ @nothing@"
    elements = Elements(render_html(text, text, [Section("a", text, text)], text))
    assert elements.named("h1") == elements.named("h2") == [({}, text)]
    assert elements.named("footer") == [({}, text)]
