"""The ONNX Runtime runner: the same layer artefacts as the device, any precision, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.runner import Cache, Hidden, Rider, Rows
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.batch import BatchStack
from splitglm_glm.stack import LayerStack


class OnnxRunner:
    """A ``LayerStack`` as the engine sees it; rows are numpy float32 on both sides of the border.

    Args:
        layers: what to load of the stack, with ``embedding`` and ``head``.
        exact: see :class:`~splitglm_glm.batch.BatchStack`.
    """

    def __init__(
        self, stack: LayerStack, layers: LayerRange, *, embedding: bool, head: bool, exact: bool = True
    ) -> None:
        stack.preload(LayerRange(layers.start, layers.start), embedding=embedding, head=head)
        self._stack = stack
        self._batch = BatchStack(stack, exact=exact)
        self._batch.preload(layers)

    @property
    def shape(self) -> ModelShape:
        return self._stack.config.shape

    @property
    def name(self) -> str:
        return f"onnxruntime {', '.join(self._batch.providers)} {self._stack.precision.value}"

    def loaded_parts(self) -> tuple[str, ...]:
        """Names of what is in memory: ``embedding``, ``layer-007``, ``head``; sorted."""
        return self._batch.loaded_parts()

    def reserve(self, pages: int) -> None:
        """Nothing to do: each cache has addresses of its own, and the system puts pages behind those in use."""

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache:
        return self._stack.new_cache(layers, capacity)

    def embed(self, ids: NDArray[np.int64]) -> Rows:
        return self._stack.embed(ids)

    def board(self, hidden: Hidden) -> Rows:
        return hidden

    def join(self, parts: Sequence[Rows]) -> Rows:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def forward(self, rows: Rows, riders: Sequence[Rider], layers: LayerRange) -> Rows:
        return self._batch.forward(rows, riders, layers)  # type: ignore[arg-type]  # caches were made by new_cache

    def alight(self, rows: Rows) -> Hidden:
        return np.array(rows, np.float32)  # a copy: a slice would keep the rows of the whole batch in memory

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        return self._batch.logits(rows)
