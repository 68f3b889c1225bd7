"""A question to the laboratory: the problem that options, a file or a real data set describe, and when to look."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etastar.errors import InvalidArgument, InvalidFile
from etastar.files import parse_json, read_text
from etastar.quadratic import SGD, Averaged, HeavyBall, Nesterov, Noise, Quadratic, Spectrum
from etastar.quadratic.optimizers import Optimizer
from etastar.recipes.real_least_squares import load_least_squares

__all__ = ["LabQuestion", "Posed", "pose", "read_spectrum", "stable_below", "times_of"]

_LAST_STEP = 10**15
_MAX_DIMENSION = 10_000_000
OptimizerName = Literal["sgd", "heavy-ball", "nesterov"]
Expectation = Literal["ratio-of-means", "mean-of-ratio"]


@dataclass(frozen=True, slots=True)
class LabQuestion:
    """What is asked; the options of ``etastar lab``."""

    dimension: int
    rank: int
    ratio: float
    two_level: tuple[float, float] | None
    data: Literal["digits", "diabetes"] | None
    spectrum: Path | None
    batch_size: int
    ridge: float
    step_size: float
    noise: float
    times: tuple[int, ...]
    seed: int
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    averaging: float = 0.0
    expectation: Expectation = "ratio-of-means"


@dataclass(frozen=True, slots=True, eq=False)
class Posed:
    """The problem, its start, and what runs on it.

    Attributes:
        title: In words.
        problem: Spectrum and noise.
        start: The keyword argument that gives the first gradient: `gradient` or `energy`.
        optimizer: With its momentum and averaging.
    """

    title: str
    problem: Quadratic
    start: dict[str, Any]
    optimizer: Optimizer


def pose(question: LabQuestion) -> Posed:
    """Build the problem that a question describes.

    Raises:
        InvalidArgument: An option out of range, or two sources of a spectrum.
        InvalidFile: A spectrum file that is none.
    """
    title, problem, start = _build(question)
    optimizer = _optimizer(question)
    named = "" if question.optimizer == "sgd" and not question.averaging else f", {_in_words(question)}"
    return Posed(title + named, problem, start, optimizer)


def _optimizer(question: LabQuestion) -> Optimizer:
    for name, value in (("momentum", question.momentum), ("averaging", question.averaging)):
        if not 0 <= value < 1:
            raise InvalidArgument(name, value, "must be at least 0 and below 1")
    if question.expectation == "mean-of-ratio" and (question.optimizer != "sgd" or question.averaging):
        raise InvalidArgument("expectation", question.expectation, "is known for plain SGD; leave the optimizer out")
    inner: Any = {"sgd": SGD, "heavy-ball": HeavyBall, "nesterov": Nesterov}[question.optimizer]
    plain = inner() if question.optimizer == "sgd" else inner(question.momentum)
    return Averaged(question.averaging, plain) if question.averaging else plain


def stable_below(optimizer: OptimizerName, momentum: float, largest: float) -> float:
    """The largest stable step: 2/λ₁ of SGD, 2(1 + β)/λ₁ of heavy ball, (2 + 2β)/((1 + 2β)λ₁) of Nesterov."""
    if largest <= 0:
        return float("inf")
    times = {"sgd": 1.0, "heavy-ball": 1.0 + momentum, "nesterov": (1.0 + momentum) / (1.0 + 2.0 * momentum)}
    return 2.0 * times[optimizer] / largest


def _in_words(question: LabQuestion) -> str:
    words = {
        "sgd": "SGD",
        "heavy-ball": f"heavy ball, β = {question.momentum:g}",
        "nesterov": f"Nesterov, β = {question.momentum:g}",
    }[question.optimizer]
    return words + (f", averaged with ω = {question.averaging:g}" if question.averaging else "")


def read_spectrum(path: Path) -> Spectrum:
    """A spectrum from JSON: {"eigenvalues": […], "rank": k, "multiplicities": […]}; the last may be left out."""
    try:
        fields = parse_json(read_text(path, "spectrum"))
    except InvalidFile:
        raise
    except ValueError as error:
        raise InvalidFile("spectrum", str(path), str(error)) from None
    allowed = ("eigenvalues", "rank", "multiplicities")
    if not isinstance(fields, dict):
        raise InvalidFile("spectrum", str(path), f"must be an object with {', '.join(allowed)}")
    unknown = next((name for name in fields if name not in allowed), None)
    if unknown is not None:
        raise InvalidFile("spectrum", unknown, f"is an unknown key; allowed: {', '.join(allowed)}")
    missing = next((name for name in allowed[:2] if name not in fields), None)
    if missing is not None:
        raise InvalidFile("spectrum", str(path), f"has no {missing!r}")
    for name in ("eigenvalues", "multiplicities"):
        values = fields.get(name, [])
        if not isinstance(values, list) or not all(type(x) in (int, float) for x in values):
            raise InvalidFile(f"spectrum.{name}", values, "must be a list of numbers")
    counts: Any = fields.get("multiplicities")
    return Spectrum(fields["eigenvalues"], fields["rank"], counts)


def _build(question: LabQuestion) -> tuple[str, Quadratic, dict[str, Any]]:
    given = {"two-level": question.two_level, "data": question.data, "spectrum": question.spectrum}
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) > 1:
        raise InvalidArgument("--" + ", --".join(sources), "together", "give one source of the spectrum")
    if question.data is not None:
        case = load_least_squares(question.data, _rank(question, 1), question.batch_size, question.ridge)
        title = f"Ridge regression on {case.name}, batch {case.batch_size}, ridge {case.ridge:g}, from w = 0"
        return title, case.problem, {"gradient": case.start}
    if question.spectrum is not None:
        name = os.fsencode(question.spectrum.name).decode("utf-8", "replace")  # a name may be any bytes
        spectrum, title = read_spectrum(question.spectrum), f"Spectrum of {name}"
    elif question.two_level is not None:
        spectrum = Spectrum.two_level(question.dimension, _rank(question, 50), *question.two_level)
        title = f"Two levels, {question.two_level[0]:g} and {question.two_level[1]:g}"
    else:
        if question.dimension > _MAX_DIMENSION:
            raise InvalidArgument("dimension", question.dimension, f"at most {_MAX_DIMENSION} without --two-level")
        spectrum = Spectrum.paper(question.ratio, question.dimension, _rank(question, 50))
        title = f"The paper's spectrum at r = {question.ratio:g}"
    if not (np.isfinite(question.noise) and question.noise >= 0):
        raise InvalidArgument("noise", question.noise, "a variance must be finite and not negative")
    problem = Quadratic(spectrum, Noise.isotropic(question.noise))
    return f"{title}, noise variance {question.noise:g}", problem, _start(spectrum, question.seed)


def _start(spectrum: Spectrum, seed: int) -> dict[str, Any]:
    """Gradient energies of x₀ ~ N(0, I): a χ² of each block's multiplicity."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "must be at least 0")
    rng = np.random.default_rng(seed)
    if np.all(spectrum.multiplicities == 1):
        return {"gradient": spectrum.eigenvalues * rng.standard_normal(spectrum.dimension)}
    return {"energy": spectrum.eigenvalues**2 * 2.0 * rng.standard_gamma(spectrum.multiplicities / 2.0)}


def _rank(question: LabQuestion, default: int) -> int:
    return question.rank or default


def times_of(times: tuple[int, ...], turns: list[int]) -> npt.NDArray[np.int64]:
    """One number is the last step, shown on a logarithmic grid with the turns; several are the times themselves."""
    outside = next((t for t in times if not 0 <= t <= _LAST_STEP), None)
    if outside is not None:
        raise InvalidArgument("times", outside, f"must be between 0 and {_LAST_STEP}")
    if len(times) != 1:
        return np.array(times, dtype=np.int64)
    last = times[0]
    if last < 1:
        raise InvalidArgument("times", last, "the last step must be at least 1")
    grid = np.geomspace(1, last + 1, 400).round().astype(np.int64) - 1
    inside = [turn for turn in turns if turn <= last]
    return np.unique(np.concatenate([np.arange(min(last, 30) + 1), grid, [last], np.array(inside, dtype=np.int64)]))
