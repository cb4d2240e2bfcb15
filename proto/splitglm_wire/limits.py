"""Every bound of the wire with its reason. A bound is checked before anything of that size is allocated."""

from __future__ import annotations

from typing import Final

MAX_RECORD_BYTES: Final = 1 << 20
"""Plaintext of one sealed record: one prefill chunk, e.g. 125 positions of hidden 4096 in bf16 and the frame's header;
large enough to amortise the seal, small enough that a peer cannot make us buffer much per message."""

MAX_REPLY_BYTES: Final = MAX_RECORD_BYTES - 64
"""Payload of one result: what a record has room for beside the frame's header."""

FRAME_ALIGN: Final = 64
"""Frames are zero-padded to a multiple of this, so that every token reply and every fixed-size control frame has one
size."""

MAX_GRPC_MESSAGE_BYTES: Final = 2 << 20
"""gRPC's own limit on both ends: a record, its header and tag, with room for the protobuf envelope."""

MAX_ROWS: Final = 4096
"""Positions in one step."""

MAX_HIDDEN: Final = 1 << 16
MAX_CONTEXT: Final = 1 << 20
MAX_GENERATE: Final = 1 << 17
"""Tokens that one step may ask the cloud to generate by itself."""

MAX_PROBE_BYTES: Final = 256 << 10
"""Extra bytes of a bandwidth probe, either way."""

MAX_SLOWDOWN_PERMILLE: Final = 1_000_000
"""Of a decode step, told in a pong: a cloud a thousand times slower than alone is not busy but broken."""

MAX_STOP_IDS: Final = 64
MAX_ERROR_TEXT_BYTES: Final = 200
MAX_MANIFEST_BYTES: Final = 4096
MAX_VERSION_CHARS: Final = 64
MAX_LAYERS: Final = (1 << 16) - 1
"""What an open frame's 16-bit fields can name."""

MAX_SESSIONS_PER_STREAM: Final = 64
MAX_QUEUED_STEPS: Final = 64
"""Steps of one session that may wait in the cloud: prefill is pipelined, not unbounded."""

MAX_QUEUED_BYTES: Final = 64 << 20

MAX_ABS_VALUE: Final = 1.0e6
"""Hidden states beyond this are refused: the largest massive activation measured was 2.4e4 (SmolLM2-135M, layer 12+),
and a poisoned row must not reach a shared batch."""
