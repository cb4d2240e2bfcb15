"""Starts engine workers, carries orders and reports, notices who died or hangs, replaces them. Runs in one thread."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import zmq

from splitglm_cloud.engine.events import Emit, Event, Evicted, Failure
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution import messages
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_cloud.execution.roster import Forward, Order, Refuse, Roster
from splitglm_cloud.execution.seats import Seat, Supervision, WorkerFacts, counters
from splitglm_cloud.execution.workers import Worker, WorkerState
from splitglm_core.errors import DeviceError, InternalError, SplitGlmError
from splitglm_wire.actions import Configure, Drop, Output, Submit
from splitglm_wire.frames import ErrorCode

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
IDLE_TICK_S: Final = 1.0

Announce = Callable[[messages.Progress | EngineFacts | SplitGlmError], None]


class Supervisor:
    """The gateway's side of all workers.

    Args:
        announce: hears, until every worker has been ready once, how starting goes; an error is the end of it.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        workers: int,
        emit: Emit,
        on_lost: Callable[[Sequence[int]], None],
        announce: Announce,
        supervision: Supervision,
        inline_bytes: int,
        wake_fd: int,
    ) -> None:
        self._spec = spec
        self._emit = emit
        self._on_lost = on_lost
        self._announce: Announce | None = announce
        self._patience = supervision
        self._inline_bytes = inline_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._wake_fd = wake_fd
        self._poller.register(wake_fd, zmq.POLLIN)
        self._seats = [Seat(index) for index in range(workers)]
        self._epoch = 0
        self._stopping = False
        self._next_look_s = 0.0
        self._retired = EngineStats()
        self._facts: EngineFacts | None = None
        self._roster = Roster(patience_s=supervision.patience_s, window_s=supervision.window_s, kv_used=self._kv_used)

    @property
    def ready(self) -> bool:
        """May be asked from any thread, as may ``stats`` and ``workers``."""
        return any(worker.state is WorkerState.READY for worker in self._alive())

    def stats(self) -> EngineStats:
        total = self._retired
        for worker in self._alive():
            total = total.merged(worker.stats)
        return total

    def workers(self) -> tuple[WorkerFacts, ...]:
        return tuple(seat.facts(self._roster.sessions(seat.index)) for seat in self._seats)

    def attend(self) -> None:
        """Wait until something happens, and deal with it."""
        busy = self._stopping or any(
            worker is None or worker.state is not WorkerState.READY or self._roster.working(index)
            for index, worker in enumerate(seat.worker for seat in self._seats)
        )
        tick_s = min(TICK_S, self._patience.watchdog_s / 8) if busy else IDLE_TICK_S
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._look_after(now_s)
            self._next_look_s = now_s + tick_s
        happened = dict(self._poller.poll(int(1000 * tick_s)))
        if self._wake_fd in happened:
            os.read(self._wake_fd, 4096)
        for seat in self._seats:
            worker = seat.worker
            if worker is not None and worker.socket in happened:
                self._hear(seat, worker)
            if worker is not None and worker.life in happened and seat.worker is worker:
                self._ended(seat, worker)

    def obey(self, order: Order) -> None:
        """A command of the gateway."""
        action = order.action
        if isinstance(action, Configure) and messages.is_too_large(action, order.owner):
            log.error("a session's configuration is too large")
            order = Order(order.session, Drop())
        if isinstance(action, Submit) and len(action.step.payload) > messages.MAX_PAYLOAD_BYTES:
            self._say(order.session, Failure(action.step.seq, ErrorCode.TOO_LARGE, "the step is too large"))
            return
        self._carry_out(self._roster.offer(order, time.monotonic()))

    def stop(self) -> None:
        """Ask every worker to finish; ``stopped`` becomes true when all have."""
        self._stopping = True
        for seat in self._seats:
            if seat.worker is not None:
                seat.worker.stop()
                if seat.worker.state is WorkerState.ENDING:
                    self._end(seat.worker)

    @property
    def stopped(self) -> bool:
        return self._stopping and not self._alive()

    def close(self) -> None:
        """Kill whatever is left and free everything."""
        self._stopping = True
        for seat in self._seats:
            if seat.worker is not None:
                seat.worker.end()
                self._collect(seat, seat.worker)
        self._poller.unregister(self._wake_fd)
        self._context.term()

    def lose_everything(self) -> None:
        """The supervising thread itself is about to fail: nobody may wait for an answer."""
        for seat in self._seats:
            if seat.worker is not None:
                self._lose(seat, seat.worker, "was given up with its supervisor")

    def _alive(self) -> list[Worker]:
        # Each seat is read once: other threads ask too.
        return [worker for seat in self._seats if (worker := seat.worker) is not None]

    def _kv_used(self, index: int) -> float:
        worker = self._seats[index].worker
        if worker is None or not worker.stats.kv_budget_bytes:
            return 0.0
        return worker.stats.kv_used_bytes / worker.stats.kv_budget_bytes

    def _look_after(self, now_s: float) -> None:
        for seat in self._seats:
            worker = seat.worker
            if worker is None:
                # The first worker builds what is missing and measures; the others find it done.
                if not self._stopping and now_s >= seat.next_start_s and (seat.index == 0 or self._facts):
                    self._start(seat, now_s)
            elif worker.hangs(now_s, working=self._roster.working(seat.index)):
                self._lose(seat, worker, "hung")
            elif worker.state is WorkerState.STARTING and now_s - worker.started_s > self._patience.start_s:
                self._give_up(seat, worker, DeviceError("an engine worker was not ready in time"))
        self._carry_out(self._roster.expire(now_s))

    def _start(self, seat: Seat, now_s: float) -> None:
        self._epoch += 1
        try:
            worker = Worker(
                index=seat.index,
                epoch=self._epoch,
                spec=self._spec,
                context=self._context,
                inline_bytes=self._inline_bytes,
            )
        except (OSError, DeviceError) as error:
            seat.pause(now_s, self._patience)
            failure = error if isinstance(error, DeviceError) else DeviceError(f"no engine worker: {error.strerror}")
            self._tell(failure)
            log.error("an engine worker cannot be started: %s", failure.what)
            return
        seat.worker = worker
        seat.starts += 1
        self._poller.register(worker.socket, zmq.POLLIN)
        self._poller.register(worker.life, zmq.POLLIN)

    def _hear(self, seat: Seat, worker: Worker) -> None:
        try:
            for report, payload in worker.reports():
                self._on_report(seat, worker, report, payload)
                if seat.worker is not worker or worker.state is WorkerState.ENDING:
                    return
        except InternalError as error:
            log.error("%s", error.what)
            self._lose(seat, worker, "said something that cannot be read")

    def _on_report(self, seat: Seat, worker: Worker, report: messages.Report, payload: bytes) -> None:
        if isinstance(report, messages.OutputOf | messages.FailureOf | messages.EvictedOf):
            self._on_event(seat, report.session, messages.event_of(report, payload))
        elif isinstance(report, messages.StatsOf):
            worker.stats = report.stats
        elif isinstance(report, messages.Hello):
            worker.connected()
        elif isinstance(report, messages.Progress):
            self._tell(report)
        elif isinstance(report, messages.Ready):
            self._on_ready(seat, worker, report.facts)
        elif isinstance(report, messages.Stopped):
            self._collect(seat, worker)
        elif isinstance(report, messages.Fatal):
            self._give_up(seat, worker, messages.error_of(report))

    def _on_event(self, seat: Seat, session: int, event: Event) -> None:
        if not self._roster.holds(seat.index, session):
            return  # dropped meanwhile
        if not (isinstance(event, Evicted) and event.seq is None):
            output = event if isinstance(event, Output) else None
            ended, progress = output is None or output.last, output is not None and output.rows > 0
            self._roster.answered(session, ended=ended, progress=progress)
        self._say(session, event)

    def _on_ready(self, seat: Seat, worker: Worker, facts: EngineFacts) -> None:
        if self._stopping:
            self._end(worker)
            return
        if self._facts is None:
            self._facts = facts
            self._spec = replace(self._spec, profile=facts.profile)
        if facts.fingerprint != self._facts.fingerprint or facts.layers != self._facts.layers:
            self._give_up(seat, worker, DeviceError("the model's files have changed", "restart the server"))
            return
        worker.ready(facts, self._patience.watchdog_s)
        self._carry_out(self._roster.worker_ready(seat.index, time.monotonic()))
        if all(other.state is WorkerState.READY for other in self._alive()) and len(self._alive()) == len(self._seats):
            self._tell(self._facts)
            self._announce = None

    def _ended(self, seat: Seat, worker: Worker) -> None:
        """The process is gone."""
        if worker.state is WorkerState.ENDING:
            self._collect(seat, worker)
            return
        starting = worker.state is WorkerState.STARTING
        self._hear(seat, worker)  # what it said before it died is true
        if seat.worker is not worker:
            return
        self._lose(seat, worker)
        self._collect(seat, worker)
        if starting:
            hint = "read its messages above; is there memory for the model?"
            self._tell(DeviceError(f"an engine worker {seat.last_end} before it was ready", hint))

    def _give_up(self, seat: Seat, worker: Worker, error: SplitGlmError) -> None:
        log.error("engine worker %d cannot serve: %s", seat.index, error.what)
        self._end(worker, error.what)
        self._tell(error)

    def _lose(self, seat: Seat, worker: Worker, how: str = "") -> None:
        """The worker serves no more: kill it if it still can be, and say whose sessions went down with it."""
        self._end(worker, how)
        loss = self._roster.worker_lost(seat.index, time.monotonic())
        extra = {
            "worker": seat.index,
            "pid": worker.process.pid,
            "sessions": len(loss.sessions),
            "at_work": len(loss.suspects),
        }
        log.error("an engine worker %s", how, extra=extra)
        if loss.sessions:
            try:
                self._on_lost(loss.sessions)
            except Exception:
                log.exception("nobody heard of lost sessions")

    def _end(self, worker: Worker, why: str = "") -> None:
        """Kill it and hear nothing more of it; it is collected when it is gone."""
        worker.end(why)
        if worker.socket in self._poller:
            self._poller.unregister(worker.socket)

    def _collect(self, seat: Seat, worker: Worker) -> None:
        """Leave nothing of a worker that is dead, dying or done."""
        if worker.socket in self._poller:
            self._poller.unregister(worker.socket)
        self._poller.unregister(worker.life)
        how = worker.reap()
        how = f"{worker.why}, {how}" if worker.why else how
        self._retired = self._retired.merged(counters(worker.stats))
        seat.vacate(how, time.monotonic(), self._patience)

    def _carry_out(self, items: Iterable[Forward | Refuse]) -> None:
        for item in items:
            if isinstance(item, Refuse):
                self._say(item.session, item.failure)
                continue
            seat = self._seats[item.worker]
            worker = seat.worker
            # Else it was lost or is stopping, and its sessions have been told or need not be.
            if worker is not None and worker.state is WorkerState.READY and not worker.obey(item.order):
                self._lose(seat, worker, "takes no more commands")

    def _say(self, session: int, event: Event) -> None:
        try:
            self._emit(session, event)
        except Exception:
            log.exception("an event was not heard")

    def _tell(self, news: messages.Progress | EngineFacts | SplitGlmError) -> None:
        if self._announce is not None:
            self._announce(news)
