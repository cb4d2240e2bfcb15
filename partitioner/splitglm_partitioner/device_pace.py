"""How many times longer the device's passes take now than when it was profiled: load of others, heat, clock."""

from __future__ import annotations

import numpy as np

from splitglm_partitioner.change import RecentRatio
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import DevicePass
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN, DeviceProfile

# The median of nine ignores four bad ones; a change point cuts it to the two that showed it.
WINDOW = 9
# A shorter pass is as long as its timer's noise.
MIN_PASS_S = 2e-4
# Unseen for this long, half of the slowdown (of its logarithm) is forgotten: a processor cools down and other programs
# end within minutes, and an estimate without evidence must not keep the device's layers out of use for ever.
HALF_LIFE_S = 120.0


def predicted_s(times: LayerTimes, rows: int, start: int, stop: int, context_tokens: int) -> float:
    """Seconds of ``rows`` positions through layers ``[start, stop)`` of ``times``, ``context_tokens`` cached before."""
    if rows == 1:
        sums = times.decode_cumulative(context_tokens)
    else:
        sums = times.prefill_cumulative(np.array([float(rows)]), np.array([float(context_tokens)]))[0]
    return float(sums[stop] - sums[start])


class DevicePace:
    """The device's slowdown: the median of recent ratios of measured to profiled seconds, cut at each change.

    Args:
        device: as profiled, at the precision in use.
    """

    def __init__(self, device: DeviceProfile) -> None:
        self._times = device.active.times
        self._ratio = RecentRatio(WINDOW)
        self._seen_s = 0.0
        self.changed_s: float | None = None

    def observe(self, done: DevicePass) -> None:
        """Take one pass.

        Which layers ran is not told, so their share of the whole model is taken. A pass that names more layers than
        there are, or that is too short to be timed, is left out. ``changed_s`` is then when a change was last found.
        """
        times = self._times
        if done.layers > times.layers:
            return
        share = done.layers / times.layers
        expected_s = share * predicted_s(times, done.rows, 0, times.layers, done.context_tokens)
        if expected_s < MIN_PASS_S or done.seconds == 0.0:
            return
        if self._ratio.add(min(max(done.seconds / expected_s, MIN_SLOWDOWN), MAX_SLOWDOWN)):
            self.changed_s = done.at_s
        self._seen_s = done.at_s

    def slowdown(self, now_s: float) -> float:
        """Within ``[MIN_SLOWDOWN, MAX_SLOWDOWN]``; 1 before any pass.

        It moves back to 1 only by evidence, or by age: ``ratio ** 0.5 ** (age / HALF_LIFE_S)``.
        """
        ratio = self._ratio.value
        if ratio is None:
            return 1.0
        aged: float = ratio**0.5 ** (max(0.0, now_s - self._seen_s) / HALF_LIFE_S)
        return min(max(aged, MIN_SLOWDOWN), MAX_SLOWDOWN)
