"""What travels under each arm and codec, in bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from splitglm_core.plan import Arm, Codec
from splitglm_partitioner.request import Situation

TOKEN_BYTES = 4
_INT8_ROW_EXTRA_BYTES = 28  # one fp32 scale and four exact outlier channels of 2 + 4 bytes


def row_bytes(codec: Codec, hidden: int) -> int:
    """Bytes of one position's hidden state at any position but 0 (the sizes of splitglm_wire.codec)."""
    if codec is Codec.FP32:
        return 4 * hidden
    return 2 * hidden if codec is Codec.BF16 else hidden + _INT8_ROW_EXTRA_BYTES


def sink_extra_bytes(codec: Codec, hidden: int) -> int:
    """Bytes by which position 0 exceeds another row: int8 sends the attention sink in fp32."""
    return 4 * hidden - row_bytes(codec, hidden) if codec is Codec.INT8 else 0


class Lane(NamedTuple):
    """What travels under one arm and codec, in bytes per position.

    Attributes:
        arm, codec: ``codec`` is None where no hidden state travels.
        up_row, down_row: bytes of one position in each direction.
        up_sink, down_sink: further bytes when the position is 0.
    """

    arm: Arm
    codec: Codec | None
    up_row: int
    up_sink: int
    down_row: int
    down_sink: int


def lane_of(arm: Arm, codec: Codec, hidden: int) -> Lane:
    """Bytes on the wire for ``arm``; ``codec`` matters for SPLIT and USHAPE only."""
    if arm is Arm.DEVICE:
        return Lane(arm, None, 0, 0, 0, 0)
    if arm is Arm.CLOUD:
        return Lane(arm, None, TOKEN_BYTES, 0, TOKEN_BYTES, 0)
    row, sink = row_bytes(codec, hidden), sink_extra_bytes(codec, hidden)
    if arm is Arm.SPLIT:
        return Lane(arm, codec, row, sink, TOKEN_BYTES, 0)
    return Lane(arm, codec, row, sink, row, sink)


def undominated(codecs: tuple[Codec, ...], situation: Situation) -> tuple[Codec, ...]:
    """Drop the codecs that lose at every cut: another needs fewer bytes for every chunk and no more device time.

    The codec of an open session stays, since it alone can go on there.
    """
    request, timed = situation.request, situation.device.codecs
    coding = tuple([next((entry.s_per_token for entry in timed if entry.codec is codec), 0.0) for codec in codecs])
    warm = request.warm.plan.codec if request.warm is not None else None
    # What is beaten in the shortest first chunk is beaten in any: with its length the other's lead grows.
    first_rows = min(request.prompt_tokens, *request.chunk_sizes)
    return _undominated(codecs, coding, situation.model.hidden, first_rows, warm)


@lru_cache(maxsize=256)
def _undominated(
    codecs: tuple[Codec, ...], coding: tuple[float, ...], hidden: int, first_rows: int, warm: Codec | None
) -> tuple[Codec, ...]:
    costs = {}
    for codec, seconds in zip(codecs, coding, strict=True):
        row = row_bytes(codec, hidden)
        costs[codec] = (row, first_rows * row + sink_extra_bytes(codec, hidden), seconds)

    def beats(other: Codec, codec: Codec) -> bool:
        no_worse = all(a <= b for a, b in zip(costs[other], costs[codec], strict=True))
        return no_worse and costs[other][0] < costs[codec][0]

    return tuple(codec for codec in codecs if codec is warm or not any(beats(other, codec) for other in codecs))
