"""A simulated link: two byte-serial directions over their traces, slow start and radio promotion after a rest

Pure arithmetic on an absolute schedule, as in ``shaper``: a message leaves when those before it have left and the trace
has carried its bytes. Nothing here draws or waits; the caller brings times and delays.
"""

from __future__ import annotations

import copy
import math

from splitglm_partitioner.slow_start import rest_s
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.scene import LinkScene


class Way:
    """One direction: its bottleneck, and the congestion window of the connection that uses it.

    Slow start: the window doubles every round trip, and a round lasts as long as its bytes need or a round trip,
    whichever is longer (Cardwell et al., "Modeling TCP latency", INFOCOM 2000, without loss).
    """

    __slots__ = (
        "_left",
        "_offset_s",
        "_rate",
        "_rest_s",
        "_round_s",
        "_rtt_s",
        "_trace",
        "_window",
        "_window_bytes",
        "free_s",
    )

    def __init__(self, trace: RateTrace, scene: LinkScene) -> None:
        self._trace = trace
        self._rate = trace.bytes_per_s[0] if len(trace.starts_s) == 1 else 0.0
        self._offset_s = scene.offset_s
        self._rtt_s = scene.rtt_s
        self._rest_s = rest_s(scene.rtt_s)
        self._window_bytes = scene.window_bytes
        self._window = self._left = math.inf
        self._round_s = 0.0
        self.free_s = -math.inf  # when the last byte handed over has left

    def finish_s(self, start_s: float, size: int) -> float:
        """When the last of ``size`` bytes has left if the first may at ``start_s`` and no window holds them up."""
        if self._rate:
            return start_s + size / self._rate
        return self._trace.finish_s(start_s + self._offset_s, size) - self._offset_s

    def send(self, now_s: float, size: int, busy_s: float = 0.0) -> tuple[float, float]:
        """Hand ``size`` bytes over. ``busy_s`` of other work per message occupy the way before its bytes.

        Returns:
            When the bytes began to leave, and when the last one has left.
        """
        start_s = max(now_s, self.free_s) + busy_s
        if self._window_bytes is not None:
            self._reopen(start_s, self._window_bytes)
        first_s, left = start_s, self._left
        while size > left:
            end_s = self.finish_s(start_s, int(left))
            size -= int(left)
            acknowledged_s = self._round_s + self._rtt_s
            self._round_s = start_s = max(end_s, acknowledged_s)
            self._window *= 2
            # A round that keeps the link busy until its first acknowledgement: from now on the rate is the limit.
            left = math.inf if end_s >= acknowledged_s else self._window
        self._left = left - size
        self.free_s = self.finish_s(start_s, size)
        return first_s, self.free_s

    def _reopen(self, start_s: float, window_bytes: int) -> None:
        """The window as it is at ``start_s``: fresh after a rest, grown by what was acknowledged since."""
        if start_s - self.free_s > self._rest_s:
            self._window = self._left = window_bytes
            self._round_s = start_s
        elif self._left < math.inf and start_s >= self._round_s + self._rtt_s:
            self._window += self._window - self._left
            self._left = self._window
            self._round_s = start_s


class Link:
    """Both ways and the radio. State that a counterfactual copies."""

    __slots__ = ("down", "promotion_s", "rest_after_s", "up", "used_s")

    def __init__(self, scene: LinkScene) -> None:
        self.up = Way(scene.up, scene)
        self.down = Way(scene.down, scene)
        self.rest_after_s = scene.rest_after_s
        self.promotion_s = scene.promotion_s
        self.used_s = -math.inf  # when the link last carried something

    def idle_s(self, now_s: float) -> float:
        """How long the link has carried nothing; a link never used has rested for as long as the world exists."""
        return max(0.0, now_s - max(self.used_s, 0.0))

    def wake_s(self, now_s: float) -> float:
        """Extra delay of an exchange that begins now, because the radio rests."""
        return self.promotion_s if now_s - self.used_s >= self.rest_after_s else 0.0

    def copy(self) -> Link:
        twin = copy.copy(self)
        twin.up, twin.down = copy.copy(self.up), copy.copy(self.down)
        return twin
