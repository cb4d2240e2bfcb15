"""Keys and values of all sessions in one pool of pages, for the torch runner.

A page holds ``PAGE_POSITIONS`` positions of one layer of one session. Which page belongs to whom is decided elsewhere
(``kv_pages.py``, by number); here are the tensors, and for each session the block table (Kwon et al. 2023,
PagedAttention) of the page ids it was granted. Nothing reads a position that was not written: what lies beyond a
session's length is memory of whoever had the page before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_core.errors import DeviceError, InternalError
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.layer_lengths import common_length


class PagePool:
    """The tensors behind page ids; ``reserve`` makes them.

    Positions lie one after the other, [slots, g, d] with ``slot = page * PAGE_POSITIONS + offset``: a position of a
    layer is one contiguous row, so that writing and gathering are plain row copies and no transposition follows them.

    Args:
        shape: of the model.
        dtype: of keys and values.
        device: where they lie.
        poison_freed: fill every page that belongs to nobody with NaN, so that a read of one shows up. For tests: it
            writes to all of the pool, which otherwise costs no memory of the host before it is used.
    """

    def __init__(
        self, shape: ModelShape, *, dtype: torch.dtype, device: torch.device, poison_freed: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._poison_freed = poison_freed
        self._taken = np.zeros(0, np.bool_)
        self._make(0)

    def reserve(self, pages: int) -> None:
        """Make room for ``pages`` pages.

        Raises:
            DeviceError: the machine has not so much memory.
            InternalError: pages are in use already.
        """
        if self._taken.any():
            raise InternalError("the KV pool cannot be made again while pages are in use")
        try:
            self._make(pages)
        except (RuntimeError, MemoryError):  # torch says RuntimeError on the host, a subclass of it on CUDA
            size = 2 * pages * PAGE_POSITIONS * self.shape.kv_heads * self.shape.head_dim * self.dtype.itemsize
            raise DeviceError(
                f"no memory for {size} bytes of keys and values on {self.device}", "lower the KV budget"
            ) from None

    def _make(self, pages: int) -> None:
        # One page more than can be granted: padding of a gather reads its zeros, which take part in no result.
        size = ((pages + 1) * PAGE_POSITIONS, self.shape.kv_heads, self.shape.head_dim)
        keys, values = (torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2))
        for tensor in (keys, values):
            if self._poison_freed:
                tensor.fill_(torch.nan)
            tensor[pages * PAGE_POSITIONS :] = 0
        self.keys, self.values = keys, values
        self._gathered = keys.new_empty((2, 0, *size[1:]))
        self._taken = np.zeros(pages, np.bool_)

    @property
    def pages(self) -> int:
        return len(self._taken)

    @property
    def used(self) -> int:
        """Pages that belong to a cache."""
        return int(self._taken.sum())

    @property
    def null_page(self) -> int:
        """A page of zeros that belongs to nobody."""
        return self.pages

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, g, d] of ``slots`` [n], integers on the pool's device; good until the next call.

        They lie in memory that is kept: of fresh pages of the host, most of the time would go into page faults.
        """
        n = slots.shape[0]
        if n > self._gathered.shape[1]:
            rounded = 1 << (n - 1).bit_length()  # contexts grow by a position at a time
            self._gathered = self.keys.new_empty((2, rounded, *self.keys.shape[1:]))
        keys, values = self._gathered[0, :n], self._gathered[1, :n]
        torch.index_select(self.keys, 0, slots, out=keys)
        torch.index_select(self.values, 0, slots, out=values)
        return keys, values

    def take(self, ids: NDArray[np.int64]) -> None:
        """Mark pages as somebody's.

        Raises:
            InternalError: a page that does not exist, or that somebody has. Nothing was taken then.
        """
        if ids.size and not (ids.min() >= 0 and ids.max() < self.pages):
            raise InternalError(f"a page outside the pool of {self.pages} was granted")
        if self._taken[ids].any() or len(np.unique(ids)) != ids.size:
            raise InternalError("a page was granted twice")
        self._taken[ids] = True

    def give(self, ids: NDArray[np.int64]) -> None:
        """Mark pages as nobody's."""
        self._taken[ids] = False
        if self._poison_freed and ids.size:
            index = torch.from_numpy(ids).to(self.device)
            for tensor in (self.keys, self.values):
                tensor.view(-1, PAGE_POSITIONS, *tensor.shape[1:]).index_fill_(0, index, torch.nan)


class PagedCache:
    """Keys and values of one session for ``layers``: a block table for each layer, and how much of it is written.

    Each layer counts its own positions, because a pass through the layers is cut where others board.
    """

    def __init__(self, pool: PagePool, layers: LayerRange, capacity: int) -> None:
        self.pool = pool
        self.layers = layers
        self.capacity = capacity
        self._table: NDArray[np.int64] = np.empty((len(layers), 0), np.int64)
        self._lengths = dict.fromkeys(layers, 0)
        self._closed = False

    @property
    def length(self) -> int:
        return min(self._lengths.values(), default=0)

    @property
    def committed(self) -> int:
        return int(self._table.shape[1]) * PAGE_POSITIONS

    def committed_for(self, positions: int) -> int:
        return -(-positions // PAGE_POSITIONS) * PAGE_POSITIONS

    def extend(self, pages: Sequence[Sequence[int]]) -> None:
        """Append page ids to the block tables, one sequence for each layer.

        Raises:
            InternalError: not as many for each layer, or pages that somebody has. Nothing has changed then.
        """
        if self._closed:
            raise InternalError("this KV cache is closed")
        if len(pages) != len(self.layers) or len({len(of_layer) for of_layer in pages}) > 1:
            raise InternalError(f"pages {[len(of_layer) for of_layer in pages]} for layers {self.layers}")
        if not pages or not pages[0]:
            return
        more = np.array(pages, np.int64)
        self.pool.take(more.ravel())
        self._table = np.concatenate((self._table, more), axis=1)

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on, and give back the pages that hold none of the others.

        Raises:
            InternalError: negative, or more positions than any layer holds.
        """
        if not 0 <= length <= max(self._lengths.values(), default=0):
            raise InternalError(f"cannot truncate a KV cache of {self.length} positions to {length}")
        self._lengths = {layer: min(held, length) for layer, held in self._lengths.items()}
        self._keep(-(-length // PAGE_POSITIONS))

    def close(self) -> None:
        """Give back all pages; may be called twice."""
        self._closed = True
        self._lengths = dict.fromkeys(self.layers, 0)
        self._keep(0)

    def _keep(self, pages: int) -> None:
        gone = self._table[:, pages:].ravel()
        self._table = self._table[:, :pages].copy()
        self.pool.give(gone)

    def length_of(self, layers: LayerRange) -> int:
        """Positions held by each of ``layers``.

        Raises:
            InternalError: a layer outside the cache, or layers that have run a different number of positions.
        """
        if self._closed:
            raise InternalError("this KV cache is closed")
        return common_length(self._lengths, layers)

    def table(self, layers: LayerRange, positions: int) -> NDArray[np.int64]:
        """Page ids that hold ``[0, positions)`` of ``layers``: [layers, pages].

        Raises:
            InternalError: the cache was not granted so many.
        """
        if positions > self.committed:
            raise InternalError(f"{positions} positions do not fit {self._table.shape[1]} pages a layer")
        first = layers.start - self.layers.start
        return self._table[first : first + len(layers), : -(-positions // PAGE_POSITIONS)]

    def commit(self, layers: LayerRange, rows: int) -> None:
        """Count ``rows`` more positions in each of ``layers``."""
        for layer in layers:
            self._lengths[layer] += rows
