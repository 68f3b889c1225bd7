"""The contest: budgets are kept, a killed one ends where an uninterrupted one does, and the judging is right."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from etastar import InvalidArgument
from etastar.cli.experiments import contest as command
from etastar.errors import InvalidFile
from etastar.network import AlignmentMeter, TwoRateSGD
from etastar.recipes.contest import Contest, ContestPlan, contest_sections, hold_contest
from etastar.recipes.contest.configuration import FINAL_SEED, RULES, TUNED, candidates, final, pilot, untuned
from etastar.recipes.contest.contest import Cell, Entry
from etastar.recipes.contest.judging import (
    Interval,
    Verdict,
    aims,
    best_baseline,
    cost_to_reach,
    costs,
    geometric_mean,
    paired_ratio,
    separates,
    winner,
)
from etastar.recipes.contest.store import RunResult, load_runs, save_run
from etastar.recipes.contest.training import carry_out
from etastar.recipes.contest.tuning import BUDGET, LEAST_STEPS, tuning
from etastar.recipes.networks import load_network
from etastar.report import Line, render_html, render_png

PLAN = ContestPlan(("digits-mlp-mse",), (50,), seeds=2, steps=LEAST_STEPS, workers=1)


def told(held):
    """All that a contest says, seconds aside."""
    entries = [entry for section in contest_sections(held)[1:] for entry in section.data["entries"]]
    for entry in entries:
        del entry["seconds"], entry["to_reach"]["seconds"]
    return entries, contest_sections(held)[0].data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("contest")


@pytest.fixture(scope="module")
def held(place):
    return hold_contest(PLAN, place)


def test_every_contestant_has_its_finals_and_every_baseline_its_budget(held):
    (cell,) = held.cells
    assert [entry.rule for entry in cell.entries] == list(RULES)
    for entry in cell.entries:
        assert len(entry.runs) == PLAN.seeds
        assert entry.spent == (BUDGET if entry.rule in TUNED else 0)
        if entry.rule == "BSFA's rule":  # tuned at other seeds it may diverge at these
            continue
        assert all(0 < run.final_loss < 1 and 0 < run.accuracy <= 1 for run in entry.runs)
        assert all(run.steps[-1] == PLAN.steps for run in entry.runs)
        plain = entry.rule not in ("TwoRateSGD", "TwoRateSGD, tuned", "equilibrated", "forecast")
        assert all((run.gradients[-1] == PLAN.steps) == plain for run in entry.runs)
    assert sum(cell.entry("TwoRateSGD").runs[0].outcomes.values()) == PLAN.steps
    assert sum(cell.pilot.outcomes.values()) == PLAN.steps // 4


def test_a_contest_cut_short_ends_in_the_same_table(held, place):
    runs = sorted((place / "runs").glob("*.json"))
    for path in runs[::17]:
        path.unlink()
    (place / "runs" / ".half.json.x.part").write_text("{", encoding="utf-8")  # what a kill leaves behind
    again = hold_contest(PLAN, place)
    assert told(again) == told(held)
    assert len(list((place / "runs").glob("*.json"))) == len(runs)


def test_nothing_runs_twice(held, place, monkeypatch):
    monkeypatch.setattr("etastar.recipes.contest.contest.carry_out", lambda *_: pytest.fail("ran again"))
    assert told(hold_contest(PLAN, place)) == told(held)


@pytest.mark.slow
def test_processes_make_no_difference(tmp_path):
    alone, together = (hold_contest(replace(PLAN, workers=count), tmp_path / str(count)) for count in (1, 2))
    assert told(together) == told(alone)


def test_the_report_shows_aims_tables_and_pictures(held):
    first, cell = contest_sections(held)
    assert len(first.tables[0].rows) == 3
    assert [row[0] for row in cell.tables[0].rows] == list(RULES)
    assert render_png(cell.figures[0]).startswith(b"\x89PNG")
    assert "momentum, untuned" in render_html("Contest", "", [first, cell])
    json.dumps([first.data, cell.data], allow_nan=False)


def test_the_command_writes_page_pictures_and_json(held, place, capsys):
    options = {"seeds": PLAN.seeds, "steps": PLAN.steps, "workers": 1, "out": place, "json": True}
    assert command(("digits-mlp-mse",), (50,), **options) == 0
    out = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert json.loads((place / "contest.json").read_text(encoding="utf-8")) == out
    assert {"contest.html", "contest-digits-mlp-mse-50.png"} <= {path.name for path in place.iterdir()}


def test_a_run_is_momentum_as_anyone_would_write_it():
    """SGD's final against a loop of its own; TwoRateSGD's gradients against the meter's own count."""
    run = replace(final(candidates("digits-mlp-mse", 50, "momentum", "")[0], 40, 1), schedule="linear")
    network = load_network("digits-mlp", "mse", seed=1)
    velocity = [torch.zeros_like(one) for one in network.model.parameters()]
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        loss = network.loss_fn(network.model, network.draw(generator, 50))
        gradients = torch.autograd.grad(loss, list(network.model.parameters()))
        with torch.no_grad():
            for one, speed, gradient in zip(network.model.parameters(), velocity, gradients, strict=True):
                speed.mul_(run.momentum).add_(gradient)
                one.sub_(run.step_size * (1 - step / 40) * speed)
    result = carry_out(run, None)
    assert result.losses[-1] == pytest.approx(network.losses()[0], rel=1e-4)
    assert result.held_out_loss == pytest.approx(network.losses()[1], rel=1e-4)


def test_basis_and_metering_are_counted():
    run = untuned("digits-mlp-mse", 50, "TwoRateSGD", 201, "")
    network = load_network("digits-mlp", "mse", seed=run.seed)
    meter = AlignmentMeter(
        network.model,
        network.loss_fn,
        network.curvature_batches(64),
        10,
        every=200,
        overhead=None,
        tolerance=0.3,
        probes=4,
        third_derivative=False,
    )
    optimizer = TwoRateSGD(network.model.parameters(), meter=meter, batch_size=50, lr=run.step_size, momentum=0.95)
    generator = torch.Generator().manual_seed(run.seed)
    for _ in range(201):
        optimizer.zero_grad()
        network.loss_fn(network.model, network.draw(generator, 50)).backward()
        optimizer.step()
    products = sum(row.cost["products"] for row in meter.history)
    assert len(meter.history) == 5
    measured = 2 * products + 5 * (2 + 1 / 3 + (4 + 30) / 2)  # noise is taken along 4 probes and 30 carried vectors
    assert carry_out(run, None).gradients[-1] == pytest.approx(201 + measured * 64 / 50)


def test_a_run_that_diverges_is_told_as_such():
    wild = replace(candidates("digits-mlp-mse", 50, "SGD", "")[0], step_size=1e6, steps=60)
    result = carry_out(wild, None)
    assert result.final_loss == math.inf or result.final_loss > 1e3
    assert geometric_mean([1.0, math.inf]).value == math.inf


class TestTuning:
    START = candidates("digits-mlp-mse", 50, "BSFA's rule", "")

    def test_candidates_are_distinct_and_the_same_each_time(self):
        assert len({run.key for run in self.START}) == len(self.START) == 24
        assert candidates("digits-mlp-mse", 50, "BSFA's rule", "") == self.START
        assert {run.seed for run in self.START}.isdisjoint(range(FINAL_SEED, FINAL_SEED + 100))

    def test_the_better_half_goes_on_within_the_budget(self):
        quality = {replace(run, steps=0, seed=0).key: index for index, run in enumerate(self.START)}
        losses, rounds = {}, []
        while (state := tuning(self.START, 2000, losses)).missing:
            rounds.append([run.steps for run in state.missing])
            for run in state.missing:
                losses[run.key] = float(quality[replace(run, steps=0, seed=0).key])
        assert [(len(one), one[0]) for one in rounds] == [(24, 250), (12, 500), (6, 1000), (3, 2000)]
        assert sum(map(sum, rounds)) == BUDGET * 2000
        assert state.spent == BUDGET
        assert replace(state.best, steps=0, seed=0) == self.START[0]

    def test_divergence_loses_and_a_late_result_changes_nothing(self):
        losses = {replace(run, steps=250).key: math.nan for run in self.START}
        losses[replace(self.START[7], steps=250).key] = 3.0
        assert replace(tuning(self.START, 2000, losses).missing[0], steps=0, seed=0) == self.START[7]
        some = dict(list(losses.items())[:5])
        state = tuning(self.START, 2000, some)
        assert len(state.missing) == 19
        assert state.spent == 5 / 8

    def test_keys_tell_configurations_apart(self):
        run = self.START[0]
        changes = [
            {"seed": 5},
            {"steps": 9},
            {"data": "x"},
            {"curve": True},
            {"factors": (0.3, 1.0)},
            {"batch_size": 9},
        ]
        assert len({replace(run, **change).key for change in [{}, *changes]}) == 7
        assert pilot("digits-mlp-mse", 50, 2000, "").steps == 500


def entry(rule, losses, curve=None, gradients=2.0):
    curve = curve or [9.0] * 5 + [1.0] * 2
    steps = [10 * i for i in range(len(curve))]
    runs = [
        RunResult(loss, steps, [loss * c for c in curve], [gradients * s for s in steps], [0.1 * s for s in steps])
        for loss in losses
    ]
    return Entry(rule, final(untuned("digits-mlp-mse", 50, rule, 60, ""), 60, 1), runs, 0.0)


def cell(apart, **entries):
    """All contestants at loss 2 but those named."""
    names = {name.replace("_", " "): value for name, value in entries.items()}
    found = [names.get(rule, entry(rule, [2.0, 2.2, 2.1])) for rule in RULES]
    seen = {"THRESHOLD": 60, "TOGETHER": 40} if apart else {"THRESHOLD": 40, "TOGETHER": 60}
    return Cell("digits-mlp-mse", 50, found, RunResult(1.0, [], [], [], [], outcomes=seen))


class TestJudging:
    def test_intervals_are_students_on_the_log(self):
        values = np.array([0.01, 0.02, 0.005, 0.013])
        found, logs = geometric_mean(values), np.log(values)
        low, high = stats.t.interval(0.9, 3, loc=logs.mean(), scale=stats.sem(logs))
        assert found.value == pytest.approx(stats.gmean(values))
        assert (found.low, found.high) == pytest.approx((np.exp(low), np.exp(high)))

    def test_ratios_are_paired_by_seed(self):
        first, second = entry("SGD", [1.0, 10.0, 100.0]), entry("Adam", [2.0, 19.0, 210.0])
        logs = np.log([1 / 2, 10 / 19, 100 / 210])
        low, high = stats.t.interval(0.9, 2, loc=logs.mean(), scale=stats.sem(logs))
        ratio = paired_ratio(first, second)
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx(tuple(np.exp([logs.mean(), low, high])))

    def test_a_loss_is_reached_when_three_looks_say_so(self):
        run = RunResult(1.0, [0, 5, 10, 15, 20, 25], [9, 1, 9, 1, 1, 1], [0, 6, 12, 18, 24, 30], [0.0] * 6)
        assert cost_to_reach(run, 1.0, "steps") == 15  # 1, 9, 1: a single dip at step 5 does not count
        assert cost_to_reach(run, 1.0, "gradients") == 18
        assert cost_to_reach(run, 0.5, "steps") == math.inf

    @pytest.mark.parametrize(
        ("interval", "verdict"),
        [((0.4, 0.3, 0.5), "MET"), ((0.5, 0.4, 0.6), "OPEN"), ((0.7, 0.6, 0.8), "MISSED"), ((math.inf,) * 3, "MISSED")],
    )
    def test_verdicts_have_three_values(self, interval, verdict):
        assert Interval(*interval).against(0.5) is Verdict[verdict]

    def test_half_the_steps_are_asked_for_where_the_pilot_separates(self):
        fast = entry("TwoRateSGD", [1.0, 1.1, 1.05], curve=[9, 2, 2, 1, 1, 1, 1])  # at 2 after 20 of 60 steps
        one = cell(True, TwoRateSGD=fast, Adam=entry("Adam", [2.0, 2.2, 2.1]))
        assert separates(one)
        first = aims(one)[0]
        assert first.measured.value == pytest.approx(1 / 3)
        assert first.verdict is Verdict.MET
        assert winner(one).rule == winner(one, "steps").rule == "TwoRateSGD"
        assert costs(fast, best_baseline(one), "gradients").value == pytest.approx(40)

    def test_elsewhere_it_is_to_end_within_a_fifth(self):
        one = cell(False, TwoRateSGD=entry("TwoRateSGD", [2.6, 2.86, 2.73]))
        assert not separates(one)
        first = aims(one)[0]
        assert first.measured.value == pytest.approx(1.3)
        assert first.verdict is Verdict.MISSED

    def test_policies_are_held_against_the_best_tuned_schedule(self):
        one = cell(
            False,
            SGD=entry("SGD", [1.0, 1.0, 1.0]),
            equilibrated=entry("equilibrated", [1.5, 1.6, 1.4]),
            forecast=entry("forecast", [1.5, 0.7, 1.0]),
        )
        assert [aim.verdict.name for aim in aims(one)[1:]] == ["MISSED", "OPEN"]
        good = replace(one, entries=[entry(rule, [1.0, 1.01, 0.99]) for rule in RULES])
        assert [aim.verdict.name for aim in aims(good)[1:]] == ["MET", "MET"]


class TestDivergence:
    """A run that blew up takes neither the picture nor the comparison of the others along."""

    DIVERGED = entry("BSFA's rule", [math.inf] * 3, curve=[1.0, 1.5, 1e16])

    def told(self, *entries):
        found = cell(True, **{one.rule: one for one in entries})
        full = [
            replace(one, runs=[replace(run, step_sizes=[0.1], accuracy=0.9, held_out_loss=0.1) for run in one.runs])
            for one in found.entries
        ]
        return contest_sections(Contest(PLAN, [replace(found, entries=full)], 0.0))

    def test_a_ratio_over_a_run_that_diverged_is_no_number(self):
        ratio = paired_ratio(entry("TwoRateSGD", [1.0, 2.0, 3.0]), entry("Adam", [1.0, math.inf, 2.0]))
        assert math.isnan(ratio.value)
        assert ratio.against(1.2) is Verdict.OPEN
        assert paired_ratio(self.DIVERGED, self.DIVERGED).against(1.2) is Verdict.MISSED

    def test_no_run_reaches_the_loss_of_one_that_diverged(self):
        run = entry("SGD", [1.0]).runs[0]
        assert cost_to_reach(run, math.inf, "steps") == math.inf

    def test_its_row_says_so_and_the_others_keep_their_picture(self):
        runs = [replace(run, losses=[1.0, 1.5, 1e16]) for run in self.DIVERGED.runs]
        section = self.told(replace(self.DIVERGED, runs=runs))[1]
        row = next(row for row in section.tables[0].rows if row[0] == "BSFA's rule")
        assert row[2:4] == ["never, or diverged"] * 2
        assert row[6:9] == ["–"] * 3
        lines = [mark for panel in section.figures[0].panels for mark in panel.marks if isinstance(mark, Line)]
        heights = [y for line in lines for y in line.y if not math.isnan(y)]
        assert max(heights) < 100

    def test_momentum_that_diverged_is_named_in_the_explanation(self):
        section = self.told(entry("momentum, untuned", [math.inf] * 3))[1]
        assert "same step size and β: the other diverged" in section.reading
        assert "nan" not in section.reading

    def test_ends_of_an_interval_show_on_which_side_of_one_they_lie(self):
        close = self.told(entry("equilibrated", [2.03, 2.24, 2.13]))[0].tables[0].rows
        assert next(row for row in close if row[2] == "equilibrated")[4].endswith("(1.01 to 1.02)")


def test_runs_come_back_as_they_were_kept(tmp_path):
    run = untuned("digits-mlp-mse", 50, "TwoRateSGD", 80, "")
    result = RunResult(
        math.inf, [0, 1], [0.5, math.inf], [0.0, 1.0], [0.0, 0.1], outcomes={"TOGETHER": 1}, step_sizes=[0.1, 0.1]
    )
    save_run(tmp_path, run, result)
    back = load_runs(tmp_path)[run.key]
    assert back.final_loss == math.inf
    assert back.losses == result.losses
    assert math.isnan(back.accuracy)
    assert load_runs(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"result": {}}', '{"result": {"final_loss": "x"}}', '{"result": 1}'])
def test_a_damaged_run_is_named(tmp_path, text):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "abc.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidFile, match=r"abc\.json.*delete it"):
        hold_contest(PLAN, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"losses": ["a", "b"]},
        {"losses": [[1.0], [1.0]]},
        {"losses": [None, None]},
        {"losses": [1.0]},
        {"steps": "ab"},
        {"step_sizes": []},
        {"step_sizes": [math.nan, 0.1]},
        {"steps": [], "losses": [], "gradients": [], "seconds": [], "step_sizes": []},
        {"final_loss": -1.0},
        {"final_loss": True},
        {"final_loss": math.nan},
        {"outcomes": [1, 2]},
        {"outcomes": {"TOGETHER": "b"}},
        {"largest_eigenvalue": "x"},
        {"foreign": 1},
    ],
)
def test_a_run_with_numbers_that_no_run_has_is_named(tmp_path, changed):
    run = untuned("digits-mlp-mse", 50, "TwoRateSGD", 80, "")
    save_run(tmp_path, run, RunResult(0.5, [0, 1], [0.5, 0.4], [0.0, 1.0], [0.0, 0.1], step_sizes=[0.1, 0.1]))
    assert load_runs(tmp_path)[run.key].step_sizes == [0.1, 0.1]
    path = tmp_path / f"{run.key}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["result"] |= {name: str(value) if value != value else value for name, value in changed.items()}
    if "step_sizes" in changed:
        content["result"]["step_sizes"] = [str(one) if one != one else one for one in changed["step_sizes"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InvalidFile, match=rf"{run.key}\.json.*delete it"):
        load_runs(tmp_path)


def test_a_run_of_the_tuning_that_diverged_before_any_look_is_kept(tmp_path):
    run = replace(candidates("digits-mlp-mse", 50, "momentum", "")[0], step_size=1e30, steps=80)
    result = carry_out(run, None)
    assert (result.final_loss, result.steps) == (math.inf, [])
    save_run(tmp_path, run, result)
    assert load_runs(tmp_path)[run.key].final_loss == math.inf


def test_a_pipe_among_the_runs_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InvalidFile, match=r"pipe\.json.*is not a regular file"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"problems": ()}, "problems: got"),
        ({"problems": ("resnet",)}, "problems: got 'resnet'"),
        ({"problems": ("digits-mlp-mse",) * 2}, "problems: got"),
        ({"batch_sizes": (0,)}, "batch_sizes: got 0"),
        ({"batch_sizes": ()}, "batch_sizes: got"),
        ({"batch_sizes": (10**12,)}, "batch_sizes: got 1000000000000"),
        ({"seeds": 1}, "seeds: got 1; must be at least 2"),
        ({"seeds": 10**20}, "seeds: got 100000000000000000000; must be at most 1000"),
        ({"steps": 79}, "steps: got 79; must be at least 80"),
        ({"workers": 0}, "workers: got 0"),
        ({"data": "somewhere"}, "data: got 'somewhere'"),
    ],
)
def test_bad_plans_are_refused_by_name(wrong, message, tmp_path):
    with pytest.raises(InvalidArgument, match=message):
        hold_contest(replace(PLAN, **wrong), tmp_path)
    assert list(tmp_path.iterdir()) == []
