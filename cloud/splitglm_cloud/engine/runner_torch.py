"""The torch runner: the one-file model on CUDA when present, else on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from splitglm_cloud.engine.runner import Cache, Hidden
from splitglm_core.errors import DeviceError
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.model import GlmModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchRunner:
    """A ``GlmModel`` as the engine sees it: numpy float32 at the border, the model's dtype inside."""

    def __init__(
        self, checkpoint: Checkpoint, layers: LayerRange, *, embedding: bool, head: bool, dtype: str, threads: int = 0
    ) -> None:
        if dtype not in DTYPES:
            raise DeviceError(f"torch dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if threads:
            torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = GlmModel.load(
            checkpoint, layers, embedding=embedding, head=head, dtype=DTYPES[dtype], device=device
        )

    @property
    def shape(self) -> ModelShape:
        return self._model.config.shape

    @property
    def name(self) -> str:
        return f"torch {self._model.device} {str(self._model.dtype).removeprefix('torch.')}"

    def new_cache(self, layers: LayerRange, capacity: int) -> Cache:
        return self._model.new_cache(layers, capacity)

    def embed(self, ids: NDArray[np.int64]) -> Hidden:
        return self._out(self._model.embed(torch.from_numpy(ids)))

    def forward(self, hidden: Hidden, cache: Cache, layers: LayerRange) -> Hidden:
        x = torch.from_numpy(np.ascontiguousarray(hidden)).to(self._model.device, self._model.dtype)
        return self._out(self._model.forward(x, cache, layers))  # type: ignore[arg-type]  # made by new_cache above

    def logits(self, hidden: Hidden) -> NDArray[np.float32]:
        x = torch.from_numpy(np.ascontiguousarray(hidden)).to(self._model.device, self._model.dtype)
        return self._out(self._model.logits(x))

    @staticmethod
    def _out(x: torch.Tensor) -> NDArray[np.float32]:
        return x.to("cpu", torch.float32).numpy()
