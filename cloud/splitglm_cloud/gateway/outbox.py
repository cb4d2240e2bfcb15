"""Replies on their way to devices: queued in memory until each device reads them, within bounds.

Nothing here blocks a session: a device that reads too slowly loses its stream, never its KV caches.
"""

from __future__ import annotations

import asyncio
from typing import Final

OUTBOX_FRAMES: Final = 4096
OUTBOX_BYTES: Final = 64 << 20
"""Replies waiting for one device; beyond either its stream is closed."""


class Outbox:
    """Frames of one stream. ``overflow`` is set when it has been closed for not being read."""

    def __init__(self, budget: OutboxBudget) -> None:
        self._budget = budget
        self._frames: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()
        self.bytes = 0
        self.overflow = asyncio.Event()
        budget.outboxes.add(self)

    def put(self, data: bytes, begins_reply: bool) -> None:
        """Queue an encoded frame; never blocks. Nothing more is taken after an overflow."""
        if self.overflow.is_set():
            return
        self._frames.put_nowait((data, begins_reply))
        self.bytes += len(data)
        if self._frames.qsize() > OUTBOX_FRAMES or self.bytes > OUTBOX_BYTES:
            self.drop()
        else:
            self._budget.enforce()

    def finish(self) -> None:
        """Nothing more will come."""
        self._frames.put_nowait(None)

    async def get(self) -> tuple[bytes, bool] | None:
        """The next frame and whether it begins a reply; None after ``finish``."""
        waiting = await self._frames.get()
        if waiting is not None:
            self.bytes -= len(waiting[0])
        return waiting

    def drop(self) -> None:
        """Forget what waits and take nothing more."""
        self.overflow.set()
        self.close()

    def close(self) -> None:
        """Give back what is held; may be called twice."""
        self._budget.outboxes.discard(self)
        while not self._frames.empty():
            self._frames.get_nowait()
        self.bytes = 0


class OutboxBudget:
    """Bytes of all outboxes of a server. Beyond it the fullest is dropped: those that read go on."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.outboxes: set[Outbox] = set()

    @property
    def used_bytes(self) -> int:
        return sum(outbox.bytes for outbox in self.outboxes)

    def enforce(self) -> None:
        """Drop the fullest until the rest fits."""
        while self.used_bytes > self._limit_bytes:
            max(self.outboxes, key=lambda outbox: outbox.bytes).drop()
