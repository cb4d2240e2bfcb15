"""Codecs of hidden states: float32 arrays of shape (rows, hidden) to bytes and back.

Rules of this file: the size of a payload depends on (codec, rows, hidden, base) only, never on the values (a size that
follows content is a side channel); sizes are checked before an array is made and received values before they are
copied; what is not finite or absurdly large is refused on both sides. Every row is coded by itself, so the payloads of
adjacent positions one after the other are the payload of them all, and a payload's first ``payload_bytes(...)`` bytes
are the payload of its first rows.

``INT8`` quantises each position with its own scale. Two things would wreck it (SmolLM2-135M, layer 12: KL to the exact
model 0.033 instead of 0.001) and are sent exactly: position 0, an attention sink with one channel two hundred times the
rest, and in every other row the ``OUTLIERS`` channels of largest magnitude (LLM.int8(), Dettmers et al. 2022, keeps
outlier features apart too).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import BadTensor
from splitglm_core.plan import Codec
from splitglm_wire.limits import MAX_ABS_VALUE, MAX_HIDDEN, MAX_RECORD_BYTES, MAX_ROWS

Hidden = NDArray[np.float32]

OUTLIERS: Final = 4
_SLOT_BYTES: Final = 2 + 4  # channel index u16, value f32
_MAX_BITS: Final = int(np.float32(MAX_ABS_VALUE).view(np.uint32))
_MAX_SCALE: Final = float(np.float32(MAX_ABS_VALUE) / np.float32(127.0))
_INT8_ROW_EXTRA: Final = 4 + OUTLIERS * _SLOT_BYTES  # scale f32 and the slots


def row_bytes(codec: Codec, hidden: int) -> int:
    """Bytes of one ordinary row (any position but 0)."""
    if codec is Codec.FP32:
        return 4 * hidden
    if codec is Codec.BF16:
        return 2 * hidden
    return hidden + _INT8_ROW_EXTRA


def payload_bytes(codec: Codec, rows: int, hidden: int, base: int) -> int:
    """Exact size of the payload of ``rows`` positions starting at position ``base``."""
    total = rows * row_bytes(codec, hidden)
    if codec is Codec.INT8 and base == 0 and rows > 0:
        total += 4 * hidden - row_bytes(codec, hidden)
    return total


def max_rows(codec: Codec, hidden: int) -> int:
    """Largest number of rows whose payload and frame header fit one record."""
    room = MAX_RECORD_BYTES - 256 - 4 * hidden
    return max(1, min(MAX_ROWS, room // row_bytes(codec, hidden)))


def encode(x: Hidden, codec: Codec, *, base: int) -> bytes:
    """Encode hidden states of positions ``[base, base + rows)``; ``x`` is float32 (rows, hidden).

    Raises:
        BadTensor: ``x`` holds a value that is not finite or beyond ``MAX_ABS_VALUE``.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    _check_values(x)
    if codec is Codec.FP32:
        return bytes(x.astype("<f4", copy=False).data)
    if codec is Codec.BF16:
        return bytes(_to_bf16(x).data)
    if base == 0 and len(x):
        return bytes(x[0].astype("<f4", copy=False).data) + _encode_int8(x[1:])
    return _encode_int8(x)


def decode(payload: bytes | memoryview, codec: Codec, *, rows: int, hidden: int, base: int) -> Hidden:
    """Decode a payload into a new float32 array (rows, hidden).

    Raises:
        BadTensor: wrong size for the shape, or values that are not finite, out of bounds or malformed.
    """
    if not (0 < rows <= MAX_ROWS and 0 < hidden <= MAX_HIDDEN):
        raise BadTensor(f"a hidden state of {rows} rows and width {hidden} is outside the limits")
    if len(payload) != payload_bytes(codec, rows, hidden, base):
        raise BadTensor(f"the payload of {len(payload)} bytes does not fit {rows} rows of width {hidden}")
    if codec is Codec.FP32:
        return _from_fp32(payload, rows, hidden)
    if codec is Codec.BF16:
        bits = np.frombuffer(payload, "<u2")
        _check_bits(bits, bits.view("<i2"), _MAX_BITS >> 16)
        return (bits.astype(np.uint32) << 16).view(np.float32).reshape(rows, hidden)
    if base == 0:
        x = np.empty((rows, hidden), np.float32)
        x[:1] = _from_fp32(memoryview(payload)[: 4 * hidden], 1, hidden)
        x[1:] = _decode_int8(memoryview(payload)[4 * hidden :], rows - 1, hidden)
        return x
    return _decode_int8(memoryview(payload), rows, hidden)


def _check_values(x: Hidden) -> None:
    # A NaN compares false with everything, so "not (largest <= bound)" also catches it; one pass, no mask array.
    if x.size and not (max(float(x.max()), -float(x.min())) <= MAX_ABS_VALUE):
        raise BadTensor("a hidden state holds values that are not finite or absurdly large")


def _check_bits(bits: NDArray[Any], signed: NDArray[Any], largest: int) -> None:
    """The same for floats that are still bits: no copy, and nothing is allocated for a payload that is refused.

    Read as signed integers, the positive floats are in order; read as unsigned ones, the negative floats come after
    them and are in order of magnitude. Infinity and NaN are beyond every finite float in both.
    """
    sign = 1 << (8 * bits.itemsize - 1)
    if int(signed.max()) > largest or int(bits.max()) > sign | largest:
        raise BadTensor("a hidden state holds values that are not finite or absurdly large")


def _from_fp32(payload: bytes | memoryview, rows: int, hidden: int) -> Hidden:
    bits = np.frombuffer(payload, "<u4")
    _check_bits(bits, bits.view("<i4"), _MAX_BITS)
    return bits.view("<f4").astype(np.float32).reshape(rows, hidden)


def _to_bf16(x: Hidden) -> NDArray[np.uint16]:
    """Round to nearest even, the rule of every bf16 unit."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _encode_int8(x: Hidden) -> bytes:
    rows, hidden = x.shape
    if rows == 0:
        return b""
    magnitude = np.abs(x)
    slots = min(OUTLIERS, hidden)
    # Four passes of a vectorised argmax take a tenth of the time of one argpartition.
    every = np.arange(rows)
    channel = np.empty((rows, slots), np.intp)
    for slot in range(slots):
        channel[:, slot] = magnitude.argmax(axis=1)
        magnitude[every, channel[:, slot]] = -1.0
    value = np.take_along_axis(x, channel, axis=1)
    scale = np.maximum(magnitude.max(axis=1), np.float32(0.0)) / np.float32(127.0)
    inverse = np.divide(np.float32(1.0), scale, out=np.zeros_like(scale), where=scale > np.float32(1e-30))
    code = np.clip(np.rint(x * inverse[:, None]), -127, 127).astype(np.int8)
    out = np.zeros((rows, hidden + _INT8_ROW_EXTRA), np.uint8)
    out[:, :4] = scale.astype("<f4")[:, None].view(np.uint8)
    at = 4
    out[:, at : at + 2 * slots] = np.ascontiguousarray(channel.astype("<u2")).view(np.uint8)
    at += 2 * OUTLIERS
    out[:, at : at + 4 * slots] = np.ascontiguousarray(value.astype("<f4")).view(np.uint8)
    out[:, _INT8_ROW_EXTRA:] = code.view(np.uint8)
    return out.tobytes()


def _decode_int8(payload: memoryview, rows: int, hidden: int) -> Hidden:
    if rows == 0:
        return np.empty((0, hidden), np.float32)
    raw = np.frombuffer(payload, np.uint8).reshape(rows, hidden + _INT8_ROW_EXTRA)
    scale = np.ascontiguousarray(raw[:, :4]).view("<f4")
    if not (float(scale.min()) >= 0.0 and float(scale.max()) <= _MAX_SCALE):
        raise BadTensor("a hidden state has a scale that is negative, not finite or absurdly large")
    slots = min(OUTLIERS, hidden)
    channel = np.ascontiguousarray(raw[:, 4 : 4 + 2 * slots]).view("<u2").astype(np.intp)
    if int(channel.max()) >= hidden:
        raise BadTensor("a hidden state names an outlier channel outside its width")
    at = 4 + 2 * OUTLIERS
    value = np.ascontiguousarray(raw[:, at : at + 4 * slots]).view("<u4")
    _check_bits(value, value.view("<i4"), _MAX_BITS)
    code = raw[:, _INT8_ROW_EXTRA:].view(np.int8)
    if int(code.min()) < -127:
        raise BadTensor("a hidden state holds a code that no encoder makes")
    x: Hidden = code * scale
    np.put_along_axis(x, channel, value.view("<f4"), axis=1)
    return x
