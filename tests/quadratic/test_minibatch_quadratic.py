"""Mini-batch noise through the laboratory's front door: each method delegates, and what is not available says so."""

import numpy as np
import pytest

import etastar
from etastar import InvalidArgument
from etastar.quadratic import Averaged, HeavyBall, Noise, Preconditioned, Quadratic, Spectrum
from etastar.quadratic.minibatch.noise import MinibatchNoise

SPECTRUM = Spectrum([4.0, 1.0, 0.3], rank=1, multiplicities=[1, 1, 2])
NOISE = Noise.minibatch_least_squares(batch_size=4, label_variance=0.2)
START = [1.0, 2.0, 0.1, 0.1]


def test_every_method_that_is_available():
    q = Quadratic(SPECTRUM, NOISE)
    assert isinstance(q.noise, MinibatchNoise)
    curve = q.expected(gradient=START, step_size=0.05, times=[0, 1, 10**6])
    split = q.moments(gradient=START)
    assert curve.alignment[1] == pytest.approx(etastar.alignment_after(split, 0.05), rel=1e-12)
    assert curve.alignment[2] == pytest.approx(etastar.alignment(q.stationary(0.05)), rel=1e-10)
    assert etastar.critical_step_size(q.stationary(0.05)).value == pytest.approx(0.05, rel=1e-10)
    heavy = HeavyBall(0.5)
    last = q.expected(gradient=START, step_size=0.05, times=[10**6], optimizer=heavy).alignment[0]
    assert last == pytest.approx(etastar.alignment(q.stationary(0.05, optimizer=heavy)), rel=1e-9)
    assert q.stability(0.05, optimizer=heavy).stable
    assert q.stability(0.05).largest_step > 0.05
    assert q.batch_sharpness(gradient=[START, START]).shape == (2,)
    paths = q.simulate(gradient=START, step_size=0.05, steps=5, replicas=3, optimizer=heavy)
    assert paths.alignment.shape == (3, 6)
    buffered = q.moments(gradient=START, momentum=START, optimizer=heavy)
    assert buffered.dominant.descent.slope == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda q: q.sample(gradient=START, step_size=0.05, times=[1]),
            r"^noise: got Mini.*; sample needs additive noise",
        ),
        (lambda q: q.phases(gradient=START, step_size=0.05), r"^noise: got Mini.*; phases needs additive noise"),
        (
            lambda q: q.expected(gradient=START, step_size=0.05, times=[1], optimizer=Averaged(0.5)),
            r"^optimizer: got 'Averaged'; mini-batch noise runs under",
        ),
        (
            lambda q: q.stationary(0.05, optimizer=Preconditioned(np.ones(4))),
            r"^optimizer: got 'Preconditioned'; precondition the rows",
        ),
        (lambda q: q.moments(gradient=START, euclidean=True), r"^euclidean: got True"),
        (lambda _: Quadratic(SPECTRUM, Noise.isotropic(1.0)).stability(0.1), r"; stability needs Noise.minibatch"),
        (lambda _: Quadratic(Spectrum([1.0, -1.0], rank=1), NOISE), r"^eigenvalues: got -1.0; H is the covariance"),
    ],
)
def test_what_is_not_available_says_so(ask, message):
    with pytest.raises(InvalidArgument, match=message):
        ask(Quadratic(SPECTRUM, NOISE))
