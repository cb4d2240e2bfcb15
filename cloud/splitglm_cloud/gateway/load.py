"""What is let in: by cost, class and tenant, before anything is computed or held for it. Pure.

Work is measured in seconds: rows and layers of the steps that were accepted and not finished, at the engine's speed
(``speed``). Less critical work is refused first ("Handling Overload", Site Reliability Engineering, Beyer et al. 2016,
ch. 21). What a tenant has queued counts against its own share first: one that asks for less than its share of the queue
is let in although others fill theirs. A reply under way is never refused: what was begun is worth finishing.

A refusal says when to come back: when half of what the class may fill will be free, so that there is room for more than
the first who asks, and spread so that those refused together do not come back together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.gateway.refusal import Refusal
from splitglm_cloud.gateway.speed import Speed
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_wire.frames import ErrorCode

SHARES: Final = {
    Criticality.CRITICAL_PLUS: 1.2,
    Criticality.CRITICAL: 1.0,
    Criticality.SHEDDABLE_PLUS: 0.75,
    Criticality.SHEDDABLE: 0.6,
}
"""Of the allowed queue, what each class may fill."""

SHORTEST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 10.0
_MEMORY_RETRY_S: Final = 0.5
"""Keys and values come free when sessions fall idle; that is not foreseen, only tried again."""
_CEILING: Final = 2.0
"""A tenant below its own share is let in until the queue is this many times what its class may fill."""
_STUCK: Final = 1.25
"""The engine gives up work at ``max_wait_s``; if some is this much older, it does not even do that."""
_MOST_JITTER: Final = 1.5
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """Bounds of what is accepted.

    Attributes:
        max_queue_s: seconds of accepted work.
        max_wait_s: age of accepted work that has not boarded; older work is not computed.
        max_queue_bytes: payloads of accepted steps.
        max_sessions_per_tenant: sessions of one tenant.
        kv_admit: share of the memory for keys and values, in use by sessions with work, from which the least critical
            are no longer opened; the others follow one by one up to ``kv_high``.
        kv_high: share from which no more prompts are taken.
    """

    max_queue_s: float = 2.0
    max_wait_s: float = 4.0
    max_queue_bytes: int = 256 << 20
    max_sessions_per_tenant: int = 64
    kv_admit: float = 0.85
    kv_high: float = 0.92

    def __post_init__(self) -> None:
        if not (0.0 < self.max_queue_s < math.inf and 0.0 < self.max_wait_s < math.inf):
            raise InputError("a queue's bounds in seconds are positive and finite")
        if self.max_queue_bytes <= 0 or self.max_sessions_per_tenant <= 0:
            raise InputError("a queue's bounds in bytes and sessions are positive")
        if not 0.0 < self.kv_admit <= self.kv_high <= 1.0:
            raise InputError("the watermarks of memory are not 0 < admit <= high <= 1")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a session has accepted and not finished.

    Attributes:
        rows: of its steps that wait or run.
        row_layers: these, times the layers that each goes through.
        payload_bytes: what its steps hold in memory.
    """

    owner: Owner
    rows: int = 0
    row_layers: int = 0
    payload_bytes: int = 0


@dataclass(slots=True)
class _Sum:
    """Claims added up."""

    weight: float = 1.0
    sessions: int = 0
    rows: int = 0
    row_layers: int = 0
    payload_bytes: int = 0

    def add(self, claim: Claim, sign: int) -> None:
        self.sessions += sign
        self.rows += sign * claim.rows
        self.row_layers += sign * claim.row_layers
        self.payload_bytes += sign * claim.payload_bytes


class LoadGate:
    """Lets sessions and steps in or refuses them; told by its owner what the accepted ones hold.

    Args:
        layers: that the engine serves.
        speed: what is known of the engine's speed before it has computed anything.
    """

    def __init__(self, *, layers: int, limits: LoadLimits | None = None, speed: Speed | None = None) -> None:
        self.limits = limits or LoadLimits()
        self._layers = layers
        self._speed = speed or Speed()
        self._claims: dict[int, Claim] = {}
        self._all = _Sum()
        self._tenants: dict[str, _Sum] = {}
        self._busy_weight = 0.0  # of tenants that have rows waiting

    @property
    def queue_s(self) -> float:
        """Seconds until what is accepted now is done."""
        return self._seconds(self._all)

    @property
    def queue_bytes(self) -> int:
        return self._all.payload_bytes

    def sessions_of(self, tenant: str) -> int:
        held = self._tenants.get(tenant)
        return 0 if held is None else held.sessions

    def is_full_for(self, owner: Owner) -> bool:
        """Whether a tenant has as many sessions as it may."""
        return self.sessions_of(owner.tenant) >= self.limits.max_sessions_per_tenant

    def retry_after_s(self, *, nonce: int, most_s: float = 0.0) -> float:
        """When work that was let in and could not be done may be asked for again.

        Args:
            most_s: what the engine said, 0 if nothing. Works that became too old together were all told the same.
        """
        return _busy("", most_s / _MOST_JITTER if most_s else self.queue_s, nonce).retry_after_s

    def hold(self, session: int, claim: Claim) -> None:
        """What ``session`` holds from now on, in place of what it held before."""
        before = self._claims.get(session)
        if before == claim:
            return
        if before is not None:
            self._count(before, -1)
        self._claims[session] = claim
        self._count(claim, 1)

    def release(self, session: int) -> None:
        """The session is gone. Harmless if it is unknown."""
        claim = self._claims.pop(session, None)
        if claim is not None:
            self._count(claim, -1)

    def judge_open(self, owner: Owner, criticality: Criticality, stats: EngineStats, *, nonce: int) -> Refusal | None:
        """May a new session be opened, as far as work and memory go? None lets it in.

        Args:
            nonce: another number each time; spreads the hints.
        """
        self._speed.observe(stats)
        admit, high = self.limits.kv_admit, self.limits.kv_high
        steps_up = Criticality.SHEDDABLE - criticality
        if _memory(stats) >= admit + (high - admit) * steps_up / (len(Criticality) - 1):
            return _busy("too little memory for another session", _MEMORY_RETRY_S, nonce)
        return self._judge(owner, criticality, stats, nonce)

    def judge_step(
        self,
        owner: Owner,
        criticality: Criticality,
        stats: EngineStats,
        *,
        payload_bytes: int,
        under_way: bool,
        nonce: int,
    ) -> Refusal | None:
        """May a step be queued? None lets it in.

        Args:
            payload_bytes: of the step.
            under_way: it continues a reply that has begun to come.
            nonce: another number each time; spreads the hints.
        """
        self._speed.observe(stats)
        if self._all.payload_bytes + payload_bytes > self.limits.max_queue_bytes:
            return _busy("too many steps of all devices are queued", self.queue_s, nonce)
        if under_way:
            return None
        if _memory(stats) >= self.limits.kv_high:
            return _busy("too little memory for more of a prompt", _MEMORY_RETRY_S, nonce)
        return self._judge(owner, criticality, stats, nonce)

    def _judge(self, owner: Owner, criticality: Criticality, stats: EngineStats, nonce: int) -> Refusal | None:
        """By what waits already, not by what is asked: however much that is, it is done when it is alone."""
        limits, queue_s = self.limits, self.queue_s
        if stats.oldest_wait_s > _STUCK * limits.max_wait_s:
            return _busy("the engine makes no progress", stats.oldest_wait_s, nonce)
        allowed_s = SHARES[criticality] * limits.max_queue_s
        if queue_s < allowed_s:
            return None
        own = self._tenants.get(owner.tenant, _Sum(weight=owner.weight))
        among = self._busy_weight + (0.0 if own.rows else own.weight)
        if queue_s < _CEILING * allowed_s and self._seconds(own) < allowed_s * own.weight / among:
            return None
        return _busy("too much work is waiting", queue_s - allowed_s / 2, nonce)

    def _seconds(self, held: _Sum) -> float:
        return self._speed.seconds(rows=held.rows, row_layers=held.row_layers, layers=self._layers)

    def _count(self, claim: Claim, sign: int) -> None:
        self._all.add(claim, sign)
        tenant = self._tenants.setdefault(claim.owner.tenant, _Sum(weight=claim.owner.weight))
        was_busy = tenant.rows > 0
        tenant.add(claim, sign)
        if (tenant.rows > 0) is not was_busy:
            self._busy_weight += -tenant.weight if was_busy else tenant.weight
        if not tenant.sessions:
            del self._tenants[claim.owner.tenant]
        if not self._all.rows:
            self._busy_weight = 0.0  # no rest of rounding


def _memory(stats: EngineStats) -> float:
    """Share of the memory for keys and values that evicting idle sessions cannot free."""
    return stats.kv_active_bytes / stats.kv_budget_bytes if stats.kv_budget_bytes > 0 else 0.0


def _busy(text: str, wait_s: float, nonce: int) -> Refusal:
    # Multiples of the golden ratio fill an interval evenly, however many there are (Weyl's sequence).
    jitter = _MOST_JITTER - 1.0 + nonce * _GOLDEN % 1.0
    return Refusal(ErrorCode.OVERLOADED, text, min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, wait_s * jitter)))
