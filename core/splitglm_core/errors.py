"""The one exception tree and the one table that maps it to gRPC status, HTTP status and exit code.

Rules of this file: an error says *what* failed, *whose fault* it is (``blame``) and the *next thing to try*
(``hint``). Everything the product raises on purpose is a ``SplitGlmError``; a foreign exception becomes one at the
boundary where it enters. Nothing here may hold a prompt, a token, a tensor or a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Blame(Enum):
    """Whose fault an error is, in the words shown to the user."""

    INPUT = "your input"
    DEVICE = "this machine"
    LINK = "the link"
    CLOUD = "the cloud"
    BUG = "splitglm itself"


class SplitGlmError(Exception):
    """Root of every error raised on purpose.

    Args:
        what: what failed, one sentence without a full stop.
        hint: the next thing to try, as an imperative; may be empty.
    """

    blame: Blame = Blame.BUG

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def one_line(self) -> str:
        """The message for a person: what failed, whose fault, what to try."""
        tail = f". Try: {self.hint}" if self.hint else ""
        return f"{self.what} (fault: {self.blame.value}){tail}"


class InputError(SplitGlmError):
    """The request itself cannot be served as asked."""

    blame = Blame.INPUT


class PromptTooLong(InputError):
    """Prompt and answer do not fit the model's context."""


class NoFeasiblePlan(InputError):
    """No arm satisfies the constraints of the request."""


class ModelNotFound(InputError):
    """A model name or path that leads nowhere."""


class ModelInvalid(SplitGlmError):
    """A checkpoint that is corrupt, incomplete, unsafe or of an unknown kind."""

    blame = Blame.INPUT


class DeviceError(SplitGlmError):
    """This machine cannot do it: missing package, no memory, no permission."""

    blame = Blame.DEVICE


class StorageFull(DeviceError):
    """The disk is full."""


class Cancelled(SplitGlmError):
    """The application cancelled the request."""

    blame = Blame.INPUT


class LinkError(SplitGlmError):
    """The cloud cannot be reached or the stream broke; whether the last step was applied is unknown."""

    blame = Blame.LINK


class DeadlineExceeded(LinkError):
    """No reply before the deadline of the step or the request."""


class SecurityError(SplitGlmError):
    """The peer is not who it should be, or a record was forged, replayed, reordered or truncated.

    One constant text for every cryptographic failure: the difference would be an oracle.
    """

    blame = Blame.LINK

    def __init__(self, what: str = "secure channel failed", hint: str = "") -> None:
        super().__init__(what, hint)


class PeerUntrusted(SecurityError):
    """The cloud's identity key is unknown or differs from the pinned one; decided on the device."""


class ProtocolError(SplitGlmError):
    """A peer broke the rules of the session protocol."""

    blame = Blame.CLOUD


class VersionMismatch(ProtocolError):
    """The peer speaks another protocol version."""


class ModelMismatch(ProtocolError):
    """The cloud serves another model than the device holds."""


class RemoteError(SplitGlmError):
    """The cloud answered with an error frame. ``code`` is the wire's error code name."""

    blame = Blame.CLOUD

    def __init__(
        self, what: str, hint: str = "", *, code: str = "INTERNAL", retry_after_s: float | None = None
    ) -> None:
        super().__init__(what, hint)
        self.code = code
        self.retry_after_s = retry_after_s


class Overloaded(RemoteError):
    """The cloud is busy: try again after ``retry_after_s``."""


class Unavailable(RemoteError):
    """The cloud cannot serve this now (draining, worker lost)."""


class BadTensor(ProtocolError):
    """A tensor with the wrong shape, size, type or non-finite values; only this request is refused."""

    blame = Blame.INPUT


class InternalError(SplitGlmError):
    """A rule of our own was broken: please report it."""


@dataclass(frozen=True, slots=True)
class Status:
    """How one exception type appears outside: gRPC status code name, HTTP status, process exit code."""

    grpc: str
    http: int
    exit_code: int


# Most derived first. Exit codes follow sysexits.h where one fits; 130 is the shell's convention for Ctrl-C.
STATUS_TABLE: tuple[tuple[type[BaseException], Status], ...] = (
    (PromptTooLong, Status("INVALID_ARGUMENT", 413, 65)),
    (NoFeasiblePlan, Status("FAILED_PRECONDITION", 422, 78)),
    (ModelNotFound, Status("NOT_FOUND", 404, 66)),
    (InputError, Status("INVALID_ARGUMENT", 400, 64)),
    (ModelInvalid, Status("FAILED_PRECONDITION", 422, 65)),
    (StorageFull, Status("RESOURCE_EXHAUSTED", 507, 73)),
    (DeviceError, Status("FAILED_PRECONDITION", 500, 71)),
    (Cancelled, Status("CANCELLED", 499, 130)),
    (KeyboardInterrupt, Status("CANCELLED", 499, 130)),
    (DeadlineExceeded, Status("DEADLINE_EXCEEDED", 504, 75)),
    (LinkError, Status("UNAVAILABLE", 503, 69)),
    (PeerUntrusted, Status("ABORTED", 495, 77)),
    (SecurityError, Status("ABORTED", 495, 76)),
    (VersionMismatch, Status("FAILED_PRECONDITION", 502, 76)),
    (ModelMismatch, Status("FAILED_PRECONDITION", 502, 78)),
    (BadTensor, Status("INVALID_ARGUMENT", 400, 65)),
    (ProtocolError, Status("INTERNAL", 502, 76)),
    (Overloaded, Status("RESOURCE_EXHAUSTED", 429, 75)),
    (Unavailable, Status("UNAVAILABLE", 503, 69)),
    (RemoteError, Status("INTERNAL", 502, 70)),
    (SplitGlmError, Status("INTERNAL", 500, 70)),
)


def status_of(error: BaseException) -> Status:
    """The outside status of ``error``; anything that is not ours counts as an internal error."""
    for kind, status in STATUS_TABLE:
        if isinstance(error, kind):
            return status
    return Status("INTERNAL", 500, 70)
