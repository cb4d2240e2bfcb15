"""A runner that computes nothing, so that what is left is the way to the engine and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from splitglm_cloud.engine.runner import Rider
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape


class NullCache:
    """Counts positions and holds nothing."""

    committed = 0

    def __init__(self, layers: LayerRange, capacity: int) -> None:
        self.layers, self.capacity, self.length = layers, capacity, 0

    def committed_for(self, positions: int) -> int:
        return 0

    def extend(self, pages: Sequence[Sequence[int]]) -> None:
        pass

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    def close(self) -> None:
        pass


class NullRunner:
    """Hidden states pass unchanged; every token is 0."""

    name = "null"

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def reserve(self, pages: int) -> None:
        pass

    def new_cache(self, layers: LayerRange, capacity: int) -> NullCache:
        return NullCache(layers, capacity)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros((len(ids), self.shape.hidden), np.float32)

    def board(self, hidden: np.ndarray) -> np.ndarray:
        return hidden

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def forward(self, rows: np.ndarray, riders: Sequence[Rider], layers: LayerRange) -> np.ndarray:
        for rider in riders:
            rider.cache.length = rider.base + rider.rows  # type: ignore[misc]
        return rows

    def alight(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def logits(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), self.shape.vocab), np.float32)


def null(spec: Any, checkpoint: Any, layers: LayerRange, *, embedding: bool, head: bool) -> NullRunner:
    """A runner factory: ``null_runner:null``."""
    return NullRunner(checkpoint.config.shape)
