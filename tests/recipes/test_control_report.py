"""The report of a controlled run: what it says is what was decided, and the files are there."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from etastar import History, InvalidArgument
from etastar.network import AlignmentMeter, load_ledger
from etastar.network.decisions import Decision, DecisionOutcome
from etastar.network.ledger import UpdateLedger
from etastar.network.two_rate import RateOutcome, Rates
from etastar.recipes.control_report import ControlledRun, control_sections, write_control
from etastar.report.figures import Line, Reference
from etastar.report.png import render_png


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def decision(step, outcome, acted=False):
    proposed = 0.03 if outcome.decays else 0.1
    evidence = {"bulk η/η_S": (0.9, 0.85, 1.1), "dominant η/η_S": (1.0, float("nan"), float("nan"))}
    return Decision(step, 0.1, proposed, acted, outcome, evidence)


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    data = torch.randn(40, 6), torch.randn(40, 2)
    meter = AlignmentMeter(model, squared, [data], 2, overhead=None, third_derivative=False, probes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ledger = UpdateLedger(meter, [data])
    stream, losses = torch.Generator().manual_seed(0), []
    for step in range(24):
        draws = [torch.randint(40, (5,), generator=stream) for _ in range(5)]
        if step % 2 == 0:
            meter.step = step
            ledger.check(optimizer, [tuple(part[drawn] for part in data) for drawn in draws])
        optimizer.zero_grad()
        squared(model, tuple(part[draws[0]] for part in data)).backward()
        optimizer.step()
        losses.append(squared(model, data).item())
    DESCENDS, DONE = DecisionOutcome.DESCENDS, DecisionOutcome.EQUILIBRATED
    decisions = [decision(8, DESCENDS), decision(10, DESCENDS), decision(12, DONE, acted=True), decision(20, DONE),
                 decision(22, DONE)]  # fmt: skip
    rates = [0.1] * 12 + [0.03] * 12
    return ControlledRun("<b>run</b>", list(range(24)), losses, rates, meter.history, decisions, losses, ledger)


def test_looks_that_agree_are_one_row_and_an_act_its_own(run):
    control, _ = control_sections(run)
    rows = control.tables[0].rows
    assert [row[0] for row in rows] == ["8 to 10 (2 looks)", "12", "20 to 22 (2 looks)"]
    assert "acted: 0.1 → 0.03" in rows[1][2]
    assert rows[0][3] == "bulk η/η_S 0.9 (0.85 to 1.1); dominant η/η_S unresolved"
    assert control.finding.startswith("The controller looked 5 times and acted 1 time.")


def test_decisions_to_decay_are_marked_once(run):
    marks = control_sections(run)[0].figures[0].panels[1].marks
    assert [mark.value for mark in marks if isinstance(mark, Reference)] == [12.0, 20.0]
    in_use = next(mark for mark in marks if isinstance(mark, Line) and mark.label == "η in use")
    assert list(in_use.y) == run.step_sizes


def test_the_dominant_share_is_that_of_the_mini_batch_gradient(run):
    panel = control_sections(run)[0].figures[1].panels[0]
    shown = next(mark for mark in panel.marks if isinstance(mark, Line) and mark.label.startswith("of the update"))
    rows = list(run.history)
    for index, window in ((0, rows[:6]), (-1, rows[6:])):  # six measurements on either side of the decay
        means = History(window).window(6).moments.mean(0)
        parts = [float(side.signal.zeroth + side.noise.zeroth) for side in (means.dominant, means.bulk)]
        assert shown.y[index] == pytest.approx(parts[0] / sum(parts), rel=1e-9)
    assert len(shown.y) == 2


def test_a_ledger_is_shown_alike_from_its_file(run, tmp_path):
    section = control_sections(run)[1]
    assert section.data["bulk"]["ratio"] == run.ledger.summary()[1].ratio
    run.ledger.save(tmp_path / "ledger.jsonl")
    loaded = control_sections(replace(run, ledger=load_ledger(tmp_path / "ledger.jsonl")))[1]
    assert (loaded.finding, loaded.tables, loaded.data) == (section.finding, section.tables, section.data)
    assert render_png(loaded.figures[0]) == render_png(section.figures[0])


def test_page_and_pictures_are_written(run, tmp_path):
    *pictures, page = write_control(run, tmp_path / "new")
    assert [picture.name for picture in pictures] == ["control.png", "shares.png", "ledger.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    text = page.read_text(encoding="utf-8")
    assert "<b>run</b>" not in text
    assert "no part of the update lowers" in text


def test_a_run_that_was_only_advised_and_never_measured():
    advised = ControlledRun("", [0, 1], [1.0, 0.5], [0.1, 0.1], History(), [decision(3, DecisionOutcome.EQUILIBRATED)])
    (section,) = control_sections(advised)
    assert "called for a decay 1 time and never acted" in section.finding
    assert len(section.figures) == 1


@pytest.mark.parametrize(
    ("decisions", "words"),
    [
        ([], "There were too few measurements for the controller to judge. The loss ends at 0.5."),
        ([decision(3, DecisionOutcome.DESCENDS)], "looked 1 time, and the step size was to be kept each time."),
    ],
)
def test_a_run_without_a_call_for_a_decay(decisions, words):
    (section,) = control_sections(ControlledRun("", [0, 1], [1.0, 0.5], [0.1, 0.1], History(), decisions))
    assert words in section.finding


def test_a_run_that_diverged_is_told_as_such():
    (section,) = control_sections(ControlledRun("", [0, 1], [1.0, float("nan")], [0.1, 0.1], History(), []))
    assert section.finding.endswith("The run diverged: take a smaller step size.")


def test_both_rates_are_told_stretch_by_stretch():
    apart = Rates(0.08, 0.01, RateOutcome.THRESHOLD, 0.6, 3.0)
    rates = [Rates(0.1, None, RateOutcome.UNMEASURED), apart, Rates(0.1, 0.02, RateOutcome.THRESHOLD, 0.4, 3.0)]
    run = ControlledRun("", [0, 5, 10], [1.0, 0.5, 0.4], [0.1] * 3, History(), [], rates=rates)
    (section,) = control_sections(run)
    assert section.finding.startswith("Two rates at 2 of 3 looks; the bulk's was held below lr at 1.")
    (first, second) = section.tables[0].rows
    assert first[:4] == ["0", "0.1", "as the bulk", "–"]
    assert second[:4] == ["5 to 10 (2 looks)", "0.08 to 0.1", "0.01 to 0.02", "0.4 to 0.6"]
    lines = {mark.label: list(mark.y) for mark in section.figures[0].panels[1].marks if isinstance(mark, Line)}
    assert lines["in the dominant subspace"] == [0.1, 0.01, 0.02]


def test_lengths_that_differ_are_refused():
    with pytest.raises(InvalidArgument, match=r"steps: got \[2, 1, 2, 2, 2\]"):
        ControlledRun("", [0, 1], [1.0], [0.1, 0.1], History(), [])
    with pytest.raises(InvalidArgument, match="steps"):
        ControlledRun("", [], [], [], History(), [])
