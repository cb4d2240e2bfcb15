"""A simulated cloud with the product's own scheduler and admission: what rides when, and how long a batch takes

``Carousel`` decides who rides, ``LoadGate`` who is let in; here are the sessions between them and the time of a batch,
which comes from the cloud's profile as the cost model reads it. Keys and values always find room: their paging and
eviction (``kv_pages``, ``residency``) work on the engine's own slots and are not part of this model.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.slots import MAX_WORK_ROWS
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.engine.work import Segment, Work
from splitglm_cloud.gateway.load import Claim, LoadGate, LoadLimits
from splitglm_cloud.gateway.refusal import Refusal
from splitglm_cloud.gateway.speed import Speed, layer_seconds
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError
from splitglm_partitioner.cloud_load import Load
from splitglm_partitioner.profiles import CloudProfile
from splitglm_sims.world.course import Course
from splitglm_sims.world.drafting import kept_tokens
from splitglm_sims.world.order import Order
from splitglm_sims.world.said_load import SaidLoad
from splitglm_wire.frames import ErrorCode

FEW_ROWS = 32
"""A reply under way goes on in steps of no more rows; a larger one is (more of) a prompt."""


@dataclass(slots=True, eq=False)
class _Session:
    orders: deque[Order] = field(default_factory=deque)  # the first one is with the scheduler
    owner: Owner = field(default_factory=Owner)
    under_way: bool = False

    @property
    def held_rows(self) -> int:
        if not self.orders:
            return 0
        first = self.orders[0]
        rows = 1 if first.tokens else first.step.rows
        return (
            rows if len(self.orders) == 1 else rows + sum([order.step.rows for order in self.orders]) - first.step.rows
        )


class SweptCloud:
    """One engine behind one gate. Times are the caller's and never go back."""

    def __init__(
        self, profile: CloudProfile, slowdown: Course, sweep: SweepLimits | None = None, load: LoadLimits | None = None
    ) -> None:
        limits = sweep or SweepLimits()
        self.carousel = Carousel(limits=limits)
        speed = Speed(max_rows=limits.max_rows, prior=layer_seconds(profile.times))
        self.gate = LoadGate(layers=len(profile.served), limits=load, speed=speed)
        self._profile, self._slowdown = profile, slowdown
        times = profile.times
        self._per_pass = times.decode_s_per_1k_context / 1000
        self._per_row = (times.prefill_s_per_token_per_1k_context or 0.0) / 1000
        self._from_tokens = times.decode_context_tokens
        self._batches: dict[int, list[float]] = {}
        self._sessions: dict[int, _Session] = {}
        self._aboard: tuple[Work, ...] = ()
        self._rows, self._growth_s = 0, 0.0  # of those aboard
        self._nonce = 0
        self.said = SaidLoad()
        self.refusals = self.expired = self.batches = self.row_layers = 0
        self.busy_s = 0.0

    def load_at(self, now_s: float) -> Load:
        """What it says of its load when it is asked."""
        return self.said.at(now_s, busy=bool(len(self.carousel) or self.carousel.riding))

    def close(self, session: int) -> None:
        """Its reply ended and its caches go; harmless if it is unknown."""
        self._sessions.pop(session, None)
        self.carousel.remove(session)
        self.gate.release(session)

    def admit(self, order: Order, now_s: float) -> Refusal | None:
        """A step has arrived. None lets it in."""
        self._nonce += 1
        held = self._sessions.get(order.session)
        if held is None:
            owner = Owner(tenant=str(order.session))
            refusal = self.gate.judge_open(owner, Criticality.CRITICAL, self._stats(now_s), nonce=self._nonce)
            if refusal is not None:
                self.refusals += 1
                return refusal
            held = self._sessions[order.session] = _Session(owner=owner)
        step = order.step
        if step.place == 0 and not step.decode:
            held.under_way = False
        refusal = self.gate.judge_step(
            held.owner,
            Criticality.CRITICAL,
            self._stats(now_s),
            payload_bytes=step.up_bytes,
            under_way=held.under_way and held.held_rows + step.rows <= FEW_ROWS,
            nonce=self._nonce,
        )
        if refusal is not None:
            self.refusals += 1
            return refusal
        held.orders.append(order)
        self._claim(order.session, held)
        if len(held.orders) == 1:
            self._offer(order, now_s)
        return None

    def expire(self, now_s: float) -> list[tuple[Order, Refusal]]:
        """Steps that waited too long for anybody to begin with them; they are gone, and those behind them too."""
        late = []
        for work in self.carousel.expire(now_s):
            held = self._sessions[work.session]
            self._nonce += 1
            after_s = self.gate.retry_after_s(nonce=self._nonce, most_s=self.gate.limits.max_wait_s)
            refusal = Refusal(ErrorCode.OVERLOADED, "the step waited too long for its turn", after_s)
            late += [(order, refusal) for order in held.orders]
            held.orders.clear()
            self._claim(work.session, held)
            self.expired += 1
        return late

    def begin(self, now_s: float) -> tuple[Segment, float] | None:
        """The next batch and its seconds; None when there is no work."""
        segment = self.carousel.next_segment(now_s)
        if segment is None:
            return None
        if segment.riders != self._aboard:  # equal while nobody boards or alights: most segments of a sweep
            self._aboard, self._rows, self._growth_s = segment.riders, segment.rows, 0.0
            for work in segment.riders:
                self._growth_s += self._board(work, now_s)
        layers, rows = segment.layers, self._rows
        sums, first = self._batch(rows), self._profile.served.start
        seconds = sums[layers.stop - first] - sums[layers.start - first] + len(layers) * self._growth_s
        seconds *= self._profile.slowdown * self._slowdown.at(now_s)
        self.busy_s += seconds
        self.batches += len(layers)
        self.row_layers += rows * len(layers)
        return segment, seconds

    def _board(self, work: Work, now_s: float) -> float:
        """Note when a rider boarded; returns what its context adds to the seconds of each layer."""
        order = self._sessions[work.session].orders[0]
        if order.boarded_s != order.boarded_s:  # NaN: it boards here
            left_s = max(order.offered_s, self.carousel.sweep_began_s)
            order.queue_s += left_s - order.offered_s
            order.sweep_s += now_s - left_s
            order.boarded_s = now_s
            self.said.boarded(left_s - order.offered_s, now_s - left_s, now_s)
        if order.step.decode or order.tokens:
            return self._decode_growth_s(work)
        return self._per_row * work.rows * work.base

    def _decode_growth_s(self, work: Work) -> float:
        """What its context adds to the seconds of each layer of a decode work."""
        return self._per_pass * (work.base - self._from_tokens) + self._per_row * (work.rows - 1) * work.base

    def finish(self, segment: Segment, now_s: float) -> tuple[list[Order], float]:
        """The batch has run.

        Returns:
            Orders that have passed all their layers, and seconds of the head for those of them that want a token. It is
            one pass for all: as much slower than that of the largest of them as a layer would be for so many rows.
        """
        alighted = self.carousel.finished(segment)
        if not alighted:
            return [], 0.0
        passed, head_rows, most, drafting_s = [], 0, 0, 0.0
        for work in alighted:
            order = self._sessions[work.session].orders[0]
            order.compute_s += now_s - order.boarded_s
            if work.decode:
                self.said.alighted(now_s - order.boarded_s, self._alone_s(work), now_s)
            order.boarded_s = math.nan
            if not order.tokens:
                order.done += work.rows
                if order.done < order.step.rows:
                    self._offer(order, now_s)
                    continue
            passed.append(order)
            head_rows += order.head_rows
            most = max(most, order.head_rows)
            drafting_s = max(drafting_s, order.drafting_s)
        if not most:
            return passed, 0.0
        scale = self._batch(head_rows)[-1] / self._batch(most)[-1] if head_rows > most else 1.0
        seconds = (self._profile.head_s or 0.0) * most * scale + drafting_s
        seconds *= self._profile.slowdown * self._slowdown.at(now_s)
        for order in passed:
            order.compute_s += seconds if order.head_rows else 0.0
        return passed, seconds

    def _alone_s(self, work: Work) -> float:
        """Undisturbed seconds of a decode work's layers."""
        sums, first, layers = self._batch(work.rows), self._profile.served.start, work.layers
        whole_s = sums[layers.stop - first] - sums[layers.start - first]
        return whole_s + len(layers) * self._decode_growth_s(work)

    def advance(self, order: Order, now_s: float) -> int:
        """``order`` has its answer: tokens that it gained (0 for none). What is to be computed next is queued."""
        held, stream = self._sessions[order.session], order.step.stream
        gained = 0
        if order.head_rows:
            held.under_way = True
        if stream is not None:
            gained = 1
            if order.tokens and order.drafted and stream.drafter is not None:
                gained += kept_tokens(stream.drafter, order.drafted, order.draws, order.tokens)
            gained = min(gained, stream.tokens - order.tokens)
            order.tokens += gained
            if order.tokens < stream.tokens:
                order.drafted = min(stream.draft_tokens, stream.most_tokens - order.tokens - 1)
                self._claim(order.session, held)
                self._offer(order, now_s)
                return gained
        elif not order.head_rows and order.step.down_bytes:
            held.under_way = held.under_way or order.step.rows <= FEW_ROWS
        held.orders.popleft()
        self._claim(order.session, held)
        if held.orders:
            self._offer(held.orders[0], now_s)
        return gained

    def _offer(self, order: Order, now_s: float) -> None:
        order.offered_s = now_s
        rows = 1 + order.drafted if order.tokens else min(MAX_WORK_ROWS, order.step.rows - order.done)
        fresh = not order.done
        self.carousel.add(
            Work(
                session=order.session,
                seq=order.step.place,
                layers=order.layers,
                base=order.context,
                rows=rows,
                decode=order.decode,
                tenant=self._sessions[order.session].owner.tenant,
                deadline_s=now_s + self.gate.limits.max_wait_s if fresh else math.inf,
            ),
            now_s,
        )

    def _claim(self, session: int, held: _Session) -> None:
        rows = held.held_rows
        if not rows:
            self.gate.hold(session, Claim(held.owner))
            return
        payload = sum([order.step.up_bytes for order in held.orders])
        layers = len(held.orders[0].layers)
        self.gate.hold(session, Claim(held.owner, rows=rows, row_layers=rows * layers, payload_bytes=payload))

    def _stats(self, now_s: float) -> EngineStats:
        """What the gate looks at."""
        return EngineStats(
            oldest_wait_s=self.carousel.oldest_wait_s(now_s),
            busy_s=self.busy_s,
            row_layers=self.row_layers,
            batches_by_layer=(self.batches,),
        )

    def _batch(self, rows: int) -> list[float]:
        """Seconds of a batch through the first 0, 1, ... served layers, from empty caches."""
        sums = self._batches.get(rows)
        if sums is None:
            if rows < 1:
                raise InternalError("a batch has rows")
            times = self._profile.times
            sums = times.prefill_cumulative(np.array([float(rows)]), np.zeros(1))[0].tolist()
            self._batches[rows] = sums
        return sums
