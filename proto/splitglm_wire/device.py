"""The device's side of the session protocol: a sans-IO state machine.

Rules of this file: no clock, no socket, no randomness; frames in, events and frames out. The caller owns what a payload
means. Invariants (numbers as in the test-suite):

* I1 every token index of a step is delivered once and in order; duplicates are dropped, gaps are the peer's fault.
* I2 only frames of the current fence count: replies of an older stream are ignored.
* I3 a step applies at exactly ``base``; answered steps are *confirmed*, and only confirmed positions are relied upon.
* a stream that ends without ``Ended`` means *unknown*: after ``broke()`` the session re-opens with a higher fence and
  either fetches the cached reply of its last step or cuts back to the confirmed positions and sends again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from enum import Enum

from splitglm_core.errors import InternalError, ProtocolError
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.frames import (
    KEEP_ALL,
    Cancel,
    Close,
    Ended,
    Error,
    ErrorCode,
    Frame,
    Open,
    Opened,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)


class State(Enum):
    NEW = "new"
    OPENING = "opening"  # Open sent; steps may follow at once, without waiting for Opened
    OPEN = "open"
    BROKEN = "broken"  # the stream ended; whether the last steps were applied is unknown
    REOPENING = "reopening"  # Open sent on a new stream; steps wait for Opened
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class TokenArrived:
    ticket: int
    index: int
    token: int


@dataclass(frozen=True, slots=True)
class HiddenArrived:
    ticket: int
    base: int  # position of the first row
    rows: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step is confirmed. ``tokens`` counts what it generated; times are the cloud's own, in seconds."""

    ticket: int
    kv_length: int
    tokens: int
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Attached:
    """The cloud accepted the (re-)open and holds what this side relies upon."""

    have: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """The cloud no longer holds the confirmed positions: rebuild them from position ``have``, or from nothing."""

    have: int


@dataclass(frozen=True, slots=True)
class Refused:
    ticket: int | None
    error: Error


Event = TokenArrived | HiddenArrived | StepDone | Attached | Gap | Refused


@dataclass(slots=True)
class _Pending:
    step: Step
    next_index: int = 0
    tokens: int = 0


class DeviceSession:
    """One session as the device sees it. Methods return frames to send; ``receive`` returns events and frames."""

    def __init__(self, *, handle: int, session_id: bytes) -> None:
        self.handle = handle
        self.session_id = session_id
        self.state = State.NEW
        self.fence = 0
        self.confirmed = 0  # positions whose step was answered
        self._sent = 0  # positions after every step sent so far
        self._seq = 0  # last sequence number used
        self._ticket = 0
        self._request = 0
        self._open: Open | None = None
        self._pending: OrderedDict[int, _Pending] = OrderedDict()  # by ticket, oldest first

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def in_flight(self) -> int:
        """Steps sent and not yet answered."""
        return len(self._pending)

    @property
    def length(self) -> int:
        """Positions the cloud will hold once every step sent is applied."""
        return self._sent

    def open(
        self,
        *,
        plan: SplitPlan,
        sampling: SamplingParams,
        context: int,
        keep: int,
        stop_ids: tuple[int, ...] = (),
        generated: tuple[int, ...] = (),
        deadline_ms: int = 0,
    ) -> Open:
        """Begin the next reply, keeping the first ``keep`` confirmed positions."""
        if self.state not in (State.NEW, State.OPEN, State.OPENING) or self._pending or keep > self.confirmed:
            raise InternalError(f"open in state {self.state.value} with {len(self._pending)} steps pending")
        self.state = State.OPENING
        self.fence += 1
        self._request += 1
        self.confirmed = self._sent = keep
        self._open = Open(
            handle=self.handle,
            session_id=self.session_id,
            fence=self.fence,
            request=self._request,
            plan=plan,
            context=context,
            keep=keep,
            sampling=sampling,
            deadline_ms=deadline_ms,
            stop_ids=stop_ids,
            generated=generated,
        )
        return self._open

    def step(self, *, rows_kind: Rows, rows: int, payload: bytes, reply: Reply, generate: int = 0) -> tuple[int, Step]:
        """Number the next step; it applies at the position after everything sent before."""
        if self.state not in (State.OPENING, State.OPEN):
            raise InternalError(f"step in state {self.state.value}")
        if any(p.step.generate > 1 for p in self._pending.values()):
            raise InternalError("a step that generates by itself must finish before the next: its length is open")
        self._seq += 1
        self._ticket += 1
        step = Step(
            handle=self.handle,
            fence=self.fence,
            seq=self._seq,
            base=self._sent,
            rows_kind=rows_kind,
            rows=rows,
            reply=reply,
            generate=generate,
            payload=payload,
        )
        self._sent += rows
        self._pending[self._ticket] = _Pending(step)
        return self._ticket, step

    def truncate(self, length: int) -> Truncate:
        """Cut both sides back to ``length`` positions; only between steps."""
        if self.state not in (State.OPENING, State.OPEN) or self._pending or length > self.confirmed:
            raise InternalError(f"truncate to {length} in state {self.state.value}, {self.confirmed} confirmed")
        self.confirmed = self._sent = length
        return Truncate(handle=self.handle, fence=self.fence, length=length)

    def cancel(self, ticket: int) -> Cancel | None:
        """Ask the cloud to stop generating; the step still ends with a last result. None when it already ended."""
        pending = self._pending.get(ticket)
        if pending is None or self.state not in (State.OPENING, State.OPEN):
            return None
        return Cancel(handle=self.handle, fence=self.fence, seq=pending.step.seq)

    def close(self) -> Close:
        self.state = State.CLOSED
        self._pending.clear()
        return Close(handle=self.handle, fence=self.fence)

    def broke(self) -> None:
        """The stream ended or went silent without ``Ended``."""
        if self.state is not State.CLOSED:
            self.state = State.BROKEN

    def reopen(self, *, handle: int, generated: tuple[int, ...]) -> Open:
        """Re-attach on a new stream. ``generated``: tokens of this reply that were delivered (sampler history)."""
        if self.state is not State.BROKEN or self._open is None:
            raise InternalError(f"reopen in state {self.state.value}")
        self.state = State.REOPENING
        self.handle = handle
        self.fence += 1
        self._open = replace(self._open, handle=handle, fence=self.fence, keep=KEEP_ALL, generated=generated)
        return self._open

    def receive(self, frame: Frame) -> tuple[list[Event], list[Frame]]:
        """Take one frame of the cloud.

        Raises:
            ProtocolError: the cloud broke the rules; the stream must be closed.
        """
        match frame:
            case Opened():
                return self._on_opened(frame)
            case Result():
                return self._on_result(frame), []
            case Error():
                return self._on_error(frame), []
            case Ended():
                self.state = State.CLOSED
                return [], []
            case _:
                raise ProtocolError(f"the cloud sent {type(frame).__name__} to a session")

    def _on_opened(self, frame: Opened) -> tuple[list[Event], list[Frame]]:
        if frame.fence != self.fence:
            return [], []  # I2
        if self.state is State.OPENING:
            self.state = State.OPEN
            if self._open is not None and frame.have < self._open.keep:
                return [Gap(frame.have)], []
            return [Attached(frame.have, False)], []
        if self.state is not State.REOPENING:
            raise ProtocolError("the cloud opened a session that was not opening")
        self.state = State.OPEN
        if frame.have < self.confirmed:
            return [Gap(frame.have)], []
        if len(self._pending) == 1:
            pending = next(iter(self._pending.values()))
            if pending.step.seq == frame.last_seq:
                # Applied, only the reply was lost: the same step again fetches it from the cloud's cache.
                pending.step = replace(pending.step, handle=self.handle, fence=self.fence)
                return [Attached(frame.have, True)], [pending.step]
        self._seq = frame.last_seq
        return [Attached(frame.have, False)], self._send_again(frame.have)

    def _send_again(self, have: int) -> list[Frame]:
        frames: list[Frame] = []
        if have > self.confirmed:
            frames.append(Truncate(handle=self.handle, fence=self.fence, length=self.confirmed))
        for pending in self._pending.values():
            if pending.tokens:
                raise ProtocolError("the cloud lost a reply that it had begun")
            self._seq += 1
            pending.step = replace(pending.step, handle=self.handle, fence=self.fence, seq=self._seq)
            frames.append(pending.step)
        return frames

    def _on_result(self, frame: Result) -> list[Event]:
        if frame.fence != self.fence:
            return []  # I2
        if not self._pending:
            raise ProtocolError("the cloud answered a step that was not pending")
        ticket, pending = next(iter(self._pending.items()))
        step = pending.step
        if frame.seq != step.seq or frame.reply is not step.reply or frame.index > pending.next_index:
            raise ProtocolError("the cloud answered out of order")
        events: list[Event] = []
        if frame.index == pending.next_index:
            pending.next_index += 1
            events += self._content(ticket, pending, frame)
        if frame.last:
            length = step.base + step.rows + max(0, pending.tokens - 1)
            if frame.kv_length != length:
                raise ProtocolError("the cloud's KV length differs from the device's")
            self.confirmed = length
            if step.generate > 1:
                self._sent = length
            del self._pending[ticket]
            events.append(StepDone(ticket, length, pending.tokens, frame.queue_us * 1e-6, frame.compute_us * 1e-6))
        return events

    def _content(self, ticket: int, pending: _Pending, frame: Result) -> list[Event]:
        step = pending.step
        if step.reply is Reply.TOKEN and frame.rows == 1 and len(frame.payload) == 4:
            if pending.tokens >= step.generate:
                raise ProtocolError("the cloud generated more tokens than asked")
            pending.tokens += 1
            token = int.from_bytes(frame.payload, "little")
            return [TokenArrived(ticket, frame.index, token)]
        if step.reply is Reply.ALL_HIDDEN and frame.rows == step.rows:
            return [HiddenArrived(ticket, step.base, step.rows, bytes(frame.payload))]
        if step.reply is Reply.LAST_HIDDEN and frame.rows == 1:
            return [HiddenArrived(ticket, step.base + step.rows - 1, 1, bytes(frame.payload))]
        if frame.rows == 0 and not len(frame.payload) and (step.reply is Reply.ACK or frame.last):
            return []  # an acknowledgement, or the end of a cancelled generation
        raise ProtocolError("the cloud's answer does not fit the step")

    def _on_error(self, frame: Error) -> list[Event]:
        if frame.fence != self.fence:
            return []  # I2
        ticket = next((t for t, p in self._pending.items() if p.step.seq == frame.seq), None)
        if frame.scope is Scope.STEP:
            if ticket is None:
                return []  # an echo of steps that were in flight behind one already refused
            # The cloud dropped the step and everything queued behind it; numbering goes on from the confirmed end.
            self._seq = frame.seq - 1
            self._pending.clear()
            self._sent = self.confirmed
        else:
            self._pending.clear()
            self.state = State.BROKEN if frame.resumable else State.CLOSED
        if frame.code is ErrorCode.KV_GAP and frame.have < self.confirmed:
            return [Gap(frame.have)]
        return [Refused(ticket, frame)]
