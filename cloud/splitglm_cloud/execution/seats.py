"""The places of engine workers: who has each, when it is filled again, what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution.workers import Worker, WorkerState

HEALTHY_S: Final = 10.0
"""After a worker that served for so long, the next one need not wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """How patient a gateway is with its workers.

    Attributes:
        watchdog_s: a worker with work whose loop stands still for so long, and for three times its 99th percentile
            batch, is killed.
        start_s: a worker that is not ready by then is given up.
        patience_s: how long a step waits when no worker is ready.
        window_s: deaths of a session's steps are counted over so long.
        first_pause_s, longest_pause_s: before a restart; doubled from one to the next.
    """

    watchdog_s: float = 2.0
    start_s: float = 900.0
    patience_s: float = 10.0
    window_s: float = 300.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0


@dataclass(slots=True)
class Seat:
    """The place of one worker, whoever has it."""

    index: int
    worker: Worker | None = None
    starts: int = 0
    failures: int = 0  # ends since it last served for long
    next_start_s: float = 0.0
    last_end: str = ""

    def facts(self, sessions: int) -> WorkerFacts:
        worker = self.worker
        return WorkerFacts(
            index=self.index,
            pid=worker.process.pid if worker else 0,
            state=worker.state if worker else WorkerState.DOWN,
            restarts=max(0, self.starts - 1),
            sessions=sessions,
            last_end=self.last_end,
        )

    def vacate(self, how: str, now_s: float, patience: Supervision) -> None:
        """Its worker has been collected."""
        served = self.worker is not None and self.worker.facts is not None
        if self.worker is not None and served and now_s - self.worker.started_s > HEALTHY_S:
            self.failures = 0
        self.last_end = how
        self.worker = None
        self.pause(now_s, patience)

    def pause(self, now_s: float, patience: Supervision) -> None:
        """Nobody takes the seat for a while: longer each time."""
        pause_s = patience.first_pause_s * 2 ** min(self.failures, 32)
        self.failures += 1
        self.next_start_s = now_s + min(pause_s, patience.longest_pause_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker, for ``splitglm ps`` and metrics.

    Attributes:
        pid: 0 while there is no process.
        restarts: starts after the first.
        last_end: why its process ended last time; empty if it never did.
    """

    index: int
    pid: int
    state: WorkerState
    restarts: int
    sessions: int
    last_end: str


def counters(stats: EngineStats) -> EngineStats:
    """What stays counted of an engine that is gone."""
    return EngineStats(
        sweeps=stats.sweeps,
        busy_s=stats.busy_s,
        row_layers=stats.row_layers,
        rows_by_layer=stats.rows_by_layer,
        batches_by_layer=stats.batches_by_layer,
        evictions=stats.evictions,
        preemptions=stats.preemptions,
    )
