"""What a ``DeviceSession`` tells its caller."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitglm_wire.frames import Error


@dataclass(frozen=True, slots=True)
class TokenArrived:
    """A token, and the cloud's own times of what it computed for it, in seconds (as in ``StepDone``)."""

    ticket: int
    index: int
    token: int
    queue_s: float = field(default=0.0, compare=False)
    sweep_s: float = field(default=0.0, compare=False)
    compute_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class HiddenArrived:
    ticket: int
    base: int  # position of the first row
    rows: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step is confirmed. ``tokens`` counts what it generated; times are the cloud's own, in seconds.

    It waited ``queue_s`` for a sweep to begin and ``sweep_s`` for that sweep to come round to its first layer, all its
    parts and tokens together.
    """

    ticket: int
    kv_length: int
    tokens: int
    queue_s: float
    sweep_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Attached:
    """The cloud accepted the (re-)open and holds what this side relies upon."""

    have: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """The cloud no longer holds the confirmed positions, or lost a reply that it had begun. Every step is void.

    The first ``have`` positions are still good: ``open`` again with ``keep <= have`` and rebuild the rest, or begin a
    new session.
    """

    have: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Step ``ticket`` and those behind it are void (``ticket`` is None: the session's open was refused)."""

    ticket: int | None
    error: Error


Event = TokenArrived | HiddenArrived | StepDone | Attached | Gap | Refused
