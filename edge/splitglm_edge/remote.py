"""A conversation's session in the cloud: the sans-IO machine, a link, and what happens when the link breaks.

A broken stream leaves unknown whether the last steps were applied. The session re-opens on a new connection with a
higher fence; if the cloud still holds the confirmed positions it goes on from there (a finished step is answered from
the cloud's reply cache), else ``SessionLost`` tells the caller to rebuild from its tokens.
"""

from __future__ import annotations

import math
import os
import queue
import time
from collections import deque
from collections.abc import Callable

from splitglm_core.errors import (
    BadTensor,
    DeadlineExceeded,
    InputError,
    InternalError,
    LinkError,
    Overloaded,
    PromptTooLong,
    RemoteError,
    SplitGlmError,
    Unavailable,
)
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.link import CloudLink
from splitglm_edge.timeouts import Timeouts
from splitglm_wire.device import (
    Attached,
    DeviceSession,
    Event,
    Gap,
    Refused,
    TokenArrived,
)
from splitglm_wire.frames import Error, ErrorCode, Frame, Reply, Rows

Connect = Callable[[], CloudLink]

RECONNECT_PAUSES_S = (0.0, 0.05, 0.3, 1.0)
"""Before each attempt: a service that restarts is back in a moment, or it will be noticed by those who can wait."""
RECONNECT_BUDGET_S = 1.5
"""No attempt begins after this: the caller may have another way to finish the reply."""
PREFILL_IN_FLIGHT = 16
"""Prefill steps sent and not yet answered: enough to hide a round trip, few enough to bound both sides' memory."""


class SessionLost(LinkError):
    """The cloud no longer holds this conversation; its tokens are known, so it can be rebuilt."""


class RemoteSession:
    """One conversation's cloud half. Used from one thread; ``cancel`` may come from another."""

    def __init__(self, connect: Connect, timeouts: Timeouts) -> None:
        """``connect`` returns the agent's link, made anew when the old one is gone."""
        self._connect = connect
        self._timeouts = timeouts
        self._deadline_s = math.inf
        self._link = connect()
        handle, self._inbox = self._link.open_inbox()
        self._machine = DeviceSession(handle=handle, session_id=os.urandom(16))
        self._events: deque[Event] = deque()
        self._delivered: list[int] = []  # tokens of this reply, for the sampler's history after a re-open
        self.reconnects = 0
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def length(self) -> int:
        """Positions the cloud is known to hold."""
        return self._machine.confirmed

    @property
    def in_flight(self) -> int:
        """Steps sent and not yet answered."""
        return self._machine.in_flight

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
    ) -> None:
        """Open the next reply, keeping ``keep`` positions; steps may follow without waiting for the answer."""
        self._delivered = list(generated)
        self._events.clear()
        self._deadline_s = math.inf if deadline_s is None else time.monotonic() + deadline_s
        frame = self._machine.open(
            plan=plan,
            sampling=sampling,
            context=context,
            keep=keep,
            stop_ids=stop_ids,
            generated=generated,
            deadline_ms=0 if deadline_s is None else max(1, int(1000 * deadline_s)),
        )
        self._send(frame)

    def step(self, *, rows_kind: Rows, rows: int, payload: bytes, reply: Reply, generate: int = 0) -> int:
        """Send one step; returns its ticket."""
        ticket, frame = self._machine.step(
            rows_kind=rows_kind, rows=rows, payload=payload, reply=reply, generate=generate
        )
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
            try:
                received = self._inbox.get_nowait()
            except queue.Empty:
                return None
            self._take(received)
        return self._next_event()

    def wait(self) -> Event:
        """The next event.

        Raises:
            DeadlineExceeded: no answer within the step timeout or the reply's deadline, although the cloud is alive.
            SessionLost: the cloud is gone or no longer holds the session.
            RemoteError, BadTensor, InputError: the cloud refused the step.
        """
        while not self._events:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0.0:
                raise DeadlineExceeded("the reply's deadline has passed", "allow more time")
            timeout_s = min(self._timeouts.step_s, left_s)
            self._take(self._link.receive(self._inbox, timeout_s=timeout_s, silence_s=self._timeouts.silence_s))
        return self._next_event()

    def close(self) -> None:
        """Free the session in the cloud; harmless when the link is gone."""
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

    def _take(self, received: tuple[Frame, int] | None) -> None:
        if received is None:
            self._recover()
            return
        self.bytes_down += received[1]
        events, replies = self._machine.receive(received[0])
        self._events.extend(events)
        for reply in replies:
            self._send(reply)

    def _next_event(self) -> Event:
        event = self._events.popleft()
        if isinstance(event, TokenArrived):
            self._delivered.append(event.token)
        elif isinstance(event, Gap):
            raise SessionLost("the cloud no longer holds this conversation")
        elif isinstance(event, Refused):
            raise from_error_frame(event.error)
        return event

    def _recover(self) -> None:
        """Re-attach on a new connection; the machine decides what is sent again."""
        cause = self._link.error or LinkError("the connection ended")
        if not isinstance(cause, LinkError):
            raise cause  # a security or protocol fault is never papered over by trying again
        self._machine.broke()
        started_s = time.monotonic()
        for pause_s in RECONNECT_PAUSES_S:
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
        self._send(self._machine.reopen(handle=handle, generated=tuple(self._delivered)))
        while not any(isinstance(event, (Attached, Gap, Refused)) for event in self._events):
            try:
                received = self._link.receive(
                    self._inbox, timeout_s=self._timeouts.step_s, silence_s=self._timeouts.silence_s
                )
            except DeadlineExceeded:
                raise SessionLost("the cloud did not take the conversation back in time") from None
            if received is None:
                raise SessionLost("the cloud is gone again", cause.hint)
            self._take(received)


def from_error_frame(frame: Error) -> SplitGlmError:
    """The one place where an error frame becomes an error of ours."""
    retry_s = frame.retry_after_ms / 1000 if frame.retry_after_ms else None
    match frame.code:
        case ErrorCode.OVERLOADED:
            return Overloaded(
                f"the cloud is busy: {frame.text}",
                "wait a moment and try again",
                code=frame.code.name,
                retry_after_s=retry_s,
            )
        case ErrorCode.UNAVAILABLE | ErrorCode.DRAINING:
            return Unavailable(frame.text, "use another cloud, or wait for its restart", code=frame.code.name)
        case ErrorCode.NO_SESSION | ErrorCode.KV_GAP | ErrorCode.FENCED:
            return SessionLost(frame.text)
        case ErrorCode.DEADLINE:
            return DeadlineExceeded(frame.text, "allow more time")
        case ErrorCode.BAD_TENSOR:
            return BadTensor(frame.text)
        case ErrorCode.TOO_LARGE:
            return PromptTooLong(frame.text, "shorten the prompt or ask for fewer tokens")
        case ErrorCode.BAD_REQUEST:
            return InputError(frame.text, "choose a plan that this cloud serves (`splitglm plan`)")
        case ErrorCode.SEQ_CONFLICT:
            return InternalError(f"the cloud refused a step: {frame.text}")
        case _:
            return RemoteError(frame.text, "look at the cloud's log", code=frame.code.name, retry_after_s=retry_s)
