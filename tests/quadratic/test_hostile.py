"""Whatever float64 can hold: results, or one InvalidArgument or UnstableStep; never a warning or another exception."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import etastar
from etastar import EtastarError
from etastar.quadratic import (
    Noise,
    Quadratic,
    Spectrum,
    corrected_critical_step,
    expected_alignment_after,
    expected_alignment_stationary,
    guaranteed_ratio,
    paper_bounds,
    ratio_bound,
)

ANY = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10),
    st.sampled_from([0.0, 1.0, 2.0, 5e-324, 1e-310, 1e-160, 1e-155, 1e155, 1e160, 1.7e308, -1e308, np.nan, np.inf]),
)
SIZES = st.one_of(ANY, st.floats(1e-3, 10), st.sampled_from([0.25, 0.5, 1.0, 2.0])).map(abs)
MODES = 3


def attempt(function, *arguments, **keywords):
    """The result, or None where it was refused in one line."""
    try:
        return function(*arguments, **keywords)
    except EtastarError as refusal:
        line = str(refusal)
    assert "\n" not in line
    assert ": got " in line or "needs" in line
    return None


@given(
    st.lists(ANY, min_size=MODES, max_size=MODES),
    st.integers(1, 2),
    st.lists(SIZES, min_size=MODES, max_size=MODES),
    st.sampled_from(["isotropic", "diagonal", "covariance"]),
    st.lists(ANY, min_size=MODES, max_size=MODES),
    SIZES,
    st.lists(st.integers(0, 10**16), min_size=1, max_size=4, unique=True),
)
def test_the_laboratory_never_warns_and_never_breaks(eigenvalues, rank, variances, kind, gradient, eta, times):
    order = sorted(eigenvalues, reverse=True)
    spectrum = attempt(Spectrum, order, rank=rank)
    with np.errstate(all="ignore"):
        matrix = np.diag(variances) + 0.3 * np.sqrt(np.outer(variances, variances)) * (1 - np.eye(MODES))
    given_noise = {"isotropic": variances[0], "diagonal": variances, "covariance": matrix}[kind]
    noise = attempt(getattr(Noise, kind), given_noise)
    if spectrum is None or noise is None:
        return
    q, times = Quadratic(spectrum, noise), sorted(times)
    attempt(q.gradient_at, gradient)
    attempt(q.stationary, eta)
    attempt(expected_alignment_stationary, q, eta)
    split = attempt(q.moments, gradient=gradient)
    if split is None:
        return
    for function in (etastar.alignment, etastar.chi, etastar.critical_step_size, etastar.loss_thresholds):
        function(split)
    for function in (etastar.regime_border, etastar.loss_border):
        assert not np.isinf(function(split))
    for function in (etastar.alignment_after, etastar.alignment_change, etastar.loss_change):
        attempt(function, split, eta)
    attempt(etastar.step_budget, split, eta, 8)
    attempt(paper_bounds, q, gradient=gradient)
    attempt(corrected_critical_step, q, gradient=gradient)
    attempt(ratio_bound, q, gradient=gradient, step_size=eta)
    attempt(guaranteed_ratio, 3, rank, variances[0], *np.abs(gradient[:2]))
    mean = attempt(expected_alignment_after, q, gradient=gradient, step_size=eta)
    assert mean is None or np.isnan(mean) or -1e-9 <= mean <= 1 + 1e-9
    curve = attempt(q.expected, gradient=gradient, step_size=eta, times=times)
    if curve is not None:
        assert not np.any((curve.alignment < 0) | (curve.alignment > 1))
        assert curve.critical_step_size.value.shape == curve.loss_thresholds.full.shape
    phases = attempt(q.phases, gradient=gradient, step_size=eta)
    assert phases is None or "\n" not in phases.shape
    attempt(q.sample, gradient=gradient, step_size=eta, times=times, replicas=3, keep_gradient=True)
    attempt(q.simulate, gradient=gradient, step_size=eta, steps=4, replicas=3)
    attempt(q.simulate, gradient=gradient, step_size=lambda state: state.critical_step_size.value, steps=2)


@given(
    st.lists(st.one_of(ANY, st.sampled_from([np.nan, np.inf, -np.inf])), min_size=16, max_size=16), SIZES, st.booleans()
)
def test_criteria_never_warn_and_never_break(numbers, eta, directed):
    numbers = np.array(numbers)

    def part(values):
        moments = [etastar.CurvatureMoments(*values[:3]), etastar.CurvatureMoments(*values[3:6])]
        return etastar.SubspaceMoments(*moments, etastar.Descent(*values[6:8]) if directed else None)

    coupling = etastar.Coupling(numbers[7], numbers[15])
    split = etastar.SplitMoments(part(numbers[:8]), part(numbers[8:]), coupling)
    step, bounds = etastar.critical_step_size(split), etastar.loss_thresholds(split)
    has_value = step.regime in (etastar.Regime.LOW, etastar.Regime.REVERSED)
    assert np.isnan(step.value) != has_value
    assert np.isnan(step.value) or 0 < step.value < np.inf
    assert not any(np.isinf(x) or x < 0 for x in (bounds.dominant, bounds.bulk, bounds.full))
    assert not np.isinf(etastar.alignment(split)) or abs(float(numbers[0]) + float(numbers[8])) < 1e-290
    for function in (etastar.alignment_after, etastar.alignment_change, etastar.loss_change):
        attempt(function, split, eta)
    attempt(etastar.step_budget, split, eta, 8)
    split[()]
    split.map(lambda array: array[None]).mean()
