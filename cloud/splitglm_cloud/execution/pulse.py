"""How a gateway knows that a worker's compute loop goes round: a count in shared memory, and who judges it."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

P99_OVER: Final = 256
"""Batches that the 99th percentile is taken over."""
_EVERY: Final = 16


class Pulse:
    """The worker's side: two cells that the gateway reads whenever it likes.

    Args:
        cells: at least two 8-byte cells of shared memory.
    """

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._count = 0
        self._took_s: deque[float] = deque(maxlen=P99_OVER)
        self._batches = 0

    def beat(self) -> None:
        """Once per turn of the loop, also of an idle one."""
        self._count += 1
        self._cells[0] = self._count

    def batch(self, took_s: float) -> None:
        self._took_s.append(took_s)
        self._batches += 1
        if self._batches % _EVERY == 1:
            self._cells[1] = round(1e6 * percentile_99(self._took_s))


def beats(cells: memoryview) -> int:
    return int(cells[0])


def p99_s(cells: memoryview) -> float:
    """Of the worker's batches so far; 0 when there was none."""
    return float(cells[1]) / 1e6


def percentile_99(values: deque[float]) -> float:
    """Nearest rank; the values must not be empty."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


class Watchdog:
    """Says when a worker hangs: it has work, and its pulse has stood still for too long.

    Args:
        least_s: no worker is given less time.
        expected_s: how long its largest batch may take; until it has batches of its own nothing else is known, and
            even then the next one may be the largest so far.
    """

    def __init__(self, *, least_s: float, expected_s: float) -> None:
        self._least_s = least_s
        self._expected_s = expected_s
        self._beats = -1
        self._since_s = -math.inf
        self._looked_s = -math.inf

    def limit_s(self, p99_s: float) -> float:
        return max(self._least_s, 3 * p99_s, 3 * self._expected_s)

    def hangs(self, now_s: float, *, beats: int, p99_s: float, working: bool) -> bool:
        """To be asked several times within ``least_s``."""
        # Whoever looks that late was held up itself (a stopped process, a suspended machine): begin anew.
        late = now_s - self._looked_s > self._least_s / 2
        self._looked_s = now_s
        if late or beats != self._beats or not working:
            self._beats, self._since_s = beats, now_s
            return False
        return now_s - self._since_s > self.limit_s(p99_s)
