"""What a replaying link is told and what it answers: one JSON object per line; and a trace that begins elsewhere."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_sims.traces import RateTrace


def rotated(trace: RateTrace, by_s: float) -> RateTrace:
    """The same repeating rates, seen from a clock whose 0 is the trace's ``by_s``: ``rate(t) = trace.rate(t + by_s)``.

    Raises:
        InputError: ``by_s`` is not finite.
    """
    if not math.isfinite(by_s):
        raise InputError(f"a trace cannot begin at {by_s} s")
    shift_s = by_s % trace.period_s
    if shift_s >= trace.period_s:  # a remainder may be rounded up to the whole period
        shift_s = 0.0
    cut = bisect_right(trace.starts_s, shift_s)
    starts = [0.0]
    rates = [trace.bytes_per_s[cut - 1]]  # the piece that is under way at the new beginning
    for index in (*range(cut, len(trace.starts_s)), *range(cut)):
        start_s = trace.starts_s[index] - shift_s + (trace.period_s if index < cut else 0.0)
        if starts[-1] < start_s < trace.period_s:  # rounding may place a start on its neighbour
            starts.append(start_s)
            rates.append(trace.bytes_per_s[index])
    return RateTrace(tuple(starts), tuple(rates), trace.period_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A link to emulate from now on: bytes per second in both directions, and the round trip without queues."""

    up: RateTrace
    down: RateTrace
    rtt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One line to the link.

    Attributes:
        show: another link; None keeps the one that is shown.
        begin_offset_s: place this instant of the traces a little ahead of now; None leaves the clock alone.
    """

    show: Shown | None
    begin_offset_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One line from the link, one per order, when it has taken effect.

    Attributes:
        began_s: the instant of the system's monotonic clock at which the traces stand at the offset that was ordered;
            0 before any was.
        up_bytes, down_bytes: taken from the senders of each direction until now: TCP payload, so with all framing.
    """

    began_s: float
    up_bytes: int
    down_bytes: int
