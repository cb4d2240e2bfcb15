"""Change points: a jump is told from an outlier after two samples, so that what came before it can be dropped.

Page's two-sided cumulative sum (Page, Biometrika 1954) over log ratios of sample to estimate. Each sample's share is
bounded so that no single one, however far off, reaches the threshold, and two that agree do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

# In units of the spread. A mean shift below twice the allowance is left to the ordinary averaging.
ALLOWANCE = 1.25
THRESHOLD = 3.5
# One sample adds at most this share of the threshold: one outlier never trips it, two in a row do.
SAMPLE_SHARE = 0.6
# Samples of one change are at least this share as far off as its newest one, or as counts of it.
LIKENESS = 2 / 3
# Spread of log ratios. The floor makes a lasting factor of 2 on a steady quantity known after two samples; the ceiling
# keeps a factor of 4 known after two on any.
MIN_SPREAD = 0.2
MAX_SPREAD = 0.45
SPREAD_FROM = 4
SPREAD_WINDOW = 8
# Median absolute deviation of a normal variable to its standard deviation.
MAD_TO_SIGMA = 1.4826


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two middle ones. ValueError for none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no median of nothing")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class ChangeDetector:
    """Tells when log ratios of sample to estimate no longer scatter around 0."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SPREAD_WINDOW)
        self._sums = [0.0, 0.0]  # upward, downward
        self._runs = [0, 0]  # samples since each sum left 0

    def add(self, log_ratio: float) -> int:
        """Take one finite ``ln(sample / estimate)``.

        Returns:
            0 while nothing changed; else how many of the newest samples, this one included, belong to what holds now.
            The detector begins anew then.
        """
        spread = self.spread
        self._recent.append(log_ratio)
        found = 0
        for side, value in enumerate((log_ratio, -log_ratio)):
            step = min(value / spread - ALLOWANCE, SAMPLE_SHARE * THRESHOLD)
            self._sums[side] = max(0.0, self._sums[side] + step)
            self._runs[side] = self._runs[side] + 1 if self._sums[side] > 0.0 else 0
            if self._sums[side] > THRESHOLD:
                found = self._alike(self._runs[side], 1.0 if side == 0 else -1.0, spread)
        if found:
            self.reset()
        return found

    def _alike(self, run: int, sign: float, spread: float) -> int:
        # A sum may have left 0 by noise before the change: what is not like the newest sample is from before.
        values = [sign * value for value in reversed(self._recent)][:run]
        least = LIKENESS * min(values[0], (ALLOWANCE + SAMPLE_SHARE * THRESHOLD) * spread)
        return next((count for count, value in enumerate(values) if value < least), len(values))

    @property
    def spread(self) -> float:
        """Robust standard deviation of the recent log ratios, within ``[MIN_SPREAD, MAX_SPREAD]``."""
        if len(self._recent) < SPREAD_FROM:
            return MIN_SPREAD
        return min(max(MAD_TO_SIGMA * median(map(abs, self._recent)), MIN_SPREAD), MAX_SPREAD)

    def reset(self) -> None:
        """Forget everything: what follows is another quantity."""
        self._recent.clear()
        self._sums, self._runs = [0.0, 0.0], [0, 0]


class RecentRatio:
    """A positive ratio that drifts and jumps: the median of its newest samples, cut at each change point.

    Args:
        window: most samples kept. A median of ``window`` ignores fewer than half of them being wrong.
    """

    def __init__(self, window: int) -> None:
        self._samples: deque[float] = deque(maxlen=window)
        self._change = ChangeDetector()

    def add(self, ratio: float) -> bool:
        """Take one ratio > 0. True when it made a change known."""
        kept = 0
        if self._samples:
            kept = self._change.add(math.log(ratio / median(self._samples)))
        self._samples.append(ratio)
        if kept:
            while len(self._samples) > kept:
                self._samples.popleft()
        return kept > 0

    @property
    def value(self) -> float | None:
        """The median; None before the first sample. Always within the samples kept."""
        return median(self._samples) if self._samples else None

    @property
    def count(self) -> int:
        return len(self._samples)
