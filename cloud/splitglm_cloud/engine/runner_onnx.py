"""The ONNX Runtime runner: the same layer artefacts as the device, any precision, no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitglm_cloud.engine.runner import Cache, Hidden
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.stack import LayerStack


class OnnxRunner:
    """A ``LayerStack`` as the engine sees it."""

    def __init__(self, stack: LayerStack, layers: LayerRange, *, embedding: bool, head: bool) -> None:
        stack.preload(layers, embedding=embedding, head=head)
        self._stack = stack

    @property
    def shape(self) -> ModelShape:
        return self._stack.config.shape

    @property
    def name(self) -> str:
        return f"onnxruntime {', '.join(self._stack.providers)} {self._stack.precision.value}"

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache:
        return self._stack.new_cache(layers, capacity)

    def embed(self, ids: NDArray[np.int64]) -> Hidden:
        return self._stack.embed(ids)

    def forward(self, hidden: Hidden, cache: Cache, layers: LayerRange) -> Hidden:
        return self._stack.forward(hidden, cache, layers)  # type: ignore[arg-type]  # made by new_cache above

    def logits(self, hidden: Hidden) -> NDArray[np.float32]:
        return self._stack.logits(hidden)
