"""Every optimizer on whatever float64 can hold: results, or one refusal in one line; never a warning."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import etastar
from etastar.quadratic import Averaged, HeavyBall, Nesterov, Noise, Preconditioned, Quadratic, Spectrum
from quadratic.test_hostile import ANY, MODES, SIZES, attempt

SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 1 - 1e-9, 1 - 2**-53, 5e-324, 1.0, -1.0, np.nan]))


@given(
    st.lists(ANY, min_size=MODES, max_size=MODES),
    st.integers(1, 2),
    st.lists(SIZES, min_size=MODES, max_size=MODES),
    st.sampled_from(["isotropic", "diagonal", "covariance"]),
    st.lists(ANY, min_size=MODES, max_size=MODES),
    SIZES,
    st.lists(st.integers(0, 10**16), min_size=1, max_size=4, unique=True),
    SHARES,
    st.lists(SIZES, min_size=MODES, max_size=MODES),
)
def test_no_optimizer_warns_or_breaks(eigenvalues, rank, variances, kind, gradient, eta, times, share, M):
    spectrum = attempt(Spectrum, sorted(eigenvalues, reverse=True), rank=rank)
    with np.errstate(all="ignore"):
        matrix = np.diag(variances) + 0.3 * np.sqrt(np.outer(variances, variances)) * (1 - np.eye(MODES))
    noise = attempt(
        getattr(Noise, kind), {"isotropic": variances[0], "diagonal": variances, "covariance": matrix}[kind]
    )
    if spectrum is None or noise is None:
        return
    q, times = Quadratic(spectrum, noise), sorted(times)
    inner = [attempt(HeavyBall, share), attempt(Nesterov, share), attempt(Averaged, share)]
    if inner[0] is not None:
        inner += [attempt(Averaged, 0.5, inner[0]), attempt(Preconditioned, M, inner[1])]
    for optimizer in filter(None, inner):
        attempt(q.stationary, eta, optimizer=optimizer)
        split = attempt(q.moments, gradient=gradient, optimizer=optimizer)
        if split is not None:
            for function in (etastar.alignment, etastar.critical_step_size, etastar.loss_thresholds):
                function(split)
        attempt(q.moments, gradient=gradient, momentum=gradient[::-1], optimizer=optimizer)
        attempt(q.moments, gradient=gradient, optimizer=optimizer, euclidean=True)
        run = {"gradient": gradient, "step_size": eta, "optimizer": optimizer}
        curve = attempt(q.expected, **run, times=times)
        if curve is not None:
            assert not np.any((curve.alignment < 0) | (curve.alignment > 1))
            assert curve.critical_step_size.value.shape == curve.loss_thresholds.full.shape
        phases = attempt(q.phases, **run)
        assert phases is None or "\n" not in phases.shape
        attempt(q.sample, **run, times=times, replicas=3, keep_gradient=True)
        attempt(q.simulate, **run, steps=4, replicas=3)
        attempt(q.simulate, gradient, step_size=lambda s: s.critical_step_size.value, steps=2, optimizer=optimizer)
