"""Batch-size advice against the exact thresholds of a quadratic, and its intervals against many draws."""

from dataclasses import replace

import numpy as np
import pytest

from etastar import Coupling, CurvatureMoments, InvalidArgument, Measurement, SplitMoments, SubspaceMoments
from etastar.advice import BatchOutcome, batch_size_advice
from etastar.criteria import loss_thresholds
from etastar.quadratic import Noise, Quadratic, Spectrum


def at(batch, variance=4.0, gradient=(1.0, 3.0, 0.5)):
    """Moments of a quadratic whose per-sample noise variance is 8·variance, at a batch size."""
    q = Quadratic(Spectrum([4.0, 1.0, 0.5], rank=1), Noise.isotropic(8 * variance / batch))
    return q.moments(gradient=list(gradient))


def seen(batch=8, eta=0.3, **options):
    return Measurement(step=0, step_size=eta, moments=at(batch, **options), batch_size=batch)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("part", ["dominant", "bulk", "full"])
def test_at_the_advised_batch_the_threshold_is_the_step(part, fraction):
    eta = 0.2
    smallest = getattr(batch_size_advice(seen(eta=eta), fraction=fraction), part).smallest
    assert smallest.resolved
    assert getattr(loss_thresholds(at(float(smallest.value))), part) == pytest.approx(eta / fraction, rel=1e-12)


def test_coupling_is_taken_as_the_thresholds_take_it():
    def coupled(batch):
        return replace(at(batch), coupling=Coupling(0.3, 8 * 0.2 / batch))

    measurement = Measurement(step=0, step_size=0.25, moments=coupled(8), batch_size=8)
    for part in ("dominant", "bulk", "full"):
        smallest = float(getattr(batch_size_advice(measurement), part).smallest.value)
        assert getattr(loss_thresholds(coupled(smallest)), part) == pytest.approx(0.25, rel=1e-12)


def test_every_outcome_has_its_case():
    assert batch_size_advice(seen(eta=0.3)).dominant.outcome is BatchOutcome.LARGER
    assert batch_size_advice(seen(eta=0.01)).full.outcome is BatchOutcome.ALREADY
    assert batch_size_advice(seen(eta=0.51)).dominant.outcome is BatchOutcome.CURVATURE  # 2/λ = 0.5
    still = seen(gradient=(0.0, 1.0, 1.0))
    assert batch_size_advice(still).dominant.outcome is BatchOutcome.NO_DESCENT
    assert not batch_size_advice(still).dominant.smallest.resolved
    assert "no larger batch suffices" in batch_size_advice(still).dominant.verdict


def test_no_outcome_contradicts_the_loss_change_over_all_batches():
    """Brute force, with curvature and noise of either sign: along negative curvature noise lowers the loss."""
    generator, batch, seen_outcomes = np.random.default_rng(0), 16, set()
    sizes = np.concatenate([[batch], np.geomspace(batch, 1e8, 60)])
    for _ in range(300):
        eta = 10 ** generator.uniform(-2, 1)
        m0, m1, q1 = generator.uniform(0, 2), generator.uniform(-2, 4), generator.uniform(-3, 6)
        part = SubspaceMoments(CurvatureMoments(m0, m1, 1.0), CurvatureMoments(1.0, q1, 1.0))
        measurement = Measurement(step=0, step_size=eta, moments=SplitMoments(part, part), batch_size=batch)
        lowers = -eta * m0 + 0.5 * eta**2 * (m1 + q1 * batch / sizes) < 0
        outcome = batch_size_advice(measurement).dominant.outcome
        expected = "ALREADY" if lowers[0] else "LARGER" if lowers.any() else "CURVATURE"
        assert outcome.name == expected
        seen_outcomes.add((outcome.name, q1 < 0))
    assert len(seen_outcomes) == 5  # a larger batch never helps where noise does


def test_noise_that_is_not_there_needs_no_batch():
    advice = batch_size_advice(seen(variance=0.0))
    assert advice.dominant.outcome is BatchOutcome.ALREADY
    assert advice.dominant.smallest.value == 0.0
    assert "it takes 1 samples" in advice.dominant.verdict


def drawn(generator, n, eta, spread):
    """Replicated moments about known ones: m0 = 2, m1 = 4, q1 = 6 at b = 10 in both subspaces."""

    def part():
        m0, m1, q1 = (mean + spread * generator.normal(size=n) for mean in (2.0, 4.0, 6.0))
        return SubspaceMoments(CurvatureMoments(m0, m1, m1), CurvatureMoments(q1, q1, q1))

    return Measurement(step=0, step_size=eta, moments=SplitMoments(part(), part()), batch_size=10)


def test_intervals_cover_as_often_as_they_say():
    generator, eta, inside, resolved = np.random.default_rng(0), 0.5, 0, 0
    truth = 10 * 6.0 / (2 * 2.0 / eta - 4.0)
    for _ in range(600):
        found = batch_size_advice(drawn(generator, 8, eta, 0.8)).dominant.smallest
        resolved += found.resolved
        inside += found.resolved and found.low <= truth <= found.high
    assert resolved > 500
    assert abs(inside / resolved - 0.9) < 4 * np.sqrt(0.09 / resolved)


def test_what_is_lost_in_noise_is_unresolved():
    outcomes = {batch_size_advice(drawn(np.random.default_rng(seed), 4, 1.0, 3.0)).bulk.outcome for seed in range(40)}
    assert BatchOutcome.UNRESOLVED in outcomes
    lost = batch_size_advice(drawn(np.random.default_rng(1), 4, 1.0, 30.0)).bulk
    assert (lost.outcome, lost.smallest.resolved) == (BatchOutcome.UNRESOLVED, False)


def test_the_step_size_may_be_another_one():
    assert batch_size_advice(seen(eta=0.1), 0.2) == batch_size_advice(seen(eta=0.2))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"step_size": 0.0}, "step_size"), ({"step_size": float("nan")}, "step_size"), ({"fraction": 0.0}, "fraction"),
     ({"fraction": 1.5}, "fraction"), ({"level": 1.0}, "level")],
)  # fmt: skip
def test_bad_arguments_are_named(options, name):
    with pytest.raises(InvalidArgument, match=f"^{name}: got"):
        batch_size_advice(seen(), **options)


def test_a_laboratory_without_batches_is_refused():
    with pytest.raises(InvalidArgument, match=r"measurement\.batch_size: got None"):
        batch_size_advice(Measurement(step=0, step_size=0.1, moments=at(8)))
