"""Time as an argument: the pure rooms take ``now_s`` or a ``Clock``; only shells read the real one."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds; the origin is arbitrary."""

    def now_s(self) -> float: ...


class ManualClock:
    """A clock that moves only when told to; for tests and simulations."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("a monotonic clock never goes back")
        self._now_s += seconds
