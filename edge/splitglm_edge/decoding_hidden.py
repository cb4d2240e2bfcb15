"""The arms that send hidden states: split (a token comes down) and U-shape (hidden states come down).

Prefill is pipelined: while a chunk is on the wire or in the cloud, the front computes the next one.
"""

from __future__ import annotations

import threading

import numpy as np

from splitglm_core.criticality import Criticality
from splitglm_core.errors import BadTensor
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.decoding import Decoder, sample
from splitglm_edge.front import Float32, Front, preload_for
from splitglm_edge.remote import RemoteSession
from splitglm_edge.stats import Meter
from splitglm_glm.sampling import Sampler
from splitglm_partitioner.request import PREFILL_IN_FLIGHT
from splitglm_wire import codec
from splitglm_wire.device import HiddenArrived, StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows


class HiddenDecoder(Decoder):
    """Split and U-shape: hidden states of the front go up; a token, or hidden states for the tail, come down."""

    def __init__(self, plan: SplitPlan, capacity: int, front: Front, remote: RemoteSession, hidden: int) -> None:
        super().__init__(plan, capacity, hidden)
        preload_for(front, plan)
        self._front = front
        self._remote = remote
        self._cache = front.new_cache(plan.front, capacity)
        self._tail = front.new_cache(plan.tail, capacity) if len(plan.tail) else None
        self._samples = plan.arm is Arm.USHAPE
        self._sampler = Sampler(SamplingParams())
        self._last: Float32 | None = None  # output of the newest tail position

    def _begin(
        self,
        keep: int,
        sampling: SamplingParams,
        stop_ids: tuple[int, ...],
        generated: tuple[int, ...],
        deadline_s: float | None,
        criticality: Criticality,
        cancelled: threading.Event | None,
    ) -> None:
        self._cache.truncate(keep)
        if self._tail is not None:
            self._tail.truncate(keep)
        self._sampler = Sampler(sampling, generated)
        self._remote.begin(
            plan=self.plan,
            # A cloud that does not sample has no business with how it is done.
            sampling=SamplingParams() if self._samples else sampling,
            context=self._capacity,
            keep=keep,
            stop_ids=(),
            deadline_s=deadline_s,
            criticality=criticality,
            cancelled=cancelled,
            generated=() if self._samples else generated,
        )

    def _advance(self, ids: list[int], meter: Meter) -> int:
        self._last = None
        token: int | None = None
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            base = self._cache.length
            with meter.stage("front"):
                hidden = self._front.forward(self._front.embed(np.array(chunk, np.int64)), self._cache, self.plan.front)
            with meter.stage("encode"):
                payload = codec.encode(hidden, self.plan.codec, base=base)
            last = start + self._chunk >= len(ids)
            meter.uploads()
            reply = self._reply(last)
            self._remote.step(
                rows_kind=Rows.HIDDEN,
                rows=len(chunk),
                payload=payload,
                reply=reply,
                generate=1 if reply is Reply.TOKEN else 0,
            )
            token = self._collect(meter, 0 if last else PREFILL_IN_FLIGHT)
        if self._samples:
            if self._last is None:
                raise BadTensor("the cloud sent no hidden state to sample from")
            with meter.stage("head"):
                return sample(self._front, self._sampler, self._last, self._cache.length)
        if token is None:
            raise BadTensor("the cloud sent no token")
        return token

    def _reply(self, last: bool) -> Reply:
        if not self._samples:
            return Reply.TOKEN if last else Reply.ACK
        if self._tail is not None:
            return Reply.ALL_HIDDEN  # the tail's caches need every position
        return Reply.LAST_HIDDEN if last else Reply.ACK

    def _collect(self, meter: Meter, in_flight: int) -> int | None:
        """Take answers until at most ``in_flight`` steps are open; run the tail on what came back."""
        token: int | None = None
        while True:
            event = self._remote.poll()
            if event is None:
                if self._remote.in_flight <= in_flight:
                    return token
                with meter.stage("wait"):
                    event = self._remote.wait()
            if isinstance(event, TokenArrived):
                token = event.token
            elif isinstance(event, HiddenArrived):
                self._run_tail(event, meter)
            elif isinstance(event, StepDone):
                meter.answered(event)

    def _run_tail(self, event: HiddenArrived, meter: Meter) -> None:
        with meter.stage("decode"):
            hidden = codec.decode(event.payload, self.plan.codec, rows=event.rows, hidden=self._hidden, base=event.base)
        if self._tail is not None:
            if event.base != self._tail.length:
                raise BadTensor("the cloud's hidden states do not follow the tail's cache")
            with meter.stage("tail"):
                hidden = self._front.forward(hidden, self._tail, self.plan.tail)
        self._last = hidden

    def close(self) -> None:
        self._cache.close()
        if self._tail is not None:
            self._tail.close()
        self._remote.close()
