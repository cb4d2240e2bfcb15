"""What a shared cloud says of its load: the gateway's own decayed means over the newest works of all devices"""

from __future__ import annotations

from splitglm_cloud.gateway.recent_load import RecentMean
from splitglm_partitioner.cloud_load import Load


class SaidLoad:
    """Means of waits and of rides. Times never go back."""

    def __init__(self) -> None:
        self._queue_s, self._sweep_s, self._slowdown = RecentMean(0.0), RecentMean(0.0), RecentMean(1.0)

    def boarded(self, queue_s: float, sweep_s: float, now_s: float) -> None:
        """A work boarded after these waits."""
        self._queue_s.add(queue_s, now_s)
        self._sweep_s.add(sweep_s, now_s)

    def alighted(self, seconds: float, alone_s: float, now_s: float) -> None:
        """A decode work rode for ``seconds``; alone it would have been ``alone_s``."""
        if alone_s > 0.0:
            self._slowdown.add(seconds / alone_s, now_s, alone_s)

    def at(self, now_s: float, *, busy: bool = False) -> Load:
        """As it stands; it fades towards idle while nothing is ``busy``."""
        return Load(
            queue_s=self._queue_s.value(now_s, busy=busy),
            sweep_s=self._sweep_s.value(now_s, busy=busy),
            slowdown=self._slowdown.value(now_s, busy=busy),
        )
