"""What a ``CloudSession`` tells its owner to do, and what the owner's engine answers."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.criticality import Criticality
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.frames import Ended, Error, Opened, Result, Step


@dataclass(frozen=True, slots=True)
class Send:
    frame: Opened | Result | Error | Ended


@dataclass(frozen=True, slots=True)
class Configure:
    """Prepare for a reply under this plan: KV cache for its back, sampler with this history, cut to ``keep``."""

    plan: SplitPlan
    sampling: SamplingParams
    generated: tuple[int, ...]
    stop_ids: tuple[int, ...]
    context: int
    keep: int
    deadline_ms: int
    criticality: Criticality = Criticality.CRITICAL


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this step. Answer with ``on_output`` / ``on_failure``."""

    step: Step


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop generating, at the latest after the current token; the step still ends with a last output."""

    seq: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Truncate the KV cache."""

    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free everything of this session."""


Action = Send | Configure | Submit | Abort | Cut | Drop


@dataclass(frozen=True, slots=True)
class Output:
    """One part of a computed step: a token (u32), hidden states in wire form, or (``payload`` empty) nothing.

    Times as in ``Result``.
    """

    seq: int
    rows: int
    payload: bytes
    last: bool
    queue_us: int = 0
    sweep_us: int = 0
    compute_us: int = 0
