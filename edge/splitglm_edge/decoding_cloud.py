"""The cloud arm: token ids go up, sampled tokens stream down."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError, ProtocolError, SplitGlmError
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.decoding import Decoder
from splitglm_edge.remote import RemoteSession
from splitglm_edge.stats import Meter
from splitglm_partitioner.request import PREFILL_IN_FLIGHT
from splitglm_wire.device import StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows
from splitglm_wire.limits import MAX_GENERATE


class CloudDecoder(Decoder):
    """Token ids go up; the cloud generates by itself, with no round trip per token."""

    def __init__(self, plan: SplitPlan, capacity: int, remote: RemoteSession, hidden: int) -> None:
        super().__init__(plan, capacity, hidden)
        self._remote = remote

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
        self._remote.begin(
            plan=self.plan,
            sampling=sampling,
            context=self._capacity,
            keep=keep,
            stop_ids=stop_ids,
            deadline_s=deadline_s,
            criticality=criticality,
            cancelled=cancelled,
            generated=generated,
        )

    def _advance(self, ids: list[int], meter: Meter) -> int:
        raise InternalError("the cloud generates by itself")

    def _run(self, ids: list[int], max_tokens: int, stop_ids: tuple[int, ...], meter: Meter) -> Iterator[int]:
        while max_tokens > 0:
            chunks = [ids[i : i + self._chunk] for i in range(0, len(ids), self._chunk)]
            meter.uploads()
            for chunk in chunks[:-1]:
                self._remote.step(rows_kind=Rows.IDS, rows=len(chunk), payload=_ids(chunk), reply=Reply.ACK)
                self._drain(meter)
            ticket = self._remote.step(
                rows_kind=Rows.IDS,
                rows=len(chunks[-1]),
                payload=_ids(chunks[-1]),
                reply=Reply.TOKEN,
                generate=min(max_tokens, MAX_GENERATE),
            )
            self.cached += ids
            token = -1
            try:
                for token in self._tokens(ticket, meter):
                    max_tokens -= 1
                    yield token
                    self.cached.append(token)
            except GeneratorExit:
                self._stop(ticket, meter)
                raise
            if token < 0:
                raise ProtocolError("the cloud ended a reply without a token")
            # The last token is known but was not run; a reply cut short by a broken stream goes on from it.
            self.cached.pop()
            if token in stop_ids:
                return
            ids = [token]

    def _tokens(self, ticket: int, meter: Meter) -> Iterator[int]:
        while True:
            with meter.stage("wait"):
                event = self._remote.wait()
            if isinstance(event, StepDone):
                meter.answered(event)
                if event.ticket == ticket:
                    return
            elif isinstance(event, TokenArrived):
                yield event.token

    def _drain(self, meter: Meter) -> None:
        while self._remote.in_flight > PREFILL_IN_FLIGHT:
            with meter.stage("wait"):
                event = self._remote.wait()
            if isinstance(event, StepDone):
                meter.answered(event)

    def _stop(self, ticket: int, meter: Meter) -> None:
        """The reader stopped early: tell the cloud, and wait until it has. It may have gone further than was read."""
        try:
            self._remote.cancel(ticket)
            for _ in self._tokens(ticket, meter):
                pass
        except SplitGlmError:
            # Nobody waits for this reply any more, so nobody is told; the next one starts afresh.
            self.usable = False

    def close(self) -> None:
        self._remote.close()


def _ids(ids: list[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()
