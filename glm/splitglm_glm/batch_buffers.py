"""Where the rows of a batch lie between the graphs of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitglm_core.shapes import ModelShape
from splitglm_glm.onnx_runtime import ort

Float32 = NDArray[np.float32]
_KEPT_SLICES = 4096


@dataclass(frozen=True, slots=True)
class RowViews:
    """The first ``n`` rows of each buffer, as ONNX Runtime takes them."""

    hidden: tuple[ort.OrtValue, ort.OrtValue]
    qkv: ort.OrtValue
    context: ort.OrtValue


class RowBuffers:
    """Room for ``capacity`` rows: hidden states twice (a layer reads one and writes the other), qkv and context.

    A view of some rows aliases their memory; views are kept, so that the same rows are the same object.
    """

    def __init__(self, capacity: int, shape: ModelShape) -> None:
        self.capacity = capacity
        q = shape.heads * shape.head_dim
        widths = (shape.hidden, shape.hidden, q + 2 * shape.kv_heads * shape.head_dim, q)
        # Separate arrays on purpose: an OrtValue aliases the array it was made from.
        self._arrays = tuple(np.zeros((1, capacity, width), np.float32) for width in widths)
        self._views: dict[int, RowViews] = {}
        self._slices: dict[tuple[int, int], tuple[ort.OrtValue, ort.OrtValue]] = {}

    @property
    def hidden(self) -> tuple[Float32, Float32]:
        """Both buffers of hidden states ``[capacity, hidden]``."""
        return self._arrays[0][0], self._arrays[1][0]

    @property
    def context(self) -> Float32:
        """What attention writes, ``[capacity, heads * head_dim]``."""
        rows: Float32 = self._arrays[3][0]
        return rows

    def views(self, n: int) -> RowViews:
        """The first ``n`` rows."""
        found = self._views.get(n)
        if found is None:
            first, second, qkv, context = (ort.OrtValue.ortvalue_from_numpy(array[:, :n]) for array in self._arrays)
            found = self._views[n] = RowViews((first, second), qkv, context)
        return found

    def slices(self, start: int, rows: int) -> tuple[ort.OrtValue, ort.OrtValue]:
        """Rows ``[start, start + rows)`` of ``qkv`` and ``context``."""
        found = self._slices.get((start, rows))
        if found is None:
            if len(self._slices) >= _KEPT_SLICES:
                self._slices.clear()
            part = slice(start, start + rows)
            qkv, context = (ort.OrtValue.ortvalue_from_numpy(array[:, part]) for array in self._arrays[2:])
            found = self._slices[start, rows] = (qkv, context)
        return found
