"""The commands that touch networks and planes: what they print, write and refuse."""

import json

import pytest

from etastar import cli

SMALL = ["--steps", "30", "--every", "15", "--curvature-samples", "60", "--rank", "2"]


def test_forecast_and_calibration_join_the_page_and_the_json(tmp_path, capsys):
    out = tmp_path / "proof"
    options = ["digits-mlp", *SMALL, "--forecast", "--calibrate", "--checkpoints", "1", "--out", str(out), "--json"]
    assert cli.main(["train", *options]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert len(told["forecast"]["checkpoints"]) == len(told["calibration"]["rows"]) == 1
    names = {path.name for path in out.iterdir()}
    assert {"run.html", "history.jsonl", "forecast.png", "calibration.png"} <= names
    assert "running.jsonl" not in names
    page = (out / "run.html").read_text(encoding="utf-8")
    assert "What decaying the step gives back" in page
    assert "Calibration on real steps" in page


def test_tables_of_the_forecast_are_printed(capsys):
    assert cli.main(["train", "digits-mlp", "--no-meter", *SMALL, "--forecast", "--checkpoints", "1"]) == 0
    out = capsys.readouterr().out
    assert "drop" in out
    assert "training loss" in out


def test_the_doctor_finds_nothing_wrong_here(capsys):
    assert cli.main(["doctor"]) == 0
    assert "self-check: meter" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert cli.main(["doctor", "--model", "nowhere:problem"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("etastar: model: got 'nowhere:problem'")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["step-batch", "step-momentum", "alignment-ratio"])
def test_diagrams_are_drawn_under_either_name(kind, tmp_path, capsys):
    options = [kind, "--dimension", "40", "--rank", "4", "--cells", "12", "10"]
    assert cli.main(["diagram", *options, "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["diagram"] == kind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diagram.html", "diagram.json", "diagram.png"]
    assert json.loads((tmp_path / "diagram.json").read_text(encoding="utf-8")) == told
    assert cli.main(["lab", "diagram", *options]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["diagram", "step-batch", "--cells", "0", "10"], "cells"),
        (["diagram", "step-momentum", "--momenta", "0", "1.5"], "momenta"),
        (["diagram", "alignment-ratio", "--noise", "-1"], "noise"),
        (["train", "text-transformer", "--loss", "mse"], "loss"),
        (["train", "digits-mlp", "--data", "somewhere"], "data"),
        (["train", "mnist5k-mlp", "--data", "/nonexistent"], "data"),
        (["lab", "--momentum", "2"], "momentum"),
    ],
)
def test_refusals_are_one_line_that_names_the_option(arguments, field, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"etastar: {field}: got ")
