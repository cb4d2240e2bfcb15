"""How busy the cloud is, from what its replies say of their steps; forgotten towards its manifest's figures."""

from __future__ import annotations

from dataclasses import replace

from splitglm_partitioner.change import RecentRatio
from splitglm_partitioner.device_pace import MIN_PASS_S, WINDOW, predicted_s
from splitglm_partitioner.observations import CloudStep
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN, CloudProfile

# After so long without a step the manifest's figures are as good as what was seen.
MAX_AGE_S = 60.0
WAIT_ALPHA = 1 / 8
# A pause of this length halves the weight of what was seen before it.
WAIT_HALF_LIFE_S = 10.0


class SmoothedWait:
    """Mean wait of recent steps.

    Waits scatter like their mean (an exponential's deviation is its mean) and are often 0, so they are averaged and no
    single one is believed: the first ones equally, later ones with ``WAIT_ALPHA``, and more after a pause.
    """

    def __init__(self) -> None:
        self._mean_s, self._count, self._seen_s = 0.0, 0, 0.0

    def observe(self, seconds: float, now_s: float) -> None:
        """Take one wait >= 0."""
        self._count += 1
        paused = 1.0 - 0.5 ** (max(0.0, now_s - self._seen_s) / WAIT_HALF_LIFE_S)
        self._mean_s += max(WAIT_ALPHA, 1.0 / self._count, paused) * (seconds - self._mean_s)
        self._seen_s = now_s

    def seconds(self, now_s: float, otherwise_s: float) -> float:
        """The mean, moved towards ``otherwise_s`` in proportion to its age; ``otherwise_s`` from ``MAX_AGE_S`` on."""
        if not self._count:
            return otherwise_s
        fresh = min(max(1.0 - (now_s - self._seen_s) / MAX_AGE_S, 0.0), 1.0)
        return fresh * self._mean_s + (1.0 - fresh) * otherwise_s


class CloudLoad:
    """Queue, sweep and slowdown of the cloud as this device's steps met them.

    Waits count only for steps that were alone: the others waited for their own kind, which the cost model adds up
    itself. The slowdown is the ratio of ``compute_s`` to the profile's seconds of the same rows and layers.
    """

    def __init__(self) -> None:
        self._queue, self._sweep = SmoothedWait(), SmoothedWait()
        self._slowdown = RecentRatio(WINDOW)
        self._slowdown_seen_s = 0.0
        self._profile: CloudProfile | None = None
        self.changed_s: float | None = None

    def connected(self, profile: CloudProfile) -> None:
        """A manifest arrived. What was seen stands for the same cloud; of one with other layer times it is void."""
        if self._profile is not None and (profile.served, profile.times) != (self._profile.served, self._profile.times):
            self._queue, self._sweep, self._slowdown = SmoothedWait(), SmoothedWait(), RecentRatio(WINDOW)
        self._profile = profile

    def observe(self, step: CloudStep) -> None:
        """Take what one reply said. ``changed_s`` is then when the cloud's pace was last found to change."""
        if step.alone:
            self._queue.observe(step.queue_s, step.at_s)
            self._sweep.observe(step.sweep_s, step.at_s)
        profile = self._profile
        if profile is None:
            return
        served = profile.served
        if not (served.start <= step.start and step.stop <= served.stop) or step.compute_s == 0.0:
            return
        start, stop = step.start - served.start, step.stop - served.start
        expected_s = predicted_s(profile.times, step.rows, start, stop, step.context_tokens)
        if expected_s < MIN_PASS_S:
            return
        if self._slowdown.add(min(max(step.compute_s / expected_s, MIN_SLOWDOWN), MAX_SLOWDOWN)):
            self.changed_s = step.at_s
        self._slowdown_seen_s = step.at_s

    def apply(self, profile: CloudProfile, now_s: float) -> CloudProfile:
        """The manifest's profile with what was observed in place of its queue, sweep and slowdown."""
        ratio, slowdown = self._slowdown.value, profile.slowdown
        if ratio is not None:
            fresh = min(max(1.0 - (now_s - self._slowdown_seen_s) / MAX_AGE_S, 0.0), 1.0)
            slowdown = min(max(ratio**fresh * profile.slowdown ** (1.0 - fresh), MIN_SLOWDOWN), MAX_SLOWDOWN)
        return replace(
            profile,
            queue_s=self._queue.seconds(now_s, profile.queue_s),
            sweep_s=self._sweep.seconds(now_s, profile.sweep_s),
            slowdown=slowdown,
        )
