"""What the engine needs from whatever computes layers: ONNX Runtime or torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape

Hidden = NDArray[np.float32]


class Cache(Protocol):
    """Keys and values of one session in a range of layers."""

    @property
    def layers(self) -> LayerRange: ...

    @property
    def capacity(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def committed(self) -> int:
        """Positions that memory is held for at this moment, in each layer; never less than ``length``."""

    def committed_for(self, positions: int) -> int:
        """At least what ``committed`` becomes when the cache grows to ``positions``."""

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on; their memory is never read again before it is overwritten."""

    def close(self) -> None: ...


class Runner(Protocol):
    """Runs any layers it has loaded. Called from one thread at a time."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def name(self) -> str:
        """Runtime and device, for logs and ``splitglm doctor``: ``onnxruntime CPU`` or ``torch cuda:0``."""

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache: ...

    def embed(self, ids: NDArray[np.int64]) -> Hidden:
        """Token ids (n,) to hidden states (n, hidden) float32."""

    def forward(self, hidden: Hidden, cache: Cache, layers: LayerRange) -> Hidden:
        """Run (n, hidden) float32 through ``layers``, appending n positions to ``cache``."""

    def logits(self, hidden: Hidden) -> NDArray[np.float32]:
        """Final norm and LM head: (n, hidden) to (n, vocab), float32."""
