"""The cloud's side of the session protocol: a sans-IO state machine.

Rules of this file: no clock, no socket, no tensors; frames in, actions out. Everything it holds is soft state: a
session that is forgotten costs the device a rebuild, never a wrong token. Invariants:

* I2 at most one fence of a session is alive; frames of an older one get ``FENCED``.
* I3 a step applies iff ``seq`` follows the last accepted one and ``base`` equals the length it would meet; the last
  applied step again, byte for byte, gets its cached reply; with other content it is a conflict.
* I5 every accepted step ends in exactly one last result or one error, unless its stream dies first.
* one step of a session computes at a time, in order; those behind it wait in a bounded queue.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, replace

from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.codec import payload_bytes
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
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_GENERATE, MAX_QUEUED_BYTES, MAX_QUEUED_STEPS


@dataclass(frozen=True, slots=True)
class Send:
    frame: Opened | Result | Error | Ended


@dataclass(frozen=True, slots=True)
class Configure:
    """Prepare for a reply under this plan: KV cache for its back, sampler with this history, cut to ``keep``."""

    plan: SplitPlan
    sampling: SamplingParams
    generated: tuple[int, ...]
    stop_ids: tuple[int, ...]
    context: int
    keep: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this step. Answer with ``on_output`` / ``on_failure``."""

    step: Step


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop generating after the current token; the step still ends with a last output."""

    seq: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Truncate the KV cache."""

    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free everything of this session."""


Action = Send | Configure | Submit | Abort | Cut | Drop


@dataclass(frozen=True, slots=True)
class Output:
    """One part of a computed step: a token, hidden states in wire form, or (``payload`` empty) nothing."""

    seq: int
    rows: int
    payload: bytes
    last: bool
    queue_us: int = 0
    compute_us: int = 0


class CloudSession:
    """One session as the cloud sees it."""

    def __init__(self, *, session_id: bytes, hidden: int) -> None:
        self.session_id = session_id
        self.fence = 0
        self.kv_length = 0
        self.last_seq = 0
        self._handle = 0
        self._hidden = hidden
        self._open: Open | None = None
        self._waiting_open: Open | None = None
        self._queue: deque[Step] = deque()
        self._running: Step | None = None
        self._parts: list[Result] = []  # of the running step
        self._cached: list[Result] = []  # of the last applied step
        self._cached_digest = b""

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def plan(self) -> SplitPlan | None:
        return self._open.plan if self._open else None

    def on_open(self, frame: Open) -> list[Action]:
        """A new reply, or the device is back on a new stream."""
        newest = max(self.fence, self._waiting_open.fence if self._waiting_open else 0)
        if frame.fence <= newest:
            return [Send(self._fenced(frame.handle, frame.fence))]
        self._queue.clear()
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
        if old is not None and (old.plan.back != frame.plan.back or old.context < frame.context):
            self.kv_length = 0  # another cut needs other layers' caches: the device rebuilds
            self._forget_reply()
        if frame.keep < self.kv_length:
            self.kv_length = frame.keep
            self._forget_reply()
        return [
            Configure(
                frame.plan,
                frame.sampling,
                frame.generated,
                frame.stop_ids,
                frame.context,
                self.kv_length,
                frame.deadline_ms,
            ),
            Send(
                Opened(
                    handle=frame.handle,
                    fence=frame.fence,
                    request=frame.request,
                    have=self.kv_length,
                    last_seq=self.last_seq,
                )
            ),
        ]

    def on_step(self, step: Step) -> list[Action]:
        refusal = self._check(step)
        if refusal is not None:
            return [Send(refusal)]
        if step.seq == self.last_seq:
            return self._replay(step)
        self._queue.append(step)
        return self._next() if self._running is None else []

    def on_truncate(self, frame: Truncate) -> list[Action]:
        if frame.fence != self.fence:
            return [Send(self._fenced(frame.handle, frame.fence))]
        if self._running is not None or self._queue:
            return [Send(self._error(0, ErrorCode.BAD_REQUEST, "truncate while a step runs", Scope.SESSION))]
        if frame.length < self.kv_length:
            self.kv_length = frame.length
            self._forget_reply()
        return [Cut(self.kv_length)]

    def on_cancel(self, frame: Cancel) -> list[Action]:
        if frame.fence == self.fence and self._running is not None and frame.seq == self._running.seq:
            return [Abort(frame.seq)]
        return []  # it ended meanwhile

    def on_close(self, frame: Close) -> list[Action]:
        if frame.fence != self.fence:
            return [Send(self._fenced(frame.handle, frame.fence))]
        return [Drop(), Send(Ended(handle=frame.handle))]

    def on_stream_lost(self) -> list[Action]:
        """The stream died; the session waits for a re-open until its owner forgets it."""
        self._queue.clear()
        return [Abort(self._running.seq)] if self._running is not None else []

    def on_output(self, output: Output) -> list[Action]:
        """The engine produced a part of the running step."""
        step = self._running
        if step is None or output.seq != step.seq:
            return []
        tokens = sum(1 for part in self._parts if part.rows) if step.reply is Reply.TOKEN else 0
        if step.reply is Reply.TOKEN and output.rows:
            tokens += 1
        length = step.base + step.rows + max(0, tokens - 1)
        part = Result(
            handle=self._handle,
            fence=self.fence,
            seq=step.seq,
            index=len(self._parts),
            last=output.last,
            reply=step.reply,
            kv_length=length,
            rows=output.rows,
            queue_us=output.queue_us,
            compute_us=output.compute_us,
            payload=output.payload,
        )
        self._parts.append(part)
        actions: list[Action] = [Send(part)]
        if output.last:
            self.kv_length, self.last_seq = length, step.seq
            self._cached, self._parts = self._parts, []
            self._cached_digest = _digest(step)
            self._running = None
            actions += self._attach(self._waiting_open) if self._waiting_open else self._next()
        return actions

    def on_failure(self, seq: int, code: ErrorCode, text: str) -> list[Action]:
        """The running step failed: it and everything queued behind it are void, the session goes on."""
        if self._running is None or seq != self._running.seq:
            return []
        self._running = None
        self._parts = []
        self._queue.clear()
        actions: list[Action] = [Cut(self.kv_length), Send(self._error(seq, code, text, Scope.STEP))]
        return actions + self._attach(self._waiting_open) if self._waiting_open else actions

    def _next(self) -> list[Action]:
        if not self._queue:
            return []
        self._running = self._queue.popleft()
        return [Submit(self._running)]

    def _replay(self, step: Step) -> list[Action]:
        if _digest(step) != self._cached_digest or not self._cached:
            return [Send(self._error(step.seq, ErrorCode.SEQ_CONFLICT, "another step has this number", Scope.SESSION))]
        return [Send(replace(part, handle=self._handle, fence=self.fence)) for part in self._cached]

    def _check(self, step: Step) -> Error | None:
        """The cheap checks, in order, before anything is queued or decoded."""
        if self._open is None or step.fence != self.fence or self._waiting_open is not None:
            return self._fenced(step.handle, step.fence)
        if step.seq == self.last_seq and not self._queue and self._running is None:
            return None
        seq, length = self._end()
        if step.seq != seq + 1:
            return self._error(step.seq, ErrorCode.SEQ_CONFLICT, "a step is missing before this one", Scope.STEP)
        if step.base != length:
            return self._error(step.seq, ErrorCode.KV_GAP, "the step does not begin where the cache ends", Scope.STEP)
        plan = self._open.plan
        if not self._fits(plan, step):
            return self._error(step.seq, ErrorCode.BAD_REQUEST, "the step does not fit the plan", Scope.STEP)
        if step.base + step.rows + max(0, step.generate - 1) > self._open.context:
            return self._error(step.seq, ErrorCode.TOO_LARGE, "the step does not fit the context", Scope.STEP)
        size = 4 * step.rows
        if step.rows_kind is Rows.HIDDEN:
            size = payload_bytes(plan.codec, step.rows, self._hidden, step.base)
        if len(step.payload) != size:
            return self._error(step.seq, ErrorCode.BAD_TENSOR, "the payload does not fit its shape", Scope.STEP)
        queued = sum(len(s.payload) for s in self._queue) + len(step.payload)
        if len(self._queue) >= MAX_QUEUED_STEPS or queued > MAX_QUEUED_BYTES:
            return self._error(step.seq, ErrorCode.OVERLOADED, "too many steps are queued", Scope.STEP)
        return None

    @staticmethod
    def _fits(plan: SplitPlan, step: Step) -> bool:
        ids = plan.arm is Arm.CLOUD
        if (step.rows_kind is Rows.IDS) != ids or not 0 <= step.generate <= MAX_GENERATE:
            return False
        if step.reply is Reply.TOKEN:
            return plan.head is HeadSide.CLOUD and (step.generate >= 1 if ids else step.generate == 1)
        if step.generate:
            return False
        return step.reply is Reply.ACK or plan.head is HeadSide.DEVICE

    def _end(self) -> tuple[int, int]:
        """Sequence number and length after everything accepted. A generating step is always the last one queued."""
        tail = self._queue[-1] if self._queue else self._running
        if tail is None:
            return self.last_seq, self.kv_length
        return tail.seq, (tail.base + tail.rows if tail.generate <= 1 else -1)

    def _forget_reply(self) -> None:
        self._cached, self._cached_digest = [], b""

    def _fenced(self, handle: int, fence: int) -> Error:
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

    def _error(self, seq: int, code: ErrorCode, text: str, scope: Scope) -> Error:
        return Error(
            handle=self._handle,
            fence=self.fence,
            seq=seq,
            code=code,
            scope=scope,
            resumable=code is ErrorCode.OVERLOADED,
            retry_after_ms=50 if code is ErrorCode.OVERLOADED else 0,
            have=self.kv_length,
            text=text,
        )


def _digest(step: Step) -> bytes:
    """Identity of a step's content; everything but the handle and fence, which change on a new stream."""
    head = f"{step.seq}|{step.base}|{step.rows_kind}|{step.rows}|{step.reply}|{step.generate}|".encode()
    return hashlib.sha256(head + bytes(step.payload)).digest()
