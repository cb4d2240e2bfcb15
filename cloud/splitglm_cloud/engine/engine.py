"""The engine: sessions' compute state and one loop of schedule, run, emit.

It is driven by an executor, from one thread. Commands come in as method calls, results leave through ``emit``. It knows
the frames' meaning (ids or hidden states in, token or hidden states out) and nothing of streams, fences or keys.
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.events import Emit, Failure, Owner
from splitglm_cloud.engine.kv_cache import KvLedger
from splitglm_cloud.engine.runner import Cache, Hidden, Runner
from splitglm_cloud.engine.scheduler import Scheduler, Work
from splitglm_core.clock import Clock
from splitglm_core.errors import BadTensor, InputError
from splitglm_core.plan import Codec
from splitglm_glm.sampling import Sampler
from splitglm_wire import codec
from splitglm_wire.cloud import Configure, Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step

log = logging.getLogger(__name__)

MAX_WORK_ROWS: Final = 256
"""A longer step is computed in parts of as many rows, so that others' tokens wait for one part and not for all."""


@dataclass(slots=True)
class _Run:
    """The step a session is computing."""

    step: Step
    submitted_s: float
    inputs: NDArray[Any] | None = None  # token ids or hidden states, decoded when the first part runs
    done: int = 0  # rows that have run
    outputs: list[Hidden] = field(default_factory=list)  # of the parts, when all of them are wanted
    generated: int = 0
    aborted: bool = False
    queue_us: int = -1
    compute_us: int = 0


@dataclass(slots=True)
class _Slot:
    config: Configure
    cache: Cache
    sampler: Sampler
    deadline_s: float
    run: _Run | None = None
    next_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class Engine:
    """Runs steps of many sessions, one batch at a time."""

    def __init__(self, runner: Runner, scheduler: Scheduler, ledger: KvLedger, clock: Clock, emit: Emit) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._ledger = ledger
        self._clock = clock
        self._emit = emit
        self._slots: dict[int, _Slot] = {}
        self._unmade: dict[int, tuple[Configure, Owner]] = {}  # sessions whose state could not be made

    @property
    def waiting(self) -> int:
        return len(self._scheduler)

    @property
    def sessions(self) -> int:
        return len(self._slots)

    def kv_bytes(self, session: int) -> int:
        """What dropping the session would give back; may be asked from any thread."""
        return self._ledger.held_bytes(session)

    def configure(self, session: int, config: Configure, owner: Owner) -> None:
        """Make a session ready for a reply: cache of its back, cut to what is kept, sampler with its history.

        Where that fails, for want of memory, each step of the session tries again and is refused if it fails again.
        """
        self._unmade.pop(session, None)
        try:
            self._configure(session, config)
        except Exception as error:  # the device has been told that its session is open, so its next step says more
            log.error("a session could not be made: %s", type(error).__name__)
            self.drop(session)
            self._unmade[session] = config, owner

    def _configure(self, session: int, config: Configure) -> None:
        slot = self._slots.get(session)
        back = config.plan.back
        if slot is not None and (slot.cache.layers != back or slot.cache.capacity < config.context):
            self.drop(session)
            slot = None
        sampler = Sampler(config.sampling, config.generated if config.sampling.needs_history else ())
        deadline_s = self._clock.now_s() + config.deadline_ms / 1000 if config.deadline_ms else math.inf
        if slot is None:
            self._slots[session] = _Slot(config, self._runner.new_cache(back, config.context), sampler, deadline_s)
        else:
            slot.config, slot.sampler, slot.deadline_s = config, sampler, deadline_s
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
            slot.run = _Run(step, self._clock.now_s())
            self._schedule(session, slot)

    def abort(self, session: int, seq: int) -> None:
        slot = self._slots.get(session)
        if slot is not None and slot.run is not None and slot.run.step.seq == seq:
            slot.run.aborted = True

    def cut(self, session: int, length: int) -> None:
        slot = self._slots.get(session)
        if slot is not None:
            slot.cache.truncate(min(length, slot.cache.length))
            self._ledger.shrink(session, layers=len(slot.cache.layers), positions=slot.cache.committed)

    def drop(self, session: int) -> None:
        """Free everything a session holds."""
        self._scheduler.remove(session)
        self._unmade.pop(session, None)
        slot = self._slots.pop(session, None)
        if slot is not None:
            slot.cache.close()
        self._ledger.release(session)

    def close(self) -> None:
        """Free everything of every session."""
        for session in [*self._slots, *self._unmade]:
            self.drop(session)

    def turn(self) -> bool:
        """One batch: schedule, run, emit. False when there was nothing to do."""
        batch = self._scheduler.next_batch()
        if batch is None:
            self._scheduler.check_integrity()
            self._ledger.check_integrity()
            return False
        outcomes = [(work.session, self._run(work)) for work in batch.works]
        self._scheduler.finished(batch)
        for session, outcome in outcomes:
            self._settle(session, outcome)
        return True

    def _run(self, work: Work) -> Output | Failure | None:
        """Compute one work; None when more parts of its step follow. Whatever goes wrong concerns its session only."""
        slot = self._slots[work.session]
        run = slot.run
        if run is None:
            return Failure(work.seq, ErrorCode.INTERNAL, "no step to run")
        started_s = self._clock.now_s()
        if run.queue_us < 0:
            run.queue_us = int(1e6 * (started_s - run.submitted_s))
        if started_s > slot.deadline_s:
            return Failure(work.seq, ErrorCode.DEADLINE, "the deadline passed before the step ran")
        size = {"layers": len(slot.cache.layers), "positions": slot.cache.committed_for(work.base + work.rows)}
        if not self._ledger.grow(work.session, **size):
            return Failure(work.seq, ErrorCode.OVERLOADED, "no memory for keys and values")
        try:
            hidden = self._runner.forward(self._input(slot, run, work.rows), slot.cache, work.layers)
            run.done += 0 if run.generated else work.rows
            answer = self._answer(slot, run, hidden)
        except BadTensor as error:
            return Failure(work.seq, ErrorCode.BAD_TENSOR, error.what)
        except InputError as error:
            return Failure(work.seq, ErrorCode.BAD_REQUEST, error.what)
        except Exception as error:  # the engine must outlive any one step; content never reaches the log
            log.error("step failed: %s", type(error).__name__)
            return Failure(work.seq, ErrorCode.INTERNAL, "the step failed in the cloud")
        run.compute_us += int(1e6 * (self._clock.now_s() - started_s))
        if answer is None:
            return None
        rows, payload, token = answer
        last = True
        if token is not None:
            run.generated += 1
            stop = token in slot.config.stop_ids
            last = run.aborted or stop or run.generated >= run.step.generate
        # Times are told once: a device adds up the parts of a reply.
        queue_us, run.queue_us, compute_us, run.compute_us = run.queue_us, 0, run.compute_us, 0
        return Output(work.seq, rows, payload, last, queue_us, compute_us)

    def _input(self, slot: _Slot, run: _Run, rows: int) -> Hidden:
        """The next ``rows`` rows of the step, or the row of the token generated last."""
        if run.generated:
            return self._runner.embed(slot.next_ids)
        if run.inputs is None:
            run.inputs = self._decoded(run.step, slot.config.plan.codec)
        part = run.inputs[run.done : run.done + rows]
        return self._runner.embed(part) if run.step.rows_kind is Rows.IDS else part

    def _decoded(self, step: Step, coded: Codec) -> NDArray[Any]:
        if step.rows_kind is Rows.HIDDEN:
            return codec.decode(step.payload, coded, rows=step.rows, hidden=self._runner.shape.hidden, base=step.base)
        ids: NDArray[np.int64] = np.frombuffer(step.payload, "<u4").astype(np.int64)
        if int(ids.max()) >= self._runner.shape.vocab:
            raise BadTensor("a token id is outside the vocabulary")
        return ids

    def _answer(self, slot: _Slot, run: _Run, hidden: Hidden) -> tuple[int, bytes, int | None] | None:
        """Rows, payload and (when one was sampled) the token of the output; None before the step's last part."""
        step = run.step
        if step.reply is Reply.ALL_HIDDEN:
            run.outputs.append(hidden)
        if run.done < step.rows:
            return None
        if step.reply is Reply.ACK:
            return 0, b"", None
        position = slot.cache.length
        if step.reply is Reply.TOKEN:
            logits = self._runner.logits(hidden[-1:])
            token = slot.sampler.pick(logits[0], position)
            slot.sampler.commit(token)
            slot.next_ids = np.array([token], np.int64)
            return 1, struct.pack("<I", token), token
        rows = np.concatenate(run.outputs) if step.reply is Reply.ALL_HIDDEN else hidden[-1:]
        return len(rows), codec.encode(rows, slot.config.plan.codec, base=position - len(rows)), None

    def _settle(self, session: int, outcome: Output | Failure | None) -> None:
        slot = self._slots.get(session)
        if slot is None or slot.run is None:
            return
        if outcome is None or (isinstance(outcome, Output) and not outcome.last):
            self._schedule(session, slot)
        else:
            slot.run = None
        if outcome is not None:
            self._emit(session, outcome)

    def _schedule(self, session: int, slot: _Slot) -> None:
        """Queue the next part of the session's step, or its next token."""
        run = slot.run
        if run is not None:
            left = run.step.rows - run.done
            self._scheduler.add(
                Work(
                    session=session,
                    seq=run.step.seq,
                    layers=slot.cache.layers,
                    base=slot.cache.length,
                    rows=min(MAX_WORK_ROWS, left) if left else 1,
                )
            )
