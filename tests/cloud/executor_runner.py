"""A runner for tests of executors: counts upwards, and does what certain token ids tell it to.

The token after ``k`` is ``k + 1`` modulo ``COUNTED``; hidden states pass through unchanged. Named to workers as
``executor_runner:counting``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from splitglm_cloud.engine.runner import Rider
from splitglm_core.errors import DeviceError, ModelInvalid
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape

COUNTED = 256
RAISE, HANG, DIE, STOP, SLOW, BREAK = range(300, 306)
SLOW_S = 0.2


class CountingCache:
    def __init__(self, layers: LayerRange, capacity: int) -> None:
        self.layers = layers
        self.capacity = capacity
        self._lengths = dict.fromkeys(layers, 0)

    @property
    def length(self) -> int:
        return min(self._lengths.values())

    @property
    def committed(self) -> int:
        return self.length

    def committed_for(self, positions: int) -> int:
        return positions

    def extend(self, pages: Sequence[Sequence[int]]) -> None:
        pass

    def append(self, layers: LayerRange, rows: int) -> None:
        for layer in layers:
            self._lengths[layer] += rows

    def truncate(self, length: int) -> None:
        self._lengths = {layer: min(length, held) for layer, held in self._lengths.items()}

    def close(self) -> None:
        pass


class CountingRunner:
    name = "counting"

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def reserve(self, pages: int) -> None:
        pass

    def new_cache(self, layers: LayerRange, capacity: int) -> CountingCache:
        return CountingCache(layers, capacity)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.repeat(ids.astype(np.float32)[:, None], self.shape.hidden, axis=1)

    def board(self, hidden: np.ndarray) -> np.ndarray:
        return hidden

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def forward(self, rows: np.ndarray, riders: Sequence[Rider], layers: LayerRange) -> np.ndarray:
        if layers.start == 0:
            for value in np.unique(rows[:, 0]):
                self._obey(int(value))
        for rider in riders:
            rider.cache.append(layers, rider.rows)  # type: ignore[attr-defined]
        return rows

    def _obey(self, value: int) -> None:
        if value == RAISE:
            raise RuntimeError("as told")
        if value == BREAK:
            raise SystemExit("as told")  # no Exception: nothing in the engine expects it
        if value == HANG:
            threading.Event().wait()
        if value in (DIE, STOP):
            os.kill(os.getpid(), signal.SIGKILL if value == DIE else signal.SIGSTOP)
        if value == SLOW:
            time.sleep(SLOW_S)

    def alight(self, rows: np.ndarray) -> np.ndarray:
        return np.array(rows)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), self.shape.vocab), np.float32)
        for row, value in zip(out, rows[:, 0], strict=True):
            row[(int(value) + 1) % COUNTED] = 1.0
        return out


def counting(spec: Any, checkpoint: Any, layers: LayerRange, *, embedding: bool, head: bool) -> CountingRunner:
    return CountingRunner(checkpoint.config.shape)


def refusing(spec: Any, checkpoint: Any, layers: LayerRange, *, embedding: bool, head: bool) -> CountingRunner:
    raise ModelInvalid("this model is not to be served", "take another one")


def dying(spec: Any, checkpoint: Any, layers: LayerRange, *, embedding: bool, head: bool) -> CountingRunner:
    os._exit(9)


def writing_down(spec: Any, checkpoint: Any, layers: LayerRange, *, embedding: bool, head: bool) -> CountingRunner:
    raise DeviceError(f"profile: {bool(spec.profile)}, threads: {spec.threads}, budget: {spec.kv_budget_bytes}")
