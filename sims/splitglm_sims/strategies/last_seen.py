"""Link and cloud as last seen: no smoothing, no prediction, for strategies whose papers use just that"""

from __future__ import annotations

from dataclasses import replace

from splitglm_partitioner.bounds import MAX_BYTES_PER_S
from splitglm_partitioner.cloud_load import Load
from splitglm_partitioner.device_pace import predicted_s
from splitglm_partitioner.observations import CloudHint, CloudStep, Direction, Observation, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile
from splitglm_partitioner.rates import MIN_TRANSFER_BYTES
from splitglm_partitioner.request import Situation

# After so long without traffic a radio may sleep: the next round trip then measures its waking.
RESTED_S = 1.0


class LastSeen:
    """The last rate of each direction, the last round trip, the cloud's load by its last step or its last word."""

    def __init__(self) -> None:
        self._rates: dict[Direction, float] = {}
        self._rtt_s: float | None = None
        self._load: CloudHint | CloudStep | None = None
        self.rate_at_s: float | None = None
        """When the uplink's rate was last seen."""

    def observe(self, observation: Observation) -> None:
        """Keep what it says. Transfers too small to tell a rate (they measure the round trip) are left out."""
        if isinstance(observation, Transfer):
            if observation.transfer_bytes >= MIN_TRANSFER_BYTES and observation.seconds > 0.0:
                rate = observation.transfer_bytes / observation.seconds
                self._rates[observation.direction] = min(max(rate, 1.0), MAX_BYTES_PER_S)
                if observation.direction is Direction.UP:
                    self.rate_at_s = observation.at_s
        elif isinstance(observation, RoundTrip):
            if observation.idle_s < RESTED_S:
                self._rtt_s = observation.seconds
        elif isinstance(observation, CloudStep | CloudHint):
            self._load = observation

    def apply(self, situation: Situation) -> Situation:
        """``situation`` with what was seen in place of what was profiled."""
        link, cloud = situation.link, situation.cloud
        if link is not None:
            link = replace(
                link,
                uplink_bytes_per_s=self._rates.get(Direction.UP, link.uplink_bytes_per_s),
                downlink_bytes_per_s=self._rates.get(Direction.DOWN, link.downlink_bytes_per_s),
                rtt_s=link.rtt_s if self._rtt_s is None else self._rtt_s,
            )
        if cloud is not None and self._load is not None:
            cloud = _load_of(self._load, cloud).applied(cloud)
        return replace(situation, link=link, cloud=cloud)


def _load_of(seen: CloudStep | CloudHint, cloud: CloudProfile) -> Load:
    """The load that one observation shows; a step shows how much longer than profiled its layers took."""
    if isinstance(seen, CloudHint):
        return Load(queue_s=seen.queue_s, sweep_s=seen.sweep_s, slowdown=seen.slowdown)
    start, stop, slowdown = seen.start - cloud.served.start, seen.stop - cloud.served.start, cloud.slowdown
    if 0 <= start < stop <= cloud.times.layers and seen.compute_s > 0.0:
        expected_s = predicted_s(cloud.times, seen.rows, start, stop, seen.context_tokens)
        slowdown = seen.compute_s / expected_s if expected_s > 0.0 else slowdown
    return Load(queue_s=seen.queue_s, sweep_s=seen.sweep_s, slowdown=slowdown)
