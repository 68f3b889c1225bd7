"""The expectation of a ratio of Gaussian energies by mpmath's own quadrature, on the integral over s itself."""

import mpmath
from mpmath import mpf


def expected_share(mean, spread, counts, cut):
    """E[Σ_D z²/Σ z²] for independent z with squared means `mean` (summed over a block) and variances `spread`."""
    mean, spread = [mpf(float(m)) for m in mean], [mpf(float(v)) for v in spread]
    counts = [int(c) for c in counts]
    whole = mpmath.fsum(m + c * v for m, v, c in zip(mean, spread, counts, strict=True))
    mean, spread = [m / whole for m in mean], [v / whole for v in spread]

    def integrand(s):
        density, share = mpf(1), mpf(0)
        for block, (m, v, count) in enumerate(zip(mean, spread, counts, strict=True)):
            w = 1 + 2 * s * v
            density *= w ** (-mpf(count) / 2) * mpmath.exp(-s * m / w)
            if block < cut:
                share += count * v / w + m / w**2
        return density * share

    pieces = [0, *(mpf(10) ** p for p in range(-3, 7, 1)), mpf(10) ** 9, mpf(10) ** 14, mpmath.inf]
    return mpmath.quad(integrand, pieces)
