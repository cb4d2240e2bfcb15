"""How far long work is, on standard error: bars for a person at a terminal, plain lines for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all or 0 when unknown)."""

SHOW_AFTER_S = 0.5
"""What is done sooner is not worth a line: graphs that exist already are found within milliseconds."""
PLAIN_EVERY_S = 5.0


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A ``Progress`` that suits standard error; silent when ``quiet``."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _Bars() as bars:
            yield bars
    else:
        yield _Lines()


def building(progress: Progress, precision: str) -> Progress:
    """For the builder of graphs, which names every part: one stage for all of them."""
    return lambda part, done, total: progress(f"building {precision} graphs", done, total)


class _Lines:
    """A line per stage, and one more every few seconds while it lasts."""

    def __init__(self) -> None:
        self._stage = ""
        self._started_s = self._said_s = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._started_s, self._said_s = stage, now_s, 0.0
            if not total:
                print(stage, file=sys.stderr, flush=True)
                return
        if total and now_s - self._started_s >= SHOW_AFTER_S and now_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = now_s
            print(f"{stage}: {100 * done // total} %", file=sys.stderr, flush=True)


class _Bars:
    """One bar per stage; they vanish when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._console = Console(stderr=True)
        self._bars = RichProgress(*columns, console=self._console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._since_s: dict[str, float] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not total:
            self._console.print(stage, markup=False, highlight=False)
            return
        if time.monotonic() - self._since_s.setdefault(stage, time.monotonic()) < SHOW_AFTER_S:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)
