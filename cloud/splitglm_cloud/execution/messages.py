"""What gateway and engine worker say to each other: bounded MessagePack values, never pickle.

A message is one frame of bytes, or two when its payload travels beside it (see ``payloads``). Each names the epoch, the
number of the worker's incarnation, so that nothing of a worker that was given up is taken for its successor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_core import errors
from splitglm_core.errors import InternalError, SplitGlmError
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step
from splitglm_wire.limits import MAX_ERROR_TEXT_BYTES, MAX_GENERATE, MAX_QUEUED_BYTES, MAX_STOP_IDS

MAX_PAYLOAD_BYTES: Final = MAX_QUEUED_BYTES
"""Of one step or output: as much as a session may have queued at all."""
MAX_FRAME_BYTES: Final = MAX_PAYLOAD_BYTES + 4096
"""ZeroMQ drops a peer that sends more."""
MAX_START_BYTES: Final = 64 << 10
MAX_TENANT_CHARS: Final = 256
MAX_REASON_CHARS: Final = 4096

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_ERROR_TEXT_BYTES)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of both directions."""

    epoch: Count


class ConfigureSession(Message, frozen=True, tag="configure"):
    session: int
    config: Configure
    owner: Owner


class SubmitStep(Message, frozen=True, tag="submit"):
    """A step. ``at`` is where its payload lies in the arena; None when the payload is the message's second frame."""

    session: int
    handle: Count
    fence: Count
    seq: int
    base: Count
    rows_kind: Rows
    rows: Count
    reply: Reply
    generate: Count
    size: Size
    at: Count | None


class AbortStep(Message, frozen=True, tag="abort"):
    session: int
    seq: int


class CutSession(Message, frozen=True, tag="cut"):
    session: int
    length: Count


class DropSession(Message, frozen=True, tag="drop"):
    session: int


class Freed(Message, frozen=True, tag="freed"):
    """Either way: the reader of an arena has no more use for what lies before ``position``."""

    position: Count


class Stop(Message, frozen=True, tag="stop"):
    """Finish the running batch, free everything, end."""


class Hello(Message, frozen=True, tag="hello"):
    """The worker's first word: it has found the socket."""


class Progress(Message, frozen=True, tag="progress"):
    """While model files are checked or built."""

    part: Text
    done: Count
    total: Count


class Ready(Message, frozen=True, tag="ready"):
    facts: EngineFacts


class Stopped(Message, frozen=True, tag="stopped"):
    """The last word after ``Stop``. The worker ends when its standard input does, so that it is heard."""


class Fatal(Message, frozen=True, tag="fatal"):
    """The worker could not start: a last word too. ``kind`` names a class of ``splitglm_core.errors``."""

    kind: Text
    what: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
    hint: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


class OutputOf(Message, frozen=True, tag="output"):
    """An output; ``at`` as in ``SubmitStep``."""

    session: int
    seq: int
    rows: Count
    size: Size
    at: Count | None
    last: bool
    queue_us: int
    sweep_us: int
    compute_us: int


class FailureOf(Message, frozen=True, tag="failure"):
    session: int
    seq: int
    code: ErrorCode
    text: Text
    retry_after_s: float


class EvictedOf(Message, frozen=True, tag="evicted"):
    session: int
    seq: int | None


class StatsOf(Message, frozen=True, tag="stats"):
    stats: EngineStats


Command = ConfigureSession | SubmitStep | AbortStep | CutSession | DropSession | Freed | Stop
Report = Hello | Progress | Ready | Stopped | Fatal | OutputOf | FailureOf | EvictedOf | StatsOf | Freed


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a worker reads from its standard input before anything else, as one line of JSON.

    Attributes:
        address: ZeroMQ endpoint that the gateway listens at.
        memory_fd: inherited descriptor of the shared memory (``payloads.Memory``).
        life_fd: inherited descriptor that nobody else may hold: its closing tells the gateway that the worker ended.
        ring_bytes: size of each of its two rings.
        inline_bytes: payloads up to this size travel in the message.
    """

    spec: EngineSpec
    epoch: int
    index: int
    gateway_pid: int
    address: str
    memory_fd: int
    life_fd: int
    ring_bytes: int
    inline_bytes: int
    log_level: str


# Besides msgspec's own errors: text that is no UTF-8, nesting without end, values that our own classes refuse.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError, SplitGlmError)
_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_starts: msgspec.json.Decoder[Start] = msgspec.json.Decoder(Start)


def encode(message: Command | Report) -> bytes:
    return _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    """
    Raises:
        InternalError: not a command.
    """
    try:
        return _commands.decode(data)
    except _UNREADABLE as error:
        raise InternalError(f"a command cannot be read: {error}") from None


def decode_report(data: bytes) -> Report:
    """
    Raises:
        InternalError: not a report.
    """
    try:
        return _reports.decode(data)
    except _UNREADABLE as error:
        raise InternalError(f"a worker's report cannot be read: {error}") from None


def encode_start(start: Start) -> bytes:
    return msgspec.json.encode(start) + b"\n"


def decode_start(line: bytes) -> Start:
    """
    Raises:
        InternalError: not a start line.
    """
    try:
        return _starts.decode(line)
    except _UNREADABLE as error:
        raise InternalError(f"a worker's start line cannot be read: {error}") from None


def is_too_large(config: Configure, owner: Owner) -> bool:
    """True for a configuration that no session of ours makes: it is not encoded."""
    return (
        len(config.generated) > MAX_GENERATE
        or len(config.stop_ids) > MAX_STOP_IDS
        or len(owner.tenant) > MAX_TENANT_CHARS
    )


def submit_of(epoch: int, session: int, step: Step, at: int | None) -> SubmitStep:
    return SubmitStep(
        epoch=epoch,
        session=session,
        handle=step.handle,
        fence=step.fence,
        seq=step.seq,
        base=step.base,
        rows_kind=step.rows_kind,
        rows=step.rows,
        reply=step.reply,
        generate=step.generate,
        size=len(step.payload),
        at=at,
    )


def step_of(message: SubmitStep, payload: bytes) -> Step:
    return Step(
        handle=message.handle,
        fence=message.fence,
        seq=message.seq,
        base=message.base,
        rows_kind=message.rows_kind,
        rows=message.rows,
        reply=message.reply,
        generate=message.generate,
        payload=payload,
    )


def report_of(epoch: int, session: int, event: Event, at: int | None) -> OutputOf | FailureOf | EvictedOf:
    if isinstance(event, Output):
        return OutputOf(
            epoch=epoch,
            session=session,
            seq=event.seq,
            rows=event.rows,
            size=len(event.payload),
            at=at,
            last=event.last,
            queue_us=event.queue_us,
            sweep_us=event.sweep_us,
            compute_us=event.compute_us,
        )
    if isinstance(event, Failure):
        text = event.text[:MAX_ERROR_TEXT_BYTES]
        return FailureOf(epoch, session, event.seq, event.code, text, event.retry_after_s)
    return EvictedOf(epoch, session, event.seq)


def event_of(report: OutputOf | FailureOf | EvictedOf, payload: bytes) -> Event:
    if isinstance(report, OutputOf):
        times = report.queue_us, report.sweep_us, report.compute_us
        return Output(report.seq, report.rows, payload, report.last, *times)
    if isinstance(report, FailureOf):
        return Failure(report.seq, report.code, report.text, report.retry_after_s)
    return Evicted(report.seq)


def fatal_of(epoch: int, error: SplitGlmError) -> Fatal:
    return Fatal(epoch, type(error).__name__, error.what[:MAX_REASON_CHARS], error.hint[:MAX_REASON_CHARS])


def error_of(fatal: Fatal) -> SplitGlmError:
    """The worker's own error, as if it had been raised here."""
    kind = getattr(errors, fatal.kind, None)
    if isinstance(kind, type) and issubclass(kind, SplitGlmError):
        return kind(fatal.what, fatal.hint)
    return InternalError(fatal.what, fatal.hint)
