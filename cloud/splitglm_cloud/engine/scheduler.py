"""Which work runs next. Pure: no clock, no tensors, no I/O; work in, batches out.

Work is one pass of some rows of one session through a range of layers. In this version a batch holds the rows of one
session; decode rows go before prefill chunks, because a decode row is short and somebody waits for its token, but after
``max_decode_burst`` decode batches a waiting prefill chunk gets its turn, so neither side starves.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Rows ``[base, base + rows)`` of ``session`` through ``layers``."""

    session: int
    seq: int
    layers: LayerRange
    base: int
    rows: int

    @property
    def decode(self) -> bool:
        return self.rows == 1


@dataclass(frozen=True, slots=True)
class Batch:
    works: tuple[Work, ...]

    @property
    def rows(self) -> int:
        return sum(work.rows for work in self.works)


class Scheduler:
    """First come, first served within a class; at most one work per session is known at a time."""

    def __init__(self, *, max_decode_burst: int = 8) -> None:
        self._max_decode_burst = max_decode_burst
        self._decode: deque[int] = deque()
        self._prefill: deque[int] = deque()
        self._waiting: OrderedDict[int, Work] = OrderedDict()
        self._running: dict[int, Work] = {}
        self._burst = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Work) -> None:
        """Queue ``work``. A session's next work comes only after its last one finished."""
        if work.session in self._waiting or work.session in self._running:
            raise InternalError(f"session {work.session} already has work")
        self._waiting[work.session] = work
        (self._decode if work.decode else self._prefill).append(work.session)

    def next_batch(self) -> Batch | None:
        """The next batch, or None when nothing waits. The caller reports ``finished`` for each batch."""
        prefill_turn = bool(self._prefill) and (not self._decode or self._burst >= self._max_decode_burst)
        queue = self._prefill if prefill_turn else self._decode
        if not queue:
            return None
        self._burst = 0 if prefill_turn else self._burst + 1
        work = self._waiting.pop(queue.popleft())
        self._running[work.session] = work
        return Batch((work,))

    def finished(self, batch: Batch) -> None:
        for work in batch.works:
            if self._running.pop(work.session, None) is not work:
                raise InternalError(f"session {work.session} finished work that was not running")

    def remove(self, session: int) -> bool:
        """Forget a session's waiting work; True when there was some."""
        work = self._waiting.pop(session, None)
        if work is None:
            return False
        (self._decode if work.decode else self._prefill).remove(session)
        return True

    def check_integrity(self) -> None:
        """Raise when the queues and the table of waiting work disagree."""
        queued = [*self._decode, *self._prefill]
        if sorted(queued) != sorted(self._waiting) or set(self._waiting) & set(self._running):
            raise InternalError("the scheduler's queues and tables disagree")
