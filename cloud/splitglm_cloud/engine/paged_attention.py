"""Attention of a ragged batch over paged keys and values.

Rows of all sessions share every matrix product of a layer; only here does each row meet its own session. Riders with
few rows (decoding, or verifying a draft) attend together, padded to the longest among them; riders with many rows
(prefill) attend one by one. All indices are made once for all layers of a call, in one transfer to the device, and the
loop over layers waits for nothing.

Letters in shape comments, beside those of ``splitglm_glm/model.py``:
    N  rows of the batch        B  riders of a group      n  rows of each of them
    L  longest context, positions      T  pages of it     r  h / g, query heads of a key/value head
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from splitglm_cloud.engine.kv_pages import PAGE_POSITIONS
from splitglm_cloud.engine.paged_kv import PagedCache, PagePool
from splitglm_core.ranges import LayerRange
from splitglm_glm.model import Attend

FEW_ROWS: Final = 16
"""Riders with at most so many rows share a call: their scores are small beside the keys and values they read."""
SLACK_PAGES: Final = 4
"""A rider is padded by at most as many pages as it holds, or by so few that another call would cost more."""


@dataclass(frozen=True, slots=True)
class PagedRider:
    """Rows ``[start, start + rows)`` of the batch are positions ``[base, base + rows)`` of ``cache``."""

    cache: PagedCache
    start: int
    rows: int
    base: int

    @property
    def end(self) -> int:
        return self.base + self.rows

    @property
    def pages(self) -> int:
        return -(-self.end // PAGE_POSITIONS)


def groups_of(riders: Iterable[PagedRider]) -> list[tuple[PagedRider, ...]]:
    """Who attends together: riders with many rows alone, others by number of rows and similar length of context."""
    alone, few = [], dict[int, list[PagedRider]]()
    for rider in riders:
        if rider.rows > FEW_ROWS:
            alone.append((rider,))
        elif rider.rows:
            few.setdefault(rider.rows, []).append(rider)
    shared: list[list[PagedRider]] = []
    for same_rows in few.values():
        longest = 0
        for rider in sorted(same_rows, key=lambda rider: -rider.pages):
            if longest - rider.pages > max(rider.pages, SLACK_PAGES) or not longest:
                shared.append([])
                longest = rider.pages
            shared[-1].append(rider)
    return alone + [tuple(sorted(group, key=lambda rider: rider.start)) for group in shared]


class PagedAttention:
    """Attention of one call of the runner: made from its riders, asked for one layer after the other."""

    def __init__(self, pool: PagePool, riders: Sequence[PagedRider], layers: LayerRange) -> None:
        self._pool = pool
        self._layers = layers
        positions = np.concatenate([np.arange(rider.base, rider.end) for rider in riders])
        writes = np.concatenate([_slots(rider, layers) for rider in riders], axis=1)  # [layers, N]
        groups = groups_of(riders)
        indices = [positions, writes, *(part for group in groups for part in _indices(group, layers, pool.null_page))]
        parts = iter(_to_device(indices, pool.device))
        self.positions = next(parts)
        """Of every row in its session, [N], on the device."""
        self._writes = next(parts)
        self._groups = [_Group(pool, group, next(parts), next(parts), next(parts)) for group in groups]

    def at(self, layer: int) -> Attend:
        """Attention in ``layer``: writes the keys and values of all rows, then every row attends to its session's."""
        index = layer - self._layers.start

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._pool.keys.index_copy_(0, self._writes[index], k)
            self._pool.values.index_copy_(0, self._writes[index], v)
            if len(self._groups) == 1:  # its rows are those of the batch, in order
                return self._groups[0].attend(index, q, k, v)
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            for group in self._groups:
                if group.rows is None:
                    part = slice(group.start, group.stop)
                    out[part] = group.attend(index, q[part], k[part], v[part])
                else:
                    out.index_copy_(0, group.rows, group.attend(index, q.index_select(0, group.rows), k, v))
            return out

        return attend


class _Group:
    """Riders of equally many rows that attend in one call.

    Args:
        pool: keys and values.
        riders: in the order of their rows.
        rows: of the batch that are theirs, [B n].
        tables: page ids, [layers, B, T].
        bases: positions that each rider had before this call, [B].
    """

    def __init__(
        self, pool: PagePool, riders: tuple[PagedRider, ...], rows: Tensor, tables: Tensor, bases: Tensor
    ) -> None:
        first, n, longest = riders[0], riders[0].rows, max(rider.end for rider in riders)
        self._pool = pool
        self._riders = len(riders)
        self._rows_each = n
        self.start = first.start
        self.stop = first.start + len(riders) * n
        neighbours = all(rider.start == first.start + i * n for i, rider in enumerate(riders))
        self.rows = None if neighbours else rows
        self._slots: Tensor | None = None
        self._mask: Tensor | None = None
        if n > FEW_ROWS and first.base == 0:  # the context is this call's own keys and values: nothing to gather
            return
        columns = torch.arange(longest, device=pool.device)
        offsets = torch.arange(PAGE_POSITIONS, device=pool.device)
        slots = (tables[..., None] * PAGE_POSITIONS + offsets).flatten(2)[..., :longest]  # [layers, B, L]
        held = columns < (bases + n)[:, None]  # [B, L]
        self._slots = torch.where(held, slots, pool.null_page * PAGE_POSITIONS).flatten(1)  # [layers, B L]
        if n > 1 or any(rider.end != longest for rider in riders):
            ends = bases[:, None] + torch.arange(1, n + 1, device=pool.device)  # [B, n]
            self._mask = columns < ends[..., None]  # [B, n, L]

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q`` [B n, h, d] against the context of each rider in the ``index``-th layer of the call; as ``q``.

        The r query heads of one key/value head become a dimension of their own, so that nothing is repeated for them:
        more rows where rows are few, entries of a batch that see the same memory where they are many.
        """
        if self._slots is not None:
            k, v = self._pool.gather(self._slots[index])
        return (self._attend_alone if self._rows_each > FEW_ROWS else self._attend_together)(q, k, v)

    def _attend_alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (n, h, d), (_, g, _) = q.shape, k.shape
        y = F.scaled_dot_product_attention(
            q.view(n, g, h // g, d).permute(2, 1, 0, 3),  # [r, g, n, d]
            k.transpose(0, 1).expand(h // g, -1, -1, -1),  # [r, g, L, d]
            v.transpose(0, 1).expand(h // g, -1, -1, -1),
            attn_mask=self._mask,  # [1, n, L]
            is_causal=self._mask is None,
        )
        return y.permute(2, 1, 0, 3).reshape(n, h, d)

    def _attend_together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, (_, h, d), (_, g, _) = self._riders, self._rows_each, q.shape, k.shape
        r, mask = h // g, self._mask
        if mask is not None:
            mask = (mask if n == 1 else mask.repeat_interleave(r, dim=1))[:, None]  # [B, 1, 1 or n r, L]
        y = F.scaled_dot_product_attention(
            q.view(b, n, g, r, d).transpose(1, 2).reshape(b, g, n * r, d),
            k.view(b, -1, g, d).transpose(1, 2),  # [B, g, L, d]
            v.view(b, -1, g, d).transpose(1, 2),
            attn_mask=mask,
        )
        return y.view(b, g, n, r, d).transpose(1, 2).reshape(b * n, h, d)


def _slots(rider: PagedRider, layers: LayerRange) -> NDArray[np.int64]:
    """Where a rider's new keys and values go, [layers, rows]."""
    page, offset = np.divmod(np.arange(rider.base, rider.end), PAGE_POSITIONS)
    return rider.cache.table(layers, rider.end)[:, page] * PAGE_POSITIONS + offset


def _indices(group: tuple[PagedRider, ...], layers: LayerRange, null_page: int) -> list[NDArray[np.int64]]:
    """Rows [B n], padded block tables [layers, B, T] and bases [B] of a group."""
    rows = np.concatenate([np.arange(rider.start, rider.start + rider.rows) for rider in group])
    tables = np.full((len(layers), len(group), max(rider.pages for rider in group)), null_page)
    for i, rider in enumerate(group):
        tables[:, i, : rider.pages] = rider.cache.table(layers, rider.end)
    return [rows, tables, np.array([rider.base for rider in group])]


def _to_device(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """All arrays in one transfer, which the host does not wait for."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()  # from other memory a copy would first wait for all that is queued
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
