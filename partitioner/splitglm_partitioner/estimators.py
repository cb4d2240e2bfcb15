"""Estimates of the link from what exchanges showed. State in, observation in, estimate out; the caller brings the time.

RTT follows RFC 6298 (SRTT and RTTVAR, alpha 1/8, beta 1/4). A rate is the harmonic mean of recent transfers, the mean
that predicts the time of the next bytes (MPC, Yin et al., SIGCOMM 2015), with the fastest and the slowest left out when
there are enough; its error is the largest recent relative error of its own predictions (RobustMPC, same paper).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from splitglm_partitioner.bounds import MAX_BYTES, MAX_BYTES_PER_S, check_count, check_number, check_seconds
from splitglm_partitioner.observations import Direction
from splitglm_partitioner.profiles import LinkEstimate

RTT_ALPHA = 1 / 8
RTT_BETA = 1 / 4
# A smaller transfer measures the round trip, not the rate.
MIN_TRANSFER_BYTES = 16 << 10
WINDOW = 8
MAX_AGE_S = 60.0
# From this many samples on, the fastest and the slowest are left out.
TRIM_FROM = 5
# The error kept for samples that are all too old: the next transfer may well see half the rate.
STALE_REL_ERROR = 1.0


class RttEstimator:
    """SRTT and RTTVAR of RFC 6298. The first sample replaces the start values."""

    def __init__(self, *, start_s: float, start_var_s: float) -> None:
        check_seconds("start_s", start_s)
        check_seconds("start_var_s", start_var_s)
        self._srtt_s, self._var_s, self._samples = start_s, start_var_s, 0

    def observe(self, seconds: float) -> None:
        """Take one round-trip sample. InputError when it is no duration."""
        check_seconds("round trip", seconds)
        if self._samples == 0:
            self._srtt_s, self._var_s = seconds, seconds / 2
        else:
            # The deviation is taken from the old SRTT, as the RFC orders.
            self._var_s = (1 - RTT_BETA) * self._var_s + RTT_BETA * abs(self._srtt_s - seconds)
            self._srtt_s = (1 - RTT_ALPHA) * self._srtt_s + RTT_ALPHA * seconds
        self._samples += 1

    @property
    def srtt_s(self) -> float:
        return self._srtt_s

    @property
    def var_s(self) -> float:
        return self._var_s


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    bytes_per_s: float
    rel_error: float  # of the estimate that stood before this sample


class RateEstimator:
    """Bytes per second in one direction, from the last ``WINDOW`` transfers of at least ``MIN_TRANSFER_BYTES``.

    Samples older than ``MAX_AGE_S`` give way to younger ones; when all are older the last window stays, since an old
    measurement says more than none, but its error is at least ``STALE_REL_ERROR``.
    """

    def __init__(self, *, start_bytes_per_s: float, start_rel_error: float) -> None:
        check_number("start_bytes_per_s", start_bytes_per_s, 1.0, MAX_BYTES_PER_S)
        check_number("start_rel_error", start_rel_error, 0.0, 1e6)
        self._start = (start_bytes_per_s, start_rel_error)
        self._samples: deque[_Sample] = deque(maxlen=WINDOW)

    def observe(self, transfer_bytes: int, seconds: float, now_s: float) -> bool:
        """Take one transfer; ``seconds`` is its time on the wire without the round trip. False when it is too small.

        Raises:
            InputError: a size or time out of range.
        """
        check_count("transfer_bytes", transfer_bytes, 0, MAX_BYTES)
        check_seconds("transfer seconds", seconds)
        if transfer_bytes < MIN_TRANSFER_BYTES or seconds == 0.0:
            return False
        rate = min(max(transfer_bytes / seconds, 1.0), MAX_BYTES_PER_S)
        # The start value is a guess: its miss says nothing about how well the estimator predicts this link.
        error = abs(self.estimate(now_s)[0] - rate) / rate if self._samples else 0.0
        self._samples.append(_Sample(now_s, rate, error))
        return True

    def estimate(self, now_s: float) -> tuple[float, float]:
        """Rate and its relative error; the start values before the first sample."""
        if not self._samples:
            return self._start
        fresh = [sample for sample in self._samples if now_s - sample.at_s <= MAX_AGE_S]
        used = fresh or list(self._samples)
        error = max(sample.rel_error for sample in used)
        if not fresh:
            error = max(error, STALE_REL_ERROR)
        elif len(used) == 1:
            error = max(error, self._start[1])
        rates = sorted(sample.bytes_per_s for sample in used)
        if len(rates) >= TRIM_FROM:
            rates = rates[1:-1]
        return len(rates) / sum(1.0 / rate for rate in rates), min(error, 1e6)


class LinkEstimator:
    """A ``LinkEstimate`` that learns from every exchange.

    Args:
        start: the estimate before anything was seen: a probe's result or the user's setting. Its ``overhead_s`` is
            kept, since passive samples cannot tell it from the round trip.
    """

    def __init__(self, start: LinkEstimate) -> None:
        self._overhead_s = start.overhead_s
        self._rtt = RttEstimator(start_s=start.rtt_s, start_var_s=start.rtt_var_s)
        self._rates = {
            Direction.UP: RateEstimator(
                start_bytes_per_s=start.uplink_bytes_per_s, start_rel_error=start.uplink_rel_error
            ),
            Direction.DOWN: RateEstimator(
                start_bytes_per_s=start.downlink_bytes_per_s, start_rel_error=start.downlink_rel_error
            ),
        }

    def observe_rtt(self, seconds: float, now_s: float) -> None:
        """Take one round trip of an exchange too small for the rate to matter. InputError when it is no duration."""
        check_number("now_s", now_s, -1e12, 1e12)
        self._rtt.observe(seconds)

    def observe_transfer(self, transfer_bytes: int, seconds: float, direction: Direction, now_s: float) -> bool:
        """Take one transfer, see ``RateEstimator.observe``."""
        check_number("now_s", now_s, -1e12, 1e12)
        return self._rates[direction].observe(transfer_bytes, seconds, now_s)

    def estimate(self, now_s: float) -> LinkEstimate:
        """The link as known at ``now_s``."""
        up, up_error = self._rates[Direction.UP].estimate(now_s)
        down, down_error = self._rates[Direction.DOWN].estimate(now_s)
        return LinkEstimate(
            uplink_bytes_per_s=up,
            downlink_bytes_per_s=down,
            rtt_s=self._rtt.srtt_s,
            overhead_s=self._overhead_s,
            uplink_rel_error=up_error,
            downlink_rel_error=down_error,
            rtt_var_s=self._rtt.var_s,
        )
