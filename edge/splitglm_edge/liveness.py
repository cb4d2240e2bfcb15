"""Whether a cloud that says nothing is still there.

Keepalive of the transport is no substitute: it is slower, and the transport's own threads answer for a service that is
stuck. Rules of this file: no clock, the caller brings the time.
"""

from __future__ import annotations

from enum import Enum

from splitglm_wire.frames import Error, Frame, Reply, Result, Step


class Silence(Enum):
    """What a silence means."""

    HARMLESS = "harmless"
    QUESTIONABLE = "questionable"  # a ping is due
    DEADLY = "deadly"


class Liveness:
    """Of one connection. ``sent`` is called under the lock that orders what is sent, ``heard`` by the reader."""

    def __init__(self, now_s: float) -> None:
        self.uplink_bytes_per_s = self.downlink_bytes_per_s = 1e6  # as last estimated
        self._heard_s = now_s
        self._asked_s = 0.0
        self._owed_bytes = 0  # of answers that are big and may be on their way
        self._arrives_s = 0.0  # when the last byte sent should be on the other side, at half the estimated rate

    def expect(self, frame: Frame) -> None:
        """A frame is about to be sent that may be answered with many bytes."""
        if isinstance(frame, Step) and frame.reply is Reply.ALL_HIDDEN:
            self._owed_bytes += len(frame.payload)

    def sent(self, record_bytes: int, now_s: float) -> None:
        self._arrives_s = max(now_s, self._arrives_s) + 2 * record_bytes / self.uplink_bytes_per_s

    def heard(self, now_s: float) -> None:
        self._heard_s = now_s

    def answered(self, frame: Frame) -> None:
        """A frame has come that pays what is owed."""
        if isinstance(frame, Error):
            self._owed_bytes = 0
        elif isinstance(frame, Result):
            self._owed_bytes = max(0, self._owed_bytes - len(frame.payload))

    def judge(self, silence_s: float, now_s: float) -> Silence:
        """What to make of the silence so far, when ``silence_s`` seconds of it are too many."""
        if now_s - self._heard_s < silence_s / 3:
            return Silence.HARMLESS
        if self._asked_s <= self._heard_s:
            self._asked_s = now_s
            return Silence.QUESTIONABLE
        # The answer to a ping waits behind whatever else is on its way, on slow links for longer than any silence.
        patience_s = 2 * silence_s / 3 + 2 * self._owed_bytes / self.downlink_bytes_per_s
        late = now_s - max(self._asked_s, self._arrives_s) > patience_s
        return Silence.DEADLY if late else Silence.HARMLESS
