"""Rotary tables as ONNX Runtime's attention takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitglm_core.errors import ModelInvalid
from splitglm_glm.config import GlmConfig
from splitglm_glm.onnx_runtime import ort

_PAIR_MULTIPLE = 8  # GroupQueryAttention on the CPU refuses other table widths


def rotary_pairs(config: GlmConfig) -> int:
    """Columns of the table: rotated pairs per head, rounded up to what the attention kernel takes.

    Raises:
        ModelInvalid: heads too narrow for the rounded table.
    """
    pairs = -(-config.rotary_dim // 2 // _PAIR_MULTIPLE) * _PAIR_MULTIPLE
    if 2 * pairs > config.shape.head_dim:
        raise ModelInvalid(
            f"heads of {config.shape.head_dim} with {config.rotary_dim} rotated values do not fit the attention kernel",
            "use a model whose head dimension is a multiple of 16",
        )
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Cosines and sines ``[positions, pairs]`` float32 as bound values, shared by layers and caches."""

    positions: int
    cos: ort.OrtValue
    sin: ort.OrtValue

    @classmethod
    def build(cls, positions: int, config: GlmConfig) -> RotaryTable:
        """Angles ``p * theta^(-2i / rotary_dim)`` (RoFormer), computed in float32 as the reference models do.

        Pairs beyond the rotary dimension (see :func:`rotary_pairs`) turn by angle zero, which changes nothing.
        """
        exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
        inverse = np.zeros(rotary_pairs(config), np.float32)
        inverse[: len(exponents)] = np.float32(1) / np.float32(config.rope_theta) ** exponents
        angles = np.outer(np.arange(positions, dtype=np.float32), inverse)
        value = ort.OrtValue.ortvalue_from_numpy
        return cls(positions=positions, cos=value(np.cos(angles)), sin=value(np.sin(angles)))
