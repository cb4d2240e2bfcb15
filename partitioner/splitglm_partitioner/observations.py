"""What happened, as told to the estimators: frozen values with the time at which they became known.

The device's agent and the simulator tell the same ``Advisor`` the same values, so what is learnt in one is learnt in
the other. ``at_s`` is on any clock that does not go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.bounds import (
    MAX_BYTES,
    MAX_LAYERS,
    MAX_SECONDS,
    MAX_TOKENS,
    check_count,
    check_number,
    check_seconds,
)


class Direction(Enum):
    """Way of a transfer, seen from the device."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """An exchange too small for the rate to matter took ``seconds``; the link had been idle for ``idle_s`` before."""

    at_s: float
    seconds: float
    idle_s: float = 0.0

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        check_seconds("round trip", self.seconds)
        check_number("idle_s", self.idle_s, 0.0, float(MAX_SECONDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """``transfer_bytes`` took ``seconds`` on the wire, the round trip taken off.

    ``idle_s`` is how long the link had carried nothing before: a connection that rested begins with a small window.
    """

    at_s: float
    direction: Direction
    transfer_bytes: int
    seconds: float
    idle_s: float = 0.0

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        check_count("transfer_bytes", self.transfer_bytes, 0, MAX_BYTES)
        check_seconds("transfer seconds", self.seconds)
        check_number("idle_s", self.idle_s, 0.0, float(MAX_SECONDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePass:
    """The device ran ``rows`` positions through ``layers`` layers, ``context_tokens`` being cached before."""

    at_s: float
    rows: int
    layers: int
    context_tokens: int
    seconds: float

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        _check_pass(self.rows, self.layers, self.context_tokens)
        check_seconds("seconds of a device pass", self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudStep:
    """What a reply of the cloud said of its step.

    Attributes:
        start, stop: the layers ``[start, stop)`` that it ran.
        queue_s: waiting for a place, before the sweep in which it rode.
        sweep_s: waiting for that sweep to come round to ``start``.
        compute_s: riding, from boarding to alighting.
        alone: nothing else of this device was open in the cloud, so that the waits are not its own doing.
    """

    at_s: float
    rows: int
    start: int
    stop: int
    context_tokens: int
    queue_s: float
    sweep_s: float
    compute_s: float
    alone: bool

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        _check_pass(self.rows, self.stop - self.start, self.context_tokens)
        check_count("start", self.start, 0, MAX_LAYERS)
        for name in ("queue_s", "sweep_s", "compute_s"):
            check_seconds(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudHint:
    """What the cloud said of its load when it was asked: means over its newest steps, whoever sent them.

    ``slowdown`` is how many times longer a decode step is computed than alone; 1 for an idle cloud.
    """

    at_s: float
    queue_s: float
    sweep_s: float
    slowdown: float

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        check_seconds("queue_s", self.queue_s)
        check_seconds("sweep_s", self.sweep_s)
        check_number("slowdown", self.slowdown, 0.0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRound:
    """Of ``proposed`` drafted tokens the target kept the first ``accepted``."""

    at_s: float
    drafter: str
    genre: str
    proposed: int
    accepted: int

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        check_count("proposed", self.proposed, 1, MAX_TOKENS)
        check_count("accepted", self.accepted, 0, self.proposed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a reply cost in the end; the measured counterpart of a ``Breakdown``.

    Attributes:
        ttft_s: until its first token.
        total_s: until its last token.
        new_tokens: tokens of the reply, at least 1.
        uplink_bytes, downlink_bytes: payload.
        energy_j: joules on the device; None when not known.
        price: what the cloud asks for it; None when it states no price.
    """

    ttft_s: float
    total_s: float
    new_tokens: int
    uplink_bytes: int
    downlink_bytes: int
    energy_j: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        check_seconds("ttft_s", self.ttft_s)
        check_number("total_s", self.total_s, self.ttft_s, float(MAX_SECONDS))
        check_count("new_tokens", self.new_tokens, 1, MAX_TOKENS)
        check_count("uplink_bytes", self.uplink_bytes, 0, MAX_BYTES)
        check_count("downlink_bytes", self.downlink_bytes, 0, MAX_BYTES)

    @property
    def per_token_s(self) -> float:
        """Mean seconds of the tokens after the first; 0 with only one."""
        return (self.total_s - self.ttft_s) / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyEnded:
    """A reply ended, which was predicted to take what is stated for this number of tokens.

    ``outcome`` counts from the decision on, so that what was asked of the link before is not in it. ``comparable``: it
    ran to its end under ``plan``; one that failed, or fell back to the device, says nothing of the prediction.
    """

    at_s: float
    plan: SplitPlan
    genre: str
    max_new_tokens: int
    predicted_ttft_s: float
    predicted_per_token_s: float
    outcome: Outcome
    comparable: bool = True

    def __post_init__(self) -> None:
        _check_time(self.at_s)
        check_seconds("predicted_ttft_s", self.predicted_ttft_s)
        check_seconds("predicted_per_token_s", self.predicted_per_token_s)
        check_count("max_new_tokens", self.max_new_tokens, 1, MAX_TOKENS)


Observation = RoundTrip | Transfer | DevicePass | CloudStep | CloudHint | DraftRound | ReplyEnded


def _check_time(at_s: float) -> None:
    check_number("at_s", at_s, -1e12, 1e12)


def _check_pass(rows: int, layers: int, context_tokens: int) -> None:
    check_count("rows", rows, 1, MAX_TOKENS)
    check_count("layers", layers, 1, MAX_LAYERS)
    check_count("context_tokens", context_tokens, 0, MAX_TOKENS)
