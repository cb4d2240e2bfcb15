"""How busy the cloud is: from what its replies say of their steps, from what it says when asked, and from its habit."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, replace

from splitglm_partitioner.change import RecentRatio
from splitglm_partitioner.device_pace import MIN_PASS_S, WINDOW, predicted_s
from splitglm_partitioner.observations import CloudHint, CloudStep
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN, CloudProfile

# What was seen so recently stands: asking would not tell more.
FRESH_S = 5.0
# Of what was seen, the share ``exp(-age / MEMORY_S)`` is expected to hold still; the rest is as usual.
MEMORY_S = 30.0
# Passes of so few rows are decode steps: they tell what sharing batches costs, which a prompt's own rows hide.
DECODE_ROWS = 8
WAIT_ALPHA = 1 / 8
# A pause of this length halves the weight of what was seen before it.
WAIT_HALF_LIFE_S = 10.0
# Looks this far apart count as separate ones for what is usual.
LOOK_EVERY_S = 20.0
LOOKS = 32
# Where the looks, the busiest first, are divided into loads that there may be: it is mostly little, now and then much.
SHARES = (0.1, 0.4, 0.7)


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

    def seconds(self, otherwise_s: float) -> float:
        """The mean, ``otherwise_s`` before the first wait."""
        return self._mean_s if self._count else otherwise_s

    def told(self, mean_s: float, now_s: float) -> None:
        """Take the cloud's own mean: it saw more steps than this device."""
        self._mean_s, self._count, self._seen_s = mean_s, round(1 / WAIT_ALPHA), now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A cloud's load: seconds a step waits for a place and for the sweep, and how many times longer it then takes."""

    queue_s: float
    sweep_s: float
    slowdown: float

    def mixed(self, other: Load, share: float) -> Load:
        """``share`` of ``other``, the rest of this one: the mean of what will be."""
        mine = 1.0 - share
        return Load(
            queue_s=mine * self.queue_s + share * other.queue_s,
            sweep_s=mine * self.sweep_s + share * other.sweep_s,
            slowdown=mine * self.slowdown + share * other.slowdown,
        )

    def step_s(self, alone_s: float) -> float:
        """A step that takes ``alone_s`` on an idle cloud."""
        return self.queue_s + self.sweep_s + self.slowdown * alone_s

    def applied(self, profile: CloudProfile) -> CloudProfile:
        slowdown = min(max(self.slowdown, MIN_SLOWDOWN), MAX_SLOWDOWN)
        return replace(profile, queue_s=self.queue_s, sweep_s=self.sweep_s, slowdown=slowdown)


class CloudLoad:
    """Queue, sweep and slowdown of the cloud as this device's steps met them.

    Waits count only for steps that were alone: the others waited for their own kind, which the cost model adds up
    itself. The slowdown is the ratio of ``compute_s`` to the profile's seconds of the same rows and layers.

    Load comes and goes within a minute, so what was seen last is believed the less the older it is, and the less
    the longer the reply is that it is wanted for; the rest is what is usual, the mean of the last ``LOOKS`` looks. The
    manifest counts as one more look.
    """

    def __init__(self) -> None:
        self._forget()
        self._profile: CloudProfile | None = None

    def _forget(self) -> None:
        self._queue, self._sweep = SmoothedWait(), SmoothedWait()
        self._decode, self._prefill = RecentRatio(WINDOW), RecentRatio(WINDOW)
        self._seen_s: float | None = None
        self._looked_s = 0.0
        self._looks: deque[Load] = deque(maxlen=LOOKS)
        self.changed_s: float | None = None

    def connected(self, profile: CloudProfile) -> None:
        """A manifest arrived. What was seen stands for the same cloud; of one with other layer times it is void."""
        if self._profile is not None and (profile.served, profile.times) != (self._profile.served, self._profile.times):
            self._forget()
        self._profile = profile

    def observe(self, seen: CloudStep | CloudHint) -> None:
        """Take what one reply, or the answer to a question, said."""
        profile = self._profile
        if profile is None:
            return
        if self._seen_s is not None and seen.at_s - self._looked_s >= LOOK_EVERY_S:
            self._count_look(profile, seen.at_s)
        if isinstance(seen, CloudHint):
            self._queue.told(seen.queue_s, seen.at_s)
            self._sweep.told(seen.sweep_s, seen.at_s)
            self._decode, self._prefill = RecentRatio(WINDOW), RecentRatio(WINDOW)
            self._decode.add(min(max(seen.slowdown, MIN_SLOWDOWN), MAX_SLOWDOWN))
        else:
            self._step(profile, seen)
        if self._seen_s is None:
            self._looked_s = seen.at_s
        self._seen_s = seen.at_s

    def fresh(self, now_s: float) -> bool:
        """Whether the load was seen so recently that asking tells nothing."""
        return self._seen_s is not None and now_s - self._seen_s <= FRESH_S

    def apply(self, profile: CloudProfile, now_s: float, *, for_s: float = 0.0) -> CloudProfile:
        """The manifest's profile with what is to be expected in place of its queue, sweep and slowdown.

        Args:
            for_s: how long a reply it is wanted for.
        """
        usual, last = self._usual(profile), self._last(profile)
        if last is None or self._seen_s is None:
            return usual.applied(profile)
        age_s = max(0.0, now_s - self._seen_s - FRESH_S) + for_s / 2.0
        return usual.mixed(last, math.exp(-age_s / MEMORY_S)).applied(profile)

    def possible(
        self, profile: CloudProfile, now_s: float, *, for_s: float = 0.0
    ) -> tuple[tuple[float, CloudProfile], ...]:
        """The loads there may be now, each with its chance: one when it was just seen, else those of the looks."""
        if not self._looks or self.fresh(now_s):
            return ((1.0, self.apply(profile, now_s, for_s=for_s)),)
        usual, keeps = self._usual(profile), math.exp(-for_s / 2.0 / MEMORY_S)
        alone_s = profile.times.decode_s[0] * profile.times.layers
        ordered = sorted((*self._looks, _stated(profile)), key=lambda look: -look.step_s(alone_s))
        cuts = sorted({0, *(math.ceil(share * len(ordered)) for share in SHARES), len(ordered)})
        groups = [ordered[start:stop] for start, stop in itertools.pairwise(cuts)]
        return tuple((len(group) / len(ordered), usual.mixed(_mean(group), keeps).applied(profile)) for group in groups)

    def _step(self, profile: CloudProfile, step: CloudStep) -> None:
        if step.alone:
            self._queue.observe(step.queue_s, step.at_s)
            self._sweep.observe(step.sweep_s, step.at_s)
        served = profile.served
        if not (served.start <= step.start and step.stop <= served.stop) or step.compute_s == 0.0:
            return
        start, stop = step.start - served.start, step.stop - served.start
        expected_s = predicted_s(profile.times, step.rows, start, stop, step.context_tokens)
        if expected_s < MIN_PASS_S:
            return
        ratios = self._decode if step.rows <= DECODE_ROWS else self._prefill
        if ratios.add(min(max(step.compute_s / expected_s, MIN_SLOWDOWN), MAX_SLOWDOWN)):
            self.changed_s = step.at_s

    def _last(self, profile: CloudProfile) -> Load | None:
        if self._seen_s is None:
            return None
        slowdown = self._prefill.value if self._decode.value is None else self._decode.value
        return Load(
            queue_s=self._queue.seconds(profile.queue_s),
            sweep_s=self._sweep.seconds(profile.sweep_s),
            slowdown=profile.slowdown if slowdown is None else slowdown,
        )

    def _usual(self, profile: CloudProfile) -> Load:
        return _mean([*self._looks, _stated(profile)])

    def _count_look(self, profile: CloudProfile, now_s: float) -> None:
        """The steps since the last look are one look; what they showed counts for what is usual."""
        last = self._last(profile)
        self._looked_s = now_s
        if last is not None:
            self._looks.append(last)


def _stated(profile: CloudProfile) -> Load:
    return Load(queue_s=profile.queue_s, sweep_s=profile.sweep_s, slowdown=profile.slowdown)


def _mean(loads: list[Load]) -> Load:
    count = len(loads)
    return Load(
        queue_s=sum(load.queue_s for load in loads) / count,
        sweep_s=sum(load.sweep_s for load in loads) / count,
        slowdown=sum(load.slowdown for load in loads) / count,
    )
