"""The decay forecast on a recipe: it meets the drops that come, the run goes on undisturbed, the report is whole."""

import json
import math

import pytest
import torch

from etastar import InvalidArgument
from etastar.recipes.forecast import WITHIN, ForecastPlan, forecast_decay, forecast_section
from etastar.recipes.forecast.section import forecast_rows
from etastar.report import render_html, render_png

PLAN = ForecastPlan("digits-mlp", steps=400, checkpoints=2, repeats=2)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def run(told):
    torch.set_num_threads(1)
    return forecast_decay(PLAN, progress=lambda *progress: told.append(progress))


def test_forecasts_meet_the_drops_that_come(run):
    assert [row.step for row in run.rows] == [200, 400]
    assert run.within() == 2
    assert run.covered() == 2
    assert all(abs(ratio - 1) < WITHIN for ratio in run.ratios("larger_batch"))
    for row in run.rows:
        decayed, larger = row.forecast.decayed.plan, row.forecast.larger_batch.plan
        assert decayed.step_size == pytest.approx(0.1 * larger.step_size)
        assert larger.batch_size == 10 * decayed.batch_size
        assert larger.steps == math.ceil(0.1 * decayed.steps)
        assert row.decayed.value > 0


def test_checkpoints_do_not_change_the_run(run):
    alone = forecast_decay(ForecastPlan("digits-mlp", steps=400, checkpoints=1, repeats=2, decayed_steps=3))
    assert alone.rows[-1].forecast.loss == run.rows[-1].forecast.loss
    assert alone.rows[-1].forecast.decayed.plan.steps == 3


def test_progress_is_told(run, told):
    assert [done for _, done, _ in told] == [0, 1, 2]
    assert {total for _, _, total in told} == {2}


def test_the_report_has_the_picture_and_the_table(run):
    section = forecast_section(run)
    assert section.finding.startswith("2 of 2 forecasts lie within 15% of the drop that came")
    assert render_png(section.figures[0]).startswith(b"\x89PNG")
    assert "larger batch" in render_html("Decay", "", [section])
    assert forecast_rows(run) == section.tables[0].rows
    data = json.loads(json.dumps(run.to_json(), allow_nan=False))
    assert data["within"]["decayed"] == 2
    assert data["checkpoints"][0]["decayed"]["measured"]["value"] == run.rows[0].decayed.value


def test_an_unstable_plan_is_said_in_words():
    """Ten times the batch at a step over 2/λ₁."""
    run = forecast_decay(ForecastPlan("digits-mlp", steps=100, checkpoints=1, repeats=2, step_size=0.5, samples=500))
    assert run.rows[0].forecast.larger_batch.outcome.name == "UNSTABLE"
    assert "unstable" in forecast_rows(run)[0][-1]
    assert math.isnan(run.ratios("larger_batch")[0])
    assert run.to_json()["checkpoints"][0]["larger_batch"]["forecast"]["value"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "resnet"}, "recipe: got 'resnet'"),
        ({"steps": -1}, "steps: got -1"),
        ({"checkpoints": 0}, "checkpoints: got 0"),
        ({"steps": 3, "checkpoints": 4}, "checkpoints: got 4; must be at most the 3 steps"),
        ({"samples": 2000}, "samples: got 2000; must be between 1 and 1500"),
        ({"repeats": 1}, "repeats: got 1"),
        ({"step_size": -0.1}, "step_size: got -0.1"),
        ({"factor": 1.5}, "factor: got 1.5"),
    ],
)
def test_bad_plans_are_refused_by_name(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        forecast_decay(ForecastPlan(**{"recipe": "digits-mlp", **wrong}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        ForecastPlan("digits-mlp"),
        ForecastPlan("digits-mlp", step_size=0.4, steps=1000),
        ForecastPlan("digits-mlp", loss="cross-entropy"),
        ForecastPlan("digits-cnn"),
    ],
    ids=lambda plan: f"{plan.recipe}-{plan.loss or 'mse'}-{plan.step_size}",
)
def test_eight_of_ten_forecasts_are_within_fifteen_percent(plan):
    run = forecast_decay(plan)
    assert run.within() >= 8
    assert run.covered() >= 8
