"""The engine: sessions' compute state and one loop of board, run, alight, answer.

It is driven by an executor, from one thread. Commands come in as method calls, events leave through ``emit``. It knows
the frames' meaning (ids or hidden states in, token or hidden states out) and nothing of streams, fences or keys.

What goes wrong stays with whom it concerns: a row that cannot be decoded never boards, a batch that fails is run again
one session at a time, and when memory is short the session that has to go is told so (``Evicted``).
"""

from __future__ import annotations

import itertools
import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine import batching
from splitglm_cloud.engine.batching import Aboard
from splitglm_cloud.engine.carousel import Carousel
from splitglm_cloud.engine.events import Emit, Evicted, Failure, Owner
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.meter import Meter
from splitglm_cloud.engine.residency import Residency, Room
from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.engine.slots import Run, Slot, decoded, latest_s, work_of
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.engine.work import Segment, Work
from splitglm_core.clock import Clock
from splitglm_core.ranges import LayerRange
from splitglm_glm.sampling import Sampler
from splitglm_wire.cloud import Configure, Output
from splitglm_wire.frames import ErrorCode, Reply, Step
from splitglm_wire.frames import Rows as RowsKind

log = logging.getLogger(__name__)


class Engine:
    """Runs steps of many sessions, whatever layers each of them uses, in common batches.

    Args:
        max_wait_s: a step that nobody has begun to compute by then is refused.
    """

    def __init__(
        self,
        runner: Runner,
        carousel: Carousel,
        pages: KvPages,
        clock: Clock,
        emit: Emit,
        *,
        max_wait_s: float = math.inf,
    ) -> None:
        self._runner = runner
        self._carousel = carousel
        self._pages = pages
        self._clock = clock
        self._emit = emit
        self._max_wait_s = max_wait_s
        self._slots: dict[int, Slot] = {}
        self._unmade: dict[int, tuple[Configure, Owner]] = {}  # sessions whose state could not be made
        self._residency = Residency(self._slots, pages, carousel, emit)
        self._order = itertools.count(1)
        self._meter = Meter(runner.shape.layers)
        self._check_s = -math.inf  # not before then

    @property
    def parked(self) -> int:
        """Steps that wait for memory: ``turn`` must be tried again after a while even if nothing else happens."""
        return self._residency.parked

    def session_keys(self) -> tuple[int, ...]:
        return (*self._slots, *self._unmade)

    def stats(self) -> EngineStats:
        """As of now; for the engine's own thread."""
        at_work = sum(self._pages.held(slot.key) for slot in self._slots.values() if slot.run is not None)
        return replace(
            self._meter.stats(self._carousel, self._pages, self._clock.now_s()),
            waiting=len(self._carousel) + self.parked,
            sessions=len(self._slots),
            kv_active_bytes=at_work * self._pages.page_bytes,
            evictions=self._residency.evictions,
            preemptions=self._residency.preemptions,
        )

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        """Make a session ready for a reply: cache of its back, cut to what is kept, sampler with its history.

        Where that fails, for want of memory, each step of the session tries again and is refused if it fails again.
        """
        known = session in self._slots
        self._unmade.pop(session, None)
        try:
            self._configure(session, config, owner)
        except Exception as error:  # the device has been told that its session is open, so its next step says more
            log.error("a session could not be made: %s", type(error).__name__)
            self.drop(session)
            self._unmade[session] = config, owner
            if known:
                self._emit(session, Evicted(None))

    def _configure(self, session: int, config: Configure, owner: Owner) -> None:
        slot = self._slots.get(session)
        back = config.plan.back
        if slot is not None and (slot.cache.layers != back or slot.cache.capacity < config.context):
            self.drop(session)
            slot = None
        sampler = Sampler(config.sampling, config.generated if config.sampling.needs_history else ())
        deadline_s = self._clock.now_s() + config.deadline_ms / 1000 if config.deadline_ms else math.inf
        if slot is None:
            cache = self._runner.new_cache(back, config.context)
            self._slots[session] = Slot(
                session, config, owner, cache, sampler, deadline_s, born=next(self._order), used_s=self._clock.now_s()
            )
        else:
            slot.config, slot.owner, slot.sampler, slot.deadline_s = config, owner, sampler, deadline_s
            self.cut(session, config.keep)

    def submit(self, session: int, step: Step) -> None:
        if session in self._unmade:
            self.configure(session, *self._unmade[session])
        slot = self._slots.get(session)
        if session in self._unmade:
            self._emit(session, Failure(step.seq, ErrorCode.OVERLOADED, "no memory for another session"))
        elif slot is None or slot.run is not None or step.base != slot.cache.length:
            self._emit(session, Failure(step.seq, ErrorCode.INTERNAL, "the session cannot take this step now"))
        else:
            slot.run = Run(step, self._clock.now_s())
            self._offer(slot, slot.run)

    def abort(self, session: int, seq: int) -> None:
        """End a generation: now if its next token waits for the scheduler or for memory, else after that token."""
        slot = self._slots.get(session)
        run = slot.run if slot is not None else None
        if slot is None or run is None or run.step.seq != seq:
            return
        run.aborted = True
        if run.generated and not run.part:
            self._carousel.remove(session)
            self._settle(slot, Output(seq, 0, b"", True, *run.times_us()))

    def cut(self, session: int, length: int) -> None:
        slot = self._slots.get(session)
        if slot is not None:
            slot.cache.truncate(min(length, slot.cache.length))
            self._pages.shrink(session, positions=slot.cache.committed)

    def drop(self, session: int) -> None:
        """Free everything a session holds."""
        self._carousel.remove(session)
        self._unmade.pop(session, None)
        self._residency.forget(session)
        slot = self._slots.pop(session, None)
        if slot is not None:
            slot.cache.close()
        self._pages.release(session)

    def close(self) -> None:
        """Free everything of every session."""
        for slot in self._slots.values():
            slot.cache.close()  # first: tables that are broken must not keep the memory of a runner that lives on
        for session in [*self._slots, *self._unmade]:
            self.drop(session)

    def turn(self) -> bool:
        """One batch. False when there was nothing to do."""
        now_s = self._clock.now_s()
        for slot in self._residency.unpark(now_s):
            self._retry(slot, now_s)
        for work in self._carousel.expire(now_s):
            self._expire(self._slots[work.session], now_s)
        segment = self._carousel.next_segment(now_s)
        if segment is None:
            self._meter.fell_idle()
            self._check(now_s)
            return False
        riding = self._board(segment, now_s)
        rows = sum(run.part for _, run in riding)
        if riding:
            self._ride(riding, segment.layers)
        alighted = [self._slots[work.session] for work in self._carousel.finished(segment)]
        if alighted:
            self._alight(alighted)
        self._meter.count(segment.layers, rows, self._carousel, now_s, self._clock.now_s())
        return True

    def check_integrity(self) -> None:
        """Raise InternalError where tables disagree. Time grows with the pages that were ever used."""
        self._carousel.check_integrity()
        self._pages.check_integrity()

    def _check(self, now_s: float) -> None:
        """With one device the engine falls idle after every token: checking may take a hundredth of its time."""
        if now_s >= self._check_s:
            self.check_integrity()
            ended_s = self._clock.now_s()
            self._check_s = ended_s + 100 * (ended_s - now_s)

    def _offer(self, slot: Slot, run: Run) -> None:
        """Hand the next part of the session's step, or its next token, to the scheduler."""
        run.offered_s = self._clock.now_s()
        self._queue(slot, run, run.offered_s)

    def _queue(self, slot: Slot, run: Run, now_s: float) -> None:
        self._carousel.add(work_of(slot, run, latest_s(slot, run, self._max_wait_s)), now_s)

    def _board(self, segment: Segment, now_s: float) -> list[Aboard]:
        """Those who ride the segment. Prepares the rows of those who board, and sends away whoever cannot."""
        slots = [(self._slots[work.session], work) for work in segment.riders]
        boarding = [(slot, work) for slot, work in slots if slot.run is not None and not slot.run.part]
        for slot, work in boarding:
            if slot.run is not None:  # it may have had to make room for an earlier one
                self._prepare(slot, slot.run, work, now_s)
        with_ids = [
            (slot, slot.run)
            for slot, _ in boarding
            if slot.run is not None and slot.run.part and slot.run.step.rows_kind is RowsKind.IDS
        ]
        for slot, error in batching.embed(self._runner, with_ids):
            self._fail(slot, error)
        return [(slot, slot.run) for slot, _ in slots if slot.run is not None and slot.run.part]

    def _prepare(self, slot: Slot, run: Run, work: Work, now_s: float) -> None:
        if not self._hold(slot, run, work.base + work.rows, now_s):
            return
        try:
            if run.generated:
                rows: NDArray[Any] = slot.next_ids
            else:
                if run.inputs is None:
                    run.inputs = decoded(run.step, slot.config.plan.codec, self._runner.shape)
                rows = run.inputs[run.done : run.done + work.rows]
            run.rows = rows if run.step.rows_kind is RowsKind.IDS else self._runner.board(rows)
        except Exception as error:
            self._fail(slot, error)
            return
        run.part, run.base = work.rows, work.base
        run.boarded(now_s, self._carousel.sweep_began_s)

    def _hold(self, slot: Slot, run: Run, positions: int, now_s: float) -> bool:
        """Pages for so many positions. Where there are none the step waits for them, or fails."""
        room = self._residency.hold(slot, positions, now_s)
        if room is Room.NEVER:
            self._settle(slot, Failure(run.step.seq, ErrorCode.OVERLOADED, "no memory for keys and values"))
        return room is Room.HELD

    def _retry(self, slot: Slot, now_s: float) -> None:
        """A step that waited for memory goes back to the scheduler if there is some now."""
        run = slot.run
        if run is None:  # it had to make room for one before it
            return
        if now_s > latest_s(slot, run, self._max_wait_s):
            self._expire(slot, now_s)
        elif self._hold(slot, run, slot.cache.length + run.next_rows, now_s):
            self._queue(slot, run, now_s)

    def _ride(self, riding: Sequence[Aboard], layers: LayerRange) -> None:
        started_s = self._clock.now_s()
        for slot, error in batching.ride(self._runner, riding, layers):
            self._fail(slot, error)
        took_s = self._clock.now_s() - started_s
        for _, run in riding:
            run.compute_s += took_s

    def _alight(self, slots: Sequence[Slot]) -> None:
        """Those whose last layer has run get their answers, or go on with their next part."""
        sampling: list[Aboard] = []
        for slot in slots:
            run = slot.run
            if run is None:
                continue
            run.done += 0 if run.generated else run.part
            run.part = 0
            if run.step.reply is Reply.ALL_HIDDEN:
                try:
                    run.outputs.append(self._runner.alight(run.rows))
                except Exception as error:  # there may be no memory for a copy
                    self._fail(slot, error)
                    continue
            if run.done < run.step.rows:
                self._offer(slot, run)
            elif run.step.reply is Reply.TOKEN:
                sampling.append((slot, run))
            else:
                self._answer(slot, run)
        if sampling:
            self._sample(sampling)

    def _answer(self, slot: Slot, run: Run) -> None:
        try:
            count, payload = batching.answer(self._runner, slot, run)
        except Exception as error:
            self._fail(slot, error)
            return
        self._settle(slot, Output(run.step.seq, count, payload, True, *run.times_us()))

    def _sample(self, alighted: Sequence[Aboard]) -> None:
        """One pass of the head for all; then each its own token."""
        started_s = self._clock.now_s()
        logits = batching.head(self._runner, alighted)
        took_s = self._clock.now_s() - started_s
        for (slot, run), (_, row) in zip(alighted, logits, strict=True):
            run.compute_s += took_s
            try:
                if isinstance(row, Exception):
                    raise row
                token = slot.sampler.pick(row, slot.cache.length)
                slot.sampler.commit(token)
            except Exception as error:
                self._fail(slot, error)
                continue
            slot.next_ids = np.array([token], np.int64)
            run.generated += 1
            last = run.aborted or token in slot.config.stop_ids or run.generated >= run.step.generate
            self._settle(slot, Output(run.step.seq, 1, struct.pack("<I", token), last, *run.times_us()))

    def _expire(self, slot: Slot, now_s: float) -> None:
        if slot.run is not None:
            late = now_s > slot.deadline_s
            code = ErrorCode.DEADLINE if late else ErrorCode.OVERLOADED
            text = "the deadline passed before the step ran" if late else "the step waited too long for its turn"
            self._settle(slot, Failure(slot.run.step.seq, code, text, 0.0 if late else self._max_wait_s))

    def _fail(self, slot: Slot, error: Exception) -> None:
        if slot.run is not None:
            self._settle(slot, Failure.of(error, slot.run.step.seq))

    def _settle(self, slot: Slot, outcome: Output | Failure) -> None:
        """Tell the outcome; after a token that is not the last, go on with the next one."""
        run = slot.run
        if run is None:
            return
        if isinstance(outcome, Output) and not outcome.last:
            self._offer(slot, run)
        else:
            slot.run, slot.used_s = None, self._clock.now_s()
            self._residency.forget(slot.key)
            if isinstance(outcome, Failure):
                self._carousel.remove(slot.key)
                slot.cache.truncate(min(run.step.base, slot.cache.length))
                self._pages.shrink(slot.key, positions=slot.cache.committed)
        self._emit(slot.key, outcome)
