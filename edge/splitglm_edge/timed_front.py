"""A front whose passes are timed, so that the device's present pace is known without any measurement of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_edge.front import Float32, Front
from splitglm_glm.kv import KvCache
from splitglm_partitioner.observations import DevicePass, Observation


class TimedFront:
    """``front`` itself, telling of every pass through layers. As thread-safe as ``front`` and ``observe`` are."""

    def __init__(self, front: Front, observe: Callable[[Observation], None]) -> None:
        self._front = front
        self._observe = observe

    @property
    def precision(self) -> Precision:
        return self._front.precision

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use."""
        return self._front.providers

    def preload(self, layers: LayerRange, *, embedding: bool, head: bool) -> None:
        self._front.preload(layers, embedding=embedding, head=head)

    def new_cache(self, layers: LayerRange, capacity: int) -> KvCache:
        return self._front.new_cache(layers, capacity)

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        """Token ids (n,) to hidden states (n, hidden)."""
        return self._front.embed(ids)

    def forward(self, hidden: Float32, cache: KvCache, layers: LayerRange) -> Float32:
        """Run (n, hidden) through ``layers``, appending n positions to ``cache``; told with its time."""
        context = cache.length
        started_s = time.monotonic()
        out = self._front.forward(hidden, cache, layers)
        ended_s = time.monotonic()
        if len(layers) and len(hidden):
            self._observe(
                DevicePass(
                    at_s=ended_s,
                    rows=len(hidden),
                    layers=len(layers),
                    context_tokens=context,
                    seconds=ended_s - started_s,
                )
            )
        return out

    def logits(self, hidden: Float32) -> Float32:
        """Final norm and head: (n, hidden) to (n, vocab)."""
        return self._front.logits(hidden)

    def resident_weight_bytes(self) -> int:
        return self._front.resident_weight_bytes()
