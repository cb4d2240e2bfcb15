"""The torch runner: ragged batches through the one-file model, on CUDA when present, else on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from splitglm_cloud.engine.paged_attention import PagedAttention, PagedRider
from splitglm_cloud.engine.paged_kv import PagedCache, PagePool
from splitglm_cloud.engine.runner import Hidden, Rider
from splitglm_core.errors import DeviceError, InternalError, PromptTooLong
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.model import GlmModel

DTYPES: Final = ("float32", "bfloat16", "float16", "int8")


class TorchRunner:
    """A ``GlmModel`` and a pool of KV pages as the engine sees them; rows are tensors of the model's dtype.

    Args:
        checkpoint: where the weights lie.
        layers: to load.
        embedding: load the embedding too.
        head: load the final norm and the head too.
        dtype: of weights, activations and KV pages, one of ``DTYPES``. ``int8`` is for the matrices alone; what is
            computed with them is bfloat16 on CUDA, and float32 on a CPU, of which few compute bfloat16 well.
        threads: compute threads on a CPU; 0 leaves torch's choice.
        poison_freed: see ``PagePool``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        *,
        embedding: bool,
        head: bool,
        dtype: str,
        threads: int = 0,
        poison_freed: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise DeviceError(f"torch dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if threads:
            torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        computed = ("float32" if device == "cpu" else "bfloat16") if dtype == "int8" else dtype
        self._model = GlmModel.load(
            checkpoint,
            layers,
            embedding=embedding,
            head=head,
            dtype=getattr(torch, computed),
            device=device,
            int8=dtype == "int8",
        )
        self._dtype = dtype
        self._pool = PagePool(self.shape, dtype=self._model.dtype, device=self._model.device, poison_freed=poison_freed)

    @property
    def shape(self) -> ModelShape:
        return self._model.config.shape

    @property
    def name(self) -> str:
        return f"torch {self._model.device} {self._dtype}"

    def reserve(self, pages: int) -> None:
        """Make the pool; see ``PagePool.reserve`` for what it raises."""
        self._pool.reserve(pages)

    def new_cache(self, layers: LayerRange, capacity: int) -> PagedCache:
        """An empty cache for ``layers`` and up to ``capacity`` positions; it has no page yet.

        Raises:
            PromptTooLong: more positions than the model has.
            InternalError: layers that are not loaded.
        """
        limit = self._model.config.max_position_embeddings
        if not 1 <= capacity <= limit:
            raise PromptTooLong(f"{capacity} positions are outside [1, {limit}] of this model", "shorten the prompt")
        if not self._model.layers.covers(layers):
            raise InternalError(f"layers {layers} are not loaded; loaded are {self._model.layers}")
        return PagedCache(self._pool, layers, capacity)

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int64]) -> torch.Tensor:
        return self._model.embed(torch.tensor(ids))

    @torch.inference_mode()
    def board(self, hidden: Hidden) -> torch.Tensor:
        return torch.tensor(hidden, dtype=self._model.dtype, device=self._model.device)

    @torch.inference_mode()
    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    @torch.inference_mode()
    def forward(self, rows: torch.Tensor, riders: Sequence[Rider], layers: LayerRange) -> torch.Tensor:
        paged = self._place(rows, riders, layers)
        if not rows.shape[0]:
            return rows
        attention = PagedAttention(self._pool, paged, layers)
        out = self._model.run(rows, attention.positions, layers, attention.at)
        for rider in paged:
            rider.cache.commit(layers, rider.rows)
        return out

    def _place(self, rows: torch.Tensor, riders: Sequence[Rider], layers: LayerRange) -> list[PagedRider]:
        """Where each rider's rows begin; refuses what could read or write what is not the rider's."""
        paged, start = [], 0
        for rider in riders:
            cache = rider.cache
            if not isinstance(cache, PagedCache) or cache.pool is not self._pool:
                raise InternalError("a rider's cache was not made by this runner")
            if rider.rows < 0 or cache.length_of(layers) != rider.base:
                raise InternalError(
                    f"rows [{rider.base}, {rider.base + rider.rows}) after {cache.length_of(layers)} positions"
                )
            if rider.base + rider.rows > cache.capacity:
                raise PromptTooLong(
                    f"{rider.base} + {rider.rows} positions do not fit a cache of {cache.capacity}",
                    "shorten the prompt",
                )
            paged.append(PagedRider(cache, start, rider.rows, rider.base))
            start += rider.rows
        if start != rows.shape[0]:
            raise InternalError(f"{rows.shape[0]} rows for riders of {start}")
        if len({id(rider.cache) for rider in paged}) != len(paged):
            raise InternalError("two riders share a cache")
        return paged

    @torch.inference_mode()
    def alight(self, rows: torch.Tensor) -> Hidden:
        return rows.to("cpu", torch.float32, copy=True).numpy()

    @torch.inference_mode()
    def logits(self, rows: torch.Tensor) -> NDArray[np.float32]:
        return self._model.logits(rows).to("cpu").numpy()
