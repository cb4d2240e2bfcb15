"""A conversation's session in the cloud: the sans-IO machine, a link, and what happens when the link breaks.

A broken stream leaves unknown whether the last steps were applied. The session re-opens on a new connection with a
higher fence; if the cloud still holds the confirmed positions it goes on from there (a finished step is answered from
the cloud's reply cache), else ``SessionLost`` tells the caller to rebuild from its tokens. What a busy cloud refused
before it did anything is asked for again when the cloud said, a few times.
"""

from __future__ import annotations

import copy
import math
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from splitglm_core.criticality import Criticality
from splitglm_core.errors import DeadlineExceeded, LinkError, Overloaded, ProtocolError, SplitGlmError
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.faults import SessionLost, Unresponsive, from_error_frame
from splitglm_edge.inbox import Arrived
from splitglm_edge.link import CloudLink
from splitglm_edge.patience import Patience, reconnect_pauses_s
from splitglm_edge.timeouts import Timeouts
from splitglm_edge.watching import StepWatch
from splitglm_wire.device import (
    DeviceSession,
    Event,
    Gap,
    HiddenArrived,
    Refused,
    State,
    StepDone,
    TokenArrived,
)
from splitglm_wire.frames import Error, Frame, Reply, Rows

Connect = Callable[[], CloudLink]

RECONNECT_BUDGET_S = 1.5
"""No attempt begins after this: the caller may have another way to finish the reply."""
MAX_FRUITLESS_RECOVERIES = 3
"""A stream that breaks again and again without one answer between breaks because of what is asked."""
_TOKEN_BYTES = 4


class RemoteSession:
    """One conversation's cloud half. Used from one thread."""

    def __init__(
        self,
        connect: Connect,
        timeouts: Timeouts,
        *,
        vocab: int | None = None,
        watch: StepWatch | None = None,
    ) -> None:
        """Begin a session.

        Args:
            connect: returns the agent's link, made anew when the old one is gone.
            vocab: token ids of the model; what the cloud samples must lie in ``[0, vocab)``. None takes any.
            watch: told of every step and its answer.
        """
        self._connect = connect
        self._timeouts = timeouts
        self._vocab = vocab
        self._watch = watch
        self._fruitless = 0  # recoveries since the last answer
        self._deadline_s = math.inf
        self._patience = Patience(timeouts.busy_s)
        self._refusal: Error | None = None  # what a busy cloud said last
        self._cancelled = threading.Event()
        self._link = connect()
        handle, self._inbox = self._link.open_inbox()
        self._machine = DeviceSession(handle=handle, session_id=os.urandom(16))
        self._events: deque[Event] = deque()
        self._delivered: list[int] = []  # tokens of this reply, for the sampler's history after a re-open
        self.reconnects = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.payload_up = 0  # of steps, without frames and seals
        self.payload_down = 0

    @property
    def length(self) -> int:
        """Positions the cloud is known to hold."""
        return self._machine.confirmed

    @property
    def in_flight(self) -> int:
        """Steps sent and not yet answered, those included that a busy cloud is going to be sent again."""
        return self._machine.in_flight + self._machine.put_off

    def begin(
        self,
        *,
        plan: SplitPlan,
        sampling: SamplingParams,
        context: int,
        keep: int,
        stop_ids: tuple[int, ...],
        generated: tuple[int, ...],
        deadline_s: float | None,
        criticality: Criticality = Criticality.CRITICAL,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Open the next reply, keeping ``keep`` positions; steps may follow without waiting for the answer.

        ``context`` is what the device can hold; the cloud is asked for no more than it offers. Once ``cancelled`` is
        set, a busy cloud is not asked again.
        """
        self._cancelled = cancelled or threading.Event()
        self._delivered = list(generated)
        if self._watch is not None:
            self._watch.begin(plan)
        self._fruitless = 0
        self._patience.progressed()
        self._refusal = None
        self._events.clear()
        self._deadline_s = math.inf if deadline_s is None else time.monotonic() + deadline_s
        frame = self._machine.open(
            plan=plan,
            sampling=sampling,
            context=min(context, self._link.manifest.max_context),
            keep=keep,
            stop_ids=stop_ids,
            generated=generated,
            deadline_ms=self._left_ms(),
            criticality=criticality,
        )
        self._send(frame)

    def step(self, *, rows_kind: Rows, rows: int, payload: bytes, reply: Reply, generate: int = 0) -> int:
        """Send one step; returns its ticket. Waits while a busy cloud refuses an earlier one.

        Raises:
            what ``wait`` raises.
        """
        while self._refusal is not None:
            self._retry_if_due()
            if self._refusal is not None:
                self._receive()  # what it took before is still being computed
        for event in self._events:
            if isinstance(event, (Gap, Refused)):
                raise self._error(event)
        alone = self._machine.in_flight == 0
        ticket, frame = self._machine.step(
            rows_kind=rows_kind, rows=rows, payload=payload, reply=reply, generate=generate
        )
        if self._watch is not None:
            self._watch.sent(ticket, frame, at_s=time.monotonic(), idle_s=self._link.idle_s(), alone=alone)
        self.payload_up += len(payload)
        self._send(frame)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Ask the cloud to stop generating; the step still ends with ``StepDone``."""
        frame = self._machine.cancel(ticket)
        if frame is not None:
            self._send(frame)

    def poll(self) -> Event | None:
        """The next event that has already arrived, or None. Raises what ``wait`` raises."""
        while not self._events:
            self._retry_if_due()
            try:
                received = self._inbox.get_nowait()
            except queue.Empty:
                return None
            self._take(received)
        return self._next_event()

    def wait(self) -> Event:
        """The next event.

        Raises:
            DeadlineExceeded: the reply's deadline has passed.
            SessionLost: the cloud is gone, no longer holds the session, or is alive and does not answer.
            ProtocolError: it answered with what no cloud may answer.
            RemoteError, BadTensor, InputError: the cloud refused the step (``Overloaded``: time and again).
        """
        while not self._events:
            self._retry_if_due()
            self._receive()
        return self._next_event()

    def _receive(self) -> None:
        """Take the next frame; raises what ``wait`` raises."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0.0:
            raise DeadlineExceeded("the reply's deadline has passed", "allow more time")
        timeout_s = min(self._timeouts.step_s, left_s)
        try:
            received = self._link.receive(self._inbox, timeout_s=timeout_s, silence_s=self._timeouts.silence_s)
        except DeadlineExceeded as late:
            if timeout_s == left_s:
                raise
            raise Unresponsive(late.what, late.hint) from None
        self._take(received)

    def rest(self) -> None:
        """The reply ended: what may still be answered is nobody's measure, and in no other session's way for long."""
        if self._watch is not None:
            self._watch.forget()

    def close(self) -> None:
        """Free the session in the cloud; harmless when the link is gone."""
        self.rest()
        try:
            self._link.send(self._machine.close())
        except SplitGlmError:
            pass
        self._link.drop_inbox(self._machine.handle)

    def _send(self, frame: Frame) -> None:
        try:
            self.bytes_up += self._link.send(frame)
        except LinkError:
            pass  # the reader has put None into the inbox: recovery happens when the answer is awaited

    def _take(self, received: Arrived | None) -> None:
        if received is None:
            self._recover()
            return
        self.bytes_down += received.record_bytes
        events, replies = self._machine.receive(received.frame)
        for event in events:
            self._see(event, received.at_s)
            if isinstance(event, Refused) and event.error.resumable:
                self._refusal = event.error
            else:
                self._events.append(event)
        if any(isinstance(event, (TokenArrived, HiddenArrived, StepDone)) for event in events):
            self._fruitless = 0
            self._patience.progressed()
        for reply in replies:
            self._send(reply)

    def _see(self, event: Event, at_s: float) -> None:
        """Account for an event of a frame that came at ``at_s``."""
        watch = self._watch
        if isinstance(event, TokenArrived):
            self.payload_down += _TOKEN_BYTES
            if watch is not None:
                watch.token(event, at_s)
        elif isinstance(event, HiddenArrived):
            self.payload_down += len(event.payload)
        elif isinstance(event, StepDone) and watch is not None:
            watch.done(event, at_s)

    def _next_event(self) -> Event:
        event = self._events.popleft()
        if isinstance(event, TokenArrived):
            if self._vocab is not None and event.token >= self._vocab:
                raise ProtocolError("the cloud sampled a token that the model does not have", "use another cloud")
            self._delivered.append(event.token)
        elif isinstance(event, (Gap, Refused)):
            raise self._error(event)
        return event

    @staticmethod
    def _error(event: Gap | Refused) -> SplitGlmError:
        if isinstance(event, Gap):
            return SessionLost("the cloud no longer holds this conversation")
        return from_error_frame(event.error)

    def _left_ms(self) -> int:
        """What is left of the reply's time, 0 without a deadline."""
        if self._deadline_s == math.inf:
            return 0
        return min(max(1, int(1000 * (self._deadline_s - time.monotonic()))), 0xFFFFFFFF)

    def _retry_if_due(self) -> None:
        """Ask a busy cloud once more for what it refused, when it said that there will be room.

        Raises:
            Overloaded: that is too far away, was in vain too often, or the reply was cancelled meanwhile.
        """
        while self._refusal is not None and self._machine.may_retry:
            hint_s = self._refusal.retry_after_ms / 1000
            left_s = self._deadline_s - time.monotonic()
            pause_s = self._patience.pause_s(hint_s, left_s=left_s, chance=random.random())
            if pause_s is None:
                raise from_error_frame(self._refusal)
            if self._cancelled.wait(pause_s):  # as long as the cloud asked for, unless nobody wants it any more
                raise from_error_frame(self._refusal)
            self._reopen(self._machine.handle)
            while self._machine.state is State.REOPENING:
                self._receive()

    def _reopen(self, handle: int) -> None:
        """Have the cloud take the session back, on the link at hand."""
        deadline_ms, self._refusal = self._left_ms(), None
        if self._watch is not None:
            self._watch.forget()
        self._send(self._machine.reopen(handle=handle, generated=tuple(self._delivered), deadline_ms=deadline_ms))

    def _recover(self) -> None:
        """Re-attach on a new connection; the machine decides what is sent again."""
        cause = self._link.error or LinkError("the connection ended")
        if not isinstance(cause, LinkError):
            raise copy.copy(cause)  # a security or protocol fault is never papered over by trying again
        self._machine.broke()
        if self._fruitless >= MAX_FRUITLESS_RECOVERIES:
            raise SessionLost(
                f"the stream broke {self._fruitless + 1} times without an answer: {cause.what}", cause.hint
            )
        self._fruitless += 1
        started_s = time.monotonic()
        for pause_s in reconnect_pauses_s(random.random):
            time.sleep(pause_s)  # a real back-off between attempts, not a synchronisation
            try:
                self._link = self._connect()
                break
            except (LinkError, Overloaded) as error:
                cause = error
            if time.monotonic() - started_s > RECONNECT_BUDGET_S:
                raise SessionLost(f"the cloud is gone: {cause.what}", cause.hint)
        else:
            raise SessionLost(f"the cloud is gone: {cause.what}", cause.hint)
        self.reconnects += 1
        handle, self._inbox = self._link.open_inbox()
        self._reopen(handle)
        while self._machine.state is State.REOPENING:
            try:
                received = self._link.receive(
                    self._inbox, timeout_s=self._timeouts.step_s, silence_s=self._timeouts.silence_s
                )
            except DeadlineExceeded:
                raise SessionLost("the cloud did not take the conversation back in time") from None
            if received is None:
                raise SessionLost("the cloud is gone again", cause.hint)
            self._take(received)
