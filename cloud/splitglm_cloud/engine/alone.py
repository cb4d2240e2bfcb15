"""A runner as one caller at a time uses it, with host arrays in and out: for measuring layers and for tests."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.runner import Cache, Hidden, Rider, Runner
from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange


class Alone:
    """Batches of one rider, on pages that nobody else uses.

    Args:
        pages: of the pool that the runner has reserved.
    """

    def __init__(self, runner: Runner, pages: KvPages) -> None:
        self._runner = runner
        self._pages = pages
        self._caches: dict[int, Cache] = {}
        self._keys = itertools.count()

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache:
        cache = self._runner.new_cache(layers, capacity)
        self._caches[next(self._keys)] = cache
        return cache

    def close(self, cache: Cache) -> None:
        """Give back a cache and its pages."""
        key = self._key_of(cache)
        del self._caches[key]
        cache.close()
        self._pages.release(key)

    def embed(self, ids: NDArray[np.int64]) -> Hidden:
        return self._runner.alight(self._runner.embed(ids))

    def forward(self, hidden: Hidden, cache: Cache, layers: LayerRange) -> Hidden:
        """Run rows at the next positions of ``layers``, which must not have run further than the rest of the cache.

        Raises:
            InternalError: the pool has too few pages.
        """
        key = self._key_of(cache)
        base = cache.length
        self._pages.shrink(key, positions=cache.committed)
        positions = cache.committed_for(base + len(hidden))
        granted = self._pages.grow(key, layers=len(cache.layers), positions=positions)
        if granted is None:
            raise InternalError("the pool of pages is too small for this")
        cache.extend(granted)
        rows = self._runner.forward(self._runner.board(hidden), [Rider(cache, len(hidden), base)], layers)
        return self._runner.alight(rows)

    def _key_of(self, cache: Cache) -> int:
        return next(key for key, mine in self._caches.items() if mine is cache)

    def logits(self, hidden: Hidden) -> NDArray[np.float32]:
        return self._runner.logits(self._runner.board(hidden))
