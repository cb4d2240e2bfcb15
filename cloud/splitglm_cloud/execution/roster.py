"""Which worker holds which session, what waits for a worker, and whose steps end workers. Pure: time comes in.

A session stays with the worker that it was configured at. While no worker is ready its orders wait here, in order, for
a bounded time. Whose step was being computed when a worker died may have been the cause: after three such deaths
without an answer between them, no step of the session is run before the window has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from splitglm_cloud.engine.events import Failure, Owner
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Submit
from splitglm_wire.frames import ErrorCode

DEATHS_TO_REFUSE: Final = 3
RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """A command to the worker of a session. ``owner`` comes with a Configure."""

    session: int
    action: Configure | Submit | Abort | Cut | Drop
    owner: Owner = field(default_factory=Owner)
    given_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Forward:
    worker: int
    order: Order


@dataclass(frozen=True, slots=True)
class Refuse:
    session: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Loss:
    """What went down with a worker: all its sessions, and those of them that had a step in it."""

    sessions: tuple[int, ...]
    suspects: tuple[int, ...]


@dataclass(slots=True)
class _Held:
    worker: int | None = None
    backlog: deque[Order] = field(default_factory=deque)


@dataclass(slots=True)
class _Worker:
    sessions: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)


class Roster:
    """Sessions on workers.

    Args:
        patience_s: how long a step waits for any worker to be ready.
        window_s: how long a death is held against a session.
        kv_used: share of its memory that a worker had in use last.
    """

    def __init__(self, *, patience_s: float, window_s: float, kv_used: Callable[[int], float]) -> None:
        self._patience_s = patience_s
        self._window_s = window_s
        self._kv_used = kv_used
        self._held: dict[int, _Held] = {}
        self._workers: dict[int, _Worker] = {}
        self._lost: set[int] = set()
        self._deaths: dict[int, deque[float]] = {}

    def sessions(self, worker: int) -> int:
        """How many it holds; may be asked from any thread."""
        known = self._workers.get(worker)
        return len(known.sessions) if known is not None else 0

    def holds(self, worker: int, session: int) -> bool:
        return worker in self._workers and session in self._workers[worker].sessions

    def working(self, worker: int) -> bool:
        """True while the worker owes somebody an answer."""
        return worker in self._workers and bool(self._workers[worker].running)

    def offer(self, order: Order, now_s: float) -> list[Forward | Refuse]:
        """A command from the gateway.

        The commands of a lost session mean nothing until it is configured again: the report of the loss, which is on
        its way or has been heard, answers them.
        """
        session, action = order.session, order.action
        if isinstance(action, Drop):
            return self._drop(order)
        if isinstance(action, Configure):
            self._lost.discard(session)
            unplaced = self._held.setdefault(session, _Held())
            if not any(isinstance(waiting.action, Submit) for waiting in unplaced.backlog):
                unplaced.backlog.clear()  # no worker has anything of it that could be cut or kept
        held = self._held.get(session)
        if isinstance(action, Submit):
            if held is None and session not in self._lost:
                return [_refusal(order, ErrorCode.INTERNAL, "the session cannot take this step now")]
            if self._guilt(session, now_s) >= DEATHS_TO_REFUSE:
                return [_refusal(order, ErrorCode.INTERNAL, "steps of this session ended the engine worker repeatedly")]
        if held is None:
            return []
        held.backlog.append(replace(order, given_s=now_s))
        return list(self._flow(session, held, now_s))

    def answered(self, session: int, *, ended: bool, progress: bool) -> None:
        """The worker said something about the session's step.

        Args:
            ended: it was the last word.
            progress: it is what was asked for. That an earlier part was computed again says nothing about the rest.
        """
        held = self._held.get(session)
        if held is None or held.worker is None:
            return
        if ended:
            self._workers[held.worker].running.discard(session)
        if progress:
            self._deaths.pop(session, None)

    def worker_ready(self, worker: int, now_s: float) -> list[Forward | Refuse]:
        """Sessions that waited are placed."""
        self._workers[worker] = _Worker()
        waiting = [(session, held) for session, held in self._held.items() if held.backlog and held.worker is None]
        return [item for session, held in waiting for item in self._flow(session, held, now_s)]

    def worker_lost(self, worker: int, now_s: float) -> Loss:
        """Nothing more comes from it; its sessions are unknown until they are configured again."""
        gone = self._workers.pop(worker, None) or _Worker()
        for session in gone.sessions:
            del self._held[session]
        self._lost |= gone.sessions
        for session in gone.running:
            self._deaths.setdefault(session, deque(maxlen=DEATHS_TO_REFUSE)).append(now_s)
        return Loss(tuple(sorted(gone.sessions)), tuple(sorted(gone.running)))

    def expire(self, now_s: float) -> list[Forward | Refuse]:
        """Steps that have waited too long for any worker are refused."""
        refused: list[Forward | Refuse] = []
        for session in list(self._deaths):
            self._guilt(session, now_s)  # forgets
        for held in self._held.values():
            if held.worker is None and held.backlog and now_s - held.backlog[0].given_s > self._patience_s:
                steps = [order for order in held.backlog if isinstance(order.action, Submit)]
                refused += [_refusal(order, ErrorCode.UNAVAILABLE, "no engine worker is running") for order in steps]
                # How the session is to be computed is kept for the steps that come later.
                last = [order for order in held.backlog if isinstance(order.action, Configure)][-1:]
                held.backlog = deque(last)
        return refused

    def _drop(self, order: Order) -> list[Forward | Refuse]:
        session = order.session
        self._lost.discard(session)
        held = self._held.pop(session, None)
        if held is None or held.worker is None:
            return []
        worker = self._workers[held.worker]
        worker.sessions.discard(session)
        worker.running.discard(session)
        return [Forward(held.worker, order)]

    def _flow(self, session: int, held: _Held, now_s: float) -> Iterator[Forward]:
        """Send on what waits, in order, if there is a worker for it."""
        if held.worker is None:
            held.worker = self._place(session)
        if held.worker is None:
            return
        while held.backlog:
            order = held.backlog.popleft()
            if isinstance(order.action, Submit):
                self._workers[held.worker].running.add(session)
            yield Forward(held.worker, _with_time_left(order, now_s))

    def _place(self, session: int) -> int | None:
        if not self._workers:
            return None
        # Sixteenths: a difference of a few pages says less than the number of sessions that will grow.
        chosen = min(self._workers, key=lambda key: (int(16 * self._kv_used(key)), self.sessions(key), key))
        self._workers[chosen].sessions.add(session)
        return chosen

    def _guilt(self, session: int, now_s: float) -> int:
        deaths = self._deaths.get(session)
        if deaths is None:
            return 0
        while deaths and now_s - deaths[0] > self._window_s:
            deaths.popleft()
        if not deaths:
            del self._deaths[session]
        return len(deaths)


def _refusal(order: Order, code: ErrorCode, text: str) -> Refuse:
    seq = order.action.step.seq if isinstance(order.action, Submit) else 0
    retry_after_s = RETRY_AFTER_S if code is ErrorCode.UNAVAILABLE else 0.0
    return Refuse(order.session, Failure(seq, code, text, retry_after_s))


def _with_time_left(order: Order, now_s: float) -> Order:
    """A deadline counts from when the gateway said it, not from when a worker hears it."""
    action = order.action
    waited_ms = int(1000 * (now_s - order.given_s))
    if not isinstance(action, Configure) or not action.deadline_ms or waited_ms <= 0:
        return order
    return replace(order, action=replace(action, deadline_ms=max(1, action.deadline_ms - waited_ms)))
