"""The device's side of the session protocol: a sans-IO state machine.

Rules of this file: no clock, no socket, no randomness; frames in, events and frames out. The caller owns what a payload
means. Invariants (numbers as in the test-suite):

* I1 every token index of a step is delivered once and in order; duplicates are dropped, gaps are the peer's fault.
* I2 only frames of the current fence count: replies of an older stream are ignored.
* I3 a step applies at exactly ``base``; answered steps are *confirmed*, and only confirmed positions are relied upon.
* a stream that ends without ``Ended`` means *unknown*: after ``broke()`` the session re-opens with a higher fence and
  either fetches the cached reply of its last step or cuts back to the confirmed positions and sends again. A cloud
  whose last step is older than what was confirmed holds another history (a stale replica): that is a ``Gap``.
* a refused step voids those behind it, which may be on the wire: nothing is sent until the next ``open``, whose higher
  fence tells their refusals from those of new steps. What a busy cloud refused before it did anything (``resumable``)
  is kept, for ``reopen`` to ask for it once more.

A call that the state does not allow raises ``InternalError``, a frame that it does not allow ``ProtocolError``; both
leave the state as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from enum import Enum

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError, ProtocolError
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.events import Attached, Event, Gap, HiddenArrived, Refused, StepDone, TokenArrived
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
from splitglm_wire.limits import MAX_GENERATE, MAX_ROWS
from splitglm_wire.pending import Pending

__all__ = ["Attached", "DeviceSession", "Event", "Gap", "HiddenArrived", "Refused", "State", "StepDone", "TokenArrived"]


class State(Enum):
    NEW = "new"
    OPENING = "opening"  # Open sent; steps may follow at once, without waiting for Opened
    OPEN = "open"
    STALLED = "stalled"  # a step was refused or positions are gone: the next open goes on
    BROKEN = "broken"  # the stream ended; whether the last steps were applied is unknown
    REOPENING = "reopening"  # Open sent on a new stream; steps wait for Opened
    CLOSED = "closed"


_SENDING = (State.OPENING, State.OPEN)
_DEAF = (State.BROKEN, State.CLOSED)  # what still comes is of a stream that no longer counts


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
        self._seq_at_open = 0
        self._answered_fence = 0  # under which the newest answered step was sent
        self._ticket = 0
        self._request = 0
        self._open: Open | None = None
        self._pending: OrderedDict[int, Pending] = OrderedDict()  # by ticket, oldest first
        self._put_off: OrderedDict[int, Pending] = OrderedDict()  # refused by a busy cloud, behind all pending ones
        self._turned_away = False  # the cloud is busy: it did nothing of what was asked last

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def in_flight(self) -> int:
        """Steps sent and not yet answered."""
        return len(self._pending)

    @property
    def put_off(self) -> int:
        """Steps that a busy cloud refused and ``reopen`` will send again."""
        return len(self._put_off)

    @property
    def may_retry(self) -> bool:
        """A busy cloud refused an open or a step, and what it took before is answered: ``reopen`` asks once more."""
        return self._turned_away and not self._pending

    @property
    def length(self) -> int:
        """Positions the cloud will hold once every step sent is applied, generated ones not counted."""
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
        criticality: Criticality = Criticality.CRITICAL,
    ) -> Open:
        """Begin the next reply, keeping the first ``keep`` confirmed positions. Steps that were put off are void."""
        if self.state not in (State.NEW, State.STALLED, *_SENDING) or self._pending:
            raise InternalError(f"open in state {self.state.value} with {len(self._pending)} steps pending")
        if not 0 <= keep <= self.confirmed:
            raise InternalError(f"open keeps {keep} positions, but {self.confirmed} are confirmed")
        self.state = State.OPENING
        self._forget_refused()
        self.fence += 1
        self._request += 1
        self._seq_at_open = self._seq
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
            criticality=criticality,
            generated=generated,
        )
        return self._open

    def step(self, *, rows_kind: Rows, rows: int, payload: bytes, reply: Reply, generate: int = 0) -> tuple[int, Step]:
        """Number the next step; it applies at the position after everything sent before."""
        if self.state not in _SENDING:
            raise InternalError(f"step in state {self.state.value}")
        if any(p.step.generate > 1 for p in self._pending.values()):
            raise InternalError("a step that generates by itself must finish before the next: its length is open")
        askable = range(1, MAX_GENERATE + 1) if reply is Reply.TOKEN else range(1)
        if not 0 < rows <= MAX_ROWS or generate not in askable:
            raise InternalError(f"a step of {rows} rows cannot ask for {generate} tokens as {reply.name}")
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
        self._pending[self._ticket] = Pending(step)
        return self._ticket, step

    def truncate(self, length: int) -> Truncate:
        """Cut both sides back to ``length`` positions; only between steps."""
        if self.state not in _SENDING or self._pending or not 0 <= length <= self.confirmed:
            raise InternalError(f"truncate to {length} in state {self.state.value}, {self.confirmed} confirmed")
        self.confirmed = self._sent = length
        return Truncate(handle=self.handle, fence=self.fence, length=length)

    def cancel(self, ticket: int) -> Cancel | None:
        """Ask the cloud to stop generating; the step still ends with a last result.

        None when it already ended, or when there is no stream: then the step is cancelled as soon as there is one.
        """
        pending = self._pending.get(ticket) or self._put_off.get(ticket)
        if pending is None:
            return None
        pending.cancelled = True
        return self._cancel(pending) if self.state in _SENDING else None

    def close(self) -> Close:
        self.state = State.CLOSED
        self._pending.clear()
        self._forget_refused()
        return Close(handle=self.handle, fence=self.fence)

    def broke(self) -> None:
        """The stream ended or went silent without ``Ended``."""
        if self._open is not None and self.state is not State.CLOSED:
            self.state = State.BROKEN

    def reopen(self, *, handle: int, generated: tuple[int, ...], deadline_ms: int = 0) -> Open:
        """Re-attach on a new stream, or ask a busy cloud once more.

        Args:
            generated: tokens of this reply that were delivered (sampler history).
            deadline_ms: what is left of the reply's time now, 0 without a deadline.
        """
        if (self.state is not State.BROKEN and not self.may_retry) or self._open is None:
            raise InternalError(f"reopen in state {self.state.value}")
        self.state = State.REOPENING
        self.handle = handle
        self.fence += 1
        self._pending.update(self._put_off)
        self._forget_refused()
        self._sent = self._end()
        self._open = replace(
            self._open,
            handle=handle,
            fence=self.fence,
            keep=KEEP_ALL,
            generated=generated,
            deadline_ms=deadline_ms,
        )
        return self._open

    def receive(self, frame: Frame) -> tuple[list[Event], list[Frame]]:
        """Take one frame of the cloud.

        Raises:
            ProtocolError: the cloud broke the rules; the stream must be closed.
        """
        match frame:
            case Opened() | Result() | Error() if self.state in _DEAF or frame.fence != self.fence:
                return [], []  # I2
            case Opened():
                return self._on_opened(frame)
            case Result():
                return self._on_result(frame), []
            case Error():
                return self._on_error(frame), []
            case Ended() if self.state in _DEAF:
                return [], []
            case _:
                raise ProtocolError(f"the cloud sent {type(frame).__name__} to a session")

    def _on_opened(self, frame: Opened) -> tuple[list[Event], list[Frame]]:
        if self.state not in (State.OPENING, State.REOPENING):
            raise ProtocolError("the cloud opened a session that was not opening")
        good = 0 if frame.step_fence < self._answered_fence else min(frame.have, self.confirmed)
        if self.state is State.OPENING:
            if self._open is not None and frame.have > self._open.keep:
                raise ProtocolError("the cloud kept more positions than asked")
            if good < self.confirmed or frame.last_seq != self._seq_at_open:
                return [self._gap(good, frame.last_seq)], []
            self.state = State.OPEN
            return [Attached(frame.have, False)], []
        first = next(iter(self._pending.values()), None)
        known = first is not None and (first.step.seq, first.step.fence) == (frame.last_seq, frame.step_fence)
        if good < self.confirmed or (first is not None and first.parts and not known):
            return [self._gap(good, frame.last_seq)], []
        self.state = State.OPEN
        if first is not None and known and len(self._pending) == 1:
            # Applied, only the reply was lost: the same step again fetches it from the cloud's cache.
            return [Attached(frame.have, True)], [replace(first.step, handle=self.handle, fence=self.fence)]
        self._seq = frame.last_seq
        return [Attached(frame.have, False)], self._send_again(frame.have)

    def _send_again(self, have: int) -> list[Frame]:
        frames: list[Frame] = []
        if have > self.confirmed:
            frames.append(Truncate(handle=self.handle, fence=self.fence, length=self.confirmed))
        for pending in self._pending.values():
            self._seq += 1
            pending.step = replace(pending.step, handle=self.handle, fence=self.fence, seq=self._seq)
            frames.append(pending.step)
            if pending.cancelled:
                frames.append(self._cancel(pending))
        return frames

    def _on_result(self, frame: Result) -> list[Event]:
        if not self._pending or self.state in (State.OPENING, State.REOPENING):
            raise ProtocolError("the cloud answered a step that was not pending")
        ticket, pending = next(iter(self._pending.items()))
        event = pending.take(ticket, frame)
        events: list[Event] = [] if event is None else [event]
        if frame.last:
            self.confirmed = pending.length
            self._answered_fence = pending.step.fence
            if pending.step.generate > 1:
                self._sent = pending.length
            del self._pending[ticket]
            times_s = (1e-6 * us for us in (pending.queue_us, pending.sweep_us, pending.compute_us))
            events.append(StepDone(ticket, pending.length, pending.tokens, *times_s))
        return events

    def _on_error(self, frame: Error) -> list[Event]:
        ticket = next((t for t, p in self._pending.items() if p.step.seq == frame.seq), None)
        if frame.scope is not Scope.STEP:
            self._void(0, put_off=frame.resumable)
            self.state = State.BROKEN if frame.resumable else State.CLOSED
        elif ticket is None:
            return []  # an echo of steps that were in flight behind one already refused
        else:
            self._void(ticket, put_off=frame.resumable)
            self._seq = frame.seq - 1
            self.state = State.STALLED
            if frame.code is ErrorCode.KV_GAP and frame.have < self.confirmed:
                return [self._gap(frame.have, self._seq)]
        return [Refused(ticket, frame)]

    def _void(self, first: int, *, put_off: bool) -> None:
        """Forget the pending steps from ticket ``first`` on, or put them off."""
        void = {ticket: self._pending.pop(ticket) for ticket in [t for t in self._pending if t >= first]}
        self._put_off = OrderedDict([*void.items(), *self._put_off.items()] if put_off else ())
        self._turned_away = put_off
        self._sent = self._end()

    def _end(self) -> int:
        newest = next(reversed(self._pending.values()), None)
        return newest.step.base + newest.step.rows if newest is not None else self.confirmed

    def _forget_refused(self) -> None:
        self._put_off.clear()
        self._turned_away = False

    def _gap(self, have: int, last_seq: int) -> Gap:
        self._pending.clear()
        self._forget_refused()
        self.confirmed = self._sent = have
        self._seq = last_seq
        self.state = State.STALLED
        return Gap(have)

    def _cancel(self, pending: Pending) -> Cancel:
        return Cancel(handle=self.handle, fence=self.fence, seq=pending.step.seq)
