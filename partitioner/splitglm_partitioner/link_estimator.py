"""The link as known now, from every exchange that used it, and what of it nobody has measured of late.

State in, observation in, estimate out; the caller brings the time.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from splitglm_partitioner.bounds import MAX_SECONDS, check_number
from splitglm_partitioner.observations import (
    CloudHint,
    CloudStep,
    Direction,
    DraftRound,
    Observation,
    RoundTrip,
    Transfer,
)
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_partitioner.rates import STALE_REL_ERROR, RateEstimator
from splitglm_partitioner.round_trips import CLOCK_S, MIN_REST_S, Promotion, RttEstimator
from splitglm_partitioner.slow_start import INITIAL_WINDOW_BYTES, SlowStart, rest_s

# A round trip measured this recently stands: asking again would put one in front of every reply's first token.
FRESH_S = 5.0
# A rate, likewise. By then its error has grown by STALE_REL_ERROR.
RATES_FRESH_S = 60.0
# Both ways, as a probe sends them: long enough to tell 2 Mbit/s (130 ms) from 100 Mbit/s.
PROBE_BYTES = 32 << 10
# Most of the time that questions may take: on a slow link they are asked less often.
PROBE_SHARE = 0.02
# The same once the link has changed since the last answer.
CHANGED_PROBE_SHARE = 0.1
# From so many round trips on RTTVAR is their scatter.
SCATTER_FROM = 4
# An exchange after a rest is an ordinary one when it exceeds the round trip by no more than this, or 4 RTTVAR.
MIN_JITTER_SHARE = 0.25


class Probing(Enum):
    """What is worth asking of the link before a decision."""

    NONE = "none"
    ROUND_TRIP = "round-trip"  # after a rest twice: the first wakes the radio, both are told
    RATES = "rates"  # a round trip, and ``PROBE_BYTES`` each way


ORDINARY_LINK = LinkEstimate(
    uplink_bytes_per_s=1e6,
    downlink_bytes_per_s=1e6,
    rtt_s=0.05,
    overhead_s=0.0006,
    uplink_rel_error=1.0,
    downlink_rel_error=1.0,
    rtt_var_s=0.025,
)
"""Before anything was measured: a home link, believed within a factor of two."""


class Blindness(NamedTuple):
    """What to ask, and why, in words for ``explain``; no reason for ``Probing.NONE``."""

    probing: Probing
    reason: str


class LinkEstimator:
    """A ``LinkEstimate`` that learns from every exchange.

    Args:
        start: the estimate before anything was seen: a probe's result or the user's setting. Its ``overhead_s`` is
            kept, since passive samples cannot tell it from the round trip.
    """

    def __init__(self, start: LinkEstimate = ORDINARY_LINK) -> None:
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
        self._promotion = Promotion()
        self._slow_start = SlowStart()
        self._used_s = float("-inf")  # when the link was last known to carry something
        self._rtt_at_s: float | None = None
        self._busy_until_s = float("-inf")
        self.changed_s: float | None = None

    def start(self, link: LinkEstimate) -> None:
        """A connection was made: ``link`` is believed of whatever was not measured yet, and windows are small again."""
        self._overhead_s = link.overhead_s
        self._rtt.start(link.rtt_s, link.rtt_var_s)
        self._rates[Direction.UP].start(link.uplink_bytes_per_s, link.uplink_rel_error)
        self._rates[Direction.DOWN].start(link.downlink_bytes_per_s, link.downlink_rel_error)
        self._slow_start.rested()

    def observe(self, observation: Observation) -> None:
        """Learn from one observation; those that say nothing about the link are ignored.

        ``changed_s`` is then when a change of the round trip or of a rate was last found, None before.
        """
        if isinstance(observation, RoundTrip):
            self._round_trip(observation)
        elif isinstance(observation, Transfer):
            self._transfer(observation)
        if isinstance(observation, RoundTrip | Transfer | CloudStep | CloudHint | DraftRound):
            self._used_s = max(self._used_s, observation.at_s)

    def queued(self, until_s: float) -> None:
        """What was handed over so far will have left the device at ``until_s``."""
        check_number("until_s", until_s, -1e12, 1e12)
        self._busy_until_s = until_s

    def idle_s(self, now_s: float) -> float:
        """How long the link has carried nothing that anybody told of; 0 for one that was never used."""
        used_s = max(self._used_s, self._busy_until_s)
        return min(max(0.0, now_s - used_s), MAX_SECONDS) if used_s > float("-inf") else 0.0

    def estimate(self, now_s: float) -> LinkEstimate:
        """The link as known at ``now_s``."""
        up, up_error = self._rate(Direction.UP, now_s)
        down, down_error = self._rate(Direction.DOWN, now_s)
        return LinkEstimate(
            uplink_bytes_per_s=up,
            downlink_bytes_per_s=down,
            rtt_s=self._rtt.srtt_s,
            overhead_s=self._overhead_s,
            uplink_rel_error=up_error,
            downlink_rel_error=down_error,
            rtt_var_s=self._rtt.var_s,
            uplink_queue_s=min(max(0.0, self._busy_until_s - now_s), MAX_SECONDS),
            promotion_s=self._promotion.seconds(self.idle_s(now_s)),
            window_bytes=self._window_bytes(up, now_s),
        )

    def blind(self, now_s: float) -> Probing:
        """What is worth asking now: ``blindness`` without its reason."""
        return self.blindness(now_s).probing

    def blindness(self, now_s: float) -> Blindness:
        """What is worth asking now, and why.

        An exchange that anybody told of counts as an answer, so a link in use is not asked. A question is put no
        sooner than its own cost allows: it takes at most ``PROBE_SHARE`` of the time on a link that stays as it is, and
        ``CHANGED_PROBE_SHARE`` on one that keeps changing.
        """
        link = self.estimate(now_s)
        trip_s = link.rtt_s + link.overhead_s
        rates_s = trip_s + PROBE_BYTES / link.uplink_bytes_per_s + PROBE_BYTES / link.downlink_bytes_per_s
        for way, estimator in self._rates.items():
            reason = self._missing(f"the {way.value}link rate", estimator.newest_s, RATES_FRESH_S, rates_s, now_s)
            if reason:
                return Blindness(Probing.RATES, reason)
        reason = self._trip_missing(link, now_s)
        return Blindness(Probing.ROUND_TRIP if reason else Probing.NONE, reason)

    def trip_blind(self, now_s: float) -> bool:
        """Whether the round trip in particular is worth asking for."""
        return bool(self._trip_missing(self.estimate(now_s), now_s))

    def _trip_missing(self, link: LinkEstimate, now_s: float) -> str:
        return self._missing("the round trip", self._rtt_at_s, FRESH_S, link.rtt_s + link.overhead_s, now_s)

    def _rate(self, way: Direction, now_s: float) -> tuple[float, float]:
        estimator = self._rates[way]
        rate, error = estimator.estimate(now_s)
        if self._outdated(estimator.newest_s):
            error = max(error, STALE_REL_ERROR)
        return rate, error

    def _outdated(self, newest_s: float | None) -> bool:
        return newest_s is not None and self.changed_s is not None and newest_s < self.changed_s

    def _missing(self, what: str, newest_s: float | None, fresh_s: float, cost_s: float, now_s: float) -> str:
        if newest_s is None:
            return f"{what} was never measured"
        age_s = now_s - newest_s
        if self._outdated(newest_s) and age_s >= cost_s / CHANGED_PROBE_SHARE:
            return f"the link changed after {what} was measured"
        return f"{what} was measured {age_s:.0f} s ago" if age_s > max(fresh_s, cost_s / PROBE_SHARE) else ""

    def _window_bytes(self, uplink_bytes_per_s: float, now_s: float) -> int | None:
        if not self._slow_start.seen:
            return None
        rests = self.idle_s(now_s) > rest_s(self._rtt.srtt_s)
        window = INITIAL_WINDOW_BYTES if rests else self._slow_start.window_bytes(Direction.UP)
        return window if window < uplink_bytes_per_s * self._rtt.srtt_s else None

    def _round_trip(self, trip: RoundTrip) -> None:
        self._note_rest(trip.idle_s)
        rtt_s = self._rtt.srtt_s
        self._rtt_at_s = trip.at_s
        if trip.idle_s >= MIN_REST_S and self._rtt.samples:
            excess_s = trip.seconds - rtt_s
            self._promotion.observe(trip.idle_s, excess_s, rtt_s)
            # A rest makes no exchange faster; one that it made slower says nothing about the next.
            if excess_s > max(4.0 * self._rtt.var_s, MIN_JITTER_SHARE * rtt_s):
                return
        if self._rtt.observe(trip.seconds):
            self.changed_s = trip.at_s
            # Twice or half the round trip is another network or another way through it.
            self._promotion, self._slow_start = Promotion(), SlowStart()

    def _transfer(self, transfer: Transfer) -> None:
        self._note_rest(transfer.idle_s)
        seconds = self._slow_start.observe(transfer, self._rtt.srtt_s)
        rate = self._rates[transfer.direction]
        if seconds is not None:
            seconds = self._at_least(transfer.transfer_bytes, seconds, rate.estimate(transfer.at_s)[0])
            rate.observe(transfer.transfer_bytes, min(seconds, MAX_SECONDS), transfer.at_s)
        if rate.changed_s == transfer.at_s:
            self.changed_s = transfer.at_s

    def _at_least(self, transfer_bytes: int, seconds: float, bytes_per_s: float) -> float:
        """What a transfer says that was over within the scatter of the round trip taken off it.

        Only that the link is no slower than that: it confirms a faster estimate and raises a slower one that far.
        """
        # RTTVAR begins at half the round trip, whatever its scatter.
        known = self._rtt.samples >= SCATTER_FROM
        scatter_s = max(CLOCK_S, self._rtt.var_s if known else self._rtt.srtt_s / 16)
        return seconds if seconds >= scatter_s else min(scatter_s, transfer_bytes / bytes_per_s)

    def _note_rest(self, idle_s: float) -> None:
        if idle_s > rest_s(self._rtt.srtt_s):
            self._slow_start.rested()
