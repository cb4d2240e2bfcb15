"""How busy the cloud was of late, told to whoever pings: decayed means over the newest steps of all devices. Pure.

It counts what answers say of themselves (``Result``), so it is the same for every executor. Waits are means over
answers. The slowdown is that of decoding: of answers to a single row, the seconds they rode over those that the profile
states for their layers, context and (a token's) head, weighted by the latter. An answer whose session was computed anew
in between, or that never boarded, tells nothing of the load; one whose layers are too short to be timed tells of the
waits only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.device_pace import MIN_PASS_S, predicted_s
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN, CloudProfile
from splitglm_wire.actions import Output
from splitglm_wire.frames import Ping, Pong, Reply, Step

HALF_LIFE_S: Final = 3.0
"""A step counts half as much after this; what is told goes half the way to idle in each such stretch of silence."""
FORGOTTEN_S: Final = 10 * HALF_LIFE_S
"""A cloud that answered nothing for so long tells that it is idle, even if it is stuck: then it refuses work anyway."""


class RecentMean:
    """A weighted mean in which every value counts half as much after ``HALF_LIFE_S``.

    Args:
        idle: what it is without values of late.
    """

    __slots__ = ("_idle", "_seen_s", "_sum", "_weight")

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._sum = self._weight = self._seen_s = 0.0

    def add(self, value: float, now_s: float, weight: float = 1.0) -> None:
        """Take a value; ``weight`` is positive, and ``now_s`` monotonic."""
        keep = _kept(now_s - self._seen_s)
        self._sum = keep * self._sum + weight * value
        self._weight = keep * self._weight + weight
        self._seen_s = now_s

    def value(self, now_s: float, *, busy: bool) -> float:
        """The mean; without new values it fades to ``idle``, at once after ``FORGOTTEN_S``.

        Args:
            busy: something is under way, so that silence is no sign of rest: it does not fade.
        """
        silent_s = now_s - self._seen_s
        if not self._weight or silent_s > FORGOTTEN_S:
            return self._idle
        mean = self._sum / self._weight
        return mean if busy else self._idle + (mean - self._idle) * _kept(silent_s)


@dataclass(slots=True)
class _Riding:
    """A session's step under way.

    Attributes:
        given: answers so far.
        anew: the session was computed anew since the last one: the next one's times tell of that.
    """

    plan: SplitPlan
    step: Step
    given: int = 0
    anew: bool = False


class RecentLoad:
    """Told by the session's table what goes in and comes out. ``session`` is the process's own number of it.

    Args:
        profile: as it is in the manifest, for devices compare with that.
    """

    def __init__(self, profile: CloudProfile) -> None:
        self._profile = profile
        self._riding: dict[int, _Riding] = {}
        self._alone: dict[tuple[int, int], tuple[float, float]] = {}  # by cut, of which there are few
        self._queue_us, self._sweep_us, self._slowdown = RecentMean(0.0), RecentMean(0.0), RecentMean(1.0)

    @property
    def under_way(self) -> int:
        """Steps that were handed over and have not ended."""
        return len(self._riding)

    def submitted(self, session: int, plan: SplitPlan, step: Step) -> None:
        """The executor was given a step."""
        self._riding[session] = _Riding(plan, step)

    def rebuilt(self, session: int) -> None:
        """The session's keys and values are computed anew before its step goes on."""
        riding = self._riding.get(session)
        if riding is not None:
            riding.anew = True

    def ended(self, session: int, seq: int | None = None) -> None:
        """The step under way got no answer; nothing if it is another than ``seq`` (None: whichever it is)."""
        riding = self._riding.get(session)
        if riding is not None and seq in (None, riding.step.seq):
            del self._riding[session]

    def answered(self, session: int, output: Output, now_s: float) -> None:
        """A part of the answer to a step; ``now_s`` is monotonic."""
        riding = self._riding.get(session)
        if riding is None or riding.step.seq != output.seq:
            return
        index, anew = riding.given, riding.anew
        riding.given, riding.anew = index + 1, False
        if output.last:
            del self._riding[session]
        if anew or not output.compute_us:
            return
        self._queue_us.add(output.queue_us, now_s)
        self._sweep_us.add(output.sweep_us, now_s)
        step = riding.step
        if index:  # a token after the first: the one before it went in
            self._decoded(riding, step.base + step.rows + index - 1, output, now_s)
        elif step.rows == 1:
            self._decoded(riding, step.base, output, now_s)

    def pong(self, ping: Ping, now_s: float) -> Pong:
        """The answer to a ping. Waits are cut at what a frame holds, the slowdown at a profile's bounds."""
        busy = bool(self._riding)
        slowdown = min(max(self._slowdown.value(now_s, busy=busy), MIN_SLOWDOWN), MAX_SLOWDOWN)
        return Pong(
            handle=ping.handle,
            nonce=ping.nonce,
            size=ping.reply_size,
            queue_us=round(self._queue_us.value(now_s, busy=busy)),
            sweep_us=round(self._sweep_us.value(now_s, busy=busy)),
            slowdown_permille=round(1000 * slowdown),
        )

    def _decoded(self, riding: _Riding, context_tokens: int, output: Output, now_s: float) -> None:
        """One row came through its layers."""
        empty_s, s_per_token = self._decode_s(riding.plan)
        alone_s = empty_s + s_per_token * context_tokens
        if alone_s < MIN_PASS_S:
            return
        if riding.step.reply is Reply.TOKEN:
            alone_s += self._profile.head_s or 0.0
        ratio = min(max(1e-6 * output.compute_us / alone_s, MIN_SLOWDOWN), MAX_SLOWDOWN)
        self._slowdown.add(ratio, now_s, alone_s)

    def _decode_s(self, plan: SplitPlan) -> tuple[float, float]:
        """Seconds of a row through the plan's layers with an empty cache, and of each position in it: it is linear."""
        cut = plan.s, plan.t
        if cut not in self._alone:
            first, times = self._profile.served.start, self._profile.times
            empty_s, full_s = (predicted_s(times, 1, plan.s - first, plan.t - first, n) for n in (0, 1000))
            self._alone[cut] = empty_s, (full_s - empty_s) / 1000
        return self._alone[cut]


def _kept(seconds: float) -> float:
    """What is left of a weight after so long."""
    return math.exp2(-max(0.0, seconds) / HALF_LIFE_S)
