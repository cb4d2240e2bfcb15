"""Application frames: what travels inside a sealed record, as frozen values.

A frame names its session by ``handle``, a number within one stream. Tensors stay opaque bytes here:
``splitglm_wire.codec`` knows them, ``splitglm_wire.framing`` turns frames into bytes and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from splitglm_core.criticality import Criticality
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams


class Kind(IntEnum):
    OPEN = 1
    STEP = 2
    TRUNCATE = 3
    CANCEL = 4
    CLOSE = 5
    PING = 6
    OPENED = 65
    RESULT = 66
    ERROR = 67
    ENDED = 68
    DRAINING = 69
    PONG = 70


class Rows(IntEnum):
    """What the rows of a step are."""

    IDS = 1  # token ids, u32 each
    HIDDEN = 2  # hidden states in the plan's codec


class Reply(IntEnum):
    """What a step asks for."""

    ACK = 1  # only that it was applied
    TOKEN = 2  # sample after the last row; with ids, go on for ``generate`` tokens
    LAST_HIDDEN = 3  # hidden state of the last row
    ALL_HIDDEN = 4  # hidden states of every row


class ErrorCode(IntEnum):
    OVERLOADED = 1
    UNAVAILABLE = 2
    DRAINING = 3
    NO_SESSION = 4
    KV_GAP = 5
    FENCED = 6
    SEQ_CONFLICT = 7
    DEADLINE = 8
    BAD_TENSOR = 9
    TOO_LARGE = 10
    BAD_REQUEST = 11
    MODEL = 12
    INTERNAL = 13


class Scope(IntEnum):
    """How much an error ends."""

    STEP = 1
    SESSION = 2
    STREAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Begin a reply in a new or a kept session. A higher fence makes every earlier stream of the session harmless."""

    handle: int
    session_id: bytes  # 16 random bytes; possession is the right to the session
    fence: int
    request: int
    plan: SplitPlan
    context: int
    keep: int  # positions of the KV cache to keep; KEEP_ALL after a broken stream
    sampling: SamplingParams
    deadline_ms: int = 0  # remaining time, 0 = none
    stop_ids: tuple[int, ...] = ()
    criticality: Criticality = Criticality.CRITICAL
    generated: tuple[int, ...] = ()  # tokens of this reply so far: the sampler's history after a re-open


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    handle: int
    fence: int
    seq: int
    base: int
    rows_kind: Rows
    rows: int
    reply: Reply
    generate: int
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    handle: int
    fence: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop generating in step ``seq``; what was generated so far stays valid."""

    handle: int
    fence: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    handle: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    handle: int
    nonce: int
    size: int = 0  # extra bytes carried up, for a bandwidth probe, at most MAX_PROBE_BYTES
    reply_size: int = 0  # extra bytes wanted down, at most MAX_PROBE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    handle: int
    fence: int
    request: int
    have: int  # positions in the KV cache
    last_seq: int  # last applied step, 0 = none
    step_fence: int = 0  # fence under which that step came: tells the device whether its own history is held here


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Part ``index`` of the answer to step ``seq``. ``kv_length`` counts positions after it.

    ``queue_us`` and ``sweep_us`` together are how long the step waited until it boarded: until the sweep began in which
    it rode (0 when that one was under way already), then until that sweep came round to its first layer.
    """

    handle: int
    fence: int
    seq: int
    index: int
    last: bool
    reply: Reply
    kv_length: int
    rows: int
    queue_us: int
    sweep_us: int = 0
    compute_us: int
    payload: bytes | memoryview  # one u32 token, or hidden states in the plan's codec, or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    handle: int
    fence: int
    seq: int
    code: ErrorCode
    scope: Scope
    resumable: bool
    retry_after_ms: int
    have: int
    text: str  # constant texts only: never content


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    handle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    handle: int
    deadline_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """The answer to a ping, and how busy the cloud is: means over the newest steps of all its devices.

    ``queue_us`` and ``sweep_us`` as in ``Result``, cut at 2^32 - 1 when sent. ``slowdown_permille`` is how many
    thousandths of its time alone a decode step takes, 1 to ``MAX_SLOWDOWN_PERMILLE``. An idle cloud tells 0, 0, 1000.
    """

    handle: int
    nonce: int
    size: int = 0
    queue_us: int = 0
    sweep_us: int = 0
    slowdown_permille: int = 1000


KEEP_ALL = 0xFFFFFFFF

Frame = Open | Step | Truncate | Cancel | Close | Ping | Opened | Result | Error | Ended | Draining | Pong
