"""What a cloud can do to a conversation, as errors of ours: losing it, keeping silent, refusing."""

from __future__ import annotations

from splitglm_core.errors import (
    BadTensor,
    DeadlineExceeded,
    InputError,
    InternalError,
    LinkError,
    Overloaded,
    PromptTooLong,
    RemoteError,
    SplitGlmError,
    Unavailable,
)
from splitglm_wire.frames import Error, ErrorCode


class SessionLost(LinkError):
    """The cloud no longer holds this conversation; its tokens are known, so it can be rebuilt."""


class Unresponsive(SessionLost):
    """The cloud is alive and may hold the conversation, but it does not answer."""


def from_error_frame(frame: Error) -> SplitGlmError:
    """The one place where an error frame becomes an error of ours."""
    retry_s = frame.retry_after_ms / 1000 if frame.retry_after_ms else None
    match frame.code:
        case ErrorCode.OVERLOADED:
            return Overloaded(
                f"the cloud is busy: {frame.text}",
                "wait a moment and try again",
                code=frame.code.name,
                retry_after_s=retry_s,
            )
        case ErrorCode.UNAVAILABLE | ErrorCode.DRAINING:
            return Unavailable(
                frame.text, "use another cloud, or wait for its restart", code=frame.code.name, retry_after_s=retry_s
            )
        case ErrorCode.NO_SESSION | ErrorCode.KV_GAP | ErrorCode.FENCED:
            return SessionLost(frame.text)
        case ErrorCode.DEADLINE:
            return DeadlineExceeded(frame.text, "allow more time")
        case ErrorCode.BAD_TENSOR:
            return BadTensor(frame.text)
        case ErrorCode.TOO_LARGE:
            return PromptTooLong(frame.text, "shorten the prompt or ask for fewer tokens")
        case ErrorCode.BAD_REQUEST:
            return InputError(frame.text, "choose a plan that this cloud serves (`splitglm plan`)")
        case ErrorCode.SEQ_CONFLICT:
            return InternalError(f"the cloud refused a step: {frame.text}")
        case _:
            return RemoteError(frame.text, "look at the cloud's log", code=frame.code.name, retry_after_s=retry_s)
