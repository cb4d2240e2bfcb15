"""Matrices of the torch model: as they are, or as 8-bit integers with one scale for each output.

8 bits halve the memory against bfloat16. They do not make a matrix product faster by themselves: the integers are
widened, one matrix at a time, to the dtype of the activations before they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MakeLinear = Callable[[np.ndarray, np.ndarray | None], nn.Module]
"""(weight [outputs, inputs], bias [outputs] or None) -> module of [n, inputs] to [n, outputs]."""

_LARGEST: Final = 127
_BLOCK_ROWS: Final = 1024


class Linear(nn.Module):
    """``x @ weight.T + bias``; a ``weight`` that is a parameter already (a tied head) is shared, not copied."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = frozen(weight)  # [outputs, inputs]
        self.bias = None if bias is None else frozen(bias)  # [outputs]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Linear(nn.Module):
    """``x @ (weight * scale).T + bias`` with integer weights in [-127, 127]; symmetric, one scale for each output."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = frozen(weight)  # [outputs, inputs], int8
        self.scale = frozen(scale)  # [outputs], float32
        self.bias = None if bias is None else frozen(bias)  # [outputs]

    @classmethod
    def quantise(cls, weight: np.ndarray, bias: Tensor | None, device: torch.device) -> Int8Linear:
        """Round float32 ``weight`` [outputs, inputs] to the nearest of 255 levels; the largest of a row is exact."""
        scale = np.maximum(weight.max(axis=1, keepdims=True), -weight.min(axis=1, keepdims=True)) / np.float32(_LARGEST)
        scale[scale == 0] = 1  # a row of zeros
        rounded = np.empty(weight.shape, np.int8)
        for start in range(0, len(weight), _BLOCK_ROWS):  # a head in float32 is large enough without copies of it
            block = slice(start, start + _BLOCK_ROWS)
            rounded[block] = np.rint(weight[block] / scale[block]).clip(-_LARGEST, _LARGEST)
        return cls(torch.from_numpy(rounded).to(device), torch.from_numpy(scale[:, 0]).to(device), bias)

    def forward(self, x: Tensor) -> Tensor:
        # The scale is float32 and is applied after the sum, so that it is not rounded to the activations' dtype.
        y = (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias


def frozen(weight: Tensor) -> nn.Parameter:
    """``weight`` as a parameter that nothing trains."""
    return weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
