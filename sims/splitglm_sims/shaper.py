"""One direction of a link as a pure function of arrivals: when does each piece of data leave, and when is it there?

The model is the textbook one (and Mahimahi's, Netravali et al., ATC 2015): a queue of finite size, one bottleneck that
serialises bytes at a constant or trace-driven rate, then a propagation delay. Everything is computed on an absolute
schedule, ``departure = max(now, last departure) + size / rate`` and ``arrival = departure + delay``, so a shell that
wakes late delivers late once and never drifts. Times are seconds on any clock that starts at 0 or later.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from splitglm_core.errors import InputError
from splitglm_sims.traces import MAX_RATE_BYTES_PER_S, RateTrace

SEGMENT_BYTES: Final = 1500  # what a packet carries, roughly; the unit in which connections take turns
MAX_SLICE_BYTES: Final = 64 * 1024
SLICE_S: Final = 1e-3  # a slice lasts about this long: small enough that nothing waits behind more than the shape says


class Direction(Enum):
    UP = "up"  # from the client to the upstream server
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """What one direction does to bytes.

    Attributes:
        delay_s: one-way propagation delay.
        rate_bytes_per_s: capacity shared by all connections; ``None`` is unlimited.
        jitter_s: each slice's delay is uniform in ``delay_s`` +- ``jitter_s``; order is kept, so a late slice holds up
            those behind it. At most ``delay_s``.
        queue_bytes: what may wait for the bottleneck; beyond it the sender is held back (nothing is lost).
        trace: capacity over time, instead of ``rate_bytes_per_s``.
    """

    delay_s: float = 0.0
    rate_bytes_per_s: float | None = None
    jitter_s: float = 0.0
    queue_bytes: int = 64 * 1024
    trace: RateTrace | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delay_s) and 0.0 <= self.jitter_s <= self.delay_s):
            raise InputError(f"delay {self.delay_s} s and jitter {self.jitter_s} s need 0 <= jitter <= delay")
        if self.rate_bytes_per_s is not None and self.trace is not None:
            raise InputError("a link has either a constant rate or a trace")
        if self.rate_bytes_per_s is not None and not 1.0 <= self.rate_bytes_per_s <= MAX_RATE_BYTES_PER_S:
            raise InputError(f"rate {self.rate_bytes_per_s} bytes/s is outside [1, {MAX_RATE_BYTES_PER_S:g}]")
        if not SEGMENT_BYTES <= self.queue_bytes <= 2**30:
            raise InputError(f"a queue of {self.queue_bytes} bytes is outside [{SEGMENT_BYTES}, {2**30}]")

    @property
    def mean_bytes_per_s(self) -> float:
        """Long-term capacity; infinite when unlimited."""
        if self.trace is not None:
            return self.trace.mean_bytes_per_s
        return math.inf if self.rate_bytes_per_s is None else self.rate_bytes_per_s

    @property
    def slice_bytes(self) -> int:
        """Whole segments that take about a millisecond at the bottleneck, and never more than the queue."""
        segments = min(self.mean_bytes_per_s * SLICE_S, MAX_SLICE_BYTES) // SEGMENT_BYTES
        return min(max(1, int(segments)) * SEGMENT_BYTES, self.queue_bytes)


@dataclass(frozen=True, slots=True)
class Passage:
    """When the last byte of a slice leaves the bottleneck and when it reaches the far end."""

    departure_s: float
    arrival_s: float


class Shaper:
    """The state of one direction. ``now_s`` never goes back between calls."""

    def __init__(self, shape: LinkShape, rng: random.Random) -> None:
        self._shape = shape
        self._rng = rng
        self._last_departure_s = 0.0
        self._last_arrival_s = 0.0
        self._waiting: deque[tuple[float, int]] = deque()  # (departure, size) of what has not left yet
        self._waiting_bytes = 0

    @property
    def shape(self) -> LinkShape:
        return self._shape

    def reshape(self, shape: LinkShape) -> None:
        """From now on ``shape``; what is already on its way keeps its times, and order is kept across the change."""
        self._shape = shape

    def waiting_bytes(self, now_s: float) -> int:
        """Bytes accepted that have not left the bottleneck at ``now_s``."""
        while self._waiting and self._waiting[0][0] <= now_s:
            self._waiting_bytes -= self._waiting.popleft()[1]
        return self._waiting_bytes

    def room_at_s(self, now_s: float, size: int) -> float:
        """The earliest time, ``now_s`` or later, at which the queue takes ``size`` more bytes.

        A slice larger than the whole queue is taken when the queue is empty.
        """
        excess = self.waiting_bytes(now_s) + size - self._shape.queue_bytes
        free_s = now_s
        for departure_s, waiting in self._waiting:
            if excess <= 0:
                break
            excess -= waiting
            free_s = departure_s
        return free_s

    def offer(self, now_s: float, size: int) -> Passage:
        """Puts ``size`` bytes (0 for an end of stream) into the queue; the caller has waited for ``room_at_s``."""
        start_s = max(now_s, self._last_departure_s)
        shape = self._shape
        if shape.trace is not None:
            departure_s = shape.trace.finish_s(start_s, size)
        elif shape.rate_bytes_per_s is not None:
            departure_s = start_s + size / shape.rate_bytes_per_s
        else:
            departure_s = start_s
        jitter_s = self._rng.uniform(-shape.jitter_s, shape.jitter_s) if shape.jitter_s else 0.0
        arrival_s = max(self._last_arrival_s, departure_s + shape.delay_s + jitter_s)
        self._last_departure_s, self._last_arrival_s = departure_s, arrival_s
        if size and departure_s > now_s:
            self._waiting.append((departure_s, size))
            self._waiting_bytes += size
        return Passage(departure_s, arrival_s)
