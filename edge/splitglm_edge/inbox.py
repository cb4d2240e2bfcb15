"""Frames of one session that have arrived and were not yet taken."""

from __future__ import annotations

import queue
import time
from typing import NamedTuple

from splitglm_core.errors import ProtocolError
from splitglm_wire.frames import Frame
from splitglm_wire.limits import MAX_GENERATE, MAX_QUEUED_BYTES

MAX_FRAMES = MAX_GENERATE + 1024
"""A reply that the cloud generates by itself may be read as slowly as its user likes: a frame per token, and others."""
MAX_BYTES = MAX_QUEUED_BYTES
"""Several times what the answers of a full prefill pipeline and the longest reply weigh together."""


class Arrived(NamedTuple):
    """A frame, the bytes of its record, and when the record came (monotonic), however late the frame is taken."""

    frame: Frame
    record_bytes: int
    at_s: float


class Inbox:
    """One thread puts, one takes. ``None`` says that the stream ended."""

    def __init__(self, *, max_frames: int = MAX_FRAMES, max_bytes: int = MAX_BYTES) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._queue: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()
        self._bytes_put = 0  # each counter has one writer
        self._bytes_taken = 0

    def put(self, frame: Frame, record_bytes: int) -> None:
        """Add a frame.

        Raises:
            ProtocolError: more is waiting than any session of ours can have asked for.
        """
        waiting = self._bytes_put - self._bytes_taken
        if self._queue.qsize() >= self._max_frames or waiting + record_bytes > self._max_bytes:
            raise ProtocolError("the cloud sends more than was asked for", "use another cloud")
        self._bytes_put += record_bytes
        self._queue.put(Arrived(frame, record_bytes, time.monotonic()))

    def end(self) -> None:
        """The stream ended."""
        self._queue.put(None)

    def get(self, timeout: float | None = None) -> Arrived | None:
        """The next frame; waits.

        Raises:
            queue.Empty: nothing within ``timeout`` seconds.
        """
        return self._taken(self._queue.get(timeout=timeout))

    def get_nowait(self) -> Arrived | None:
        """The next frame; ``queue.Empty`` when there is none."""
        return self._taken(self._queue.get_nowait())

    def _taken(self, received: Arrived | None) -> Arrived | None:
        if received is not None:
            self._bytes_taken += received.record_bytes
        return received
