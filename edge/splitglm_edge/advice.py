"""The agent's ``Advisor`` behind its one lock: every thread tells it what it saw, and asks it what to do.

The advisor is not thread-safe and never does I/O, so the lock is held for as long as it computes and no longer: nobody
connects, sends or waits under it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from splitglm_core.shapes import ModelShape
from splitglm_partitioner.advisor import Advisor
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.link_estimator import ORDINARY_LINK, LinkEstimator, Probing
from splitglm_partitioner.observations import Observation, ReplyEnded
from splitglm_partitioner.policy import Decision
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request


class Listener(Protocol):
    """What a connection tells, and asks."""

    @property
    def now_s(self) -> Callable[[], float]:
        """The clock that observations are stamped with."""

    @property
    def profile(self) -> CloudProfile | None:
        """The cloud's own figures as of the newest handshake; None before the first."""

    def connected(self, profile: CloudProfile) -> None:
        """A manifest arrived, on a new connection."""

    def observe(self, observation: Observation) -> None: ...

    def link(self) -> LinkEstimate:
        """The link as estimated now."""


class LinkAdvice:
    """For who only looks at a link, without a model or a plan. Used from one thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self.profile: CloudProfile | None = None
        self._links = LinkEstimator()

    def connected(self, profile: CloudProfile) -> None:
        """A manifest arrived, on a new connection."""
        self.profile = profile

    def observe(self, observation: Observation) -> None:
        self._links.observe(observation)

    def link(self) -> LinkEstimate:
        """The link as estimated now."""
        return self._links.estimate(self.now_s())


class Advice:
    """One advisor for all conversations of an agent. Thread-safe.

    Args:
        now_s: a clock that does not go back; what observations are stamped with.
    """

    def __init__(self, model: ModelShape, device: DeviceProfile, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self._advisor = Advisor(model=model, device=device)
        self._lock = threading.Lock()
        self._profile: CloudProfile | None = None
        self._queued_s = -math.inf

    @property
    def profile(self) -> CloudProfile | None:
        """The cloud's own figures as of the newest handshake; None before the first."""
        return self._profile

    def connected(self, profile: CloudProfile) -> None:
        """A manifest arrived, on a new connection."""
        with self._lock:
            self._profile = profile
            self._advisor.connected(profile, link=ORDINARY_LINK)

    def observe(self, observation: Observation) -> None:
        with self._lock:
            self._advisor.observe(observation)

    def queued(self, until_s: float | None) -> None:
        """What was handed to the link so far will have left the device at ``until_s``; None: nothing is on its way."""
        now_s = self.now_s()
        if until_s is None and self._queued_s <= now_s:
            return
        with self._lock:
            self._queued_s = now_s if until_s is None else until_s
            self._advisor.queued(self._queued_s)

    def link(self) -> LinkEstimate:
        """The link as estimated now; an ordinary one before anything was seen of it."""
        with self._lock:
            return self._advisor.link(self.now_s())

    def cloud(self) -> CloudProfile | None:
        """The cloud at its present load; None before the first connection."""
        with self._lock:
            return self._advisor.cloud(self.now_s())

    def wants(self, request: Request, *, vitals: Vitals, genre: str) -> Probing:
        """What to ask of the link before deciding on ``request``."""
        with self._lock:
            return self._advisor.wants(request, now_s=self.now_s(), vitals=vitals, genre=genre)

    def decide(self, request: Request, *, vitals: Vitals, genre: str, use_cloud: bool) -> Decision:
        """The plan for ``request`` now. Raises what ``Advisor.decide`` raises."""
        with self._lock:
            return self._advisor.decide(request, now_s=self.now_s(), vitals=vitals, genre=genre, use_cloud=use_cloud)

    def began(self, decision: Decision) -> None:
        """A reply is going to run as decided."""
        with self._lock:
            self._advisor.began(decision, self.now_s())

    def ended(self, decision: Decision, ended: ReplyEnded) -> None:
        """It ran to its end."""
        with self._lock:
            self._advisor.ended(decision, ended)

    def expected_new_tokens(self, genre: str, max_new_tokens: int) -> int:
        """How long an answer is expected to be, as answers of this genre were."""
        with self._lock:
            return self._advisor.expected_new_tokens(genre, max_new_tokens)
