"""Random instances over many scales, and adversarial corners: the raw material of the search.

Every number drawn is a float64, hence a rational that `fractions` takes over exactly. Scales are powers of two, most
numbers carry few bits (cheap fractions), and noise variances are squares (so that a two-point law has rational values).
Corners: λ_k ≈ λ_{k+1}, λ_d → 0, two levels, one block nearly empty, Σ zero, isotropic, aligned or nearly singular, θ at
a border, step sizes at η*, η_D, η_B, 2/λ_1 and their neighbours down to one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from etastar.claims.border import Border, high_border, loss_border, low_border, regime_border
from etastar.claims.instances import Instances
from etastar.claims.number import Floats, as_floats, as_number

__all__ = ["SHAPES", "draw", "draw_above_floors", "draw_two_levels_above_floors"]

# (d, k), smallest first: the first counterexample found is then one of the smallest.
SHAPES = ((2, 1), (3, 1), (3, 2), (4, 2), (4, 1), (5, 2), (4, 3), (6, 3), (8, 2), (5, 4), (8, 6), (12, 4))


def draw(rng: np.random.Generator, count: int, dimension: int, rank: int) -> Instances:
    """Draw `count` problems with d = `dimension` and k = `rank`, as plain float64 arrays.

    Args:
        rng: Decides everything; the same generator gives the same problems.
        count: How many.
        dimension: d.
        rank: k.
    """
    spectrum = _spectra(rng, count, dimension, rank)
    noise = _noises(rng, count, dimension, rank)
    state = _states(rng, count, dimension, rank)
    start = _plain(spectrum, state, noise, np.ones(count), rank)
    with np.errstate(all="ignore"):
        placed = _placed(rng, start)
        stepped = replace(placed, step_size=as_number(_step_sizes(rng, placed)))
    return replace(stepped, time=int(rng.integers(0, 5)))


def draw_above_floors(rng: np.random.Generator, count: int) -> Instances:
    """Stable noisy runs of one random shape from above their floors, at a time before or after a turn."""
    dimension, rank = SHAPES[rng.integers(len(SHAPES))]
    return _above_floors(rng, _spectra(rng, count, dimension, rank), rank)


def draw_two_levels_above_floors(rng: np.random.Generator, count: int) -> Instances:
    """The same with two eigenvalues."""
    dimension, rank = SHAPES[rng.integers(len(SHAPES))]
    level = _few_bits(np.exp2(rng.uniform(0.05, 6, (count, 1)) ** rng.choice([0.25, 1])))
    return _above_floors(rng, np.where(np.arange(dimension) < rank, level, 1.0), rank)


def _above_floors(rng: np.random.Generator, spectrum: Floats, rank: int) -> Instances:
    count, dimension = spectrum.shape
    noise = _few_bits(np.exp2(rng.uniform(-4, 4, (count, dimension)))) ** 2
    limit = 2 / (spectrum[:, 0] + spectrum[:, rank])
    step = _few_bits(np.minimum(limit, 2 / spectrum[:, 0]) * rng.uniform(0, 1, count) ** rng.choice([0.25, 1, 4]))
    product = step[:, None] * spectrum
    with np.errstate(all="ignore"):
        floor = step[:, None] * noise / (spectrum * (2 - product))
        above = 1 + np.exp2(rng.uniform(-8, 12, (count, 1))) * np.exp2(rng.uniform(-3, 3, (count, dimension)))
        state = _few_bits(np.where(floor > 0, np.sqrt(floor * above), 1.0), 20)
    return replace(_plain(spectrum, state, noise, step, rank), time=int(2 ** rng.uniform(0, 6)) - 1)


def _plain(spectrum: Floats, state: Floats, noise: Floats, step: Floats, rank: int) -> Instances:
    fields = [as_number(values) for values in (spectrum, state, state**2, noise, step)]
    return Instances(*fields, rank=rank)


def _choose(rng: np.random.Generator, options: list[Callable[[], Floats]], count: int) -> Floats:
    """Evaluate every option for all rows and pick one a row: simple, and the waste is small beside the claims."""
    picked = rng.integers(len(options), size=count)
    values = np.stack([option() for option in options])
    return values[picked, np.arange(count)]


def _few_bits(values: Floats, bits: int = 7) -> Floats:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def _scattered(rng: np.random.Generator, count: int, size: int, octaves: float) -> Floats:
    return _few_bits(np.exp2(rng.uniform(-octaves, octaves, (count, size))))


def _spectra(rng: np.random.Generator, count: int, dimension: int, rank: int) -> Floats:
    inside = np.arange(dimension) < rank

    def two_level() -> Floats:
        return np.where(inside, _scattered(rng, count, 1, 4) + 1, 1.0)

    def near_gap() -> Floats:
        return _scattered(rng, count, dimension, 0.01)

    def vanishing() -> Floats:
        return _scattered(rng, count, dimension, 2) * np.where(np.arange(dimension) == dimension - 1, 2.0**-26, 1.0)

    def ill_conditioned() -> Floats:
        return _scattered(rng, count, dimension, 1) * np.where(inside, np.exp2(rng.integers(1, 12, (count, 1))), 1.0)

    def spread_top() -> Floats:
        return _scattered(rng, count, dimension, 0.5) * np.where(np.arange(dimension) == 0, 2.0**8, 1.0)

    spectra = _choose(
        rng,
        [
            lambda: _scattered(rng, count, dimension, 2),
            lambda: _scattered(rng, count, dimension, 10),
            lambda: rng.integers(1, 10, (count, dimension)).astype(float),
            two_level,
            near_gap,
            vanishing,
            ill_conditioned,
            spread_top,
        ],
        count,
    )
    spectra = -np.sort(-spectra, axis=1)
    tied = spectra[:, rank - 1] <= spectra[:, rank]
    spectra[tied, :rank] *= 2.0
    return spectra


def _noises(rng: np.random.Generator, count: int, dimension: int, rank: int) -> Floats:
    inside = np.arange(dimension) < rank
    roots = _choose(
        rng,
        [
            lambda: np.zeros((count, dimension)),
            lambda: np.ones((count, dimension)),
            lambda: _scattered(rng, count, dimension, 1),
            lambda: _scattered(rng, count, dimension, 5),
            lambda: rng.integers(0, 4, (count, dimension)).astype(float),
            lambda: np.where(inside, 1.0, 0.0) * _scattered(rng, count, dimension, 1),
            lambda: np.where(inside, 0.0, 1.0) * _scattered(rng, count, dimension, 1),
            lambda: np.where(inside, 2.0**6, 1.0) * _scattered(rng, count, dimension, 1),
            lambda: np.where(inside, 1.0, 2.0**6) * _scattered(rng, count, dimension, 1),
        ],
        count,
    )
    scale = np.exp2(rng.integers(-8, 6, (count, 1)).astype(float))
    return (roots * scale) ** 2


def _states(rng: np.random.Generator, count: int, dimension: int, rank: int) -> Floats:
    inside = np.arange(dimension) < rank
    edges = np.isin(np.arange(dimension), (0, dimension - 1))
    inner = np.isin(np.arange(dimension), (rank - 1, rank))

    def unbalanced() -> Floats:
        return np.where(inside, np.exp2(rng.integers(-8, 12, (count, 1))), 1.0)

    return _choose(
        rng,
        [
            lambda: np.ones((count, dimension)),
            lambda: _scattered(rng, count, dimension, 2),
            lambda: _scattered(rng, count, dimension, 2) * unbalanced(),
            lambda: rng.integers(0, 4, (count, dimension)).astype(float),
            lambda: np.where(edges, 1.0, 2.0**-8) * _scattered(rng, count, dimension, 1),
            lambda: np.where(inner, 1.0, 2.0**-8) * _scattered(rng, count, dimension, 1),
            lambda: np.where(inside, 2.0**10, 1.0) * _scattered(rng, count, dimension, 4),
        ],
        count,
    )


def _nudged(rng: np.random.Generator, values: Floats) -> Floats:
    """Return the values, their neighbours, or points a power of two closer and closer to them."""
    count = len(values)
    sign = rng.choice([-1.0, 1.0], count)
    near = values * (1 + sign * np.exp2(-rng.integers(1, 40, count).astype(float)))
    around = values * (1 + sign * np.exp2(-rng.integers(1, 6, count).astype(float)))
    options = np.stack([values, np.nextafter(values, sign * np.inf), *[near] * 4, *[around] * 4])
    return options[rng.integers(len(options), size=count), np.arange(count)]


def _border_value(border: Border) -> Floats:
    t, u, s = (as_floats(part) for part in (border.t, border.u, border.s))
    straight = s - t - u
    curved = np.sqrt(straight**2 + 4 * s * t)
    return np.where(straight > 0, (straight + curved) / (2 * s), 2 * t / (curved - straight))


def _placed(rng: np.random.Generator, problems: Instances) -> Instances:
    """Rescale the blocks of some states so that the alignment falls at or beside one of the borders."""
    q2 = problems.variance(2)
    share = as_floats(q2.share)
    kept = as_floats(problems.alignment)
    low = as_floats(low_border(problems).share)
    high, regime, loss = (_border_value(make(problems)) for make in (high_border, regime_border, loss_border))
    targets = [kept, kept, 1 - share, share, low, low, regime, loss, high, high]
    picked = rng.integers(len(targets), size=len(problems))
    target = _nudged(rng, np.stack(targets)[picked, np.arange(len(problems))])
    usable = (picked > 1) & (target > 0) & (target < 1) & (kept > 0) & (kept < 1)
    up = np.where(usable, np.sqrt(target / kept), 1.0)[:, None]
    down = np.where(usable, np.sqrt((1 - target) / (1 - kept)), 1.0)[:, None]
    state = as_floats(problems.state).copy()
    state[:, : problems.rank] *= up
    state[:, problems.rank :] *= down
    return replace(problems, state=as_number(state), square=as_number(state**2))


def _step_sizes(rng: np.random.Generator, s: Instances) -> Floats:
    """Draw step sizes at and beside every step that a claim names, and anywhere between 0 and beyond stability."""
    top, edge, bottom = (as_floats(v) for v in (s.lambda_1, s.lambda_k1, s.lambda_d))
    m0, m1, q1 = s.signal(2), s.signal(3), s.variance(1)
    anywhere = _few_bits(rng.uniform(0, 1.25, len(s)) * 2 / top)
    options = [
        anywhere,
        _few_bits(rng.uniform(0, 1, len(s)) ** 3 / top),
        _few_bits(np.exp2(rng.uniform(-12, 0, len(s))) / top),
        *(
            _nudged(rng, as_floats(named))
            for named in (
                s.critical_step_size,
                2 * m0.dominant / (m1.dominant + q1.dominant),
                2 * m0.bulk / (m1.bulk + q1.bulk),
                2 / top,
                2 / (top + bottom),
                2 / (top + edge),
                2 * s.gap / (top**2 - bottom**2),
            )
        ),
    ]
    picked = np.stack(options)[rng.integers(len(options), size=len(s)), np.arange(len(s))]
    usable = np.isfinite(picked) & (picked > 1e-9 / top) & (picked < 1e9 / top)
    return np.where(usable, picked, anywhere + 2.0**-10 / top)
