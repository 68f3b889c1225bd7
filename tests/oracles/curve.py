"""The expected run of SGD mode by mode in mpmath: E_t = ρ^t·E_0 + s²·(1 + ρ + … + ρ^(t−1)), any step, any time.

Digits grow with the time, since ρ^t loses as many as t has.
"""

from dataclasses import dataclass

import mpmath
import numpy as np
from mpmath import mpf

DIGITS = 80


@dataclass(frozen=True)
class Problem:
    """Blocks as float64 numbers: what the library is given, taken exactly."""

    eigenvalues: np.ndarray
    counts: np.ndarray
    rank: int
    variances: np.ndarray  # per mode, one for each block

    @property
    def cut(self):
        return int(np.searchsorted(np.cumsum(self.counts), self.rank)) + 1

    def energies(self, start, eta, time):
        """Expected gradient energy of every block after `time` steps."""
        result = []
        for lam, count, variance, energy in zip(self.eigenvalues, self.counts, self.variances, start, strict=True):
            alpha = mpf(float(eta)) * mpf(float(lam))
            rho, added = (1 - alpha) ** 2, alpha**2 * mpf(float(variance)) * int(count)
            power = rho ** int(time)
            geometric = mpf(int(time)) if rho == 1 else (1 - power) / (1 - rho)
            result.append(power * mpf(float(energy)) + added * geometric)
        return result

    def moments(self, energies):
        """Per subspace (m0, m1, m2, loss) of block energies."""
        found = []
        for part in (slice(None, self.cut), slice(self.cut, None)):
            pairs = [(mpf(float(lam)), e) for lam, e in zip(self.eigenvalues[part], energies[part], strict=True)]
            loss = mpmath.fsum(e / (2 * lam) for lam, e in pairs if lam != 0)
            found.append((*(mpmath.fsum(lam**p * e for lam, e in pairs) for p in range(3)), loss))
        return found

    def alignment(self, start, eta, time):
        (dominant, *_), (bulk, *_) = self.moments(self.energies(start, eta, time))
        return dominant / (dominant + bulk) if dominant + bulk != 0 else mpf("nan")

    def floors(self, eta):
        alphas = [mpf(float(eta)) * mpf(float(lam)) for lam in self.eigenvalues]
        return [
            alpha * mpf(float(v)) * int(c) / (2 - alpha)
            for alpha, v, c in zip(alphas, self.variances, self.counts, strict=True)
        ]
