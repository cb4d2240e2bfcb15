"""The cloud's side of the session protocol: a sans-IO state machine.

Rules of this file: no clock, no socket, no tensors; frames in, actions out. Everything it holds is soft state: a
session that is forgotten costs the device a rebuild, never a wrong token. Invariants:

* I2 at most one fence of a session is alive; frames of an older one get ``FENCED``, and what is computed for an older
  one is kept but never sent.
* I3 a step applies iff ``seq`` follows the last accepted one and ``base`` equals the length it would meet; the last
  applied step again, byte for byte, gets its cached reply; with other content it is a conflict.
* I5 every accepted step ends in exactly one last result or one error, unless its stream dies or a newer open comes.
* one step of a session computes at a time, in order; those behind it wait in a bounded queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from splitglm_core.plan import SplitPlan
from splitglm_wire.actions import Abort, Action, Configure, Cut, Drop, Output, Send, Submit
from splitglm_wire.answer import Answer, digest
from splitglm_wire.checks import misfit
from splitglm_wire.frames import (
    Cancel,
    Close,
    Ended,
    Error,
    ErrorCode,
    Open,
    Opened,
    Reply,
    Result,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_QUEUED_BYTES, MAX_QUEUED_STEPS

__all__ = ["Abort", "Action", "CloudSession", "Configure", "Cut", "Drop", "Output", "Send", "Submit"]


class CloudSession:
    """One session as the cloud sees it."""

    def __init__(self, *, session_id: bytes, hidden: int) -> None:
        self.session_id = session_id
        self.fence = 0
        self.kv_length = 0
        self.last_seq = 0
        self._step_fence = 0  # under which the last applied step came
        self._handle = 0
        self._hidden = hidden
        self._open: Open | None = None
        self._waiting_open: Open | None = None
        self._queue: deque[Step] = deque()
        self._cancelled_seq = 0  # a queued step that shall generate as little as possible
        self._running: Step | None = None
        self._generated: list[int] = []  # tokens of the running step
        self._history: list[int] = []  # tokens of this reply before the running step
        self._answer: Answer | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def held_bytes(self) -> int:
        """Payloads of the steps that run or wait; a server bounds their sum over its sessions."""
        steps = (*self._queue, self._running) if self._running else self._queue
        return sum(len(step.payload) for step in steps)

    @property
    def held_rows(self) -> int:
        """Rows of the steps that run or wait; one that has begun to generate has only its next token to compute."""
        running = self._running
        of_running = 0 if running is None else 1 if self._generated else running.rows
        return of_running + sum(step.rows for step in self._queue)

    @property
    def plan(self) -> SplitPlan | None:
        return self._open.plan if self._open else None

    @property
    def newest_fence(self) -> int:
        """The fence that a new open must exceed."""
        return max(self.fence, self._waiting_open.fence if self._waiting_open else 0)

    def on_open(self, frame: Open) -> list[Action]:
        """A new reply, or the device is back on a new stream."""
        if frame.fence <= self.newest_fence:
            return [Send(self._fenced(frame.handle, frame.fence))]
        self._clear_queue()
        if self._running is not None:
            # Which positions exist is known only when the running step has ended.
            self._waiting_open = frame
            return [Abort(self._running.seq)]
        return self._attach(frame)

    def _attach(self, frame: Open) -> list[Action]:
        self._waiting_open = None
        self.fence = frame.fence
        self._handle = frame.handle
        old = self._open
        self._open = frame
        self._history = list(frame.generated)
        if old is not None and (old.plan.back != frame.plan.back or old.context < frame.context):
            self.kv_length = 0  # another cut needs other layers' caches: the device rebuilds
            self._answer = None
        if frame.keep < self.kv_length:
            self.kv_length = frame.keep
            self._answer = None
        if old is not None and old.request != frame.request:
            self._answer = None  # another reply may be sampled otherwise
        opened = Opened(
            handle=frame.handle,
            fence=frame.fence,
            request=frame.request,
            have=self.kv_length,
            last_seq=self.last_seq,
            step_fence=self._step_fence,
        )
        return [self._configure(frame), Send(opened)]

    def _configure(self, frame: Open) -> Configure:
        return Configure(
            plan=frame.plan,
            sampling=frame.sampling,
            generated=tuple(self._history),
            stop_ids=frame.stop_ids,
            context=frame.context,
            keep=self.kv_length,
            deadline_ms=frame.deadline_ms,
            criticality=frame.criticality,
        )

    def on_step(self, step: Step) -> list[Action]:
        refusal = self._check(step)
        if refusal is not None:
            return [Send(refusal)]
        if step.seq == self.last_seq:
            return self._replay(step)
        self._queue.append(step)
        return self._next() if self._running is None else []

    def on_truncate(self, frame: Truncate) -> list[Action]:
        if frame.fence != self.fence or self._waiting_open is not None:
            return [Send(self._fenced(frame.handle, frame.fence))]
        if self._running is not None or self._queue:
            return [Send(self._error(0, ErrorCode.BAD_REQUEST, "truncate while a step runs", Scope.SESSION))]
        if frame.length < self.kv_length:
            self.kv_length = frame.length
            self._answer = None
        return [Cut(self.kv_length)]

    def on_cancel(self, frame: Cancel) -> list[Action]:
        if frame.fence != self.fence:
            return []
        if self._running is not None and frame.seq == self._running.seq:
            return [Abort(frame.seq)]
        if any(frame.seq == step.seq for step in self._queue):
            self._cancelled_seq = frame.seq
        return []  # else it ended meanwhile

    def on_close(self, frame: Close) -> list[Action]:
        if frame.fence != self.newest_fence:
            return [Send(self._fenced(frame.handle, frame.fence))]
        return [Drop(), Send(Ended(handle=frame.handle))]

    def on_stream_lost(self) -> list[Action]:
        """The stream died; the session waits for a re-open until its owner forgets it."""
        self._clear_queue()
        return [Abort(self._running.seq)] if self._running is not None else []

    def on_output(self, output: Output) -> list[Action]:
        """The engine produced a part of the running step."""
        step = self._running
        if step is None or output.seq != step.seq:
            return []
        index = len(self._generated)  # only tokens come in more than one part
        if step.reply is Reply.TOKEN and output.rows:
            self._generated.append(int.from_bytes(output.payload, "little"))
        end = step.base + step.rows
        length = end + max(0, len(self._generated) - 1)
        part = Result(
            handle=self._handle,
            fence=self.fence,
            seq=step.seq,
            index=index,
            last=output.last,
            reply=step.reply,
            kv_length=length,
            rows=output.rows,
            queue_us=output.queue_us,
            sweep_us=output.sweep_us,
            compute_us=output.compute_us,
            payload=output.payload,
        )
        # A device that is opening anew may have given the old handle to another session.
        actions: list[Action] = [Send(part)] if self._waiting_open is None else []
        if output.last:
            self.kv_length, self.last_seq, self._step_fence = length, step.seq, step.fence
            first = len(self._history)
            self._history += self._generated
            self._answer = Answer(digest(step), self._history, first, end, part)
            self._running = None
            actions += self._attach(self._waiting_open) if self._waiting_open else self._next()
        return actions

    def on_failure(self, seq: int, code: ErrorCode, text: str, retry_after_ms: int = 0) -> list[Action]:
        """The running step failed: it and everything queued behind it are void, the session goes on."""
        if self._running is None or seq != self._running.seq:
            return []
        self._running = None
        void = self._clear_queue()
        actions: list[Action] = [Cut(self.kv_length)]
        if self._waiting_open is not None:
            return actions + self._attach(self._waiting_open)
        actions.append(Send(self._error(seq, code, text, Scope.STEP, retry_after_ms)))
        behind = "a step before this one failed"
        return actions + [Send(self._error(step.seq, code, behind, Scope.STEP)) for step in void]

    def on_evicted(self) -> list[Action]:
        """The keys and values are gone for good: only the device can build them again.

        The last reply stays in its cache: it was right, and the device learns of the gap with its next step.
        """
        self.kv_length = 0
        if self._running is None:
            return []
        return self.on_failure(self._running.seq, ErrorCode.KV_GAP, "the cloud no longer holds the session's positions")

    def _clear_queue(self) -> list[Step]:
        steps = list(self._queue)
        self._queue.clear()
        self._cancelled_seq = 0
        return steps

    def _next(self) -> list[Action]:
        if not self._queue:
            return []
        self._running = step = self._queue.popleft()
        self._generated = []
        return [Submit(step), Abort(step.seq)] if step.seq == self._cancelled_seq else [Submit(step)]

    def _replay(self, step: Step) -> list[Action]:
        answer, frame = self._answer, self._open
        if answer is None or frame is None or digest(step) != answer.step_digest:
            return [Send(self._error(step.seq, ErrorCode.SEQ_CONFLICT, "another step has this number", Scope.SESSION))]
        actions: list[Action] = []
        if answer.history != self._history:
            self._history = answer.history  # the sampler goes on after the tokens that are sent now
            actions.append(self._configure(frame))
        # Only what the device lacks: a long reply would flood its stream.
        parts = answer.parts(frame.generated)
        return actions + [Send(replace(part, handle=self._handle, fence=self.fence)) for part in parts]

    def _check(self, step: Step) -> Error | None:
        """The cheap checks, in order, before anything is queued or decoded."""
        if self._open is None or step.fence != self.fence or self._waiting_open is not None:
            return self._fenced(step.handle, step.fence)
        if step.seq == self.last_seq and not self._queue and self._running is None:
            return None
        seq, length = self._end()
        if step.seq != seq + 1:
            return self._error(step.seq, ErrorCode.SEQ_CONFLICT, "the step is out of sequence", Scope.STEP)
        if step.base != length:
            return self._error(step.seq, ErrorCode.KV_GAP, "the step does not begin where the cache ends", Scope.STEP)
        reason = misfit(step, self._open.plan, context=self._open.context, hidden=self._hidden)
        if reason is not None:
            return self._error(step.seq, *reason, Scope.STEP)
        queued = sum(len(s.payload) for s in self._queue) + len(step.payload)
        if len(self._queue) >= MAX_QUEUED_STEPS or queued > MAX_QUEUED_BYTES:
            return self._error(step.seq, ErrorCode.OVERLOADED, "too many steps are queued", Scope.STEP)
        return None

    def _end(self) -> tuple[int, int]:
        """Sequence number and length after everything accepted. A generating step is always the last one queued."""
        tail = self._queue[-1] if self._queue else self._running
        if tail is None:
            return self.last_seq, self.kv_length
        return tail.seq, (tail.base + tail.rows if tail.generate <= 1 else -1)

    @staticmethod
    def _fenced(handle: int, fence: int) -> Error:
        return Error(
            handle=handle,
            fence=fence,
            seq=0,
            code=ErrorCode.FENCED,
            scope=Scope.SESSION,
            resumable=False,
            retry_after_ms=0,
            have=0,
            text="a newer stream owns this session",
        )

    def _error(self, seq: int, code: ErrorCode, text: str, scope: Scope, retry_after_ms: int = 0) -> Error:
        busy = code is ErrorCode.OVERLOADED
        return Error(
            handle=self._handle,
            fence=self.fence,
            seq=seq,
            code=code,
            scope=scope,
            resumable=busy,
            retry_after_ms=retry_after_ms or (50 if busy else 0),
            have=self.kv_length,
            text=text,
        )
