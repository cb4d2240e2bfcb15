"""A port to a cloud that many devices share: steps arrive there as events, and come back when the scheduler is done"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from splitglm_cloud.gateway.refusal import Refusal
from splitglm_core.ranges import LayerRange
from splitglm_edge.patience import Patience
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_sims.world.draws import Draws, What
from splitglm_sims.world.link import Link
from splitglm_sims.world.order import Order
from splitglm_sims.world.outage import TIMEOUTS
from splitglm_sims.world.port import Answer, Leg, Port, Step
from splitglm_sims.world.scene import LinkScene
from splitglm_sims.world.sweeping import SweptCloud


class Clock(Protocol):
    """The world's events."""

    @property
    def now_s(self) -> float: ...

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Call at ``time_s``; at once when that has passed."""

    def work(self) -> None:
        """There is something for the cloud to compute."""


class _Heard(NamedTuple):
    """A stream up to one of its messages: when that is there, and what there is of the answer by then."""

    at_s: float
    tokens: int
    down_bytes: int
    rounds: int
    rows: int


class CrowdPort(Port):
    """One reply's exchanges with a shared cloud.

    Args:
        wake: called when an answer has been put in.
    """

    def __init__(
        self,
        link: Link,
        scene: LinkScene,
        draws: Draws,
        believed: LinkEstimate,
        *,
        session: int,
        layers: LayerRange,
        cloud: SweptCloud,
        clock: Clock,
        wake: Callable[[], None],
        stranded: bool,
    ) -> None:
        super().__init__(link, scene, draws, believed, stranded=stranded)
        self._session, self._layers = session, layers
        self._cloud, self._clock, self._wake = cloud, clock, wake
        self._answers: deque[Answer] = deque()
        self._put_off: list[Step] = []  # refused: asked for again together
        self._patience = Patience(TIMEOUTS.busy_s)
        self._asked = 0
        self._started = math.inf  # of a stream: when the device had its first token
        self._first = (0.0, 0.0, 0.0, 0.0)  # its waits, computing and wire seconds
        self._rounds = self._rows = self._stream_bytes = 0
        self._stream: list[_Heard] = []
        self.closed = False

    def send(self, now_s: float, step: Step) -> None:
        leg = self._up(now_s, step.up_bytes)
        order = Order(self._session, step, leg, self._layers, self._draws)
        self._clock.at(leg.arrives_s, lambda: self._arrive(order))

    def take(self, now_s: float, block: bool) -> Answer | None:
        if not self._answers or not (block or self._answers[0].at_s <= now_s):
            return None
        answer = self._answers.popleft()
        if answer.lost:
            return answer
        if answer.step.stream is not None:
            return self._followed(answer)
        at_s, lost = self._waited(now_s, answer.at_s)
        return answer if at_s == answer.at_s else answer._replace(at_s=at_s, lost=lost)

    def _followed(self, answer: Answer) -> Answer:
        """The device waits for every message of a stream: all of it, or what it had when it gave the cloud up."""
        at_s, had = answer.sent_s, _Heard(0.0, 0, 0, 0, 0)
        first_s = answer.first_s
        for heard in self._stream:
            at_s, lost = self._waited(at_s, max(at_s, heard.at_s))
            if lost:
                _, tokens, down_bytes, rounds, rows = had
                return answer._replace(
                    at_s=at_s,
                    lost=True,
                    first_s=first_s,
                    tokens=tokens,
                    down_bytes=down_bytes,
                    rounds=rounds,
                    rows=rows,
                )
            if not had.tokens:
                first_s = at_s
            had = heard
        return answer._replace(at_s=at_s, first_s=first_s)

    def gained(self, order: Order, tokens: int, now_s: float) -> None:
        """The cloud has an answer, or ``tokens`` more of a stream; its way down begins."""
        step, stream = order.step, order.step.stream
        self._patience.progressed()
        if stream is None:
            at_s, down_s = self._down(now_s, step.down_bytes, step.place, decode=step.decode)
            self._answer(order, at_s, down_s, step.down_bytes)
            return
        first = order.tokens == tokens
        size, busy_s = tokens * step.down_bytes, 0.0 if first else self._overhead_s
        at_s, down_s = self._down(now_s, size, order.tokens - tokens, decode=not first, busy_s=busy_s)
        self._stream_bytes += size
        if first:
            self._started = at_s
            self._first = order.queue_s, order.sweep_s, order.compute_s, down_s
            order.queue_s = order.sweep_s = order.compute_s = 0.0
        else:
            self._rounds += 1
            self._rows += 1 + order.drafted
        self._stream.append(_Heard(at_s, order.tokens, self._stream_bytes, self._rounds, self._rows))
        if order.tokens >= stream.tokens:
            self._answer(order, at_s, down_s, self._stream_bytes)

    def refused(self, order: Order, refusal: Refusal, now_s: float) -> None:
        """The device hears of it, waits as it was told, and asks again; or gives up."""
        first = not self._put_off
        self._put_off.append(order.step)
        if not first:
            return
        self._asked += 1
        heard_s = now_s + self._delay_s
        chance = self._draws.uniform(What.PATIENCE, self._asked)
        pause_s = self._patience.pause_s(refusal.retry_after_s, left_s=math.inf, chance=chance)
        if pause_s is None:
            self._answers.append(_nothing(order.step, order.leg, heard_s))
            self._wake()
        else:
            # The session is taken back first, which is a round trip; then what was refused is sent again.
            again_s = heard_s + pause_s + self._rtt_s
            self._clock.at(again_s, lambda: self._again(again_s))

    def _again(self, now_s: float) -> None:
        steps, self._put_off = self._put_off, []
        for step in steps:
            self.send(now_s, step)

    def _arrive(self, order: Order) -> None:
        if self.closed:
            return
        now_s = self._clock.now_s
        if self._put_off:  # the cloud takes a session's steps in order
            self._put_off.append(order.step)
            return
        refusal = self._cloud.admit(order, now_s)
        if refusal is None:
            self._clock.work()
        else:
            self.refused(order, refusal, now_s)

    def _answer(self, order: Order, at_s: float, down_s: float, down_bytes: int) -> None:
        streams = order.step.stream is not None
        own = (order.queue_s, order.sweep_s, order.compute_s, down_s)
        queue_s, sweep_s, compute_s, wire_s = self._first if streams else own
        self._answers.append(
            Answer(
                at_s=at_s,
                step=order.step,
                sent_s=order.leg.sent_s,
                up_s=order.leg.up_s,
                down_s=wire_s,
                idle_s=order.leg.idle_s,
                queue_s=queue_s,
                sweep_s=sweep_s,
                compute_s=compute_s,
                down_bytes=down_bytes,
                overhead_s=self._overhead_s,
                first_s=self._started if streams else 0.0,
                tokens=order.tokens,
                rounds=self._rounds,
                rows=self._rows,
                rounds_queue_s=order.queue_s if streams else 0.0,
                rounds_compute_s=order.compute_s if streams else 0.0,
            )
        )
        self._wake()


def _nothing(step: Step, leg: Leg, at_s: float) -> Answer:
    return Answer(
        at_s=at_s,
        step=step,
        sent_s=leg.sent_s,
        up_s=leg.up_s,
        down_s=0.0,
        idle_s=leg.idle_s,
        queue_s=0.0,
        sweep_s=0.0,
        compute_s=0.0,
        down_bytes=0,
        overhead_s=0.0,
        lost=True,
    )
