"""A measurement: refused where it could not be saved, and its verdict in the right words."""

import itertools
import math

import numpy as np
import pytest

from etastar import (
    Coupling,
    CurvatureMoments,
    Descent,
    History,
    InvalidArgument,
    Measurement,
    Regime,
    SplitMoments,
    SubspaceMoments,
    alignment,
)
from etastar.measurement import undecided


def moments(dominant=(1.0, 4.0, 16.0), bulk=(3.0, 3.0, 3.0), noise=(0.5, 2.0, 8.0), **more):
    return SplitMoments(
        SubspaceMoments(CurvatureMoments(*dominant), CurvatureMoments(*noise)),
        SubspaceMoments(CurvatureMoments(*bulk), CurvatureMoments(*noise)),
        **more,
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"step": 1.5}, "step"),
        ({"step": True}, "step"),
        ({"step": -1}, "step"),
        ({"step_size": math.nan}, "step_size"),
        ({"step_size": -0.1}, "step_size"),
        ({"step_size": [0.1, 0.2]}, "step_size"),
        ({"step_size": "0.1"}, "step_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 8.0}, "batch_size"),
        ({"provenance": {"loss": math.nan}}, "provenance.loss"),
        ({"provenance": {"model": object()}}, "provenance.model"),
        ({"moments": moments(dominant=(np.ones((2, 3)), 1.0, 1.0))}, "moments"),
    ],
)
def test_a_measurement_that_could_not_be_saved_is_refused(arguments, name):
    with pytest.raises(InvalidArgument) as caught:
        Measurement(**({"step": 0, "step_size": 0.1, "moments": moments()} | arguments))
    assert caught.value.name == name


def test_numpy_numbers_are_as_good_as_ours(tmp_path):
    seen = Measurement(np.int64(3), np.float32(0.5), moments(), np.int32(8), {"loss": np.float32(0.5), "n": np.int8(1)})
    History([seen]).save(tmp_path / "history")
    (loaded,) = History.load(tmp_path / "history")
    assert (loaded.step, loaded.step_size, loaded.batch_size) == (3, 0.5, 8)
    assert loaded.provenance == {"loss": 0.5, "n": 1}


def at_ratios(dominant, bulk, noise_share=0.9):
    """Moments whose thresholds are 1/dominant and 1/bulk: at step 1 these are the ratios step over threshold."""
    parts = []
    for ratio in (dominant, bulk):
        curvature, noise = 2 * ratio * (1 - noise_share), 2 * ratio * noise_share
        parts.append(SubspaceMoments(CurvatureMoments(1.0, curvature, 1.0), CurvatureMoments(0.1, noise, 0.1)))
    return SplitMoments(*parts)


@pytest.mark.parametrize(
    ("ratio", "share", "words"),
    [
        (0.1, 0.9, "still descends (step is 0.1 of its loss threshold)"),
        (1.0, 0.9, "has equilibrated, limited by noise (step is 1 of"),
        (0.85, 0.1, "has equilibrated, limited by curvature (step is 0.85 of"),
        (4.0, 0.9, "is raised by this step, limited by noise (step is 4 of"),
        (4.0, 0.1, "is raised by this step, limited by curvature"),
    ],
)
def test_exact_moments_give_a_verdict_in_words(ratio, share, words):
    verdict = Measurement(0, 1.0, at_ratios(ratio, 0.01, share)).verdict
    assert verdict.startswith(f"dominant: {words}")
    assert verdict.endswith("; bulk: still descends (step is 0.01 of its loss threshold)")


def test_a_wide_interval_is_unresolved():
    split = SplitMoments.stack([at_ratios(r, 0.01) for r in (0.6, 1.3, 0.7, 1.1)])
    verdict = Measurement(0, 1.0, split).verdict
    assert verdict.startswith("dominant: unresolved between descending and raised (step is 0.925 of")
    assert "bulk: still descends" in verdict


@pytest.mark.parametrize(
    "dominant",
    [
        (1.0, -5.0, 1.0),  # negative curvature: every step descends, there is no threshold
        (-1.0, 5.0, 1.0),  # an estimate below zero
        (-1.0, -5.0, 1.0),  # both: a threshold above which the loss falls, which is no loss threshold
        (math.nan, 1.0, 1.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_where_there_is_no_threshold_none_is_claimed(dominant):
    split = moments(dominant=dominant, noise=(0.0, 0.0, 0.0))
    assert "dominant: no threshold resolved" in Measurement(0, 1.0, split).verdict


def test_an_interval_across_zero_resolves_no_threshold():
    slopes = [moments(dominant=(m, 1.0, 1.0)) for m in (2.0, -1.5, 1.0, -0.5)]
    assert "dominant: no threshold resolved" in Measurement(0, 1.0, SplitMoments.stack(slopes)).verdict


def test_a_gradient_of_zero_is_raised_by_every_step():
    assert "dominant: is raised by this step" in Measurement(0, 1.0, moments(dominant=(0.0, 0.0, 0.0))).verdict


def test_replicates_give_intervals_and_exact_moments_none():
    split = SplitMoments.stack([moments(dominant=(m, 4.0, 16.0)) for m in (0.9, 1.0, 1.1, 1.05)])
    seen, exact = Measurement(0, 0.1, split, 8), Measurement(0, 0.1, moments(), 8)
    assert exact.alignment.low == exact.alignment.value == exact.alignment.high == 0.25
    assert seen.alignment.low < seen.alignment.value < seen.alignment.high
    assert seen.alignment.value == pytest.approx(alignment(split.mean(0)))
    assert seen.regime is Regime.LOW
    assert seen.estimate(alignment, level=0.5).high < seen.alignment.high
    assert seen.step_budget.dominant.noise_scale == pytest.approx(8 * 0.5 / 1.0125)


def test_descent_and_coupling_reach_the_criteria():
    directed = [
        SubspaceMoments(CurvatureMoments(*m), CurvatureMoments(0.0, 1.0, 0.0), Descent(*d))
        for m, d in zip(itertools.repeat((1.0, 1.0, 1.0), 2), [(2.0, 1.0), (4.0, 1.0)], strict=True)
    ]
    seen = Measurement(0, 1.0, SplitMoments(*directed, Coupling(0.25, 0.5)))
    assert seen.loss_thresholds.dominant.value == 2 * 2.0 / (1.0 + 1.0 - 0.5)
    assert seen.loss_thresholds.bulk.value == 2 * 4.0 / (1.0 + 1.0 - 0.5)


def test_a_window_averages_the_moments_before_any_ratio():
    seen = [moments(dominant=(m, 4.0, 16.0)) for m in (9.0, 0.9, 1.0, 1.1)]
    history = History([Measurement(t, 0.1, split, 8, {"model": "x"}, float(t)) for t, split in enumerate(seen)])
    window = history.window(3)
    assert window.moments.shape == (3,)
    assert (window.step, window.batch_size, window.provenance) == (3, 8, {"model": "x", "window": 3})
    assert window.alignment.value == pytest.approx(0.25)
    assert window.recoverable_loss.value == 2.0
    replicated = History([Measurement(t, 0.1, SplitMoments.stack(seen)) for t in range(2)]).window(2)
    assert replicated.moments.dominant.signal.zeroth.tolist() == [3.0, 3.0]
    assert replicated.recoverable_loss is None


@pytest.mark.parametrize("count", [-1, 0, 1, 4])
def test_a_window_needs_two_measurements_that_are_there(count):
    with pytest.raises(InvalidArgument, match="must be between 2 and the 3"):
        History([Measurement(t, 0.1, moments()) for t in range(3)]).window(count)


def test_recoverable_loss_certificate_and_cost_come_back(tmp_path):
    split = SplitMoments.stack([moments(), moments()])
    saved = [
        Measurement(0, 0.1, split, 8, recoverable=[0.1, math.nan], certificate={"gap": 0.5}, cost={"products": 7}),
        Measurement(1, 0.1, split, 8, recoverable=1 / 3),
        Measurement(2, 0.1, split, 8),
    ]
    History(saved).save(tmp_path / "run")
    loaded = list(History.load(tmp_path / "run"))
    assert loaded[0].recoverable.tolist()[0] == 0.1
    assert not loaded[0].recoverable_loss.resolved
    assert (loaded[0].certificate, loaded[0].cost) == ({"gap": 0.5}, {"products": 7})
    assert loaded[1].recoverable_loss.value == 1 / 3
    assert loaded[2].recoverable_loss is None
    with pytest.raises(InvalidArgument, match="must be a number or have the shape"):
        Measurement(0, 0.1, split, recoverable=[1.0, 2.0, 3.0])
    with pytest.raises(InvalidArgument, match=r"certificate\.gap"):
        Measurement(0, 0.1, split, certificate={"gap": math.inf})


def test_the_full_threshold_lies_between_its_parts():
    bounds = Measurement(0, 0.1, moments()).loss_thresholds
    assert bounds.dominant.value < bounds.full.value < bounds.bulk.value


def test_a_single_replicate_is_no_interval():
    one = SplitMoments.stack([moments()])
    with pytest.raises(InvalidArgument, match=r"moments: got \(1,\); an interval needs two replicates"):
        Measurement(0, 0.1, one)
    from etastar.uncertainty import mean_of

    with pytest.raises(InvalidArgument, match="values"):
        mean_of([1.0])


def test_rolling_windows_end_at_each_measurement():
    seen = [Measurement(t, 0.1, moments(dominant=(1.0 + t, 4.0, 16.0))) for t in range(5)]
    windows = History(seen).rolling(3)
    assert [row.step for row in windows] == [2, 3, 4]
    assert windows[1].alignment.value == History(seen[:4]).window(3).alignment.value
    assert len(History(seen[:2]).rolling(3)) == 0


def test_a_limit_is_named_only_where_its_interval_leaves_one():
    def verdict(*slopes):
        return Measurement(0, 1.0, SplitMoments.stack([moments(noise=(0.5, q, 8.0)) for q in slopes]), 8).verdict

    assert "dominant: is raised by this step, limited by curvature" in verdict(1.9, 2.0, 2.1)
    assert "dominant: is raised by this step, limited by noise" in verdict(9.0, 9.1, 9.2)
    alike = "dominant: is raised by this step, what limits it unresolved between noise and curvature"
    assert alike in verdict(3.0, 4.0, 5.0)


def test_an_alignment_outside_its_range_is_unresolved_and_no_interval_leaves_it():
    outside = Measurement(0, 0.1, SplitMoments.stack([moments(dominant=(m, 4.0, 16.0)) for m in (-1.0, 0.5, -0.2)]))
    assert not outside.alignment.resolved
    assert math.isnan(outside.alignment.value)
    near = Measurement(0, 0.1, SplitMoments.stack([moments(dominant=(m, 4.0, 16.0)) for m in (-1.0, 0.9, 0.3)]))
    assert near.alignment.resolved
    assert near.alignment.low == 0.0


def test_what_the_basis_leaves_open_is_part_of_the_intervals():
    errors = {"alignment_error": 0.01, "threshold_dominant_error": 0.1, "threshold_bulk_error": 0.2}
    plain, widened = (Measurement(0, 0.1, moments(), 8, certificate=certificate) for certificate in ({}, errors))
    assert widened.alignment.low == pytest.approx(0.24)
    assert widened.alignment.high == pytest.approx(0.26)
    for name, half in (("dominant", 0.1), ("bulk", 0.2), ("full", 0.0)):
        before, after = (getattr(row.loss_thresholds, name) for row in (plain, widened))
        assert (after.low, after.high) == pytest.approx(((1 - half) * before.value, (1 + half) * before.value))
    columns = History([widened]).columns()
    assert columns["threshold_bulk_high"] == pytest.approx(1.2 * columns["threshold_bulk"])
    assert columns["step_over_bulk_low"] == pytest.approx(0.8 * columns["step_over_bulk"])
    assert columns["chi_high"] == pytest.approx(math.sqrt(0.26))
    assert History([widened, widened]).window(2).certificate == pytest.approx(errors)
    unbound = Measurement(0, 0.1, moments(), 8, certificate={"alignment_error": 1e3, "threshold_bulk_error": 1e3})
    assert not unbound.alignment.resolved
    assert "bulk: no threshold resolved" in unbound.verdict


def test_a_threshold_far_beyond_stability_is_marked():
    certificate = {"smallest_dominant_eigenvalue": 4.0, "gap": 2.0}
    row = Measurement(0, 0.1, moments(bulk=(9.0, 1.0, 1.0)), 8, certificate=certificate)
    assert row.bulk_stability_limit == 1.0
    assert "of its loss threshold, extrapolated beyond 2/λ_{k+1} = 1)" in row.verdict
    assert "extrapolated" not in Measurement(0, 0.1, moments(bulk=(0.1, 1.0, 1.0)), 8, certificate=certificate).verdict


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.7, 0.9), "descending and equilibrated"),
        ((0.9, 1.3), "equilibrated and raised"),
        ((0.7, 1.3), "descending and raised"),
    ],
)
def test_an_open_verdict_names_what_it_is_open_between(interval, words):
    assert undecided(*interval) == f"unresolved between {words}"
