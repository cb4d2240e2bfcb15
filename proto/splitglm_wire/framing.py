"""Frames to bytes and back.

Layout, little-endian: ``kind u8 | flags u8 | zero u16 | handle u32 | body_len u32`` and the body, zero-padded to a
multiple of 64 bytes. Every token reply and every control frame (truncate, cancel, close, opened, ended, draining, an
empty ping or pong) has exactly 64 bytes; only frames that carry ids, tensors, probes or an error's text have more.
Decoding checks every length and range before it copies anything and raises ``ProtocolError`` for whatever it does not
understand. It is strict: bytes that decode are the bytes that encoding the frame gives (a probe's filling aside).
"""

from __future__ import annotations

import struct
from typing import Final

from splitglm_core.errors import InputError, ProtocolError
from splitglm_wire.frames import (
    Cancel,
    Close,
    Draining,
    Ended,
    Error,
    ErrorCode,
    Frame,
    Kind,
    Open,
    Opened,
    Ping,
    Pong,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import (
    FRAME_ALIGN,
    MAX_CONTEXT,
    MAX_ERROR_TEXT_BYTES,
    MAX_GENERATE,
    MAX_PROBE_BYTES,
    MAX_RECORD_BYTES,
    MAX_ROWS,
    MAX_SLOWDOWN_PERMILLE,
)
from splitglm_wire.open_frame import pack_open, unpack_open

_HEADER: Final = struct.Struct("<BBHII")
_STEP: Final = struct.Struct("<IIIBBHI")
_FENCE_AND: Final = struct.Struct("<II")
_U32: Final = struct.Struct("<I")
_PING: Final = struct.Struct("<QII")
_OPENED: Final = struct.Struct("<IIIII")
_RESULT: Final = struct.Struct("<IIIBBHIIII")
_ERROR: Final = struct.Struct("<IIBBBBIIH")
_PONG: Final = struct.Struct("<QIIII")
_EMPTY: Final = struct.Struct("")
_ZEROS: Final = memoryview(bytes(FRAME_ALIGN))


def _pad(kind: Kind, handle: int, *body: bytes | memoryview) -> bytes:
    length = sum(map(len, body))
    size = _HEADER.size + length
    if size > MAX_RECORD_BYTES:
        raise ProtocolError(f"a frame of {size} bytes does not fit one record")
    return b"".join((_HEADER.pack(kind, 0, 0, handle, length), *body, _ZEROS[: -size % FRAME_ALIGN]))


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, padded.

    Raises:
        ProtocolError: a number out of range or too much of something: never sent wrapped or cut.
    """
    try:
        return _encode(frame)
    except struct.error as error:
        raise ProtocolError(f"a {type(frame).__name__} frame holds a number out of range") from error


def _encode(frame: Frame) -> bytes:
    h = frame.handle
    match frame:
        case Open():
            return _pad(Kind.OPEN, h, pack_open(frame))
        case Step():
            _check_step(frame.seq, frame.base, frame.rows, frame.generate)
            head = _STEP.pack(
                frame.fence, frame.seq, frame.base, frame.rows_kind, frame.reply, frame.rows, frame.generate
            )
            return _pad(Kind.STEP, h, head, frame.payload)
        case Truncate():
            return _pad(Kind.TRUNCATE, h, _FENCE_AND.pack(frame.fence, frame.length))
        case Cancel():
            return _pad(Kind.CANCEL, h, _FENCE_AND.pack(frame.fence, frame.seq))
        case Close():
            return _pad(Kind.CLOSE, h, _U32.pack(frame.fence))
        case Ping():
            _check_probe(frame.size, frame.reply_size)
            return _pad(Kind.PING, h, _PING.pack(frame.nonce, frame.size, frame.reply_size), bytes(frame.size))
        case Opened():
            numbers = (frame.fence, frame.request, frame.have, frame.last_seq, frame.step_fence)
            return _pad(Kind.OPENED, h, _OPENED.pack(*numbers))
        case Result():
            _check_result(frame.rows, frame.last)
            head = _RESULT.pack(
                frame.fence,
                frame.seq,
                frame.index,
                frame.last,
                frame.reply,
                frame.rows,
                frame.kv_length,
                min(frame.queue_us, 0xFFFFFFFF),
                min(frame.sweep_us, 0xFFFFFFFF),
                min(frame.compute_us, 0xFFFFFFFF),
            )
            return _pad(Kind.RESULT, h, head, frame.payload)
        case Error():
            text = frame.text.encode()
            if len(text) > MAX_ERROR_TEXT_BYTES:
                raise ProtocolError("an error's text is too long")
            head = _ERROR.pack(
                frame.fence,
                frame.seq,
                frame.code,
                frame.scope,
                frame.resumable,
                0,
                frame.retry_after_ms,
                frame.have,
                len(text),
            )
            return _pad(Kind.ERROR, h, head, text)
        case Ended():
            return _pad(Kind.ENDED, h)
        case Draining():
            return _pad(Kind.DRAINING, h, _U32.pack(frame.deadline_ms))
        case Pong():
            _check_probe(frame.size)
            _check_slowdown(frame.slowdown_permille)
            waits_us = min(frame.queue_us, 0xFFFFFFFF), min(frame.sweep_us, 0xFFFFFFFF)
            head = _PONG.pack(frame.nonce, frame.size, *waits_us, frame.slowdown_permille)
            return _pad(Kind.PONG, h, head, bytes(frame.size))


def _check_step(seq: int, base: int, rows: int, generate: int) -> None:
    if not (0 < rows <= MAX_ROWS and base + rows <= MAX_CONTEXT and generate <= MAX_GENERATE and seq > 0):
        raise ProtocolError("a step is out of bounds")


def _check_result(rows: int, last: int) -> None:
    if rows > MAX_ROWS or last > 1:
        raise ProtocolError("a result is out of bounds")


def _check_probe(*sizes: int) -> None:
    if max(sizes) > MAX_PROBE_BYTES:
        raise ProtocolError("a probe is too large")


def _check_slowdown(permille: int) -> None:
    if not 0 < permille <= MAX_SLOWDOWN_PERMILLE:
        raise ProtocolError("a pong is out of bounds")


def decode(data: bytes | bytearray | memoryview) -> Frame:
    """Parse one frame; payloads are views into ``data``.

    Raises:
        ProtocolError: anything malformed, unknown or out of bounds.
    """
    view = memoryview(data)
    if not _HEADER.size <= len(view) <= MAX_RECORD_BYTES or len(view) % FRAME_ALIGN:
        raise ProtocolError("a frame has an impossible size")
    kind, flags, zero, handle, length = _HEADER.unpack_from(view)
    if flags or zero or _HEADER.size + length > len(view) or len(view) - _HEADER.size - length >= FRAME_ALIGN:
        raise ProtocolError("a frame's header is malformed")
    body, padding = view[_HEADER.size : _HEADER.size + length], view[_HEADER.size + length :]
    if padding != _ZEROS[: len(padding)]:
        raise ProtocolError("a frame's padding is not zero")
    try:
        return _decode(kind, handle, body)
    except (struct.error, ValueError, IndexError, InputError) as error:
        # InputError: plan and sampling parameters validate themselves; here the peer broke them, not the user.
        raise ProtocolError("a frame's body is malformed") from error


def _decode(kind: int, handle: int, body: memoryview) -> Frame:
    if kind == Kind.STEP:
        fence, seq, base, rows_kind, reply, rows, generate = _STEP.unpack_from(body)
        _check_step(seq, base, rows, generate)
        return Step(
            handle=handle,
            fence=fence,
            seq=seq,
            base=base,
            rows_kind=Rows(rows_kind),
            rows=rows,
            reply=Reply(reply),
            generate=generate,
            payload=body[_STEP.size :],
        )
    if kind == Kind.RESULT:
        fence, seq, index, last, reply, rows, kv_length, queue_us, sweep_us, compute_us = _RESULT.unpack_from(body)
        _check_result(rows, last)
        return Result(
            handle=handle,
            fence=fence,
            seq=seq,
            index=index,
            last=bool(last),
            reply=Reply(reply),
            kv_length=kv_length,
            rows=rows,
            queue_us=queue_us,
            sweep_us=sweep_us,
            compute_us=compute_us,
            payload=body[_RESULT.size :],
        )
    if kind == Kind.OPEN:
        return unpack_open(handle, body)
    if kind == Kind.ERROR:
        fence, seq, code, scope, resumable, zero, retry, have, text_len = _ERROR.unpack_from(body)
        text = bytes(body[_ERROR.size :])
        if len(text) != text_len or text_len > MAX_ERROR_TEXT_BYTES or resumable > 1 or zero:
            raise ProtocolError("an error frame is out of bounds")
        return Error(
            handle=handle,
            fence=fence,
            seq=seq,
            code=ErrorCode(code),
            scope=Scope(scope),
            resumable=bool(resumable),
            retry_after_ms=retry,
            have=have,
            text=text.decode("utf-8"),
        )
    if kind == Kind.PING:
        nonce, size, reply_size = _PING.unpack_from(body)
        _check_probe(size, reply_size)
        if len(body) != _PING.size + size:
            raise ProtocolError("a ping's size is wrong")
        return Ping(handle=handle, nonce=nonce, size=size, reply_size=reply_size)
    if kind == Kind.PONG:
        nonce, size, queue_us, sweep_us, slowdown = _PONG.unpack_from(body)
        _check_probe(size)
        _check_slowdown(slowdown)
        if len(body) != _PONG.size + size:
            raise ProtocolError("a pong's size is wrong")
        return Pong(
            handle=handle,
            nonce=nonce,
            size=size,
            queue_us=queue_us,
            sweep_us=sweep_us,
            slowdown_permille=slowdown,
        )
    return _decode_fixed(kind, handle, body)


def _decode_fixed(kind: int, handle: int, body: memoryview) -> Frame:
    """Frames whose body has exactly one size."""

    def unpack(shape: struct.Struct) -> tuple[int, ...]:
        if len(body) != shape.size:
            raise ProtocolError("a frame has the wrong length")
        return shape.unpack(body)

    if kind == Kind.TRUNCATE:
        fence, length = unpack(_FENCE_AND)
        return Truncate(handle=handle, fence=fence, length=length)
    if kind == Kind.CANCEL:
        fence, seq = unpack(_FENCE_AND)
        return Cancel(handle=handle, fence=fence, seq=seq)
    if kind == Kind.CLOSE:
        return Close(handle=handle, fence=unpack(_U32)[0])
    if kind == Kind.OPENED:
        fence, request, have, last_seq, step_fence = unpack(_OPENED)
        return Opened(handle=handle, fence=fence, request=request, have=have, last_seq=last_seq, step_fence=step_fence)
    if kind == Kind.ENDED:
        unpack(_EMPTY)
        return Ended(handle=handle)
    if kind == Kind.DRAINING:
        return Draining(handle=handle, deadline_ms=unpack(_U32)[0])
    raise ProtocolError("a frame is of an unknown kind")
