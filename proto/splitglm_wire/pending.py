"""A step that the device sent and the cloud has not answered to the end."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.errors import ProtocolError
from splitglm_wire.events import HiddenArrived, TokenArrived
from splitglm_wire.frames import Reply, Result, Step


@dataclass(slots=True)
class Pending:
    """``step`` is as last sent to be applied: a request for its cached reply does not change it."""

    step: Step
    parts: int = 0  # received
    tokens: int = 0  # among them
    queue_us: int = 0  # of all parts together, as the cloud told them
    sweep_us: int = 0
    compute_us: int = 0
    cancelled: bool = False

    def take(self, ticket: int, frame: Result) -> TokenArrived | HiddenArrived | None:
        """The content of one part of the answer; None when it has none or came before (I1).

        Raises:
            ProtocolError: it is not the next part, not of this step or not what was asked; nothing has changed.
        """
        if frame.seq != self.step.seq or frame.reply is not self.step.reply or frame.index > self.parts:
            raise ProtocolError("the cloud answered out of order")
        new = frame.index == self.parts
        if not new and frame.last:
            raise ProtocolError("the cloud ended a reply before its end")
        event = self._content(ticket, frame) if new else None
        tokens = self.tokens + isinstance(event, TokenArrived)
        if frame.last and frame.kv_length != self._length(tokens):
            raise ProtocolError("the cloud's KV length differs from the device's")
        self.parts, self.tokens = self.parts + new, tokens
        if new:
            self.queue_us += frame.queue_us
            self.sweep_us += frame.sweep_us
            self.compute_us += frame.compute_us
        return event

    @property
    def length(self) -> int:
        """Positions after the step: its rows and what it generated; the newest token was not run."""
        return self._length(self.tokens)

    def _length(self, tokens: int) -> int:
        return self.step.base + self.step.rows + max(0, tokens - 1)

    def _content(self, ticket: int, frame: Result) -> TokenArrived | HiddenArrived | None:
        step = self.step
        if step.reply is Reply.TOKEN and frame.rows == 1 and len(frame.payload) == 4:
            if self.tokens >= step.generate:
                raise ProtocolError("the cloud generated more tokens than asked")
            times_s = (1e-6 * us for us in (frame.queue_us, frame.sweep_us, frame.compute_us))
            return TokenArrived(ticket, frame.index, int.from_bytes(frame.payload, "little"), *times_s)
        if frame.last and step.reply is Reply.ALL_HIDDEN and frame.rows == step.rows:
            return HiddenArrived(ticket, step.base, step.rows, bytes(frame.payload))
        if frame.last and step.reply is Reply.LAST_HIDDEN and frame.rows == 1:
            return HiddenArrived(ticket, step.base + step.rows - 1, 1, bytes(frame.payload))
        if frame.last and frame.rows == 0 and not len(frame.payload) and step.reply in (Reply.ACK, Reply.TOKEN):
            return None  # an acknowledgement, or the end of a cancelled generation
        raise ProtocolError("the cloud's answer does not fit the step")
