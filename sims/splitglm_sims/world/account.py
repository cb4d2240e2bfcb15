"""What a simulated reply spends while it runs, and what is observed of it"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from splitglm_partitioner.observations import Observation, Outcome
from splitglm_partitioner.power import PowerProfile
from splitglm_sims.world.course import Course


@dataclass(slots=True)
class Account:
    """Of one reply.

    Attributes:
        start_s: when it began.
        first_s: when its first token was there; infinite until then.
        tokens: that the user has.
        busy_s: seconds in which the device computed.
        linked_s: when it first used the link; NaN when it never did.
        gone_s: when it gave the cloud up and went on alone; infinite when it did not.
        layer_tokens: layers times positions that the cloud computed for it.
        told: observations in order of their time; None when nobody listens.
        failed: why it has no answer.
    """

    start_s: float
    first_s: float = math.inf
    tokens: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    busy_s: float = 0.0
    linked_s: float = math.nan
    gone_s: float = math.inf
    layer_tokens: int = 0
    told: list[Observation] | None = None
    failed: str | None = None

    def deliver(self, now_s: float, tokens: int) -> None:
        if not self.tokens:
            self.first_s = now_s
        self.tokens += tokens

    @property
    def fell_back(self) -> bool:
        return self.gone_s < math.inf

    def used_link(self, sent_s: float) -> None:
        """An exchange on the link began."""
        if math.isnan(self.linked_s):
            self.linked_s = sent_s

    def outcome(self, end_s: float, power: PowerProfile | None, price_per_layer_token: float | None) -> Outcome:
        """What it came to by ``end_s``."""
        joules = None
        if power is not None:
            linked_s = 0.0 if math.isnan(self.linked_s) else max(0.0, min(end_s, self.gone_s) - self.linked_s)
            joules = power.compute_w * self.busy_s + power.radio_w * linked_s
            joules += power.uplink_j_per_byte * self.up_bytes + power.downlink_j_per_byte * self.down_bytes
        return Outcome(
            ttft_s=min(self.first_s, end_s) - self.start_s,
            total_s=end_s - self.start_s,
            new_tokens=max(1, self.tokens),
            uplink_bytes=self.up_bytes,
            downlink_bytes=self.down_bytes,
            energy_j=joules,
            price=None if price_per_layer_token is None else price_per_layer_token * self.layer_tokens,
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """How many times longer than profiled a machine takes: its own factor, and one that changes over time."""

    factor: float
    course: Course = field(default_factory=lambda: Course.constant(1.0))

    def at(self, now_s: float) -> float:
        return self.factor * self.course.at(now_s)

    @property
    def steady(self) -> bool:
        return len(self.course.values) == 1
