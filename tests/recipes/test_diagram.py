"""Phase diagrams: cells against one quadratic at a time, borders against their formulas, tiles, files, bad input."""

import html
import json

import numpy as np
import pytest

from etastar import (
    InvalidArgument,
    Regime,
    alignment,
    alignment_change,
    critical_step_size,
    loss_border,
    loss_change,
    loss_thresholds,
    regime_border,
)
from etastar.errors import UnstableStep
from etastar.quadratic import HeavyBall, Noise, Quadratic, Spectrum, guaranteed_ratio
from etastar.recipes.diagram import (
    AlignmentRatio,
    StepBatch,
    StepMomentum,
    alignment_ratio,
    four_edges_section,
    step_batch,
    step_momentum,
)
from etastar.report import Label

RNG = np.random.default_rng(5)


def paper(noise=30.0):
    spectrum = Spectrum.paper(10.0, 40, 4)
    return Quadratic(spectrum, Noise.isotropic(noise)), {
        "gradient": spectrum.eigenvalues * np.random.default_rng(0).standard_normal(40)
    }


def two_levels():
    spectrum = Spectrum.two_level(10**9, 10, 50.0, 1.0)
    return Quadratic(spectrum, Noise.isotropic(1e-6)), {"energy": [3.0, 40.0]}


def power_law():
    spectrum = Spectrum.power_law(30, 3, 1.2, 20.0)
    noise = Noise.diagonal(np.linspace(0.1, 4.0, 30))
    return Quadratic(spectrum, noise), {"gradient": np.linspace(2.0, 0.3, 30)}


def noise_of(problem, factor):
    variances = np.asarray(problem.noise.variances) * factor
    return Noise.isotropic(float(variances)) if variances.ndim == 0 else Noise.diagonal(variances)


def stepped(problem, start, warm_up):
    """Energies after the warm-up, step by step."""
    modes = problem.modes
    energy = np.asarray(start["energy"] if "energy" in start else np.square(start["gradient"]), dtype=float)
    step_size, steps = warm_up
    for _ in range(steps):
        product = step_size * modes.eigenvalues
        energy = (1.0 - product) ** 2 * energy + product**2 * modes.variances
    return energy


def named(diagram, row, column):
    one = diagram.maps[0]
    return one.categories[one.values[row, column]].key


def expected_name(problem, energy, eta, at):
    """The category, from the curve of this one run and the change of loss and alignment by its next step."""
    if eta * problem.spectrum.eigenvalues[0] >= 2:
        return "unstable"
    split = problem.expected(energy=energy, step_size=eta, times=[at]).split[0]
    bounds = loss_thresholds(split)
    if max(abs(np.log(eta / bounds.dominant)), abs(np.log(eta / bounds.bulk))) <= 0.01:
        return "equilibrated"
    little_more = loss_change(split, eta * np.exp(0.01))  # a subspace within 1 % of its threshold is at rest
    descends = {(True, True): "both", (False, True): "bulk", (True, False): "dominant", (False, False): "none"}
    kind = descends[bool(little_more.dominant < 0), bool(little_more.bulk < 0)]
    return f"{'rises' if alignment_change(split, eta) > 0 else 'falls'}_{kind}"


@pytest.mark.parametrize("case", [paper, two_levels, power_law])
@pytest.mark.parametrize(("at", "warm_up"), [(0, None), (0, (0.01, 40)), (9, (0.01, 40)), (400, None), (10**6, None)])
def test_cells_are_runs_of_their_own(case, at, warm_up):
    problem, start = case()
    asked = StepBatch(problem, start, at=at, warm_up=warm_up, reference_batch=4, batch_sizes=(0.5, 500), cells=(40, 30))
    diagram = step_batch(asked)
    energy = stepped(problem, start, warm_up or (1.0, 0))
    assert asked.energy == pytest.approx(energy, rel=1e-12)
    seen = set()
    for row, column in RNG.integers((30, 40), size=(60, 2)).tolist():
        eta, batch = float(diagram.x.centres[column]), float(diagram.y.centres[row])
        at_batch = Quadratic(problem.spectrum, noise_of(problem, 4 / batch))
        name = expected_name(at_batch, energy, eta, at)
        assert named(diagram, row, column) == name, (eta, batch)
        seen.add(name)
    assert len(seen) > 1


def test_all_categories_can_occur():
    found = set()
    for case in (paper, two_levels, power_law):
        problem, start = case()
        for at, warm_up in [(0, (0.015, 30)), (0, (0.002, 4000)), (300, None), (5, (0.019, 10))]:
            one = step_batch(StepBatch(problem, start, at=at, warm_up=warm_up, cells=(60, 40))).maps[0]
            found |= {one.categories[i].key for i in np.unique(one.values).tolist()}
    assert {"unstable", "equilibrated", "falls_both", "rises_both", "falls_bulk", "rises_bulk", "rises_none"} <= found


def test_the_start_without_a_gradient_has_no_category():
    problem, _ = two_levels()
    diagram = step_batch(StepBatch(problem, {"energy": [0.0, 0.0]}, cells=(10, 10)))
    assert set(diagram.maps[0].values[:, 0].tolist()) == {9}
    assert diagram.maps[0].categories[9].key == "undefined"


def borders_of(diagram):
    return {border.name: border for one in diagram.maps for border in one.borders}


def points_of(border):
    there = np.isfinite(border.x) & np.isfinite(border.y)
    return list(zip(border.x[there].tolist(), border.y[there].tolist(), strict=True))


def thresholds_of(split):
    bounds = loss_thresholds(split)
    found = {"critical_step_size": critical_step_size(split).value, "threshold_dominant": bounds.dominant}
    return found | {"threshold_bulk": bounds.bulk, "threshold_full": bounds.full}


@pytest.mark.parametrize("at", [0, 25])
def test_borders_lie_where_the_step_meets_its_threshold(at):
    problem, start = paper()
    asked = StepBatch(problem, start, at=at, warm_up=(0.004, 200), cells=(200, 150), batch_sizes=(0.05, 500))
    diagram, energy = step_batch(asked), asked.energy
    cell = diagram.x.edges[1] / diagram.x.edges[0]
    found = borders_of(diagram)
    assert found["stability_limit"].x.tolist() == [2 / problem.spectrum.eigenvalues[0]] * 2
    checked = 0
    for name in ("critical_step_size", "threshold_dominant", "threshold_bulk", "threshold_full"):
        points = points_of(found[name])
        for eta, batch in points[:: max(1, len(points) // 12)]:
            near = Quadratic(problem.spectrum, noise_of(problem, 1 / batch))
            split = near.expected(energy=energy, step_size=eta, times=[at]).split[0]
            assert eta / float(thresholds_of(split)[name]) == pytest.approx(1.0, abs=0.2 * (cell - 1)), (name, batch)
            checked += 1
    assert checked > 25


def test_the_first_step_has_its_thresholds_in_the_table():
    problem, start = paper()
    diagram = step_batch(StepBatch(problem, start, warm_up=(0.004, 200), cells=(300, 100)))
    for b, *values in diagram.tables[0].rows:
        split = Quadratic(problem.spectrum, noise_of(problem, 1 / float(b))).moments(
            energy=stepped(problem, start, (0.004, 200))
        )
        for shown, exact in zip(values, thresholds_of(split).values(), strict=True):
            inside = diagram.x.centres[0] < exact < diagram.x.centres[-1]
            assert (shown != "–") == inside
            if inside:
                assert float(shown) == pytest.approx(float(exact), rel=0.01)
    assert "η_D" in diagram.finding


def test_only_noise_over_batch_matters():
    problem, start = paper(1.0)
    louder, _ = paper(32.0)
    one = step_batch(StepBatch(problem, start, reference_batch=32, at=50, cells=(30, 20)))
    other = step_batch(StepBatch(louder, start, reference_batch=1, at=50, cells=(30, 20)))
    assert np.array_equal(one.maps[0].values, other.maps[0].values)


def all_diagrams(tile):
    problem, start = paper()
    yield step_batch(StepBatch(problem, start, at=20, warm_up=(0.01, 9), cells=(37, 23)), tile)
    yield step_momentum(StepMomentum(problem, cells=(37, 23)), tile)
    yield alignment_ratio(AlignmentRatio(cells=(37, 23)), tile)


def test_tiles_change_nothing():
    whole = list(all_diagrams(10**9))
    for tile in (1, 41, 1000):
        for one, other in zip(all_diagrams(tile), whole, strict=True):
            assert one.to_json() == other.to_json()
            for a, b in zip(one.maps, other.maps, strict=True):
                assert np.array_equal(a.values, b.values, equal_nan=True)


@pytest.mark.parametrize("case", [paper, two_levels, power_law])
def test_heavy_ball_comes_to_rest_there(case):
    problem, _ = case()
    diagram = step_momentum(StepMomentum(problem, momenta=(0.0, 0.95), cells=(40, 30)))
    theta, tens = (one.values for one in diagram.maps)
    for row, column in RNG.integers((30, 40), size=(60, 2)).tolist():
        eta, beta = float(diagram.x.centres[column]), float(diagram.y.centres[row])
        if np.isnan(theta[row, column]):
            with pytest.raises(UnstableStep):
                problem.stationary(eta, optimizer=HeavyBall(beta))
            continue
        split = problem.stationary(eta, optimizer=HeavyBall(beta))
        assert theta[row, column] == pytest.approx(float(alignment(split)), rel=1e-12)
        still = np.zeros(problem.spectrum.eigenvalues.size)
        late = problem.expected(energy=still, step_size=eta, times=[10**7], optimizer=HeavyBall(beta))
        assert 10 ** tens[row, column] == pytest.approx(late.loss[0], rel=1e-8)
    assert np.isnan(theta).sum() > 50


def test_the_two_laws_of_momentum():
    problem, _ = paper()
    diagram = step_momentum(StepMomentum(problem, cells=(30, 20)))
    found = borders_of(diagram)
    for name, sign in (("equal_alignment", 1.0), ("equal_small_loss", -1.0)):
        for eta, beta in points_of(found[name])[:200:7]:
            sgd = eta / (1.0 + sign * beta)
            split = problem.stationary([sgd], optimizer=HeavyBall(0.0))
            moved = problem.stationary([eta], optimizer=HeavyBall(beta))
            if sign > 0:
                assert alignment(moved) == pytest.approx(alignment(split), rel=1e-12)
            else:  # to first order in the step size
                scale = 1e-6
                energies = [
                    sum(float(part.signal.zeroth) for part in (s.dominant, s.bulk))
                    for s in (
                        problem.stationary(scale * sgd),
                        problem.stationary(scale * eta, optimizer=HeavyBall(beta)),
                    )
                ]
                assert energies[1] == pytest.approx(energies[0], rel=1e-5)
    for eta, beta in points_of(found["stability_limit"]):
        assert eta * problem.spectrum.eigenvalues[0] == pytest.approx(2 * (1 + beta))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise": 1e-4},
        {"noise": 10.0, "rank": 3},
        {"dimension": 10**9, "noise": 1e-8},
        {"noise": 1e-200, "gradient_energy": 1e-198},
    ],
    ids=str,
)
def test_regimes_of_two_levels(changes):
    asked = AlignmentRatio(**({"cells": (60, 50), "ratios": (1.0, 30.0)} | changes))
    diagram = alignment_ratio(asked)
    for row, column in RNG.integers((50, 60), size=(80, 2)).tolist():
        theta, ratio = float(diagram.x.centres[column]), float(diagram.y.centres[row])
        problem = Quadratic(
            Spectrum.two_level(asked.dimension, asked.rank, 7.0 * ratio, 7.0), Noise.isotropic(asked.noise)
        )
        split = problem.moments(energy=[asked.gradient_energy * theta, asked.gradient_energy * (1 - theta)])
        low, below = critical_step_size(split).regime == Regime.LOW, loss_thresholds(split)
        below = below.dominant < below.bulk
        assert named(diagram, row, column) == ("low_guaranteed" if low and below else "low" if low else "high")
        assert low == (theta < regime_border(split))
        assert below == (theta < loss_border(split))
        assert below == (
            ratio
            > guaranteed_ratio(
                asked.dimension,
                asked.rank,
                asked.noise,
                asked.gradient_energy * theta,
                asked.gradient_energy * (1 - theta),
            )
        )


def test_borders_of_two_levels():
    asked = AlignmentRatio(cells=(60, 50))
    diagram = alignment_ratio(asked)
    found = borders_of(diagram)
    for name, border in (("regime_border", regime_border), ("loss_border", loss_border)):
        for theta, ratio in points_of(found[name])[1:]:
            problem = Quadratic(Spectrum.two_level(500, 50, ratio, 1.0), Noise.isotropic(asked.noise))
            energy = [asked.gradient_energy * part for part in (0.3, 0.7)]
            assert float(border(problem.moments(energy=energy))) == pytest.approx(theta, rel=1e-9)
    # One border by two ways: the root θ_loss at a ratio, and the ratio that suffices at an alignment.
    guaranteed = found["guaranteed_ratio"]
    there = np.isfinite(guaranteed.y)
    loss = found["loss_border"]
    assert np.interp(guaranteed.x[there], loss.x, np.log(loss.y)) == pytest.approx(
        np.log(guaranteed.y[there]), abs=0.02
    )
    assert diagram.maps[0].share("other") == 0.0


def test_what_is_written(tmp_path):
    problem, start = paper()
    asked = StepBatch(problem, start, '<b>"hostile" $x$', at=20, cells=(37, 23))
    for diagram in (step_batch(asked), *list(all_diagrams(10**6))[1:]):
        told = diagram.to_json()
        paths = diagram.write(tmp_path / diagram.name)
        assert [path.name for path in paths] == ["diagram.json", "diagram.png", "diagram.html"]
        assert json.loads(paths[0].read_text(encoding="utf-8"), parse_constant=pytest.fail) == told
        assert paths[1].read_bytes().startswith(b"\x89PNG")
        page = paths[2].read_text(encoding="utf-8")
        assert html.escape(diagram.title) in page
        assert "<b>" not in page.split("<footer>")[0].partition("</style>")[2].partition("<script")[0]
        assert (told["x"]["cells"], told["y"]["cells"]) == (37, 23)
        assert set(told["settings"]) >= {"dimension", "rank"}
        for one, shown in zip(diagram.maps, told["maps"], strict=True):
            if "runs" in shown:
                keys = list(shown["categories"])
                rows = [np.repeat(runs[::2], runs[1::2]) for runs in shown["runs"]]
                assert np.array_equal(rows, one.values)
                assert keys == [category.key for category in one.categories]
            else:
                values = np.array(shown["values"], dtype=float)
                assert values == pytest.approx(one.values, rel=1e-5, nan_ok=True)


def test_names_stand_inside_their_regions():
    problem, start = paper()
    diagrams = [
        step_batch(StepBatch(problem, start, warm_up=(0.01, 100), at=at, cells=(80, 60))) for at in (0, 10, 1000)
    ]
    checked = 0
    for diagram in [*diagrams, alignment_ratio(AlignmentRatio(cells=(80, 60)))]:
        one = diagram.maps[0]
        panel = diagram.section().figures[0].panels[0]
        for label in (mark for mark in panel.marks if isinstance(mark, Label)):
            column = np.searchsorted(diagram.x.edges, label.x) - 1
            row = np.searchsorted(diagram.y.edges, label.y) - 1
            assert one.categories[one.values[row, column]].short == label.text
            checked += 1
    assert checked > 6


def question(kind, changes):
    problem, start = paper()
    given = {
        StepBatch: {"problem": problem, "start": start},
        StepMomentum: {"problem": problem},
        AlignmentRatio: {},
    }
    return kind(**(given[kind] | {"cells": (5, 5)} | changes))


SILENT = Quadratic(Spectrum([2.0, 1.0], 1), Noise.isotropic(0.0))
FLAT = Quadratic(Spectrum([2.0, 1.0, 0.0], 1), Noise.diagonal([0.0, 0.0, 1.0]))
SADDLE = Quadratic(Spectrum([2.0, -1.0], 1), Noise.isotropic(1.0))
FALLING = Quadratic(Spectrum([-1.0, -2.0], 1), Noise.isotropic(1.0))
NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "changes", "name"),
    [
        (StepBatch, {"problem": None}, "problem"),
        (StepBatch, {"problem": SILENT, "start": {"energy": [1.0, 1.0]}}, "noise"),
        (StepBatch, {"problem": FALLING, "start": {"energy": [1.0, 1.0]}}, "eigenvalues"),
        (StepBatch, {"start": {"energy": [1.0, 1.0]}}, "energy"),
        (StepBatch, {"start": {}}, "start"),
        (StepBatch, {"start": {"gradient": np.ones(40), "energy": np.ones(40)}}, "start"),
        (StepBatch, {"start": {"gradient": np.ones((2, 40))}}, "start"),
        (StepBatch, {"reference_batch": 0}, "reference_batch"),
        (StepBatch, {"reference_batch": NAN}, "reference_batch"),
        (StepBatch, {"at": -1}, "at"),
        (StepBatch, {"at": 1.5}, "at"),
        (StepBatch, {"at": 10**16}, "at"),
        (StepBatch, {"warm_up": 3}, "warm_up"),
        (StepBatch, {"warm_up": (0.0, 3)}, "warm_up"),
        (StepBatch, {"warm_up": (1.0, 3)}, "warm_up"),
        (StepBatch, {"warm_up": (0.01, -3)}, "warm_up"),
        (StepBatch, {"step_sizes": (0.0, 1.0)}, "step_sizes"),
        (StepBatch, {"step_sizes": (1.0, 0.1)}, "step_sizes"),
        (StepBatch, {"step_sizes": (1.0,)}, "step_sizes"),
        (StepBatch, {"step_sizes": (0.1, float("inf"))}, "step_sizes"),
        (StepBatch, {"batch_sizes": (-1.0, 2.0)}, "batch_sizes"),
        (StepBatch, {"batch_sizes": "ab"}, "batch_sizes"),
        (StepBatch, {"cells": (1, 5)}, "cells"),
        (StepBatch, {"cells": 5}, "cells"),
        (StepBatch, {"cells": (5.0, 5)}, "cells"),
        (StepBatch, {"cells": (10**6, 10**6)}, "cells"),
        (StepMomentum, {"problem": SADDLE}, "eigenvalues"),
        (StepMomentum, {"problem": SILENT}, "noise"),
        (StepMomentum, {"problem": FLAT}, "noise"),
        (StepMomentum, {"momenta": (-0.1, 0.5)}, "momenta"),
        (StepMomentum, {"momenta": (0.0, 1.0)}, "momenta"),
        (StepMomentum, {"step_sizes": (-0.1, 1.0)}, "step_sizes"),
        (StepMomentum, {"problem": Quadratic(Spectrum.power_law(10**6, 3), Noise.isotropic(1.0)), "cells": (500, 500)},
         "cells"),
        (AlignmentRatio, {"rank": 500}, "rank"),
        (AlignmentRatio, {"rank": 0}, "rank"),
        (AlignmentRatio, {"dimension": 1}, "dimension"),
        (AlignmentRatio, {"noise": 0.0}, "noise"),
        (AlignmentRatio, {"noise": 1e300}, "noise"),
        (AlignmentRatio, {"gradient_energy": 1e-300, "noise": 1e300}, "noise"),
        (AlignmentRatio, {"ratios": (1.0, 1e60)}, "ratios"),
        (AlignmentRatio, {"gradient_energy": -1.0}, "gradient_energy"),
        (AlignmentRatio, {"gradient_energy": NAN}, "gradient_energy"),
        (AlignmentRatio, {"alignments": (0.5, 1.5)}, "alignments"),
        (AlignmentRatio, {"alignments": (-0.5, 1.0)}, "alignments"),
        (AlignmentRatio, {"ratios": (0.5, 10.0)}, "ratios"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_bad_questions_are_named(kind, changes, name):
    with pytest.raises(InvalidArgument) as caught:
        question(kind, changes)
    assert caught.value.name == name
    assert "\n" not in str(caught.value)


BATCHES = np.array([1.0, 4.0, 16.0, 64.0])
ROWS = {
    "largest_eigenvalue": [40.0, 60.0, 80.0, 99.0],
    "batch_sharpness": 101.0,
    "threshold_full": [0.03, 0.025, np.nan, 0.02],
    "smallest_raising": [0.05, 0.04, 0.03, 0.0201],
}


def test_four_edges_on_one_axis():
    section = four_edges_section(BATCHES, ROWS, step_size=0.02)
    lines = {line.label: line for line in section.figures[0].panels[0].marks}
    assert lines["λ₁"].y.tolist() == ROWS["largest_eigenvalue"]
    assert lines["batch sharpness"].y.tolist() == [101.0] * 4
    assert lines["2/η_full"].y == pytest.approx(2 / np.array(ROWS["threshold_full"]), nan_ok=True)
    assert lines["2/(smallest loss-raising step)"].y == pytest.approx(2 / np.array(ROWS["smallest_raising"]))
    assert lines["2/η"].y == pytest.approx([100.0] * 4)
    assert section.tables[0].rows[2] == ["16", "0.8", "1.01", "–", "0.6667"]
    assert "at b = 1 batch sharpness is nearest" in section.finding.replace("At", "at")
    assert "at b = 64 2/η_full is nearest" in section.finding
    assert json.loads(json.dumps(section.data, allow_nan=False)) == section.data


@pytest.mark.parametrize(
    ("batches", "changes", "step_size", "name"),
    [
        ([1.0], {}, 0.02, "batch_sizes"),
        ([4.0, 1.0, 2.0, 3.0], {}, 0.02, "batch_sizes"),
        ([1.0, NAN, 2.0, 3.0], {}, 0.02, "batch_sizes"),
        (BATCHES, {"other": 1.0}, 0.02, "rows"),
        (BATCHES, {"batch_sharpness": [1.0, 2.0]}, 0.02, "batch_sharpness"),
        (BATCHES, {"batch_sharpness": -1.0}, 0.02, "batch_sharpness"),
        (BATCHES, {"threshold_full": "x"}, 0.02, "threshold_full"),
        (BATCHES, {}, 0.0, "step_size"),
    ],
)
def test_bad_edges_are_named(batches, changes, step_size, name):
    with pytest.raises(InvalidArgument) as caught:
        four_edges_section(batches, ROWS | changes, step_size=step_size)
    assert caught.value.name == name
