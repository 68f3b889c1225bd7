"""One quick reproduction, computed once and read by many tests."""

import pytest

from etastar.recipes.reproduce import reproduce


@pytest.fixture(scope="session")
def told():
    return []


@pytest.fixture(scope="session")
def reproduction(told):
    return reproduce(quick=True, progress=lambda *progress: told.append(progress))
