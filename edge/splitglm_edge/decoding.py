"""One loop per arm: token ids in, sampled tokens out, KV caches of both sides kept in step. Here what all arms share,
and the arm that needs nobody.

A decoder belongs to one conversation and survives its turns: ``generate`` keeps the positions that the new prompt
shares with what is cached and runs only the rest.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

import numpy as np

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError, PromptTooLong
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.front import Float32, Front, preload_for
from splitglm_edge.stats import Meter
from splitglm_glm.sampling import Sampler
from splitglm_wire import codec
from splitglm_wire.limits import MAX_ROWS


class Decoder(ABC):
    """One plan at work for one conversation."""

    def __init__(self, plan: SplitPlan, capacity: int, hidden: int) -> None:
        self.plan = plan
        self.cached: list[int] = []  # tokens whose keys and values both sides hold
        self.usable = True  # False when it is no longer known what the cloud holds
        self._capacity = capacity
        self._hidden = hidden
        # What a record holds bounds only those that send hidden states.
        rows = codec.max_rows(plan.codec, hidden) if plan.arm in (Arm.SPLIT, Arm.USHAPE) else MAX_ROWS
        self._chunk = min(plan.chunk_tokens, rows)

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
        criticality: Criticality = Criticality.CRITICAL,
        cancelled: threading.Event | None = None,
        meter: Meter,
    ) -> Generator[int, None, None]:
        """Yield tokens as they are known, until ``max_tokens`` or (the token included) a stop id.

        Args:
            ids: the whole prompt, and after it the tokens of this reply that were ``generated`` before a rebuild.
            cancelled: set when nobody wants the reply any more; ends the wait for a busy cloud.

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
        self._begin(keep, sampling, stop_ids, generated, deadline_s, criticality, cancelled)
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
        criticality: Criticality,
        cancelled: threading.Event | None,
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
        criticality: Criticality,
        cancelled: threading.Event | None,
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
            return sample(self._front, self._sampler, hidden, self._cache.length)

    def close(self) -> None:
        self._cache.close()


def sample(front: Front, sampler: Sampler, hidden: Float32, position: int) -> int:
    token = sampler.pick(front.logits(hidden[-1:])[0], position)
    sampler.commit(token)
    return token
