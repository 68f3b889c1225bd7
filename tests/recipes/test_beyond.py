"""The sections beyond the paper: their numbers against other routes, and their checks against a wrong engine."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2

from etastar.quadratic import HeavyBall, Noise, Quadratic
from etastar.quadratic.minibatch.finite import FiniteLeastSquares
from etastar.recipes.beyond import beyond_the_paper
from etastar.recipes.paper_figures.setting import PaperRuns, paper_problem
from etastar.recipes.real_least_squares import load_least_squares

pytestmark = pytest.mark.xdist_group("beyond")

NAMES = ["momentum", "preconditioning", "averaging", "mini-batches", "four-edges", "mean-ratio", "phase-diagram"]
parts = {
    name: import_module(f"etastar.recipes.beyond.{name}")
    for name in ("momentum", "averaging", "preconditioning", "minibatches", "mean_ratio", "phase_diagram", "four_edges")
}


@pytest.fixture(scope="module")
def run():
    problem = paper_problem(100)
    start = problem.gradient_at(np.random.default_rng(42).standard_normal((1, 500)))
    return PaperRuns(100, problem, start, None, None, slice(0))


@pytest.fixture(scope="module")
def sections(run):
    return {section.name: section for section in beyond_the_paper(run, True, 0)}


def failed(section):
    return [check.statement for check in section.checks if not check.passed]


def test_each_section_says_shows_and_checks_something(sections):
    assert list(sections) == NAMES
    for name, section in sections.items():
        assert section.title.startswith("Beyond the paper: ")
        assert failed(section) == []
        assert len(section.checks) >= 2
        assert section.finding
        assert section.reading
        assert [figure.name for figure in section.figures] == [name]
        assert json.loads(json.dumps(section.data, allow_nan=False)) == section.data


def test_another_seed_draws_other_samples_and_agrees(run, sections):
    again = parts["momentum"].momentum(run, 100, 1)
    assert failed(again) == []
    assert again.data["worst_z"] != sections["momentum"].data["worst_z"]
    assert again.data["course"] == sections["momentum"].data["course"]


def test_the_limit_of_the_gap_is_that_of_a_chi_square_over_a_constant(sections):
    """At θ∞ = ½ and d → ∞ the bulk energy is its mean, and θ = χ²/(χ² + k)."""
    for rank, gaps in sections["mean-ratio"].data["gap_times_k"].items():
        k = int(rank)
        mean, _ = quad(lambda x, k=k: x / (x + k) * chi2.pdf(x, k), 0, np.inf, limit=400)
        assert gaps[-1] / k == pytest.approx(mean - 0.5, rel=2e-5)


def test_thresholds_along_powers_of_the_hessian_are_those_of_its_eigenvalues(run, sections):
    """η_B = 2Σg²λ^−s/(Σg²λ^(1−2s) + Σκ²λ^(1−2s)) for M = H^s, from scalars."""
    arguments = {"gradient": run.gradients[0], "step_size": 0.003, "times": [300], "seed": 11}
    g = run.problem.sample(**arguments, keep_gradient=True).gradient[0, 0]
    lam = np.repeat(run.problem.spectrum.eigenvalues, run.problem.spectrum.multiplicities)
    told = sections["preconditioning"].data
    for part, name in ((slice(None, 50), "dominant"), (slice(50, None), "bulk")):
        for variance, kind in ((0.0, "noise_free"), (0.25, "noisy")):
            for s, seen in list(zip(told["power"], told[kind][name], strict=True))[::10]:
                top = np.sum(g[part] ** 2 * lam[part] ** -s)
                low = np.sum((g[part] ** 2 + variance) * lam[part] ** (1 - 2 * s))
                assert seen == pytest.approx(2 * top / low, rel=1e-9)


@pytest.mark.parametrize("name", ["diabetes", "digits"])
def test_borders_are_those_of_the_engine(sections, name):
    case = load_least_squares(name, batch_size=1)
    data = FiniteLeastSquares.of(case.X, case.y, rank=1, batch_size=1, ridge=case.ridge)
    expected = data.largest_stable_step() * float(case.problem.spectrum.eigenvalues[0])
    assert sections["mini-batches"].data[name]["border"][0] == pytest.approx(expected, rel=1e-5)


def test_a_wrong_optimizer_fails_the_checks_of_momentum(monkeypatch, run):
    """A β that is one per cent smaller than what the section is told."""
    monkeypatch.setattr(parts["momentum"], "HeavyBall", lambda beta: HeavyBall(0.99 * beta))
    statements = " ".join(failed(parts["momentum"].momentum(run, 20, 0)))
    assert "θ∞ of SGD at η/(1 + β)" in statements
    assert "largest stable step" in statements


def test_a_wrong_closed_form_fails_the_check_of_averaging(monkeypatch, run):
    right = parts["averaging"]._closed_form
    modified = lambda problem, omega: right(problem, omega) * (1 + 1e-6 * problem.modes.eigenvalues)  # noqa: E731
    monkeypatch.setattr(parts["averaging"], "_closed_form", modified)
    assert any("stationary energy" in each for each in failed(parts["averaging"].averaging(run, 20, 0)))


@pytest.mark.parametrize("name", ["averaging", "momentum"])
def test_samples_of_other_noise_fail_the_checks(monkeypatch, run, name):
    """Runs with 10 % more noise than the curves are told of."""
    louder, right = Quadratic(run.problem.spectrum, Noise.isotropic(0.275)), Quadratic.sample
    monkeypatch.setattr(Quadratic, "sample", lambda _self, **keywords: right(louder, **keywords))
    assert any("sampled" in each for each in failed(getattr(parts[name], name)(run, 200, 0)))


def test_projected_steps_that_do_not_project_fail_the_check(monkeypatch, run):
    right = Quadratic.simulate
    whole = lambda self, **keywords: right(self, **(keywords | {"projection": None}))  # noqa: E731
    monkeypatch.setattr(Quadratic, "simulate", whole)
    assert any("raises" in each for each in failed(parts["preconditioning"].preconditioning(run, 500, 0)))


def test_exact_curves_of_another_batch_size_fail_the_check(monkeypatch):
    right = FiniteLeastSquares.expected
    halved = lambda self, **keywords: right(replace(self, shrink=2 * self.shrink), **keywords)  # noqa: E731
    monkeypatch.setattr(FiniteLeastSquares, "expected", halved)
    assert any("runs agree" in each for each in failed(parts["minibatches"].minibatches(True, 0)))


def test_batch_sharpness_of_another_batch_size_fails_the_check(monkeypatch, run):
    monkeypatch.setattr(parts["four_edges"].Noise, "minibatch_least_squares", _doubled)
    assert any("closed form" in each for each in failed(parts["four_edges"].four_edges(run, 400, 0)))


_right_noise = Noise.minibatch_least_squares


def _doubled(batch_size, label_variance):
    return _right_noise(2 * batch_size, label_variance)


def test_a_map_with_regions_exchanged_fails_the_check(monkeypatch, run):
    right = parts["phase_diagram"].step_batch

    def exchanged(question):
        found = right(question)
        (one,) = found.maps
        keys = [category.key for category in one.categories]
        falls, rises = keys.index("falls_both"), keys.index("rises_bulk")
        values = one.values.copy()
        values[one.values == falls], values[one.values == rises] = rises, falls
        return replace(found, maps=(replace(one, values=values),))

    monkeypatch.setattr(parts["phase_diagram"], "step_batch", exchanged)
    assert any("cells agree" in each for each in failed(parts["phase_diagram"].phase_diagram(run, 200, 0)))


def test_a_root_that_is_none_fails_the_check_of_the_correction(monkeypatch):
    monkeypatch.setattr(parts["mean_ratio"], "brentq", lambda _function, low, high, **_: np.sqrt(low * high))
    assert any("corrected" in each for each in failed(parts["mean_ratio"].mean_ratio(400, 0)))
