"""The browser that the page is opened in."""

import pytest

from report.pages import open_browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium, and a local server that counts what is asked of it."""
    yield from open_browser(tmp_path_factory)
