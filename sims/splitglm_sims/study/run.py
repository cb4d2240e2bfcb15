"""Runs the missing cells of a study in worker processes; what is finished stays, whatever ends the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Final, TypeAlias

from splitglm_core.errors import DeviceError, InputError
from splitglm_sims.study.build import simulate
from splitglm_sims.study.columns import Columns
from splitglm_sims.study.config import LoadedStudy
from splitglm_sims.study.store import Cell, Results

MAX_JOBS: Final = 256
_WAITING_PER_JOB: Final = 2  # cells handed over ahead, so that no worker waits; more would only hold memory

Simulate: TypeAlias = Callable[[LoadedStudy, Cell], Columns]
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run did.

    Attributes:
        cells: run now.
        found: of an earlier run.
        requests: simulated now.
    """

    cells: int
    found: int
    requests: int


def run_study(
    study: LoadedStudy,
    folder: Path,
    *,
    jobs: int = 1,
    progress: Progress = lambda what, done, total: None,
    simulate: Simulate = simulate,
) -> Ran:
    """Run every cell that ``folder`` does not hold yet.

    A cell's content depends on nothing but the study, so it is the same whatever ``jobs`` is and however often the run
    was interrupted.

    Args:
        jobs: worker processes; 1 runs in this one.
        progress: told (what, done, in all).
        simulate: what computes a cell; with several jobs a function of a module.

    Raises:
        InputError: the study cannot be simulated as it says, or ``folder`` holds another one.
        DeviceError: a worker process was killed.
    """
    if not 1 <= jobs <= MAX_JOBS:
        raise InputError(f"jobs must lie in [1, {MAX_JOBS}]")
    results = Results.begin(folder, study)
    missing = results.missing()
    found = sum(1 for _ in results.cells()) - len(missing)
    total, requests = found + len(missing), 0
    progress("simulating", found, total)
    finished = _alone(study, results, missing, simulate) if jobs == 1 else _many(study, folder, missing, jobs, simulate)
    for done, count in enumerate(finished, 1):
        requests += count
        progress("simulating", found + done, total)
    return Ran(cells=len(missing), found=found, requests=requests)


def _alone(study: LoadedStudy, results: Results, missing: list[Cell], simulate: Simulate) -> Iterator[int]:
    for cell in missing:
        yield _finish(study, results, cell, simulate)


def _many(study: LoadedStudy, folder: Path, missing: list[Cell], jobs: int, simulate: Simulate) -> Iterator[int]:
    """Requests of each cell as it is finished."""
    jobs = min(jobs, len(missing))
    if not jobs:
        return
    waiting, running = iter(missing), set[Future[int]]()
    with _workers(jobs, study, folder, simulate) as pool:
        while True:
            while len(running) < jobs * _WAITING_PER_JOB and (cell := next(waiting, None)) is not None:
                with _interrupts_held():
                    running.add(pool.submit(_work, cell))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


@contextmanager
def _workers(jobs: int, study: LoadedStudy, folder: Path, simulate: Simulate) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end with the block, also when it is left by Ctrl-C in the middle of their cells."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # fork would copy locks of whatever threads the caller has
    pool = ProcessPoolExecutor(jobs, context, _enter, (study, folder, simulate))
    try:
        yield pool
    except BrokenProcessPool:
        raise DeviceError(
            "a worker process of the study was killed", "use fewer --jobs if memory is short, and run it again"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C is the parent's business: a worker is started with it blocked, or it would die of it with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_entered: tuple[LoadedStudy, Results, Simulate] | None = None


def _enter(study: LoadedStudy, folder: Path, simulate: Simulate) -> None:
    """In a new worker: remember the study, leave Ctrl-C to the parent, and never outlive it."""
    global _entered
    _entered = (study, Results.open(folder), simulate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _work(cell: Cell) -> int:
    if _entered is None:
        raise DeviceError("a worker process was not told its study")
    study, results, simulate = _entered
    return _finish(study, results, cell, simulate)


def _finish(study: LoadedStudy, results: Results, cell: Cell, simulate: Simulate) -> int:
    try:
        columns = simulate(study, cell)
    except InputError as error:
        raise InputError(f"{cell.key}: {error.what}", error.hint) from None
    results.write(cell, columns)
    return len(columns)
