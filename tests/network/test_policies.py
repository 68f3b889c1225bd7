"""The policies on exact-in-law runs of quadratics, whose truth is known: what fires, what must not, and how often."""

from dataclasses import replace

import numpy as np
import pytest

from etastar import CurvatureMoments, History, Measurement, SplitMoments, SubspaceMoments
from etastar.network.decisions import DecisionOutcome
from etastar.network.policies import equilibrated, forecast, settled_window
from etastar.quadratic import Noise, Quadratic, Spectrum

ETA, EVERY = 0.05, 20
VALUES = np.array([4.0, 3.0, 2.0, 0.5, 0.4, 0.3, 0.2, 0.1])
VARIANCE = 0.5


def runs(gradient, times, replicas, seed=0):
    """Histories of runs of plain SGD, measured without error: only the states fluctuate."""
    q = Quadratic(Spectrum(VALUES.tolist(), rank=3), Noise.isotropic(VARIANCE))
    paths = q.sample(
        gradient=gradient, step_size=ETA, times=times, replicas=replicas, seed=seed, keep_gradient=True
    ).gradient
    noise = [CurvatureMoments(*(np.sum(VARIANCE * VALUES[part] ** p) for p in range(3))) for part in PARTS]
    for path in np.asarray(paths):
        yield History([measured(int(t), g, noise) for t, g in zip(times, path, strict=True)])


PARTS = (slice(0, 3), slice(3, None))


def measured(step, gradient, noise):
    sides = [
        SubspaceMoments(CurvatureMoments(*(np.sum(gradient[part] ** 2 * VALUES[part] ** p) for p in range(3))), quiet)
        for part, quiet in zip(PARTS, noise, strict=True)
    ]
    recoverable = float(0.5 * np.sum(gradient[:3] ** 2 / VALUES[:3]))
    certificate = {"smallest_dominant_eigenvalue": 2.0}
    return Measurement(step, ETA, SplitMoments(*sides), 8, recoverable=recoverable, certificate=certificate)


def test_a_run_that_has_equilibrated_is_seen_to_have():
    """One look, at a window a hundred correlation times of the slowest bulk mode long."""
    times = list(range(2000, 22_000, 5 * EVERY))
    outcomes = [equilibrated(settled_window(h, 0)).outcome for h in runs([0.0] * 8, times, 30)]
    assert np.mean([outcome is DecisionOutcome.EQUILIBRATED for outcome in outcomes]) > 0.6


def first_decay(history, looks, policy=equilibrated):
    for look in looks:
        window = settled_window(History(list(history)[:look]), 0)
        if window is not None and policy(window).outcome.decays:
            return history[look - 1].step
    return None


def test_false_alarms_while_the_bulk_descends():
    """The dominant modes are stationary, the bulk is 30 times above its floor and falling; 40 runs, 12 looks each."""
    times = list(range(0, 1200, EVERY))
    start = [0.3] * 3 + [12.0, 12.0, 12.0, 12.0, 12.0]
    alarms = [first_decay(h, range(16, 61, 4)) for h in runs(start, times, 40)]
    truth = bulk_fraction(start, times[30:])
    assert truth < 0.4  # so that nothing is equilibrated
    assert sum(alarm is not None for alarm in alarms) == 0


def bulk_fraction(start, times):
    """η/η_B of the expected moments over these times, in closed form (theory §4)."""
    rho = (1 - ETA * VALUES[3:]) ** 2
    t = np.array(times)[:, None]
    energy = rho**t * np.array(start[3:]) ** 2 + (ETA * VALUES[3:]) ** 2 * VARIANCE * (1 - rho**t) / (1 - rho)
    bend = np.sum(energy * VALUES[3:], 1) + np.sum(VARIANCE * VALUES[3:])
    return 0.5 * ETA * bend.mean() / energy.sum(1).mean()


def test_false_alarms_while_the_dominant_modes_descend():
    times = list(range(30))
    start = [60.0, 60.0, 60.0, 0.2, 0.2, 0.2, 0.2, 0.2]
    alarms = [first_decay(h, range(16, 31, 2)) for h in runs(start, times, 30)]
    assert sum(alarm is not None for alarm in alarms) == 0


def test_a_decay_comes_soon_after_the_bulk_has_come_down():
    """Its slowest mode takes 1/(ηλ) = 200 steps for a factor e; then the run is watched at every look."""
    times = list(range(0, 8000, EVERY))
    start = [0.3] * 3 + [3.0] * 5
    fired = [first_decay(h, range(16, 401, 24)) for h in runs(start, times, 10)]
    steps = [step for step in fired if step is not None]
    assert len(steps) >= 8
    # while a tenth or more of the bulk's descent is left, none: the mean signal is down to its floor by then
    assert min(steps) > 400


def test_the_forecast_weighs_what_comes_back_against_the_descent():
    """At a stationary state there is no descent: every horizon is outweighed. Far from it, a long one is not."""
    stationary = list(range(2000, 6000, EVERY))
    outcomes = [forecast(settled_window(h, 0), 100).outcome for h in runs([0.0] * 8, stationary, 30)]
    assert sum(outcome is DecisionOutcome.BRINGS_MORE for outcome in outcomes) <= 1
    descending = list(range(0, 1200, EVERY))
    start = [0.3] * 3 + [12.0] * 5
    outcomes = [forecast(settled_window(h, 0), 1000).outcome for h in runs(start, descending, 30)]
    assert not any(outcome.decays for outcome in outcomes)
    assert any(outcome is DecisionOutcome.BRINGS_MORE for outcome in outcomes)


def test_the_forecast_fires_when_little_is_left():
    times = list(range(4000, 12000, EVERY))
    outcomes = [forecast(settled_window(h, 0), 5).outcome for h in runs([0.0] * 8, times, 15)]
    assert sum(outcome is DecisionOutcome.GIVES_BACK for outcome in outcomes) >= 10


def test_the_numbers_of_the_evidence_are_those_of_the_window():
    history = next(runs([1.0] * 8, list(range(0, 800, EVERY)), 1))
    window = settled_window(history, 0)
    assert [row.step for row in window] == [row.step for row in history][20:]
    found = equilibrated(window).evidence
    for part, values in zip(("dominant", "bulk"), PARTS, strict=True):
        m0 = np.mean([getattr(row.moments, part).signal.zeroth for row in window])
        m1 = np.mean([getattr(row.moments, part).signal.first for row in window])
        expected = 0.5 * ETA * (m1 + np.sum(VARIANCE * VALUES[values])) / m0
        assert found[f"{part} η/η_S"].value == pytest.approx(expected, rel=1e-12)
    brings = forecast(window, 7).evidence
    m0 = np.mean([row.moments.bulk.signal.zeroth for row in window])
    m1 = np.mean([row.moments.bulk.signal.first for row in window])
    change = -ETA * m0 + 0.5 * ETA**2 * (m1 + np.sum(VARIANCE * VALUES[3:]))
    assert brings["bulk descent in 7 steps"].value == pytest.approx(-7 * change, rel=1e-12)
    assert brings["recoverable loss"].value == pytest.approx(np.mean([row.recoverable for row in window]))


def test_a_window_waits_for_the_dominant_energy_to_forget():
    """Sixteen measurements at every step last no ten correlation times 1/(2ηλ_k) = 5."""
    history = next(runs([1.0] * 8, list(range(200)), 1))
    assert settled_window(History(list(history)[:16]), 0) is None
    assert settled_window(History(list(history)[:99]), 0) is None
    assert settled_window(History(list(history)[:106]), 0) is not None
    assert settled_window(history, 195) is None  # since the last decay


@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_a_window_goes_back_to_the_last_change_of_the_step_size(factor):
    """Another scheduler's: what has equilibrated at the step size before says nothing about the one after."""
    rows = list(next(runs([1.0] * 8, list(range(0, 2000, EVERY)), 1)))
    changed = [replace(row, step_size=ETA * factor) if row.step >= 1200 else row for row in rows]
    window = settled_window(History(changed), 0)
    assert window is None or window[0].step >= 1600
    assert (window is None) == (factor == 0.1)  # 10/(2ηλ_k) is 1,000 steps
    assert settled_window(History(changed[:61]), 0) is None
    drifting = [replace(row, step_size=ETA * (1 - row.step / 8000)) for row in rows]
    assert [row.step for row in settled_window(History(drifting), 0)] == [row.step for row in rows][50:]
    assert settled_window(History([*rows, replace(rows[-1], step_size=0.0)]), 0) is None


def test_moments_that_are_not_finite_leave_it_open():
    history = next(runs([1.0] * 8, list(range(0, 800, EVERY)), 1))
    rows = list(history)
    broken = rows[-1].moments.map(lambda moments: moments * np.nan)
    rows[-1] = Measurement(rows[-1].step, ETA, broken, 8)
    assert equilibrated(settled_window(History(rows), 0)).outcome is DecisionOutcome.UNRESOLVED
    assert forecast(settled_window(History(rows), 0), 10).outcome is DecisionOutcome.UNRESOLVED
