"""Block-wise weight quantisation in the layout of ONNX Runtime's ``MatMulNBits``.

A matrix ``[N, K]`` is cut along K into blocks. Each block holds unsigned integers, one float32 scale and, when
asymmetric, one zero point, so that ``w = (q - zero) * scale``. Scales are chosen per block by a small search for the
least squared error (as llama.cpp does for its 4-bit formats), because an absmax scale wastes levels on outliers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InternalError

BLOCKS = (128, 64, 32, 16)  # block sizes that MatMulNBits takes and that are worth their scale's bytes
_CHUNK_VALUES = 1 << 21  # values quantised at once: bounds temporaries to a few tens of MB
_SYMMETRIC_STEPS = np.linspace(-2.0, 1.0, 10)  # levels by which the extreme may be clipped or spared
_ASYMMETRIC_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
_TINY = np.float32(1e-30)  # a block below this is stored as zeros: its scale would leave float32's normal range

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """How the matrices of a part are quantised.

    Attributes:
        bits: 4 or 8.
        block: values of K per scale, a power of two of at least 16.
        symmetric: True fixes the zero point at the middle level and stores none.
    """

    bits: int
    block: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InternalError(f"{self.bits}-bit weights are not supported")
        if self.block < 16 or self.block & (self.block - 1):
            raise InternalError(f"a block of {self.block} values is not a power of two of at least 16")

    def blocks_of(self, k: int) -> int:
        """Blocks per row of a matrix with ``k`` columns; the last one may be padded with zeros."""
        return -(-k // self.block)

    def zero_point_bytes(self, k: int) -> int:
        """Bytes of packed zero points per row."""
        return 0 if self.symmetric else -(-self.blocks_of(k) * self.bits // 8)

    def bytes_of(self, n: int, k: int) -> int:
        """Stored bytes of an ``[n, k]`` matrix: integers, float32 scales and zero points."""
        blocks = self.blocks_of(k)
        return n * (blocks * self.block * self.bits // 8 + 4 * blocks + self.zero_point_bytes(k))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedRows:
    """Some rows of a quantised matrix.

    Attributes:
        packed: ``[rows, blocks, block * bits / 8]`` uint8; 4-bit values low nibble first.
        scales: ``[rows, blocks]`` float32.
        zero_points: ``[rows, zero_point_bytes]`` uint8, or None when symmetric.
    """

    packed: UInt8
    scales: Float32
    zero_points: UInt8 | None


def choose_block(k: int, preferred: int) -> int:
    """The largest block up to ``preferred`` that divides ``k``; 32 (with a padded last block) when none does."""
    return next((block for block in BLOCKS if block <= preferred and k % block == 0), min(preferred, 32))


def quantise_rows(weights: Float32, form: BlockFormat) -> QuantisedRows:
    """Quantise ``weights [rows, K]``; the caller bounds ``rows`` (see :func:`row_chunks`)."""
    rows, k = weights.shape
    blocks = form.blocks_of(k)
    padded = np.zeros((rows, blocks * form.block), np.float32)
    padded[:, :k] = weights
    values = padded.reshape(rows, blocks, form.block)
    search = _search_symmetric if form.symmetric else _search_asymmetric
    levels, scales, zeros = search(values, form.bits)
    packed = levels if form.bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << 4)
    return QuantisedRows(
        packed=np.ascontiguousarray(packed),
        scales=scales,
        zero_points=None if form.symmetric else _pack_zero_points(zeros, form.bits),
    )


def dequantise_rows(rows: QuantisedRows, form: BlockFormat, k: int) -> Float32:
    """The float32 matrix ``[rows, k]`` that the integers stand for."""
    if form.bits == 8:
        levels = rows.packed
    else:
        levels = np.stack((rows.packed & 15, rows.packed >> 4), axis=-1).reshape(*rows.packed.shape[:2], -1)
    blocks = levels.shape[1]
    if rows.zero_points is None:
        zeros: NDArray[np.float32] = np.full((1, blocks), 1 << (form.bits - 1), np.float32)
    elif form.bits == 8:
        zeros = rows.zero_points.astype(np.float32)
    else:
        nibbles = np.stack((rows.zero_points & 15, rows.zero_points >> 4), axis=-1)
        zeros = nibbles.reshape(len(nibbles), -1)[:, :blocks].astype(np.float32)
    values = (levels.astype(np.float32) - zeros[..., None]) * rows.scales[..., None]
    return values.reshape(len(values), -1)[:, :k]


def row_chunks(n: int, k: int) -> Iterator[slice]:
    """Row slices of an ``[n, k]`` matrix, each small enough to quantise without large temporaries."""
    step = max(1, _CHUNK_VALUES // max(1, k))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _search_symmetric(values: Float32, bits: int) -> tuple[UInt8, Float32, UInt8]:
    """Levels and signed scales around the middle level.

    The value of largest magnitude maps to the lowest level, which has one more step than the highest; the scale
    therefore carries that value's sign. For a given rounding q the best scale is ``<x, q> / <q, q>``.
    """
    middle = 1 << (bits - 1)
    extreme = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)[..., 0]
    flat = np.abs(extreme) < _TINY
    safe = np.where(flat, np.float32(1), extreme)
    if bits == 8:
        scales = (safe / np.float32(-middle)).astype(np.float32)
        levels = np.clip(np.rint(values / scales[..., None]), -middle, middle - 1)
        levels[flat] = 0
        return (levels + middle).astype(np.uint8), scales, np.empty(0, np.uint8)
    best_gain = np.full(safe.shape, -1.0, np.float32)
    best_levels = np.zeros(values.shape, np.int8)
    best_scales = np.ones(safe.shape, np.float32)
    for step in _SYMMETRIC_STEPS:
        inverse = (np.float32(-middle + step) / safe)[..., None]
        levels = np.clip(np.rint(values * inverse), -middle, middle - 1)
        _keep_best(values, levels, best_gain, best_levels, best_scales)
    best_levels[flat] = 0
    best_scales[flat] = 1.0
    return (best_levels + np.int8(middle)).astype(np.uint8), best_scales, np.empty(0, np.uint8)


def _search_asymmetric(values: Float32, bits: int) -> tuple[UInt8, Float32, UInt8]:
    """Levels, positive scales and integer zero points; the range always contains zero."""
    top = (1 << bits) - 1
    low = np.minimum(values.min(-1), 0)
    high = np.maximum(values.max(-1), 0)
    flat = high - low < _TINY
    best_gain = np.full(low.shape, -1.0, np.float32)
    best_levels = np.zeros(values.shape, np.int16)
    best_scales = np.ones(low.shape, np.float32)
    best_zeros = np.zeros(low.shape, np.int16)
    for shrink in _ASYMMETRIC_SHRINK if bits == 4 else (1.0,):
        scale = np.where(flat, 1, (high - low) * np.float32(shrink / top)).astype(np.float32)
        zeros = np.clip(np.rint(-low * np.float32(shrink) / scale), 0, top)
        levels = np.clip(np.rint(values / scale[..., None]), -zeros[..., None], top - zeros[..., None])
        better = _keep_best(values, levels, best_gain, best_levels, best_scales)
        best_zeros[better] = zeros[better].astype(np.int16)
    best_levels[flat] = 0
    best_scales[flat] = 1.0
    best_zeros[flat] = 0
    return (best_levels + best_zeros[..., None]).astype(np.uint8), best_scales, best_zeros.astype(np.uint8)


def _keep_best(
    values: Float32,
    levels: Float32,
    best_gain: Float32,
    best_levels: NDArray[np.signedinteger],
    best_scales: Float32,
) -> NDArray[np.bool_]:
    """Keep ``levels`` in the blocks where they beat the best so far; returns those blocks.

    The squared error of a rounding with its best scale is ``<x, x> - <x, q>^2 / <q, q>``: the gain is the last term.
    """
    dot = np.einsum("rbk,rbk->rb", values, levels)
    norm = np.einsum("rbk,rbk->rb", levels, levels)
    norm_or_one = np.where(norm > 0, norm, 1)
    gain = dot * dot / norm_or_one
    better: NDArray[np.bool_] = (gain > best_gain) & (norm > 0)
    best_gain[better] = gain[better]
    best_levels[better] = levels[better].astype(best_levels.dtype)
    best_scales[better] = (dot / norm_or_one)[better]
    return better


def _pack_zero_points(zeros: UInt8, bits: int) -> UInt8:
    if bits == 8:
        return zeros
    padded = zeros if zeros.shape[1] % 2 == 0 else np.pad(zeros, ((0, 0), (0, 1)))
    return np.ascontiguousarray(padded[:, 0::2] | (padded[:, 1::2] << 4))
