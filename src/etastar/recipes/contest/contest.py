"""The contest as a whole: which runs are still to be made, made in several processes, each kept as soon as it is done.

What to run next follows from the runs that are on disk alone. So a contest that was killed goes on where it was, and
ends where an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from etastar.errors import InvalidArgument
from etastar.files import output_directory
from etastar.recipes.contest.configuration import (
    FINAL_SEED,
    PROBLEMS,
    RULES,
    TUNED,
    UNTUNED,
    Rule,
    RunConfiguration,
    candidates,
    final,
    pilot,
    untuned,
)
from etastar.recipes.contest.store import RunResult, load_runs, save_run
from etastar.recipes.contest.training import carry_out, data_digest
from etastar.recipes.contest.tuning import LEAST_STEPS, tuning
from etastar.workers import WorkerPool

__all__ = ["Cell", "Contest", "ContestPlan", "Entry", "hold_contest"]

Progress = Callable[[str, int, int], None]
RUNS = "runs"  # directory of the run files
_READS_FILES = "mnist5k-mlp-mse"
_LARGEST_BATCH = 1000  # samples of the smallest training set
_SEEDS = 1000  # each takes minutes


@dataclass(frozen=True, slots=True)
class ContestPlan:
    """What to run.

    Attributes:
        problems: Names in `PROBLEMS`.
        batch_sizes: b.
        seeds: Finals of each contestant, at the seeds from `FINAL_SEED` on; tuning has the seed 0.
        steps: Of a full run.
        workers: Processes, one thread each.
        data: Directory of the files of mnist5k-mlp.
    """

    problems: tuple[str, ...] = ("digits-mlp-mse", "digits-mlp-cross-entropy", "digits-cnn-mse", "mnist5k-mlp-mse")
    batch_sizes: tuple[int, ...] = (50, 256)
    seeds: int = 3
    steps: int = 2000
    workers: int = 2
    data: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant in a cell.

    Attributes:
        rule: Who.
        configuration: At the first seed of the finals.
        runs: By seed.
        spent: Of its tuning, in full runs.
    """

    rule: Rule
    configuration: RunConfiguration
    runs: list[RunResult]
    spent: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One problem at one batch size.

    Attributes:
        problem: Of `PROBLEMS`.
        batch_size: b.
        entries: In the order of `RULES`.
        pilot: The first quarter of a TwoRateSGD run on the tuning seed.
    """

    problem: str
    batch_size: int
    entries: list[Entry]
    pilot: RunResult

    def entry(self, rule: Rule) -> Entry:
        """The entry of a contestant."""
        return next(entry for entry in self.entries if entry.rule == rule)


@dataclass(frozen=True, slots=True)
class Contest:
    """All that came out.

    Attributes:
        plan: What was asked.
        cells: Problem by problem.
        seconds: Of training and metering in all runs of the directory, on one thread each.
    """

    plan: ContestPlan
    cells: list[Cell]
    seconds: float


def hold_contest(plan: ContestPlan, out: Path, progress: Progress | None = None) -> Contest:
    """Make all runs that are not in ``out/runs`` yet, and return what came of all.

    Raises:
        InvalidArgument: A number out of range, an unknown problem; whatever a recipe refuses.
        InvalidFile: A file in ``out/runs`` that is no run, a directory that cannot be written.
    """
    _check(plan)
    corners = [(problem, size) for problem in plan.problems for size in plan.batch_sizes]
    digests = {problem: data_digest(problem, _data(problem, plan.data)) for problem in plan.problems}
    directory = output_directory(out) / RUNS
    known = load_runs(directory)

    def missing() -> list[RunConfiguration]:
        return [run for problem, size in corners for run in _missing(problem, size, digests[problem], plan, known)]

    for run, result in _made(missing, plan):
        save_run(directory, run, result)
        known[run.key] = result
        if progress is not None:
            progress(f"{run.problem}, batch {run.batch_size}: {run.rule}", len(known), len(known) + len(missing()))
    cells = [_cell(problem, size, digests[problem], plan, known) for problem, size in corners]
    return Contest(plan, cells, sum(result.seconds[-1] for result in known.values() if result.seconds))


def _missing(
    problem: str, size: int, data: str, plan: ContestPlan, known: dict[str, RunResult]
) -> Iterator[RunConfiguration]:
    """The runs of a cell that can be made now: those whose configuration is known, and which are not."""
    losses = {key: result.final_loss for key, result in known.items()}
    wanted = [pilot(problem, size, plan.steps, data)]
    for rule in TUNED:
        state = tuning(candidates(problem, size, rule, data), plan.steps, losses)
        yield from state.missing
        wanted += [] if state.best is None else _finals(state.best, plan)
    for rule in UNTUNED:
        wanted += _finals(untuned(problem, size, rule, plan.steps, data), plan)
    yield from (run for run in wanted if run.key not in known)


def _finals(configuration: RunConfiguration, plan: ContestPlan) -> list[RunConfiguration]:
    return [final(configuration, plan.steps, seed) for seed in range(FINAL_SEED, FINAL_SEED + plan.seeds)]


def _made(
    missing: Callable[[], list[RunConfiguration]], plan: ContestPlan
) -> Iterator[tuple[RunConfiguration, RunResult]]:
    """Make runs until none is missing; the caller makes each known before it asks for the next."""
    if plan.workers == 1:
        while runs := missing():
            for run in runs:
                yield run, carry_out(run, _data(run.problem, plan.data))
        return
    with WorkerPool(plan.workers) as pool:
        waiting: dict[Future[RunResult], RunConfiguration] = {}
        while True:
            queued = {run.key for run in waiting.values()}
            for run in missing():
                if run.key not in queued:
                    waiting[pool.submit(carry_out, run, _data(run.problem, plan.data))] = run
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()


def _cell(problem: str, size: int, data: str, plan: ContestPlan, known: dict[str, RunResult]) -> Cell:
    losses = {key: result.final_loss for key, result in known.items()}
    entries: list[Entry] = []
    for rule in RULES:
        spent, best = 0.0, untuned(problem, size, rule, plan.steps, data)
        if rule in TUNED:
            state = tuning(candidates(problem, size, rule, data), plan.steps, losses)
            spent, best = state.spent, state.best or best
        finals = _finals(best, plan)
        entries.append(Entry(rule, finals[0], [known[run.key] for run in finals], spent))
    return Cell(problem, size, entries, known[pilot(problem, size, plan.steps, data).key])


def _data(problem: str, data: str | None) -> str | None:
    return data if problem == _READS_FILES else None


def _check(plan: ContestPlan) -> None:
    for problem in plan.problems:
        if problem not in PROBLEMS:
            raise InvalidArgument("problems", problem, f"must be among {', '.join(PROBLEMS)}")
    _refuse_repeats("problems", plan.problems)
    _refuse_repeats("batch_sizes", plan.batch_sizes)
    for name, value, least in (
        ("batch_sizes", min(plan.batch_sizes), 1),
        ("seeds", plan.seeds, 2),  # an interval needs two
        ("steps", plan.steps, LEAST_STEPS),
        ("workers", plan.workers, 1),
    ):
        if value < least:
            raise InvalidArgument(name, value, f"must be at least {least}")
    for name, value, most in (("batch_sizes", max(plan.batch_sizes), _LARGEST_BATCH), ("seeds", plan.seeds, _SEEDS)):
        if value > most:
            raise InvalidArgument(name, value, f"must be at most {most}")
    if plan.data is not None and _READS_FILES not in plan.problems:
        raise InvalidArgument("data", plan.data, f"{_READS_FILES} alone reads files")


def _refuse_repeats(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise InvalidArgument(name, list(values), "must be one or more, each once")
