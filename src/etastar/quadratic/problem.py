"""A quadratic with noise: the laboratory's front door. The methods here only validate and delegate.

``exact`` has the closed forms, ``phases`` the turns of the curve, ``sample`` the law of a run at recorded
times, ``step`` stepping for schedules that depend on the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument
from etastar.moments import SplitMoments
from etastar.quadratic import exact
from etastar.quadratic.exact import Curve
from etastar.quadratic.modes import Modes, finite_rows, read_state
from etastar.quadratic.noise import Noise
from etastar.quadratic.paths import Paths
from etastar.quadratic.phases import Phases, find_phases
from etastar.quadratic.sample import sample
from etastar.quadratic.spectrum import Spectrum
from etastar.quadratic.step import StepSize, simulate

__all__ = ["Quadratic"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """L(x) = ½ xᵀHx with additive gradient noise; everything in the eigenbasis of H.

    States are given as ``gradient=`` (g = Hx, never x), shape ``(*batch, d)``, or as ``energy=``, ‖g‖² per block
    of equal eigenvalues, shape ``(*batch, blocks)``, so that a dimension of 10⁹ can be entered.

    Raises:
        InvalidArgument: Not a Spectrum and a Noise, or a noise whose dimension is not that of the spectrum.

    Example:
        >>> q = Quadratic(Spectrum.two_level(10**9, 10, dominant=100.0, bulk=1.0), Noise.isotropic(1e-9))
        >>> curve = q.expected(energy=[1.0, 9.0], step_size=0.01, times=[0, 10, 1000])
        >>> curve.alignment.round(4).tolist()
        [0.1, 0.0, 0.0]
    """

    spectrum: Spectrum
    noise: Noise
    modes: Modes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, kind in (("spectrum", self.spectrum, Spectrum), ("noise", self.noise, Noise)):
            if not isinstance(value, kind):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(name, value, f"must be a {kind.__name__}")
        object.__setattr__(self, "modes", Modes.resolve(self.spectrum, self.noise))

    def gradient_at(self, x: Any) -> Array:
        """Gradient Hx at parameters x in the eigenbasis, relative to the minimum; shape ``(*batch, d)``."""
        parameters = finite_rows("x", x, self.spectrum.dimension)
        with np.errstate(over="ignore"):
            return parameters * np.repeat(self.spectrum.eigenvalues, self.spectrum.multiplicities)

    def moments(self, gradient: Any = None, *, energy: Any = None) -> SplitMoments:
        """The moments of one step from a state, batch shape ``(*batch)``."""
        return self.modes.split_moments(read_state(self.spectrum, gradient, energy).energy)

    def expected(self, gradient: Any = None, *, energy: Any = None, step_size: float, times: Any) -> Curve:
        """The exact expected curve at a constant step size and any times, without stepping (theory §4)."""
        return exact.expected(self.modes, read_state(self.spectrum, gradient, energy), step_size, times)

    def stationary(self, step_size: Any) -> SplitMoments:
        """Moments of the stationary state, at one step size or an array of them (T16).

        Raises:
            UnstableStep: No stationary state: a step outside (0, 2/λ₁), or a negative eigenvalue.
        """
        return exact.stationary(self.modes, step_size)

    def phases(self, gradient: Any = None, *, energy: Any = None, step_size: float) -> Phases:
        """Turning times of the expected alignment, the paper's t*, bounds, and the shape in words (T15, T16)."""
        state = read_state(self.spectrum, gradient, energy)
        return find_phases(self.modes, state, step_size, self.noise.extremes()[1])

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
        """
        state = read_state(self.spectrum, gradient, energy)
        return sample(self.spectrum, self.noise, self.modes, state, step_size, times, replicas, seed, keep_gradient)

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
    ) -> Paths:
        """Step by step, for step sizes that depend on the state and for projected updates (paper eq. 3, 4).

        Args:
            gradient: Start, ``(*batch, d)``; or `energy`, ``(*batch, blocks)``.
            energy: See `gradient`.
            step_size: A number, or a function of the state (``step``, ``split``, ``alignment``,
                ``critical_step_size``, …) that returns step sizes of shape ``()`` or ``(replicas, *batch)``.
            steps: Steps to take.
            record: Times to record, 0 … steps; every step unless given.
            projection: "dominant" (DSGD) or "bulk" (BSGD) updates only that subspace.
            replicas: Runs per start.
            seed: Seed of the random streams.
            keep_gradient: Also return the gradients, mode by mode.
        """
        state = read_state(self.spectrum, gradient, energy)
        return simulate(
            self.spectrum,
            self.noise,
            self.modes,
            state,
            step_size,
            steps,
            record,
            projection,
            replicas,
            seed,
            keep_gradient,
        )
