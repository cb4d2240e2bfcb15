"""The truth of a simulated world, as frozen values. Strategies never see these, only what a real device could know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_partitioner.request import Objective
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.course import Course

INITIAL_WINDOW_BYTES = 14_600
"""Ten segments: what a TCP connection that rested may send at first (RFC 6928; restart after idle: RFC 5681, 4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkScene:
    """A link. Each direction is a byte-serial bottleneck with a queue of its own, then a propagation delay.

    Attributes:
        up, down: payload bytes per second over time; they repeat.
        rtt_s: round trip without queues; half of it is each direction's delay.
        jitter_s: standard deviation of an exchange's extra delay (half-normal, so never early).
        overhead_s: per exchange, what is neither model nor link: framing, gRPC, scheduling.
        offset_s: where in the traces the world's time 0 lies.
        rest_after_s: without traffic for so long the radio rests; ``math.inf`` for a link that never does.
        promotion_s: extra of the first exchange after a rest.
        window_bytes: congestion window after a rest (``splitglm_partitioner.slow_start.rest_s``); None for no slow
            start.
    """

    up: RateTrace
    down: RateTrace
    rtt_s: float
    jitter_s: float = 0.0
    overhead_s: float = 0.0006
    offset_s: float = 0.0
    rest_after_s: float = math.inf
    promotion_s: float = 0.0
    window_bytes: int | None = INITIAL_WINDOW_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScene:
    """A device. ``profile`` is what it measured of itself when idle; the truth is that times ``slowdown``.

    Attributes:
        jitter: sigma of the log-normal factor of each request's device passes.
        temperature_c: None when it has no sensor.
        memory_bytes: free memory over time; None for that of the profile.
    """

    profile: DeviceProfile
    slowdown: Course = field(default_factory=lambda: Course.constant(1.0))
    jitter: float = 0.0
    temperature_c: Course | None = None
    memory_bytes: Course | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudScene:
    """A cloud that serves others too. Their load comes from outside: it does not react to this device.

    Attributes:
        profile: as in its manifest; the truth is that times ``slowdown``.
        queue_s: mean wait of a step over time; each exchange's own is exponential around it.
        jitter: sigma of the log-normal factor of each step.
    """

    profile: CloudProfile
    slowdown: Course = field(default_factory=lambda: Course.constant(1.0))
    queue_s: Course = field(default_factory=lambda: Course.constant(0.0))
    jitter: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request of a workload.

    Attributes:
        at_s: when its user asks; it begins when the device has finished the one before.
        prompt_tokens: whole prompt, earlier turns of its conversation included.
        new_tokens: tokens that the answer will have; no strategy but a clairvoyant one knows it.
        max_new_tokens: the caller's bound, which strategies know.
        genre: chat, edit, summarise: decides how drafts fare.
        conversation, turn: turns of one conversation share a prefix and its caches.
        shared_tokens: leading prompt tokens that the turn before left in the caches (its prompt and answer).
    """

    at_s: float
    prompt_tokens: int
    new_tokens: int
    max_new_tokens: int
    genre: str
    conversation: int
    turn: int = 0
    shared_tokens: int = 0
    privacy: Privacy = Privacy.OPEN
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not (0.0 <= self.at_s < math.inf and 1 <= self.new_tokens <= self.max_new_tokens):
            raise InputError("a job begins at 0 or later and has 1 to max_new_tokens new tokens")
        if not 0 <= self.shared_tokens < self.prompt_tokens:
            raise InputError("a job's prompt is longer than what it shares with the turn before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One device's world.

    Attributes:
        drafts: the drafters that the device has, with their true statistics, by genre.
        objective: what every strategy is to minimise and by which all are judged.
        seed: of every draw; draws are keyed by (seed, job, what), so that all strategies meet the same luck.
    """

    model: ModelShape
    device: DeviceScene
    link: LinkScene
    cloud: CloudScene
    jobs: tuple[Job, ...]
    drafts: Mapping[str, tuple[DraftStatistics, ...]] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
