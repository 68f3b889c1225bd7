"""The page about measuring says what happens, and the examples run."""

import doctest
import importlib
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from etastar import History
from etastar.network import AlignmentMeter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(monkeypatch):
    """Import an example as its directory sees it."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module
    for path in (ROOT / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_page_says_what_happens():
    found = doctest.testfile(str(ROOT / "docs" / "measuring.md"), module_relative=False, encoding="utf-8")
    assert found.attempted > 25
    assert found.failed == 0


def test_the_plain_loop(example, tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    history = example("plain_loop").main(path, steps=20, every=4)
    assert [row.step for row in history] == [0, 4, 8, 12, 16, 20]
    assert len(History.load(path)) == 6
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "preflight: sound"
    assert len(said) == 4
    assert "dominant: " in said[-1]
    assert "bulk: " in said[-1]


class Writer:
    """What the example needs of TensorBoard's."""

    def __init__(self):
        self.scalars, self.texts, self.closed = [], [], False

    def add_scalar(self, name, value, step):
        assert isinstance(value, float)
        self.scalars.append((name, step))

    def add_text(self, name, value, step):
        assert isinstance(value, str)
        self.texts.append((name, step))

    def close(self):
        self.closed = True


def test_tensorboard(example):
    writer = Writer()
    history = example("tensorboard_run").main(writer, steps=20, every=10)
    assert [step for name, step in writer.scalars if name == "meter/alignment"] == [0, 10, 20]
    assert [step for name, step in writer.scalars if name == "loss"] == [*range(20)]
    assert {name for name, _ in writer.texts} <= {"meter/regime"}
    assert len(writer.texts) == history.columns()["regime_resolved"].sum()
    assert writer.closed


def test_a_checkpoint_is_measured_as_the_run_would_have_been(example, tmp_path):
    module, digits = example("offline_checkpoint"), example("digits")
    module.train(tmp_path, steps=30, every=10)
    offline = module.measure(tmp_path)
    assert [row.step for row in offline] == [0, 10, 20]
    assert all(row.step_size == 0.02 for row in offline)
    model, samples = digits.make_network(), digits.training_samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    meter = AlignmentMeter(
        model, digits.mean_loss, [tuple(part[:500] for part in samples)], rank=10, every=10, overhead=None
    )
    meter.attach(optimizer, 50)
    for batch in digits.mini_batches(samples, 50, 30):
        optimizer.zero_grad()
        digits.mean_loss(model, batch).backward()
        optimizer.step()
    for name in ("alignment", "threshold_dominant", "largest_eigenvalue"):
        np.testing.assert_allclose(offline.columns()[name], meter.history.columns()[name], rtol=5e-3)
    slopes = [[row.moments.mean(0).bulk.descent.slope for row in rows] for rows in (offline, meter.history)]
    np.testing.assert_allclose(*slopes, rtol=2e-2)


def test_the_tables_of_the_page_can_be_printed(example, capsys):
    example("meter_cost").main(rounds=2, spacing=2)
    example("curvature_sample").main(steps=5, sizes=(100,), ranks=(9,))
    said = capsys.readouterr().out.splitlines()
    headings = [line for line, rule in pairwise(said) if rule.startswith("|---")]
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").splitlines()
    assert len(set(headings)) == 3
    assert set(headings) <= set(page)


def test_the_examples_of_control_print_their_rows(example):
    """Ten steps: what they find is in docs/scheduling.md and docs/controlling.md."""
    scheduled = example("critical_step_size_lr")
    assert scheduled.row("mse", "equilibrated", 10, 0).startswith("| equilibrated | 0 | 0.")
    parts = [line.split(" | ")[2] for line in scheduled.ledger_rows(0.1, steps=2, every=2, updates=2)]
    assert parts == ["dominant", "bulk", "full"] * 2
    chosen = SimpleNamespace(network="digits-mlp", lr=0.1, steps=10)
    assert example("two_rates").row("TwoRateSGD", chosen, "mse", 0).startswith("| TwoRateSGD | 0 | 0.")
