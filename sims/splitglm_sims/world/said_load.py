"""What a shared cloud says of its load: smoothed over its newest works, whoever sent them"""

from __future__ import annotations

from typing import Final

from splitglm_partitioner.cloud_load import Load

_SHARE: Final = 1 / 16
"""Of each new work in the mean: the newest few dozen count."""


class SaidLoad:
    """Means of waits and of rides."""

    def __init__(self) -> None:
        self._queue_s = self._sweep_s = 0.0
        self._slowdown = 1.0

    def boarded(self, queue_s: float, sweep_s: float) -> None:
        """A work boarded after these waits."""
        self._queue_s += _SHARE * (queue_s - self._queue_s)
        self._sweep_s += _SHARE * (sweep_s - self._sweep_s)

    def alighted(self, seconds: float, alone_s: float) -> None:
        """A decode work rode for ``seconds``; alone it would have been ``alone_s``."""
        if alone_s > 0.0:
            self._slowdown += _SHARE * (seconds / alone_s - self._slowdown)

    def at(self, now_s: float) -> Load:
        """As it stands; the cloud does not forecast."""
        return Load(queue_s=self._queue_s, sweep_s=self._sweep_s, slowdown=self._slowdown)
