"""Hypothesis strategies of every frame, within its bounds."""

from __future__ import annotations

from hypothesis import strategies as st

from splitglm_core.criticality import Criticality
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.frames import (
    Cancel,
    Close,
    Draining,
    Ended,
    Error,
    ErrorCode,
    Frame,
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
from splitglm_wire.limits import MAX_CONTEXT, MAX_GENERATE, MAX_ROWS, MAX_SLOWDOWN_PERMILLE, MAX_STOP_IDS

U32 = st.integers(0, 2**32 - 1)
HANDLE = st.fixed_dictionaries({"handle": U32})
IDS = st.lists(U32, max_size=MAX_STOP_IDS).map(tuple)
FINITE = st.floats(-100, 100)
SLOWDOWN = st.integers(1, MAX_SLOWDOWN_PERMILLE)


@st.composite
def plans(draw: st.DrawFn) -> SplitPlan:
    layers = draw(st.integers(2, 2**16 - 1))
    head = draw(st.sampled_from(HeadSide))
    s = draw(st.integers(1 if head is HeadSide.DEVICE else 0, layers - 1))
    t = layers if head is HeadSide.CLOUD else draw(st.integers(s + 1, layers))
    codec, chunk = draw(st.sampled_from(Codec)), draw(st.integers(1, 2**16 - 1))
    return SplitPlan(layers=layers, s=s, t=t, head=head, codec=codec, chunk_tokens=chunk)


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(0.01, 100)),
    top_k=st.integers(0, 2**20),
    top_p=st.floats(0.01, 1),
    repetition_penalty=st.floats(0.01, 100),
    frequency_penalty=FINITE,
    presence_penalty=FINITE,
    seed=st.integers(0, 2**64 - 1),
)

OPEN = st.builds(
    Open,
    handle=U32,
    session_id=st.binary(min_size=16, max_size=16),
    fence=st.integers(1, 2**32 - 1),
    request=U32,
    plan=plans(),
    context=st.integers(1, MAX_CONTEXT),
    keep=U32,
    sampling=SAMPLING,
    deadline_ms=U32,
    stop_ids=IDS,
    criticality=st.sampled_from(Criticality),
    generated=IDS,
)
STEP = st.builds(
    Step,
    handle=U32,
    fence=U32,
    seq=st.integers(1, 2**32 - 1),
    base=st.integers(0, MAX_CONTEXT - MAX_ROWS),
    rows_kind=st.sampled_from(Rows),
    rows=st.integers(1, MAX_ROWS),
    reply=st.sampled_from(Reply),
    generate=st.integers(0, MAX_GENERATE),
    payload=st.binary(max_size=300),
)
RESULT = st.builds(
    Result,
    handle=U32,
    fence=U32,
    seq=U32,
    index=U32,
    last=st.booleans(),
    reply=st.sampled_from(Reply),
    kv_length=U32,
    rows=st.integers(0, MAX_ROWS),
    queue_us=U32,
    sweep_us=U32,
    compute_us=U32,
    payload=st.binary(max_size=300),
)
ERROR = st.builds(
    Error,
    handle=U32,
    fence=U32,
    seq=U32,
    code=st.sampled_from(ErrorCode),
    scope=st.sampled_from(Scope),
    resumable=st.booleans(),
    retry_after_ms=U32,
    have=U32,
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)
CONTROL: tuple[st.SearchStrategy[Frame], ...] = (
    st.builds(Truncate, handle=U32, fence=U32, length=U32),
    st.builds(Cancel, handle=U32, fence=U32, seq=U32),
    st.builds(Close, handle=U32, fence=U32),
    st.builds(Opened, handle=U32, fence=U32, request=U32, have=U32, last_seq=U32, step_fence=U32),
    st.builds(Ended, handle=U32),
    st.builds(Draining, handle=U32, deadline_ms=U32),
    st.builds(Ping, handle=U32, nonce=st.integers(0, 2**64 - 1), reply_size=st.integers(0, 1 << 18)),
    st.builds(
        Pong, handle=U32, nonce=st.integers(0, 2**64 - 1), queue_us=U32, sweep_us=U32, slowdown_permille=SLOWDOWN
    ),
)
PROBES: tuple[st.SearchStrategy[Frame], ...] = (
    st.builds(Ping, handle=U32, nonce=U32, size=st.integers(0, 5000), reply_size=st.integers(0, 1 << 18)),
    st.builds(
        Pong, handle=U32, nonce=U32, size=st.integers(0, 5000), queue_us=U32, sweep_us=U32, slowdown_permille=SLOWDOWN
    ),
)
FRAMES: st.SearchStrategy[Frame] = st.one_of(OPEN, STEP, RESULT, ERROR, *CONTROL, *PROBES)


def one_of_each() -> list[Frame]:
    """A fixed frame of every type."""
    plan = SplitPlan(layers=30, s=10, t=20, head=HeadSide.DEVICE, codec=Codec.INT8)
    return [
        Open(
            handle=1,
            session_id=bytes(range(16)),
            fence=1,
            request=1,
            plan=plan,
            context=4096,
            keep=0,
            sampling=SamplingParams(temperature=0.7, top_p=0.9, seed=3),
            stop_ids=(2, 7),
            generated=(5,),
        ),
        Step(
            handle=1,
            fence=1,
            seq=1,
            base=0,
            rows_kind=Rows.HIDDEN,
            rows=2,
            reply=Reply.ACK,
            generate=0,
            payload=bytes(range(100)),
        ),
        Truncate(handle=1, fence=1, length=9),
        Cancel(handle=1, fence=1, seq=9),
        Close(handle=1, fence=1),
        Ping(handle=1, nonce=5, size=70, reply_size=9),
        Opened(handle=1, fence=1, request=1, have=0, last_seq=0),
        Result(
            handle=1,
            fence=1,
            seq=1,
            index=0,
            last=True,
            reply=Reply.TOKEN,
            kv_length=9,
            rows=1,
            queue_us=1,
            sweep_us=3,
            compute_us=2,
            payload=b"\x07\0\0\0",
        ),
        Error(
            handle=1,
            fence=1,
            seq=1,
            code=ErrorCode.KV_GAP,
            scope=Scope.STEP,
            resumable=False,
            retry_after_ms=0,
            have=3,
            text="the step does not begin where the cache ends",
        ),
        Ended(handle=1),
        Draining(handle=1, deadline_ms=5000),
        Pong(handle=1, nonce=5, size=70, queue_us=9, sweep_us=8, slowdown_permille=1500),
    ]
