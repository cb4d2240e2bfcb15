"""What the engine tells whoever drives it, and who a session belongs to. Values only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from splitglm_core.criticality import Criticality
from splitglm_core.errors import BadTensor, InputError
from splitglm_wire.actions import Output
from splitglm_wire.frames import ErrorCode

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose work a session's steps are: fairness is between tenants, in proportion to their weights.

    Attributes:
        tenant: a name that is stable for as long as any session of the tenant lives.
        weight: share of the engine beside other tenants; positive.
        highest: class that its requests have at most, for a class comes before another whoever asks.
    """

    tenant: str = ""
    weight: float = 1.0
    highest: Criticality = Criticality.CRITICAL_PLUS


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that could not be computed; the session lives on, with the positions it had before the step."""

    seq: int
    code: ErrorCode
    text: str
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, error: Exception, seq: int) -> Failure:
        """What a device is told of ``error``: texts of ours, never content."""
        if isinstance(error, BadTensor):
            return cls(seq, ErrorCode.BAD_TENSOR, error.what)
        if isinstance(error, InputError):
            return cls(seq, ErrorCode.BAD_REQUEST, error.what)
        log.error("step failed: %s", type(error).__name__)
        return cls(seq, ErrorCode.INTERNAL, "the step failed in the cloud")


@dataclass(frozen=True, slots=True)
class Evicted:
    """The session's keys and values are gone: it holds no position any more.

    Attributes:
        seq: the step that was running and will get no other answer; None when the session was idle. Whoever has the
            session's inputs may configure it with ``keep=0``, submit them again from position 0, then the step.
    """

    seq: int | None


Event = Output | Failure | Evicted
Emit = Callable[[int, Event], None]
"""(session, event); called on the engine's thread."""
