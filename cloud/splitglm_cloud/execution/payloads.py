"""Payloads between two processes: a ring in shared memory each way, beside the messages that say where they lie.

The memory is an anonymous file that the worker inherits, so nothing has to be unlinked and nothing can be left behind.
One side allocates in a ring and writes; the other copies out at once, in the order of the messages, and says now and
then how far it got (``messages.Freed``). When a ring is full, or a payload is small, it travels in the message itself.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import Final

from splitglm_core.errors import InternalError

ALIGN_BYTES: Final = 64
PAGE_BYTES: Final = 4096
"""Before the rings: the worker's pulse (``pulse.Pulse``)."""
INLINE_BYTES: Final = 32 << 10
"""Up to here a second frame of the message costs less than the ring (benchmarks/executors.py)."""
RING_BYTES: Final = 16 << 20
"""As many prefill chunks of the largest size as a worker computes in a while; beyond them payloads travel inline."""


TELL_BYTES: Final = 256 << 10
"""So much is read before it is given back: then the message that does so costs little beside what it frees."""


class Ring:
    """The allocator of a ring. Positions count all bytes ever given out; the place is ``position % capacity``.

    Args:
        capacity: bytes; a multiple of ``ALIGN_BYTES``.
    """

    def __init__(self, capacity: int) -> None:
        if capacity <= 0 or capacity % ALIGN_BYTES:
            raise InternalError(f"a ring of {capacity} bytes is not a multiple of {ALIGN_BYTES}")
        self.capacity = capacity
        self._head = 0
        self._tail = 0

    @property
    def used(self) -> int:
        """Bytes that the reader has not given back, with those skipped at the end of the memory."""
        return self._head - self._tail

    def allocate(self, size: int) -> int | None:
        """Position of ``size`` contiguous bytes; None when there is no room now."""
        place = self._head % self.capacity
        # Where nothing is out it begins again at the front: few pages are touched, and those lie in the caches.
        empty = self._tail == self._head
        fits = place + size <= self.capacity and not empty
        start = self._head if fits or not place else self._head + self.capacity - place
        end = start + aligned(size)
        tail = start if empty else self._tail
        if size <= 0 or end - tail > self.capacity:
            return None
        self._head, self._tail = end, tail
        return start

    def release(self, position: int) -> None:
        """Everything before ``position`` may be used again.

        Raises:
            InternalError: it lies before what was released already, or beyond what was given out.
        """
        if not self._tail <= position <= self._head:
            raise InternalError("a ring was given back what it had not given out")
        self._tail = position


def aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


class Memory:
    """The memory that gateway and worker share: one page for the pulse, then the rings down to the worker and up.

    Args:
        fd: of ``create``, or inherited; it belongs to this object.
    """

    def __init__(self, fd: int, ring_bytes: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, memory_bytes(ring_bytes))
        whole = memoryview(self._map)
        self.pulse = whole[:PAGE_BYTES].cast("Q")
        self.down = whole[PAGE_BYTES : PAGE_BYTES + ring_bytes]
        self.up = whole[PAGE_BYTES + ring_bytes :]
        self._whole = whole

    @classmethod
    def create(cls, ring_bytes: int) -> Memory:
        """New memory that is gone when the last process that maps it is."""
        size = memory_bytes(ring_bytes)
        if sys.platform == "linux":
            import fcntl

            fd = os.memfd_create("splitglm-payloads", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            # Neither side can shrink it under the other's hands.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
            os.ftruncate(fd, size)
        return cls(fd, ring_bytes)

    def close(self) -> None:
        for view in (self.pulse, self.down, self.up, self._whole):
            view.release()
        self._map.close()
        os.close(self.fd)


def memory_bytes(ring_bytes: int) -> int:
    return PAGE_BYTES + 2 * ring_bytes


class Writer:
    """The side that puts payloads into a ring."""

    def __init__(self, view: memoryview, *, inline_bytes: int = INLINE_BYTES) -> None:
        self._view = view
        self._ring = Ring(len(view))
        self._inline_bytes = inline_bytes

    def put(self, payload: bytes | memoryview) -> int | None:
        """Copy the payload into the ring and say where it lies; None when it has to travel in the message."""
        size = len(payload)
        at = self._ring.allocate(size) if size > self._inline_bytes else None
        if at is not None:
            place = at % self._ring.capacity
            self._view[place : place + size] = payload
        return at

    def freed(self, position: int) -> None:
        self._ring.release(position)


class Reader:
    """The side that copies payloads out, in the order in which they were put."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._told = 0
        self._read = 0

    def take(self, at: int, size: int) -> bytes:
        """
        Raises:
            InternalError: no payload can lie there.
        """
        place = at % len(self._view)
        if at < self._read or place + size > len(self._view):
            raise InternalError("a payload lies outside its ring")
        payload = bytes(self._view[place : place + size])
        self._read = at + aligned(size)
        return payload

    def to_tell(self) -> int | None:
        """How far the writer may reuse the ring, when it is time to say so."""
        if self._read - self._told < min(TELL_BYTES, len(self._view) // 8):
            return None
        self._told = self._read
        return self._read
