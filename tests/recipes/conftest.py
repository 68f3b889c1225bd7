"""One quick reproduction, computed once for all tests and all of their processes."""

import fcntl
import os
import pickle

import pytest

from etastar.recipes.reproduce import reproduce


@pytest.fixture(scope="session")
def _computed(tmp_path_factory):
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "reproduction.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path, told = shared / "reproduction.pickle", []
        if not path.exists():
            made = reproduce(quick=True, progress=lambda *progress: told.append(progress))
            path.write_bytes(pickle.dumps((made, told)))
        return pickle.loads(path.read_bytes())  # noqa: S301


@pytest.fixture(scope="session")
def reproduction(_computed):
    return _computed[0]


@pytest.fixture(scope="session")
def progress(_computed):
    """What was told of the progress of `reproduction`."""
    return _computed[1]
