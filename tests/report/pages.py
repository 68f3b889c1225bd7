"""A real browser without a network, and a page in which every kind of mark and every field occurs."""

import http.server
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

from etastar.report import Band, Check, Column, Figure, Line, Panel, Points, Reference, Section, Shade, Table

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--window-size=1200,6000", "--virtual-time-budget=10000"]
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Elements(HTMLParser):
    """All elements of a page with their attributes and the text directly inside; checks that they nest."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.open, self.unbalanced = [], [], []
        self.feed(page)
        self.close()
        self.unbalanced += [tag for tag, _, _ in self.open]

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag:
            self.open.pop()
        else:
            self.unbalanced.append(f"/{tag}")

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def named(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]

    @property
    def text(self):
        return "".join(part for tag, _, text in self.found if tag not in ("script", "style") for part in text)


class _Browser:
    def __init__(self, program, profiles, requests, port):
        self.program, self.profiles, self.requests, self.port = program, profiles, requests, port

    def elements(self, page):
        """The document after its scripts have run; figures are drawn as for printing, all at once, in sight or not."""
        page = page.replace("</body>", '<script>dispatchEvent(new Event("beforeprint"))</script></body>')
        place = self.profiles.mktemp("browser")
        (place / "page.html").write_text(page, encoding="utf-8")
        command = [self.program, *FLAGS, f"--user-data-dir={place / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*command, (place / "page.html").as_uri()], capture_output=True, timeout=60, check=True, text=True
        )
        return Elements(done.stdout)


def open_browser(profiles):
    """Yield chromium, and a local server that counts what is asked of it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.fail("these tests need a browser: install chromium (apt-get install chromium)")
    requests = []

    class Counter(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield _Browser(program, profiles, requests, server.server_port)
        server.shutdown()


def every_mark(name="name"):
    """One of each mark in each of its forms, with gaps, labelled `name`."""
    x = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
    y = np.array([0.5, 1.0, np.nan, 2.0, 3.0])
    return [
        *(Line(x, y + i, f"{name} {dash}", dash=dash) for i, dash in enumerate(("solid", "dash", "dot"))),
        Line(x, y, "", opacity=0.3),
        Points(x, y, f"{name} points"),
        Points(x, y, f"{name} error bars", error=np.array([0.1, 0.1, 0.1, np.nan, 0.2])),
        Band(x, y - 0.1, y + 0.1, f"{name} band"),
        Reference(2.0, "y", f"{name} across"),
        Reference(np.int64(10), "x", f"{name} upright"),
        Reference(np.nan, "x", f"{name} nowhere"),
        Shade(2.0, 20.0, f"{name} shade"),
        Shade(np.nan, np.inf),
    ]


def every_figure(name="name"):
    """Figures with all marks on each pair of scales; `name` in every field."""
    scales = [("linear", "linear"), ("log", "linear"), ("linear", "log"), ("log", "log")]
    return [
        Figure(
            f"{name} {scale}",
            name,
            [
                Panel(name, name, every_mark(name), name, *scale, y_range=(0.1, 5.0)),
                Panel(name, name, every_mark(name), x_scale=scale[0], y_scale=scale[1], legend=False),
            ],
            alt=name,
        )
        for scale in scales
    ]


def every_field(name="name"):
    """Two sections with `name` in every field, one with everything and one with nothing."""
    table = Table([Column(name, name), Column(name, "", numeric=False)], [[name, name], ["1.0", "2"]], name)
    checks = [Check(name, True, name), Check(name, False, name)]
    return [
        Section(name, name, name, name, checks, every_figure(name), [table], {"name": name}),
        Section(f"{name} empty", name, name),
    ]
