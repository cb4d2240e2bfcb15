"""Frames: exact both ways, and a malformed one is a ``ProtocolError`` at no cost, never anything else."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_frames import CONTROL, FRAMES, one_of_each

from splitglm_core.errors import ProtocolError
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.frames import Frame, Kind, Open, Ping, Pong, Result, Step
from splitglm_wire.framing import decode, encode
from splitglm_wire.limits import (
    FRAME_ALIGN,
    MAX_CONTEXT,
    MAX_ERROR_TEXT_BYTES,
    MAX_GENERATE,
    MAX_PROBE_BYTES,
    MAX_RECORD_BYTES,
    MAX_ROWS,
    MAX_SLOWDOWN_PERMILLE,
    MAX_STOP_IDS,
)

EACH = one_of_each()
HEADER = struct.Struct("<BBHII")
IDS = [type(frame).__name__ for frame in EACH]


def sealed(
    kind: int, body: bytes, *, handle: int = 1, flags: int = 0, zero: int = 0, length: int | None = None
) -> bytes:
    """Bytes with an honest frame's outside."""
    data = HEADER.pack(kind, flags, zero, handle, len(body) if length is None else length) + body
    return data + bytes(-len(data) % FRAME_ALIGN)


def refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


def body_of(frame: Frame) -> bytes:
    data = encode(frame)
    return data[HEADER.size : HEADER.size + HEADER.unpack_from(data)[4]]


def kind_of(frame: Frame) -> Kind:
    return Kind[type(frame).__name__.upper()]


@given(frame=FRAMES)
@settings(max_examples=600, deadline=None)
def test_every_frame_comes_back_as_it_was(frame: Frame) -> None:
    data = encode(frame)
    assert len(data) % FRAME_ALIGN == 0
    assert decode(data) == decode(bytearray(data)) == decode(memoryview(data)) == frame
    assert encode(decode(data)) == data


def test_every_type_of_frame_is_tried() -> None:
    assert {kind_of(frame) for frame in EACH} == set(Kind)
    assert all(decode(encode(frame)) == frame for frame in EACH)


@given(frame=st.one_of(CONTROL))
@settings(max_examples=300, deadline=None)
def test_every_control_frame_has_one_size(frame: Frame) -> None:
    assert len(encode(frame)) == FRAME_ALIGN


@given(token=st.integers(0, 2**32 - 1), index=st.integers(0, MAX_GENERATE), last=st.booleans())
def test_every_token_reply_has_the_size_of_a_control_frame(token: int, index: int, last: bool) -> None:
    frame = replace(EACH[7], payload=token.to_bytes(4, "little"), index=index, last=last)  # type: ignore[arg-type]
    assert len(encode(frame)) == FRAME_ALIGN
    assert len(encode(replace(frame, rows=0, payload=b""))) == FRAME_ALIGN


def test_a_wait_beyond_what_a_pong_holds_is_told_as_the_longest() -> None:
    told = decode(encode(replace(EACH[11], queue_us=2**32, sweep_us=2**70)))  # type: ignore[arg-type]
    assert isinstance(told, Pong) and (told.queue_us, told.sweep_us) == (2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize("frame", EACH, ids=IDS)
def test_every_truncation_and_every_other_length_is_refused(frame: Frame) -> None:
    data = encode(frame)
    for size in range(len(data)):
        refused(data[:size])
    for extra in range(1, 2 * FRAME_ALIGN + 1):
        refused(data + bytes(extra))
    for size in range(len(data), 0, -1):
        refused(bytes(data[size:]))


@pytest.mark.parametrize("frame", EACH, ids=IDS)
def test_every_declared_body_length_but_the_true_one_is_refused(frame: Frame) -> None:
    """Within the same padded size, too: what the length does not cover must be padding, and padding is zero."""
    body, kind = body_of(frame), kind_of(frame)
    whole = len(encode(frame)) - HEADER.size
    for length in [*range(whole + 70), 2**16, 2**31, 2**32 - 1]:
        if length == len(body):
            continue
        data = HEADER.pack(kind, 0, 0, 1, length) + encode(frame)[HEADER.size :]
        try:
            other = decode(data)
        except ProtocolError:
            continue
        # A payload of free length may be cut or grow within the padding; then it is that frame's only encoding.
        assert isinstance(frame, Step | Result | Open)
        assert encode(other) == data


@pytest.mark.parametrize("frame", EACH, ids=IDS)
def test_a_flipped_bit_is_refused_or_is_exactly_another_frame(frame: Frame) -> None:
    data = encode(frame)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            other = decode(bytes(changed))
        except ProtocolError:
            continue
        # What fills a probe means nothing, so it is not read.
        assert encode(other) == bytes(changed) or (isinstance(frame, Ping | Pong) and bit >= 8 * HEADER.size)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(Kind)))
def test_an_unknown_kind_is_refused(kind: int) -> None:
    for body in (b"", bytes(8), bytes(100)):
        refused(sealed(kind, body))


@pytest.mark.parametrize(("flags", "zero"), [(1, 0), (128, 0), (0, 1), (0, 0x8000)])
def test_reserved_bits_are_refused(flags: int, zero: int) -> None:
    for frame in EACH:
        refused(sealed(kind_of(frame), body_of(frame), flags=flags, zero=zero))


def test_what_does_not_fit_a_record_is_neither_sent_nor_taken() -> None:
    refused(bytes(MAX_RECORD_BYTES + FRAME_ALIGN))
    step = EACH[1]
    room = MAX_RECORD_BYTES - len(encode(replace(step, payload=bytes(FRAME_ALIGN)))) + FRAME_ALIGN  # type: ignore[arg-type]
    largest = replace(step, payload=bytes(room))  # type: ignore[arg-type]
    assert decode(encode(largest)) == largest
    with pytest.raises(ProtocolError):
        encode(replace(step, payload=bytes(MAX_RECORD_BYTES)))  # type: ignore[arg-type]


OPEN, STEP, RESULT, ERROR, PONG = EACH[0], EACH[1], EACH[7], EACH[8], EACH[11]
OUT_OF_BOUNDS: list[tuple[Frame, dict[str, Any]]] = [
    (STEP, {"rows": 0}),
    (STEP, {"rows": MAX_ROWS + 1}),
    (STEP, {"rows": -1}),
    (STEP, {"seq": 0}),
    (STEP, {"base": MAX_CONTEXT}),
    (STEP, {"base": -1}),
    (STEP, {"base": 2**31}),
    (STEP, {"base": 2**63}),
    (STEP, {"generate": MAX_GENERATE + 1}),
    (STEP, {"generate": -1}),
    (STEP, {"handle": -1}),
    (STEP, {"handle": 2**32}),
    (STEP, {"fence": 2**32}),
    (STEP, {"seq": 2**63}),
    (RESULT, {"rows": MAX_ROWS + 1}),
    (RESULT, {"rows": -1}),
    (RESULT, {"index": 2**32}),
    (RESULT, {"kv_length": -1}),
    (OPEN, {"session_id": bytes(15)}),
    (OPEN, {"session_id": bytes(17)}),
    (OPEN, {"fence": 0}),
    (OPEN, {"context": 0}),
    (OPEN, {"context": MAX_CONTEXT + 1}),
    (OPEN, {"keep": -1}),
    (OPEN, {"stop_ids": tuple(range(MAX_STOP_IDS + 1))}),
    (OPEN, {"stop_ids": (2**32,)}),
    (OPEN, {"stop_ids": (-1,)}),
    (OPEN, {"generated": (2**32,)}),
    (OPEN, {"generated": (0,) * (MAX_GENERATE + 1)}),
    (OPEN, {"plan": SplitPlan.device_only(2**16)}),
    (ERROR, {"text": "x" * (MAX_ERROR_TEXT_BYTES + 1)}),
    (ERROR, {"text": "€" * MAX_ERROR_TEXT_BYTES}),
    (EACH[5], {"size": MAX_PROBE_BYTES + 1}),
    (EACH[5], {"size": 2**40}),
    (EACH[5], {"reply_size": MAX_PROBE_BYTES + 1}),
    (EACH[5], {"nonce": 2**64}),
    (EACH[11], {"size": MAX_PROBE_BYTES + 1}),
    (EACH[11], {"queue_us": -1}),
    (EACH[11], {"sweep_us": -1}),
    (EACH[11], {"slowdown_permille": 0}),
    (EACH[11], {"slowdown_permille": MAX_SLOWDOWN_PERMILLE + 1}),
    (EACH[11], {"slowdown_permille": 2**40}),
    (EACH[2], {"length": 2**32}),
    (EACH[6], {"have": 2**32}),
]


@pytest.mark.parametrize(("frame", "change"), OUT_OF_BOUNDS, ids=lambda x: str(x)[:40] if isinstance(x, dict) else "")
def test_a_number_out_of_bounds_is_never_sent(frame: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        encode(replace(frame, **change))


@pytest.mark.parametrize(
    ("frame", "at", "value"),
    [
        (STEP, 12, b"\0"),  # rows kind
        (STEP, 12, b"\3"),
        (STEP, 13, b"\0"),  # reply
        (STEP, 13, b"\5"),
        (STEP, 14, struct.pack("<H", 0)),  # rows
        (STEP, 14, struct.pack("<H", MAX_ROWS + 1)),
        (STEP, 16, struct.pack("<I", MAX_GENERATE + 1)),
        (STEP, 8, struct.pack("<I", MAX_CONTEXT)),  # base
        (STEP, 8, b"\xff" * 4),
        (STEP, 4, bytes(4)),  # seq
        (RESULT, 12, b"\2"),  # last
        (RESULT, 13, b"\0"),  # reply
        (RESULT, 14, struct.pack("<H", MAX_ROWS + 1)),
        (ERROR, 8, b"\0"),  # code
        (ERROR, 8, b"\x0e"),
        (ERROR, 9, b"\0"),  # scope
        (ERROR, 9, b"\4"),
        (ERROR, 10, b"\2"),  # resumable
        (ERROR, 11, b"\1"),  # reserved
        (ERROR, 20, struct.pack("<H", 45)),  # text length
        (ERROR, 22, b"\xff\xfe"),  # not UTF-8
        (OPEN, 16, bytes(4)),  # fence
        (OPEN, 24, struct.pack("<HHH", 0, 0, 0)),  # no layers
        (OPEN, 24, struct.pack("<HHH", 30, 21, 20)),  # s > t
        (OPEN, 24, struct.pack("<HHH", 30, 10, 31)),  # t > layers
        (OPEN, 30, b"\1"),  # a cloud's head with a tail
        (OPEN, 30, b"\2"),  # no such side
        (OPEN, 31, b"\3"),  # no such codec
        (OPEN, 32, bytes(2)),  # chunk
        (OPEN, 34, bytes(4)),  # context
        (OPEN, 34, b"\xff" * 4),
        (OPEN, 58, struct.pack("<d", float("nan"))),  # temperature
        (OPEN, 58, struct.pack("<d", -1.0)),
        (OPEN, 58, struct.pack("<d", float("inf"))),
        (OPEN, 66, struct.pack("<d", 0.0)),  # top_p
        (OPEN, 74, struct.pack("<d", 0.0)),  # repetition penalty
        (OPEN, 54, struct.pack("<I", 2**20 + 1)),  # top_k
        (OPEN, 98, struct.pack("<H", 4)),  # more stop ids than ids
        (OPEN, 98, struct.pack("<H", MAX_STOP_IDS + 1)),
        (OPEN, 100, b"\0"),  # criticality
        (OPEN, 100, b"\5"),
        (OPEN, 101, b"\1"),  # reserved
        (PONG, 20, bytes(4)),  # slowdown
        (PONG, 20, struct.pack("<I", MAX_SLOWDOWN_PERMILLE + 1)),
        (PONG, 20, b"\xff" * 4),
        (PONG, 8, struct.pack("<I", 71)),  # size
    ],
)
def test_a_field_out_of_bounds_is_refused(frame: Frame, at: int, value: bytes) -> None:
    body = bytearray(body_of(frame))
    assert bytes(body[at : at + len(value)]) != value
    body[at : at + len(value)] = value
    refused(sealed(kind_of(frame), bytes(body)))


def test_lists_of_ids_are_whole_and_bounded() -> None:
    body = body_of(OPEN)
    for cut in (1, 2, 3):
        refused(sealed(Kind.OPEN, body[:-cut]))
    many = body + bytes(4 * MAX_GENERATE)
    assert len(many) < MAX_RECORD_BYTES
    refused(sealed(Kind.OPEN, many))


def test_declared_sizes_allocate_nothing() -> None:
    """Headers that promise gigabytes: refused before any of it exists."""
    hostile = [sealed(kind, bytes(40), length=length) for kind in Kind for length in (2**20, 2**31, 2**32 - 1)]
    hostile += [sealed(Kind.PING, struct.pack("<QII", 1, size, 0)) for size in (2**18, 2**31, 2**32 - 1)]
    hostile += [sealed(Kind.PING, struct.pack("<QII", 1, 0, size)) for size in (2**18 + 1, 2**31, 2**32 - 1)]
    hostile += [sealed(Kind.PONG, struct.pack("<QIIII", 1, size, 0, 0, 1000)) for size in (2**18, 2**31, 2**32 - 1)]
    hostile += [sealed(Kind.ERROR, struct.pack("<IIBBBBIIH", 1, 1, 1, 1, 0, 0, 0, 0, 2**16 - 1))]
    hostile += [sealed(Kind.STEP, struct.pack("<IIIBBHI", 1, 1, 0, 2, 1, 2**16 - 1, 0))]
    for data in hostile:
        refused(data)
    tracemalloc.start()
    try:
        for data in hostile:
            with pytest.raises(ProtocolError):
                decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for size in (2**20, 2**31, 2**32 - 1, 2**40):
            with pytest.raises(ProtocolError):
                encode(Ping(handle=1, nonce=1, size=size))
            with pytest.raises(ProtocolError):
                encode(Pong(handle=1, nonce=1, size=size))
        assert max(peak, tracemalloc.get_traced_memory()[1]) < 100_000
    finally:
        tracemalloc.stop()


def test_a_payload_is_a_view_not_a_copy() -> None:
    step = replace(STEP, payload=bytes(500_000))  # type: ignore[arg-type]
    data = encode(step)
    tracemalloc.start()
    try:
        frame = decode(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert isinstance(frame, Step)
    assert isinstance(frame.payload, memoryview)


def fuzz(seed: int, count: int) -> int:
    """Random and mutated bytes; returns how many were frames after all."""
    rng = random.Random(seed)
    seeds = [encode(frame) for frame in EACH]
    seeds.append(encode(replace(ERROR, text="é" * 60)))  # type: ignore[arg-type]
    taken = 0
    for _ in range(count):
        if rng.random() < 0.15:
            data = bytearray(rng.randbytes(rng.choice((0, 1, 12, 63, 64, 64, 128, 192))))
        else:
            data = bytearray(rng.choice(seeds))
            if rng.random() < 0.5:
                data[0] = rng.choice((*Kind, rng.randrange(256)))
            for _ in range(rng.choice((0, 1, 1, 2, 8))):
                width = rng.choice((1, 1, 2, 4, 8))
                at = rng.randrange(len(data))
                value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
                data[at : at + width] = bytes([value]) * len(data[at : at + width])
            if rng.random() < 0.1:
                data = data[: rng.randrange(len(data))] + bytes(rng.choice((0, 0, 64)))
        try:
            frame = decode(bytes(data))
        except ProtocolError:
            continue
        taken += 1
        assert isinstance(frame, Ping | Pong) or encode(frame) == bytes(data)
    return taken


def test_fuzzed_bytes_are_refused_or_are_exactly_a_frame() -> None:
    assert 1000 < fuzz(1, 40_000) < 39_000


@pytest.mark.slow
def test_a_million_fuzzed_bytes_and_no_growth() -> None:
    fuzz(2, 10_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for seed in range(100):
            fuzz(100 + seed, 10_000)
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


def test_plan_and_sampling_errors_of_a_peer_are_the_peers_fault() -> None:
    """They validate themselves and blame the user; coming from the wire that would accuse the wrong one."""
    body = bytearray(body_of(OPEN))
    struct.pack_into("<d", body, 58, 1000.0)
    with pytest.raises(ProtocolError) as caught:
        decode(sealed(Kind.OPEN, bytes(body)))
    assert caught.type is ProtocolError


def test_defaults_need_no_sampling_and_no_lists() -> None:
    frame = replace(OPEN, sampling=SamplingParams(), stop_ids=(), generated=())  # type: ignore[arg-type]
    assert decode(encode(frame)) == frame
