"""What the answers of the cloud show of the link and of its load, besides what they say. The caller brings the time.

**Uplink, passively.** A step's answer comes a round trip, the fixed overhead and the cloud's own times (queue, sweep,
compute) after its last byte has left, so its last byte left at ``answered - rtt - overhead - cloud``. Its first byte
left when it was handed over, or when the step before it had left, whichever was later. The difference is its time on
the wire. That is sound only where nothing but the link was in the way, so a step counts when

* it has ``MIN_TRANSFER_BYTES`` at least, and its answer a sixteenth of that at most: the way down is not measured;
* it was sent while nothing else of its conversation was open, or it is known when the step before it had left;
* no other conversation of this device had a step on its way then: bytes leave in the order in which they were handed
  over, so it would have waited for that one's;
* it did not wait in the cloud for the step before it: their answers lie further apart than the cloud's own times;
* it took longer than twice RTTVAR and 50 ms: of less, what else takes time on both sides would be too large a part.

**Round trip, passively.** A small step that was sent while nothing else was open, less the cloud's own times, the
overhead and its bytes at the estimated rate, is a round trip; so during a reply no ping is needed. Where the
cloud goes on by itself, that is the first token. A step after a rest shows what waking the radio costs.

**Cloud.** What an answer says of its step is told with whether anything else of this device was open there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.device_pace import predicted_s
from splitglm_partitioner.observations import CloudStep, Direction, Observation, RoundTrip, Transfer
from splitglm_partitioner.profiles import CloudProfile, LinkEstimate
from splitglm_partitioner.rates import MIN_TRANSFER_BYTES
from splitglm_wire.events import StepDone, TokenArrived
from splitglm_wire.frames import Reply, Step

_SLACK_S: Final = 1e-3
_LEAST_S: Final = 0.05
"""An upload's time holds some milliseconds that are not the link's (threads of both sides that wait for a processor or
for each other): measured on two busy cores 1 ms of 100, but 8 of 38. A faster upload is left to the probes."""
_SMALL_REPLY: Final = 1 / 16
_RTT_SHARE: Final = 0.25
"""Of a round trip: an exchange whose bytes take longer at the estimated rate measures the rate too."""


@dataclass(slots=True)
class _Sent:
    """``alone``: in its session; ``way_free``, ``cloud_free``: as in ``Traffic.free``; ``begun``: an answer came."""

    step: Step
    at_s: float
    idle_s: float
    alone: bool
    way_free: bool = False
    cloud_free: bool = False
    begun: bool = False


class Traffic:
    """The watches of one connection, so that each knows whether another's steps are in its way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: WeakSet[StepWatch] = WeakSet()

    def add(self, watch: StepWatch) -> None:
        """It is forgotten when nobody else holds it."""
        with self._lock:
            self._watches.add(watch)

    def free(self, watch: StepWatch) -> tuple[bool, bool]:
        """Whether no other watch has a step that may be on its way, and none that may be in the cloud."""
        with self._lock:
            others = [other for other in self._watches if other is not watch]
        return not any(other.sending for other in others), not any(other.waiting for other in others)

    def leaves_s(self, bytes_per_s: float) -> float | None:
        """When what may be on its way will have left this device, at this rate; None when nothing is.

        Bytes leave in the order in which they were handed over, each step's from then on or when those before it have
        left.
        """
        with self._lock:
            watches = list(self._watches)
        under_way = sorted(it for watch in watches for it in watch.under_way)
        if not under_way:
            return None
        known_s = [watch.left_s for watch in watches if watch.left_s is not None]
        until_s = max(known_s, default=under_way[0][0])
        for at_s, size in under_way:
            until_s = max(until_s, at_s) + size / bytes_per_s
        return until_s


class StepWatch:
    """Of one conversation's session. Used from one thread.

    Args:
        observe: told what was seen.
        link: the link as estimated now.
        profile: the cloud's own figures, None before they are known.
        traffic: the other sessions of the same connection.
    """

    def __init__(
        self,
        observe: Callable[[Observation], None],
        link: Callable[[], LinkEstimate],
        profile: Callable[[], CloudProfile | None],
        traffic: Traffic,
    ) -> None:
        self._traffic = traffic
        traffic.add(self)
        self._observe = observe
        self._link = link
        self._profile = profile
        self._plan: SplitPlan | None = None
        self._sent: dict[int, _Sent] = {}
        self._answered_s: float | None = None  # when the newest answer came
        self._left_s: float | None = None  # when the step that it answers had left this device; None: not known

    @property
    def waiting(self) -> bool:
        """A step of this session is not answered to its end. Any thread may ask."""
        return bool(self._sent)

    @property
    def sending(self) -> bool:
        """A step of this session is not answered at all, so that its bytes may be on their way. Any thread may ask."""
        return any(not sent.begun for sent in tuple(self._sent.values()))

    @property
    def under_way(self) -> list[tuple[float, int]]:
        """When each such step was handed over, and its bytes. Any thread may ask."""
        return [(sent.at_s, len(sent.step.payload)) for sent in tuple(self._sent.values()) if not sent.begun]

    @property
    def left_s(self) -> float | None:
        """When the newest answered step had left this device, None where that is not known. Any thread may ask."""
        return self._left_s

    def begin(self, plan: SplitPlan) -> None:
        """A reply begins."""
        self._plan = plan
        self.forget()

    def forget(self) -> None:
        """What is open is sent again, or nobody waits for it: when it was sent says nothing any more."""
        self._sent.clear()
        self._answered_s = self._left_s = None

    def sent(self, ticket: int, step: Step, *, at_s: float, idle_s: float, alone: bool) -> None:
        """A step was handed over.

        Args:
            idle_s: how long the connection had carried nothing before.
            alone: no other step of this session was open then.
        """
        sent = self._sent[ticket] = _Sent(step, at_s, idle_s, alone)
        sent.way_free, sent.cloud_free = self._traffic.free(self)  # of two at once each sees the other

    def token(self, event: TokenArrived, at_s: float) -> None:
        """A token came: the cloud's times of the rows, or of the token before it, are in it."""
        sent = self._sent.get(event.ticket)
        if sent is None:
            return
        sent.begun = True
        step = sent.step
        rows, context = (step.rows, step.base) if event.index == 0 else (1, step.base + step.rows + event.index - 1)
        self._computed(sent, rows, context, event.queue_s, event.sweep_s, event.compute_s, at_s)
        if event.index == 0 and step.generate > 1:
            cloud_s = event.queue_s + event.sweep_s + event.compute_s
            self._came_back(sent, at_s - sent.at_s - cloud_s, at_s, self._link())

    def done(self, event: StepDone, at_s: float) -> None:
        """A step was answered to its end, at ``at_s``."""
        sent = self._sent.pop(event.ticket, None)
        if sent is None:
            return
        step, before_s, left_before_s = sent.step, self._answered_s, self._left_s
        self._answered_s, self._left_s = at_s, None
        if step.reply is not Reply.TOKEN:
            times_s = (event.queue_s, event.sweep_s, event.compute_s)
            self._computed(sent, step.rows, step.base, *times_s, at_s)
        if step.generate > 1:
            return  # the end of a generation says nothing about its beginning
        link = self._link()
        cloud_s = event.queue_s + event.sweep_s + event.compute_s
        slack_s = max(_SLACK_S, link.rtt_var_s)
        if not sent.alone and before_s is not None and at_s - before_s <= cloud_s + slack_s:
            return  # it waited in the cloud for the step before it
        left_s = self._left_s = at_s - link.rtt_s - link.overhead_s - cloud_s
        size = len(step.payload)
        if size >= MIN_TRANSFER_BYTES:
            began_s = sent.at_s if sent.alone else None if left_before_s is None else max(sent.at_s, left_before_s)
            if sent.way_free and began_s is not None and _reply_bytes(step) <= _SMALL_REPLY * size:
                self._uploaded(sent, size, left_s - began_s, at_s, link)
        else:
            self._came_back(sent, at_s - sent.at_s - cloud_s, at_s, link)

    def _came_back(self, sent: _Sent, seconds: float, at_s: float, link: LinkEstimate) -> None:
        """A small step's answer came ``seconds`` after it was sent, the cloud's own times taken off."""
        upload_s = len(sent.step.payload) / link.uplink_bytes_per_s
        trip_s = seconds - link.overhead_s - upload_s
        if sent.alone and sent.way_free and upload_s <= _RTT_SHARE * link.rtt_s and trip_s > 0.0:
            self._observe(RoundTrip(at_s=at_s, seconds=trip_s, idle_s=sent.idle_s))

    def _uploaded(self, sent: _Sent, size: int, seconds: float, at_s: float, link: LinkEstimate) -> None:
        if seconds > max(_LEAST_S, 2.0 * link.rtt_var_s):
            self._observe(
                Transfer(at_s=at_s, direction=Direction.UP, transfer_bytes=size, seconds=seconds, idle_s=sent.idle_s)
            )

    def _computed(
        self, sent: _Sent, rows: int, context: int, queue_s: float, sweep_s: float, compute_s: float, at_s: float
    ) -> None:
        plan = self._plan
        if plan is None or compute_s == 0.0:  # an answer out of the cloud's cache says nothing of now
            return
        share = self._layers_share(plan, rows, context) if sent.step.reply is Reply.TOKEN else 1.0
        self._observe(
            CloudStep(
                at_s=at_s,
                rows=rows,
                start=plan.s,
                stop=plan.t,
                context_tokens=context,
                queue_s=queue_s,
                sweep_s=sweep_s,
                compute_s=share * compute_s,
                alone=sent.alone and sent.cloud_free,
            )
        )

    def _layers_share(self, plan: SplitPlan, rows: int, context: int) -> float:
        """Part of the computing that is the layers' and not the head's, by the cloud's own figures."""
        cloud = self._profile()
        if cloud is None or cloud.head_s is None or not cloud.served.start <= plan.s < plan.t <= cloud.served.stop:
            return 1.0
        start, stop = plan.s - cloud.served.start, plan.t - cloud.served.start
        layers_s = predicted_s(cloud.times, rows, start, stop, context)
        return layers_s / (layers_s + cloud.head_s) if layers_s > 0.0 else 1.0


def _reply_bytes(step: Step) -> int:
    """About how many bytes answer a step of hidden states or ids."""
    if step.reply is Reply.ALL_HIDDEN:
        return len(step.payload)
    return len(step.payload) // step.rows if step.reply is Reply.LAST_HIDDEN else 4
