"""Round trips: their smoothed time and deviation, and what the first one after a rest costs more.

SRTT and RTTVAR follow RFC 6298. A change point (another network, another route) starts them anew, since alpha = 1/8
would take 16 samples to follow.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from splitglm_partitioner.bounds import check_number, check_seconds
from splitglm_partitioner.change import SPREAD_WINDOW, ChangeDetector, median

RTT_ALPHA = 1 / 8
RTT_BETA = 1 / 4
# Differences below are the machines', not the link's.
CLOCK_S = 1e-3


class RttEstimator:
    """SRTT and RTTVAR of RFC 6298. The first sample replaces the start values, and the median
    of the samples since a change what was before it."""

    def __init__(self, *, start_s: float, start_var_s: float) -> None:
        self._samples = 0
        self.start(start_s, start_var_s)
        self._recent: deque[float] = deque(maxlen=SPREAD_WINDOW)
        self._change = ChangeDetector()

    def start(self, seconds: float, var_s: float) -> None:
        """Hold these values until the first sample; an estimator that has samples keeps what they said."""
        check_seconds("start_s", seconds)
        check_seconds("start_var_s", var_s)
        if self._samples == 0:
            self._srtt_s, self._var_s = seconds, var_s

    def observe(self, seconds: float) -> bool:
        """Take one round-trip sample. True when it made a change known. InputError when it is no duration."""
        check_seconds("round trip", seconds)
        kept = self._change.add(math.log((seconds + CLOCK_S) / (self._srtt_s + CLOCK_S))) if self._samples else 0
        self._recent.append(seconds)
        if not kept:
            self._smooth(seconds)
            return False
        # Their median: the run that showed the change may hold one sample from before it.
        self._samples = 0
        self._smooth(median(list(self._recent)[-kept:]))
        return True

    def _smooth(self, seconds: float) -> None:
        if self._samples == 0:
            self._srtt_s, self._var_s = seconds, seconds / 2
        else:
            # The deviation is taken from the old SRTT, as the RFC orders.
            self._var_s = (1 - RTT_BETA) * self._var_s + RTT_BETA * abs(self._srtt_s - seconds)
            self._srtt_s = (1 - RTT_ALPHA) * self._srtt_s + RTT_ALPHA * seconds
        self._samples += 1

    @property
    def samples(self) -> int:
        """Samples since the start or the last change."""
        return self._samples

    @property
    def srtt_s(self) -> float:
        return self._srtt_s

    @property
    def var_s(self) -> float:
        return self._var_s


# A shorter pause is part of an exchange: no radio rests within it, and a congestion window outlives it (RFC 5681, 4.1,
# counts from one retransmission timeout, which is at least 1 s).
MIN_REST_S = 1.0
PROMOTION_WINDOW = 16
# A promotion is believed from this many slow exchanges on; one may have met a queue.
PROMOTION_FROM = 2
# Less than this, or than half a round trip, is jitter.
MIN_PROMOTION_S = 0.02


class _Rested(NamedTuple):
    idle_s: float
    excess_s: float


class Promotion:
    """What the first exchange costs more after the link has rested: a radio that goes from idle to connected.

    A step is fitted to the last ``PROMOTION_WINDOW`` exchanges after a rest: nothing up to some gap, the median excess
    from there on. The gap is the one that puts fewest exchanges on the wrong side (slow is half that median), the
    longest among equals, and one that was seen: a rest shorter than every slow one is not said to cost anything. 0
    until ``PROMOTION_FROM`` exchanges were slow.
    """

    def __init__(self) -> None:
        self._seen: deque[_Rested] = deque(maxlen=PROMOTION_WINDOW)
        self._step: _Rested | None = None

    def observe(self, idle_s: float, excess_s: float, rtt_s: float) -> None:
        """Take an exchange that took ``excess_s`` more than the round trip ``rtt_s`` after a rest of ``idle_s``.

        InputError for values out of range; one that was faster than ``rtt_s`` counts as no excess.
        """
        check_seconds("idle_s", idle_s)
        check_number("excess_s", excess_s, -1e6, 1e6)
        check_seconds("rtt_s", rtt_s)
        self._seen.append(_Rested(idle_s, max(0.0, excess_s)))
        self._step = self._fit(max(MIN_PROMOTION_S, rtt_s / 2))

    def seconds(self, idle_s: float) -> float:
        """Expected extra of an exchange after ``idle_s`` without any; never falls with ``idle_s``."""
        return self._step.excess_s if self._step is not None and idle_s >= self._step.idle_s else 0.0

    def _fit(self, least_s: float) -> _Rested | None:
        ordered = sorted(self._seen)
        best, fewest = None, len(ordered) + 1
        for index in range(len(ordered) - PROMOTION_FROM + 1):
            if index and ordered[index].idle_s == ordered[index - 1].idle_s:
                continue  # no gap separates equal rests
            level = median(seen.excess_s for seen in ordered[index:])
            slow = [seen.excess_s >= level / 2 for seen in ordered]
            if level < least_s or sum(slow[index:]) < PROMOTION_FROM:
                continue
            wrong = sum(slow[:index]) + len(slow[index:]) - sum(slow[index:])
            if wrong <= fewest and wrong < sum(slow):
                best, fewest = _Rested(ordered[index].idle_s, level), wrong
        return best
