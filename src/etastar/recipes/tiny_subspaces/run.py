"""The whole experiment: for every seed SGD until χ is near 1, then four runs from there; resumable at any moment.

Seeds run side by side, each in a process with one thread: what comes out depends on neither their number nor that of
the machine's cores.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from etastar.errors import InvalidArgument, InvalidFile
from etastar.files import parse_json
from etastar.history import History, Measurement
from etastar.measurement import decode
from etastar.recipes.networks import Network
from etastar.recipes.tiny_subspaces.plan import TinySubspacesPlan, load
from etastar.recipes.tiny_subspaces.stage import BRANCHES, COLUMNS, WINDOW, BranchName, Stage, StageName, switched
from etastar.recipes.tiny_subspaces.store import REMEDY, load_state, save_state
from etastar.workers import WorkerPool

__all__ = ["SeedRun", "Series", "TinySubspacesRun", "tiny_subspaces"]

Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]
_MOST_SEEDS = 1000  # each takes minutes
CHECKPOINT_SECONDS = 20.0  # between two files of a stage: what a kill may cost


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """What was seen before each step of one stage.

    Attributes:
        begin: Steps of the run before the first.
        columns: By name, see `stage.COLUMNS`, ``(n,)`` each.
        complete: False where the run diverged first.
    """

    begin: int
    columns: dict[str, Array]
    complete: bool

    def __len__(self) -> int:
        return len(self.columns["loss"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def steps(self) -> Array:
        """Steps of the run before each row, ``(n,)``."""
        return self.begin + np.arange(len(self), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class SeedRun:
    """All stages of one seed.

    Attributes:
        seed: Of everything that was drawn.
        switch: Steps of SGD before the switch; None where χ did not get there in the first half of the run.
        approach: SGD until then.
        branches: The four runs from there; empty without a switch.
        window: Moments over the first steps of SGD after the switch, as one measurement; None without.
    """

    seed: int
    switch: int | None
    approach: Series
    branches: dict[BranchName, Series]
    window: Measurement | None


@dataclass(frozen=True, slots=True, eq=False)
class TinySubspacesRun:
    """What came of it.

    Attributes:
        plan: What was asked, zeros filled in.
        seeds: One entry per seed.
    """

    plan: TinySubspacesPlan
    seeds: list[SeedRun]


def tiny_subspaces(
    plan: TinySubspacesPlan, out: Path | None = None, progress: Progress | None = None, workers: int | None = None
) -> TinySubspacesRun:
    """Run the experiment, or go on with it where it was stopped.

    Args:
        plan: What to run.
        out: Directory for the states of unfinished and finished stages, under ``stages``; None keeps none.
        progress: Told how many steps are done, those before the switch counted for each of the four runs.
        workers: Processes; None takes as many as there are seeds or cores, and this process where that is one.

    Raises:
        InvalidArgument: A number out of range.
        InvalidFile: A data set or a state that cannot be read or written.
    """
    if plan.seeds > _MOST_SEEDS:
        raise InvalidArgument("seeds", plan.seeds, f"must be at most {_MOST_SEEDS}")
    filled, _ = load(plan, plan.seed)
    jobs = [
        _Job(filled, seed, None if out is None else out / "stages")
        for seed in range(filled.seed, filled.seed + filled.seeds)
    ]
    total = len(BRANCHES) * filled.steps * len(jobs)

    def tell(done: int) -> None:
        if progress is not None:
            progress("four runs a seed", done, total)

    workers = min(len(jobs), os.cpu_count() or 1) if workers is None else workers
    return TinySubspacesRun(filled, _here(jobs, tell) if workers == 1 else _side_by_side(jobs, workers, tell))


def _here(jobs: list[_Job], tell: Callable[[int], None]) -> list[SeedRun]:
    whole = len(BRANCHES) * jobs[0].plan.steps
    return [job.run(lambda done, before=index * whole: tell(before + done)) for index, job in enumerate(jobs)]


def _side_by_side(jobs: list[_Job], workers: int, tell: Callable[[int], None]) -> list[SeedRun]:
    counts: Any = get_context("spawn").Array("q", len(jobs), lock=False)  # steps done by each
    with WorkerPool(workers, _share, (counts,)) as pool:
        waiting = [pool.submit(_in_worker, job, index) for index, job in enumerate(jobs)]
        open_ = set(waiting)
        while open_:
            finished, open_ = wait(open_, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            tell(sum(counts))
        return [future.result() for future in waiting]


_SHARED: dict[str, Any] = {}  # of a worker: it can be given to one only when that starts


def _share(counts: Any) -> None:
    _SHARED["counts"] = counts


def _in_worker(job: _Job, index: int) -> SeedRun:
    def tell(done: int) -> None:
        _SHARED["counts"][index] = done

    return job.run(tell)


@dataclass(frozen=True, slots=True)
class _Job:
    """All stages of one seed.

    Attributes:
        plan: Without zeros.
        seed: Which.
        directory: For states; None keeps none.
    """

    plan: TinySubspacesPlan
    seed: int
    directory: Path | None

    def run(self, tell: Callable[[int], None]) -> SeedRun:
        """Run them, on one thread; `tell` hears of every step."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _, network = load(self.plan, self.seed)
            approach = self._finished(network, "approach", None, lambda step: tell(len(BRANCHES) * step))
            begin, states = int(approach["step"]), dict[BranchName, dict[str, Any]]()
            for index, branch in enumerate(BRANCHES if switched(approach) else ()):
                before = len(BRANCHES) * begin + index * (self.plan.steps - begin)
                states[branch] = self._finished(
                    network, branch, approach, lambda step, before=before: tell(before + step - begin)
                )
        finally:
            torch.set_num_threads(threads)
        return SeedRun(
            self.seed,
            begin if states else None,
            _series(approach, 0, bool(states) or begin == self.plan.steps // 2),
            {branch: _series(state, begin, state["step"] == self.plan.steps) for branch, state in states.items()},
            self._window(network, states["sgd"]) if states else None,
        )

    def _window(self, network: Network, state: dict[str, Any]) -> Measurement | None:
        try:
            measured = [decode(parse_json(line)) for line in state["measured"]]
            return History(measured).window(WINDOW) if len(measured) == WINDOW else None
        except (KeyError, TypeError, ValueError):
            raise InvalidFile("out", str(self._path(network, "sgd")), REMEDY) from None

    def _path(self, network: Network, name: StageName) -> Path | None:
        return None if self.directory is None else self.directory / self.plan.key(network, self.seed) / f"{name}.pt"

    def _finished(
        self, network: Network, name: StageName, start: dict[str, Any] | None, tell: Callable[[int], None]
    ) -> dict[str, Any]:
        """The state at the end of a stage: from its file, or run until there."""
        path = self._path(network, name)
        saved = None if path is None else load_state(path)
        if saved is not None and saved["ended"]:
            return saved
        path_read = path
        stage = Stage(replace(network, model=copy.deepcopy(network.model)), self.plan, self.seed, name)
        try:
            if saved is not None:
                stage.continue_from(saved)
            elif start is not None:
                path_read = self._path(network, "approach")
                stage.start_from(start)
        except Exception:  # torch names what does not fit in many ways
            raise InvalidFile("out", str(path_read), REMEDY) from None
        written = time.monotonic()
        while not stage.ended:
            stage.advance()
            tell(stage.step)
            if path is not None and (stage.ended or time.monotonic() - written >= CHECKPOINT_SECONDS):
                save_state(path, stage.state_dict())
                written = time.monotonic()
        return stage.state_dict()


def _series(state: dict[str, Any], begin: int, complete: bool) -> Series:
    table = state["series"].numpy()
    return Series(begin, {name: table[:, i].copy() for i, name in enumerate(COLUMNS)}, complete)
