"""The body of an ``Open`` frame: session, plan, sampling, criticality, and two lists of token ids.

Of the plan travels what concerns the cloud; who drafts on the device (``drafter``, ``draft_tokens``) does not.
"""

from __future__ import annotations

import struct
from typing import Final

from splitglm_core.criticality import Criticality
from splitglm_core.errors import ProtocolError
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.frames import Open
from splitglm_wire.limits import MAX_CONTEXT, MAX_GENERATE, MAX_STOP_IDS

_BODY: Final = struct.Struct("<16sIIHHHBBHIIIQIdddddHBB")
_CODECS: Final = (Codec.FP32, Codec.BF16, Codec.INT8)
_HEADS: Final = (HeadSide.DEVICE, HeadSide.CLOUD)


def _check(session_id: bytes, fence: int, context: int, stops: int, generated: int) -> None:
    if len(session_id) != 16 or fence == 0 or not 0 < context <= MAX_CONTEXT:
        raise ProtocolError("an open frame is out of bounds")
    if stops > MAX_STOP_IDS or generated > MAX_GENERATE:
        raise ProtocolError("an open frame names too many tokens")


def pack_open(frame: Open) -> bytes:
    """The body's bytes.

    Raises:
        ProtocolError, struct.error: a value is out of bounds.
    """
    _check(frame.session_id, frame.fence, frame.context, len(frame.stop_ids), len(frame.generated))
    p, s = frame.plan, frame.sampling
    body = _BODY.pack(
        frame.session_id,
        frame.fence,
        frame.request,
        p.layers,
        p.s,
        p.t,
        _HEADS.index(p.head),
        _CODECS.index(p.codec),
        p.chunk_tokens,
        frame.context,
        frame.keep,
        frame.deadline_ms,
        s.seed,
        s.top_k,
        s.temperature,
        s.top_p,
        s.repetition_penalty,
        s.frequency_penalty,
        s.presence_penalty,
        len(frame.stop_ids),
        frame.criticality,
        0,
    )
    ids = frame.stop_ids + frame.generated
    return body + struct.pack(f"<{len(ids)}I", *ids)


def unpack_open(handle: int, body: memoryview) -> Open:
    """The frame of a body.

    Raises:
        ProtocolError, struct.error, IndexError, ValueError, InputError: it is malformed or out of bounds.
    """
    (
        session_id,
        fence,
        request,
        layers,
        s,
        t,
        head,
        codec,
        chunk,
        context,
        keep,
        deadline_ms,
        seed,
        top_k,
        temperature,
        top_p,
        repetition,
        frequency,
        presence,
        stops,
        criticality,
        zero,
    ) = _BODY.unpack_from(body)
    tail = body[_BODY.size :]
    if zero or len(tail) % 4 or stops > len(tail) // 4:
        raise ProtocolError("an open frame is malformed")
    _check(session_id, fence, context, stops, len(tail) // 4 - stops)
    ids = struct.unpack(f"<{len(tail) // 4}I", tail)
    return Open(
        handle=handle,
        session_id=session_id,
        fence=fence,
        request=request,
        plan=SplitPlan(layers=layers, s=s, t=t, head=_HEADS[head], codec=_CODECS[codec], chunk_tokens=chunk),
        context=context,
        keep=keep,
        sampling=SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            seed=seed,
        ),
        deadline_ms=deadline_ms,
        stop_ids=ids[:stops],
        criticality=Criticality(criticality),
        generated=ids[stops:],
    )
