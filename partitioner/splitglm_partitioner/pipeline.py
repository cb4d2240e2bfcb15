"""Completion times of a line of machines: the permutation flow shop with unlimited buffers (Johnson 1954).

``end[i][k] = max(end[i-1][k], end[i][k-1]) + time[i][k]``: job ``i`` leaves machine ``k`` when the machine has finished
the job before it and the machine before has finished this job. Every entry may be an array: one line per element.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

# Up to this many equal jobs the recurrence takes fewer vector operations than the closed form.
_SHORT_RUN = 6


def run_jobs(ends: list[Seconds], times: Sequence[Seconds], count: int) -> None:
    """Pass ``count`` equal jobs through the line and update ``ends``, the time at which each machine falls idle.

    The arrays in ``ends`` are overwritten.

    Long runs use the critical path: it leaves the state before the run at some machine ``j``, visits ``j .. k`` once
    and repeats the slowest of them ``count - 1`` times, so the cost does not grow with ``count``.
    """
    if count <= _SHORT_RUN:
        for _ in range(count):
            ends[0] += times[0]
            for k in range(1, len(ends)):
                np.maximum(ends[k], ends[k - 1], out=ends[k])
                ends[k] += times[k]
        return
    before = list(ends)
    for k in range(len(ends)):
        slowest = through = times[k]
        best = before[k] + count * times[k]
        for j in range(k - 1, -1, -1):
            through = through + times[j]
            slowest = np.maximum(slowest, times[j])
            best = np.maximum(best, before[j] + through + (count - 1) * slowest)
        ends[k] = best
