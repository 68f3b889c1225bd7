"""A quadratic with noise: the laboratory's front door. The methods here only validate and delegate.

``curve`` and ``stationary`` have the closed forms, ``phases`` the turns of the curve, ``sample`` the law of a run
at recorded times, ``step`` stepping for schedules that depend on the state; each is written once for all optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic.curve import Curve, expected
from etastar.quadratic.minibatch import curve as minibatch_curve
from etastar.quadratic.minibatch import one_step as minibatch_step
from etastar.quadratic.minibatch import runs as minibatch_runs
from etastar.quadratic.minibatch import sharpness as minibatch_sharpness
from etastar.quadratic.minibatch import stability as minibatch_stability
from etastar.quadratic.minibatch.noise import MinibatchNoise
from etastar.quadratic.minibatch.stability import Stability
from etastar.quadratic.modes import Modes, State, finite_rows, read_state
from etastar.quadratic.noise import Noise
from etastar.quadratic.optimizers.one_step import AVERAGED, one_step
from etastar.quadratic.optimizers.precondition import Transformed, euclidean_moments, transform
from etastar.quadratic.optimizers.rules import SGD, Optimizer, Preconditioned, Update, update_of
from etastar.quadratic.paths import Paths
from etastar.quadratic.phases import Phases, find_phases
from etastar.quadratic.sample import sample
from etastar.quadratic.spectrum import Spectrum
from etastar.quadratic.stationary import stationary
from etastar.quadratic.step import simulate
from etastar.quadratic.stepping import StepSize

__all__ = ["Quadratic"]

Array = npt.NDArray[np.float64]
_PLAIN = SGD()


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """L(x) = ½ xᵀHx with gradient noise, additive or of mini-batches; everything in the eigenbasis of H.

    States are given as ``gradient=`` (g = Hx, never x), shape ``(*batch, d)``, or as ``energy=``, ‖g‖² per block
    of equal eigenvalues, shape ``(*batch, blocks)``, so that a dimension of 10⁹ can be entered.

    ``optimizer=`` says what runs: SGD() unless given, HeavyBall(β), Nesterov(β), Averaged(ω, inner), or
    Preconditioned(M, inner), of which everything is reported in the preconditioner's inner product.

    Raises:
        InvalidArgument: Not a Spectrum and a Noise, or a noise whose dimension is not that of the spectrum.

    Example:
        >>> q = Quadratic(Spectrum.two_level(10**9, 10, dominant=100.0, bulk=1.0), Noise.isotropic(1e-9))
        >>> curve = q.expected(energy=[1.0, 9.0], step_size=0.01, times=[0, 10, 1000])
        >>> curve.alignment.round(4).tolist()
        [0.1, 0.0, 0.0]
    """

    spectrum: Spectrum
    noise: Noise | MinibatchNoise
    modes: Modes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.spectrum, Spectrum):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument("spectrum", self.spectrum, "must be a Spectrum")
        if isinstance(self.noise, MinibatchNoise):
            self.noise.check(self.spectrum.eigenvalues)
            modes = minibatch_step.blocks_of(self.spectrum)
        elif isinstance(self.noise, Noise):  # pyright: ignore[reportUnnecessaryIsInstance]
            modes = Modes.resolve(self.spectrum, self.noise)
        else:
            raise InvalidArgument("noise", self.noise, "must be a Noise")
        object.__setattr__(self, "modes", modes)

    def gradient_at(self, x: Any) -> Array:
        """Gradient Hx at parameters x in the eigenbasis, relative to the minimum; shape ``(*batch, d)``."""
        parameters = finite_rows("x", x, self.spectrum.dimension)
        with np.errstate(over="ignore"):
            return parameters * np.repeat(self.spectrum.eigenvalues, self.spectrum.multiplicities)

    def moments(
        self,
        gradient: Any = None,
        *,
        energy: Any = None,
        momentum: Any = None,
        optimizer: Optimizer = _PLAIN,
        euclidean: bool = False,
    ) -> SplitMoments:
        """The moments of one step from a state, batch shape ``(*batch)``.

        Args:
            gradient: g, ``(*batch, d)``; or `energy`, ``(*batch, blocks)``.
            energy: See `gradient`.
            momentum: The buffer m before the step, ``(*batch, d)``; empty unless given.
            optimizer: What takes the step; where its direction is not g the record has `descent` (theory §7).
            euclidean: Of a preconditioned step, as it is in x instead of the preconditioner's inner product.

        Raises:
            InvalidArgument: A bad state, an averaged iterate, or `euclidean` without a preconditioner.
        """
        update = update_of(optimizer)
        if isinstance(self.noise, MinibatchNoise) and not isinstance(optimizer, Preconditioned) and not euclidean:
            return minibatch_step.moments(self.spectrum, self.noise, gradient, energy, momentum, update)
        self._check(optimizer)
        if isinstance(optimizer, Preconditioned):
            if update.averaging is not None:
                raise InvalidArgument("optimizer", optimizer, AVERAGED)
            if euclidean:
                return euclidean_moments(optimizer, self, gradient, momentum)
            view = self._transformed(optimizer, gradient)
            buffer = None if momentum is None else view.gradient(momentum)
            problem = view.problem
            return one_step(problem.spectrum, problem.modes, update, view.gradient(gradient), None, buffer)
        if euclidean:
            raise InvalidArgument("euclidean", euclidean, "only with optimizer=Preconditioned(M, …)")
        return one_step(self.spectrum, self.modes, update, gradient, energy, momentum)

    def expected(
        self,
        gradient: Any = None,
        *,
        energy: Any = None,
        step_size: float,
        times: Any,
        optimizer: Optimizer = _PLAIN,
    ) -> Curve:
        """The exact expected curve at a constant step size and any times, without stepping (theory §4, §7).

        Raises:
            UnstableStep: With momentum, a stable step that float64 cannot tell from an unstable one.
        """
        run = self._run(optimizer, gradient, energy)
        if isinstance(self.noise, MinibatchNoise):
            return minibatch_curve.expected(self.modes, self.noise, run.state, step_size, times, run.update)
        return expected(run.problem.modes, run.state, step_size, times, run.update)

    def stationary(self, step_size: Any, *, optimizer: Optimizer = _PLAIN) -> SplitMoments:
        """Moments of the stationary state, at one step size or an array of them (T16, theory §7).

        Raises:
            UnstableStep: No stationary state: a step outside the optimizer's stable range, or a negative eigenvalue.
        """
        self._check(optimizer)
        if isinstance(self.noise, MinibatchNoise):
            return minibatch_stability.stationary(self.modes, self.noise, step_size, update_of(optimizer))
        problem = transform(optimizer, self).problem if isinstance(optimizer, Preconditioned) else self
        return stationary(problem.modes, step_size, update_of(optimizer))

    def phases(
        self, gradient: Any = None, *, energy: Any = None, step_size: float, optimizer: Optimizer = _PLAIN
    ) -> Phases:
        """Turning times of the expected alignment, the paper's t*, bounds, and the shape in words (T15, T16).

        With other optimizers than SGD turns are searched for: nothing is proved of them.
        """
        run = self._run(optimizer, gradient, energy)
        noise_max = run.problem.additive("phases").extremes()[1]
        return find_phases(run.problem.modes, run.state, step_size, noise_max, run.update)

    def sample(
        self,
        gradient: Any = None,
        *,
        energy: Any = None,
        step_size: float,
        times: Any,
        replicas: int = 1,
        seed: int = 0,
        keep_gradient: bool = False,
        optimizer: Optimizer = _PLAIN,
    ) -> Paths:
        """Independent runs with Gaussian noise, exact in law at the recorded times, without the steps between.

        Args:
            gradient: Start, ``(*batch, d)``; or `energy`, ``(*batch, blocks)``.
            energy: See `gradient`.
            step_size: η > 0.
            times: Strictly increasing whole numbers ≥ 0.
            replicas: Runs per start.
            seed: Seed of the random streams; results do not depend on the number of cores.
            keep_gradient: Also return the gradients, mode by mode.
            optimizer: What steps, from an empty buffer.
        """
        run = self._run(optimizer, gradient, energy)
        spectrum, noise, modes = run.problem.spectrum, run.problem.additive("sample"), run.problem.modes
        return sample(spectrum, noise, modes, run.state, step_size, times, replicas, seed, keep_gradient, run.update)

    def simulate(
        self,
        gradient: Any = None,
        *,
        energy: Any = None,
        step_size: StepSize,
        steps: int,
        record: Any = None,
        projection: Literal["dominant", "bulk"] | None = None,
        replicas: int = 1,
        seed: int = 0,
        keep_gradient: bool = False,
        optimizer: Optimizer = _PLAIN,
    ) -> Paths:
        """Step by step, for step sizes that depend on the state and for projected updates (paper eq. 3, 4).

        Args:
            gradient: Start, ``(*batch, d)``; or `energy`, ``(*batch, blocks)``.
            energy: See `gradient`.
            step_size: A number, or a function of the state (``step``, ``split``, ``alignment``,
                ``critical_step_size``, …) that returns step sizes of shape ``()`` or ``(replicas, *batch)``.
            steps: Steps to take.
            record: Times to record, 0 … steps; every step unless given.
            projection: "dominant" (DSGD) or "bulk" (BSGD) updates only that subspace; a buffer fills in both.
            replicas: Runs per start.
            seed: Seed of the random streams.
            keep_gradient: Also return the gradients, mode by mode.
            optimizer: What steps, from an empty buffer.
        """
        run = self._run(optimizer, gradient, energy)
        arguments = (run.state, step_size, steps, record, projection, replicas, seed, keep_gradient, run.update)
        if isinstance(self.noise, MinibatchNoise):
            return minibatch_runs.simulate(self.modes, self.noise, *arguments)
        problem = run.problem
        return simulate(problem.spectrum, problem.additive("simulate"), problem.modes, *arguments)

    def stability(self, step_size: Any, *, optimizer: Optimizer = _PLAIN) -> Stability:
        """Mean-square stability at step sizes ``(*batch)`` under mini-batch noise, with the largest stable step."""
        self._check(optimizer)
        return minibatch_stability.stability(self.modes, self.minibatch("stability"), step_size, update_of(optimizer))

    def batch_sharpness(self, gradient: Any = None, *, energy: Any = None) -> Any:
        """E⟨g_B, H_B g_B⟩/E‖g_B‖² of a mini-batch at states, ``(*batch)``, [loss/parameter²] (arXiv 2412.20553)."""
        state = read_state(self.spectrum, gradient, energy)
        return minibatch_sharpness.batch_sharpness(self.modes, self.minibatch("batch_sharpness"), state)

    def additive(self, what: str) -> Noise:
        """The noise, where it does not depend on the state; InvalidArgument naming `what` was asked otherwise."""
        if isinstance(self.noise, MinibatchNoise):
            raise InvalidArgument("noise", self.noise, f"{what} needs additive noise; expected() and simulate() do not")
        return self.noise

    def minibatch(self, what: str) -> MinibatchNoise:
        """The noise, where it is that of mini-batches; InvalidArgument naming `what` was asked otherwise."""
        if not isinstance(self.noise, MinibatchNoise):
            raise InvalidArgument("noise", self.noise, f"{what} needs Noise.minibatch_least_squares(…)")
        return self.noise

    def _check(self, optimizer: Optimizer) -> None:
        if isinstance(self.noise, MinibatchNoise) and isinstance(optimizer, Preconditioned):
            remedy = "precondition the rows instead: the spectrum of M^−½HM^−½ with the same noise"
            raise InvalidArgument("optimizer", "Preconditioned", remedy)

    def _run(self, optimizer: Optimizer, gradient: Any, energy: Any) -> _Run:
        self._check(optimizer)
        update = update_of(optimizer)
        if isinstance(optimizer, Preconditioned):
            view = self._transformed(optimizer, gradient)
            return _Run(view.problem, read_state(view.problem.spectrum, view.gradient(gradient), None), update)
        return _Run(self, read_state(self.spectrum, gradient, energy), update)

    def _transformed(self, optimizer: Preconditioned, gradient: Any) -> Transformed:
        if gradient is None:
            raise InvalidArgument("gradient", None, "a preconditioner needs gradient=, mode by mode")
        return transform(optimizer, self)


@dataclass(frozen=True, slots=True)
class _Run:
    """A problem, a state on it, and the update that runs from there."""

    problem: Quadratic
    state: State
    update: Update
