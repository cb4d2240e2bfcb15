"""One loop per arm: token ids in, sampled tokens out, KV caches of both sides kept in step.

A decoder belongs to one conversation and survives its turns: ``generate`` keeps the positions that the new prompt
shares with what is cached and runs only the rest. Prefill is pipelined: while a chunk is on the wire or in the cloud,
the front computes the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from splitglm_core.errors import BadTensor, InternalError, PromptTooLong, ProtocolError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.front import Float32, Front, preload_for
from splitglm_edge.remote import RemoteSession
from splitglm_edge.stats import Meter
from splitglm_glm.sampling import Sampler
from splitglm_wire import codec
from splitglm_wire.device import HiddenArrived, StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows
from splitglm_wire.limits import MAX_ROWS

_IN_FLIGHT: Final = 16
"""Prefill steps sent and not yet answered: enough to hide a round trip, few enough to bound both sides' memory."""


class Decoder(ABC):
    """One plan at work for one conversation."""

    def __init__(self, plan: SplitPlan, capacity: int, hidden: int) -> None:
        self.plan = plan
        self.cached: list[int] = []  # tokens whose keys and values both sides hold
        self._capacity = capacity
        self._hidden = hidden
        self._chunk = min(plan.chunk_tokens, codec.max_rows(plan.codec, hidden), MAX_ROWS)

    def shared_prefix(self, ids: list[int]) -> int:
        """Positions of ``ids`` that need not be run again; at least one token is always left to run."""
        limit = min(len(self.cached), len(ids) - 1)
        return next((i for i in range(limit) if self.cached[i] != ids[i]), limit)

    def generate(
        self,
        ids: list[int],
        *,
        max_tokens: int,
        sampling: SamplingParams,
        stop_ids: tuple[int, ...],
        generated: tuple[int, ...] = (),
        deadline_s: float | None = None,
        meter: Meter,
    ) -> Generator[int, None, None]:
        """Yield tokens as they are known, until ``max_tokens`` or (the token included) a stop id.

        Args:
            ids: the whole prompt, and after it the tokens of this reply that were ``generated`` before a rebuild.

        Raises:
            PromptTooLong: prompt and answer exceed the context; nothing has changed.
        """
        if len(ids) + max_tokens - 1 > self._capacity:
            raise PromptTooLong(
                f"{len(ids)} prompt tokens and {max_tokens} new ones exceed the context of {self._capacity}",
                "shorten the prompt or lower --max-tokens",
            )
        keep = self.shared_prefix(ids)
        meter.kept_tokens = keep
        self._begin(keep, sampling, stop_ids, generated, deadline_s)
        del self.cached[keep:]
        yield from self._run(ids[keep:], max_tokens, stop_ids, meter)

    @abstractmethod
    def _begin(
        self,
        keep: int,
        sampling: SamplingParams,
        stop_ids: tuple[int, ...],
        generated: tuple[int, ...],
        deadline_s: float | None,
    ) -> None:
        """Cut every cache back to ``keep`` positions and set the sampler up."""

    @abstractmethod
    def _advance(self, ids: list[int], meter: Meter) -> int:
        """Run ``ids`` after what is cached and return the next token."""

    def _run(self, ids: list[int], max_tokens: int, stop_ids: tuple[int, ...], meter: Meter) -> Iterator[int]:
        for _ in range(max_tokens):
            token = self._advance(ids, meter)
            self.cached += ids
            yield token
            if token in stop_ids:
                return
            ids = [token]

    @abstractmethod
    def close(self) -> None:
        """Free the caches on both sides."""


class DeviceDecoder(Decoder):
    """Every layer on the device."""

    def __init__(self, plan: SplitPlan, capacity: int, front: Front, hidden: int) -> None:
        super().__init__(plan, capacity, hidden)
        preload_for(front, plan)
        self._front = front
        self._cache = front.new_cache(plan.front, capacity)
        self._sampler = Sampler(SamplingParams())

    def _begin(
        self,
        keep: int,
        sampling: SamplingParams,
        stop_ids: tuple[int, ...],
        generated: tuple[int, ...],
        deadline_s: float | None,
    ) -> None:
        self._cache.truncate(keep)
        self._sampler = Sampler(sampling, generated)

    def _advance(self, ids: list[int], meter: Meter) -> int:
        hidden: Float32 | None = None
        for start in range(0, len(ids), self._chunk):
            with meter.stage("front"):
                rows = self._front.embed(np.array(ids[start : start + self._chunk], np.int64))
                hidden = self._front.forward(rows, self._cache, self.plan.front)
        if hidden is None:
            raise InternalError("there was nothing to run")
        with meter.stage("head"):
            return _sample(self._front, self._sampler, hidden, self._cache.length)

    def close(self) -> None:
        self._cache.close()


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
    ) -> None:
        self._remote.begin(
            plan=self.plan,
            sampling=sampling,
            context=self._capacity,
            keep=keep,
            stop_ids=stop_ids,
            deadline_s=deadline_s,
            generated=generated,
        )

    def _advance(self, ids: list[int], meter: Meter) -> int:
        raise InternalError("the cloud generates by itself")

    def _run(self, ids: list[int], max_tokens: int, stop_ids: tuple[int, ...], meter: Meter) -> Iterator[int]:
        while max_tokens > 0:
            chunks = [ids[i : i + self._chunk] for i in range(0, len(ids), self._chunk)]
            for chunk in chunks[:-1]:
                self._remote.step(rows_kind=Rows.IDS, rows=len(chunk), payload=_ids(chunk), reply=Reply.ACK)
                _drain(self._remote, meter, _IN_FLIGHT)
            ticket = self._remote.step(
                rows_kind=Rows.IDS,
                rows=len(chunks[-1]),
                payload=_ids(chunks[-1]),
                reply=Reply.TOKEN,
                generate=max_tokens,
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

    def _stop(self, ticket: int, meter: Meter) -> None:
        """The reader stopped early: tell the cloud, and learn how far it went."""
        self._remote.cancel(ticket)
        for _ in self._tokens(ticket, meter):
            pass
        del self.cached[self._remote.length :]

    def close(self) -> None:
        self._remote.close()


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
            reply = self._reply(last)
            self._remote.step(
                rows_kind=Rows.HIDDEN,
                rows=len(chunk),
                payload=payload,
                reply=reply,
                generate=1 if reply is Reply.TOKEN else 0,
            )
            token = self._collect(meter, 0 if last else _IN_FLIGHT)
        if self._samples:
            if self._last is None:
                raise BadTensor("the cloud sent no hidden state to sample from")
            with meter.stage("head"):
                return _sample(self._front, self._sampler, self._last, self._cache.length)
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


def _sample(front: Front, sampler: Sampler, hidden: Float32, position: int) -> int:
    token = sampler.pick(front.logits(hidden[-1:])[0], position)
    sampler.commit(token)
    return token


def _drain(remote: RemoteSession, meter: Meter, in_flight: int) -> None:
    while remote.in_flight > in_flight:
        with meter.stage("wait"):
            event = remote.wait()
        if isinstance(event, StepDone):
            meter.answered(event)


def _ids(ids: list[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()
