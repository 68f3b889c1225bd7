"""The speed table: each figure is a ratio against a reference measured in the same run, beside its limit.

Machines are noisy, so both sides are timed alternately and the medians compared. Nothing here is a test.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from etastar.quadratic import SGD, HeavyBall, Nesterov, Noise, Quadratic, SimulationState, Spectrum
from etastar.recipes.paper_figures.setting import RATIOS, SEEDS, STEP_SIZE, STEPS, paper_problem


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `better` says on which side of the limit the ratio should lie."""

    what: str
    reference: str
    ratio: float
    better: str
    limit: float

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.better == "≥" else self.ratio <= self.limit


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def alternately(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, after one warm-up each."""
    one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def paper_paths() -> list[Row]:
    """All 63 runs of the paper as paths at 1,000 recorded times, against stepping them."""
    problems = [paper_problem(ratio) for ratio in RATIOS]
    points = np.stack([np.random.default_rng(seed).standard_normal(500) for seed in SEEDS])
    times = np.arange(1, 1001) * (STEPS // 1000)

    def ours() -> None:
        for number, problem in enumerate(problems):
            gradient = problem.gradient_at(points)
            problem.sample(gradient=gradient, step_size=STEP_SIZE, times=times, seed=number)

    measured_steps = 1000
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((500, 500)))
    dense = (rotation * problems[4].spectrum.eigenvalues) @ rotation.T

    def one_at_a_time() -> None:  # one run, as the usual script does it
        x = rotation @ points[0]
        dominant = rotation[:, :50]
        for _ in range(measured_steps):
            g = dense @ x
            _theta = np.sum((dominant.T @ g) ** 2) / (g @ g) if _ % (STEPS // 1000) == 0 else 0.0
            x = x - STEP_SIZE * (g + 0.5 * rng.standard_normal(500))

    eigenvalues = np.repeat(np.stack([p.spectrum.eigenvalues for p in problems]), len(SEEDS), axis=0)

    def all_together() -> None:  # 63 runs at once, in the eigenbasis
        x = np.tile(points, (len(problems), 1))
        for _ in range(measured_steps):
            g = eigenvalues * x
            x -= STEP_SIZE * (g + 0.5 * rng.standard_normal(x.shape))

    mine, dense_time = alternately(ours, one_at_a_time, 5)
    _, together_time = alternately(ours, all_together, 3)
    scale = STEPS / measured_steps
    return [
        Row(
            "63 runs of the paper, 1,000 recorded times",
            "dense d × d product per step, one run at a time (1,000 steps, extrapolated)",
            dense_time * scale * len(RATIOS) * len(SEEDS) / mine,
            "≥",
            300,
        ),
        Row(
            "the same",
            "all 63 stepped together in the eigenbasis (1,000 steps, extrapolated)",
            together_time * scale / mine,
            "≥",
            25,
        ),
    ]


def expected_curve() -> Row:
    """`expected` for a million distinct eigenvalues at 1,000 times, against as many exponentials."""
    d, times = 10**6, np.arange(1, 1001)
    problem = Quadratic(Spectrum(np.linspace(0.2, 2e-4, d), rank=10), Noise.isotropic(1 / d))
    energy = np.random.default_rng(0).random(d) / d
    exponents = [2.0 * np.log1p(-0.5 * problem.spectrum.eigenvalues) * float(t) for t in times[::50]]
    out = np.empty(d)

    def exponentials() -> None:
        for exponent in exponents:
            np.exp(exponent, out=out)

    def ours() -> None:
        problem.expected(energy=energy, step_size=0.5, times=times)

    mine, reference = alternately(ours, exponentials, 3)
    return Row(
        "expected, d = 10⁶ distinct eigenvalues, 1,000 times",
        "as many np.exp over the same arrays (20 of the times, extrapolated)",
        mine / (reference * 50),
        "≤",
        2.0,
    )


def expected_memory() -> Row:
    """Peak memory of `expected`, at 1,000 times against 10."""
    import tracemalloc

    d = 200_000
    problem = Quadratic(Spectrum(np.linspace(1.0, 1e-3, d), rank=10), Noise.isotropic(1 / d))
    energy = np.full(d, 1 / d)

    def peak(count: int) -> float:
        tracemalloc.start()
        problem.expected(energy=energy, step_size=0.5, times=np.arange(count))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return float(top)

    return Row("peak memory of expected, d = 200,000: 1,000 times", "10 times", peak(1000) / peak(10), "≤", 1.1)


def sample_dimension() -> Row:
    """Sampling a two-level problem of 10⁹ dimensions against 10³."""

    def run(dimension: int) -> Callable[[], object]:
        problem = Quadratic(Spectrum.two_level(dimension, 10, 100.0, 1.0), Noise.isotropic(1 / dimension))
        times = np.arange(1, 1001) * 10
        return lambda: problem.sample(energy=[1.0, 9.0], step_size=0.01, times=times, replicas=256)

    large, small = alternately(run(10**9), run(10**3), 9)
    return Row("sample, two levels, d = 10⁹", "the same with d = 10³", large / small, "≤", 1.2)


def momentum_curve() -> list[Row]:
    """Curves of heavy ball and of Nesterov's momentum against that of SGD, at every step."""
    problem, times = Quadratic(Spectrum.paper(10.0), Noise.isotropic(0.25)), np.arange(3000)
    gradient = problem.gradient_at(np.ones(500))

    def curve(optimizer: HeavyBall | Nesterov | SGD) -> Callable[[], None]:
        def ten() -> None:  # one is so short that it may or may not be interrupted
            for _ in range(10):
                problem.expected(gradient=gradient, step_size=0.005, times=times, optimizer=optimizer)

        return ten

    rows: list[Row] = []
    for optimizer in (HeavyBall(0.9), Nesterov(0.9)):
        mine, plain = alternately(curve(optimizer), curve(SGD()), 9)
        what = f"expected with {type(optimizer).__name__}, d = 500, 3,000 times"
        rows.append(Row(what, "the same with SGD", mine / plain, "≤", 4.0))
    return rows


def gram_chain() -> Row:
    """Sampling heavy ball on a two-level problem of 10⁹ dimensions, as Gram matrices of its blocks, against 10³."""

    def run(dimension: int) -> Callable[[], object]:
        problem = Quadratic(Spectrum.two_level(dimension, 10, 100.0, 1.0), Noise.isotropic(1 / dimension))
        arguments = {"energy": [1.0, 9.0], "step_size": 0.01, "optimizer": HeavyBall(0.9)}
        return lambda: problem.sample(**arguments, times=np.arange(1, 501) * 10, replicas=256)

    large, small = alternately(run(10**9), run(10**3), 9)
    return Row("Gram chain of heavy ball, two levels, d = 10⁹", "the same with d = 10³", large / small, "≤", 1.2)


def simulate_rate() -> Row:
    """Stepping with state-dependent steps, against the rate at which NumPy's own generator fills normals."""
    d, replicas, steps = 10_000, 64, 25
    problem = Quadratic(Spectrum.power_law(d, 10, 1.0, 100.0), Noise.isotropic(0.01))
    gradient = problem.gradient_at(np.ones(d))
    rng, out = np.random.default_rng(0), np.empty((replicas, d))

    def rule(state: SimulationState) -> object:
        return 0.5 * np.nan_to_num(state.critical_step_size.value, nan=0.01)

    def ours() -> None:
        problem.simulate(gradient=gradient, step_size=rule, steps=steps, record=[steps], replicas=replicas)

    def normals() -> None:
        for _ in range(steps):
            rng.standard_normal(out=out)

    mine, reference = alternately(ours, normals, 7)
    return Row(
        "simulate, η = η*ₜ/2, 64 replicas, d = 10⁴",
        "as many normals by np.random.default_rng()",
        reference / mine,
        "≥",
        0.6,
    )


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("figure", "reference", "ratio", "limit", "", title="Speed, as ratios within this run")
    measures = (
        paper_paths,
        expected_curve,
        expected_memory,
        momentum_curve,
        sample_dimension,
        gram_chain,
        simulate_rate,
    )
    for measure in measures:
        rows = measure()
        for row in rows if isinstance(rows, list) else [rows]:
            digits = 0 if row.ratio >= 10 else 2
            table.add_row(
                row.what,
                row.reference,
                f"{row.ratio:.{digits}f}×",
                f"{row.better} {row.limit:g}",
                "met" if row.met else "MISSED",
            )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
