"""What the device needs from whatever computes its layers; today that is ONNX Runtime through ``LayerStack``."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitglm_core.plan import Precision, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_glm.kv import KvCache

Float32 = NDArray[np.float32]


class Front(Protocol):
    """Runs embedding, decoder layers and head on the device. A cache serves one conversation at a time."""

    @property
    def precision(self) -> Precision: ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use."""

    def preload(self, layers: LayerRange, *, embedding: bool, head: bool) -> None: ...

    def new_cache(self, layers: LayerRange, capacity: int) -> KvCache: ...

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        """Token ids (n,) to hidden states (n, hidden)."""

    def forward(self, hidden: Float32, cache: KvCache, layers: LayerRange) -> Float32:
        """Run (n, hidden) through ``layers``, appending n positions to ``cache``."""

    def logits(self, hidden: Float32) -> Float32:
        """Final norm and head: (n, hidden) to (n, vocab)."""

    def resident_weight_bytes(self) -> int: ...


def preload_for(front: Front, plan: SplitPlan) -> None:
    """Load exactly what ``plan`` needs on the device."""
    if plan.s > 0:
        front.preload(plan.front, embedding=True, head=False)
    if plan.s == plan.layers or plan.tail or plan.head.value == "device":
        front.preload(plan.tail, embedding=False, head=True)
