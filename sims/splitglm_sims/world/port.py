"""How a simulated device reaches its cloud: what is sent, what comes back, and the link in between

A port does the arithmetic of both legs of an exchange; who computes in between is its subclass's business (``alone``:
a formula; ``crowd``: the real scheduler). The agent's program (``reply``) knows only this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_sims.world.draws import Draws, What
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.link import Link
from splitglm_sims.world.outage import TIMEOUTS, lost_s, recovery
from splitglm_sims.world.scene import LinkScene


class Stream(NamedTuple):
    """A cloud that goes on by itself after the prompt.

    Attributes:
        tokens: of the whole answer.
        most_tokens: that were asked for: a drafter may look so far ahead.
        drafter, draft_tokens: one that lives in the cloud.
    """

    effort: Effort
    prompt_tokens: int
    tokens: int
    most_tokens: int
    drafter: DraftStatistics | None
    draft_tokens: int


class Step(NamedTuple):
    """One message of the device.

    Attributes:
        place: of the chunk, or of the first token that a decode step is for; keys its luck.
        compute_s: undisturbed seconds alone in the cloud, head included.
        head_rows: positions to which the cloud applies the head.
        context: positions cached before it.
        alone: nothing else of this device is open in the cloud.
    """

    place: int
    decode: bool
    rows: int
    context: int
    compute_s: float
    up_bytes: int
    down_bytes: int
    head_rows: int
    alone: bool
    stream: Stream | None = None


class Answer(NamedTuple):
    """What came of a step, or of the whole stream that it began.

    Attributes:
        at_s: when the device has it, or when it gave up waiting (``lost``).
        sent_s: when the step was handed to the link.
        up_s, down_s: seconds on the wire, nothing before it counted.
        overhead_s: of the exchange, what is neither model nor link; the agent knows it.
        idle_s: how long the link had been idle before it.
        first_s, tokens: of a stream: when the first token was there, and how many came.
        rounds, rows, rounds_queue_s, rounds_compute_s: of a stream after its first token: works of the cloud, their
            rows, and the sums of their waits and of their computing.
        lost: what is missing does not come any more; ``at_s`` is when the device gave the cloud up.
    """

    at_s: float
    step: Step
    sent_s: float
    up_s: float
    down_s: float
    idle_s: float
    queue_s: float
    sweep_s: float
    compute_s: float
    down_bytes: int
    overhead_s: float
    first_s: float = 0.0
    tokens: int = 0
    rounds: int = 0
    rows: int = 0
    rounds_queue_s: float = 0.0
    rounds_compute_s: float = 0.0
    lost: bool = False


class Leg(NamedTuple):
    """The way up of a step."""

    sent_s: float
    up_s: float
    idle_s: float
    arrives_s: float


class Port(ABC):
    """One reply's exchanges.

    Args:
        believed: the link as the agent estimated it when it connected; its patience goes by that.
        stranded: the device cannot go on alone, so it waits longer for a lost cloud.
    """

    def __init__(
        self, link: Link, scene: LinkScene, draws: Draws, believed: LinkEstimate, *, stranded: bool = False
    ) -> None:
        self.link = link
        self._rtt_s = scene.rtt_s
        self._delay_s = scene.rtt_s / 2
        self._jitter_s = scene.jitter_s
        self._overhead_s = scene.overhead_s
        self._draws = draws
        self._believed = believed
        self._stranded = stranded
        self._arrived_s = 0.0  # of the newest answer: order is kept
        self._heard_s = 0.0  # when the device last heard of its cloud
        self._expected_s = 0.0  # when what was sent should be there, at half the believed rate

    @abstractmethod
    def send(self, now_s: float, step: Step) -> None:
        """Hand a step over; it leaves when the link is free."""

    @abstractmethod
    def take(self, now_s: float, block: bool) -> Answer | None:
        """The next answer that is there at ``now_s``; else, when ``block``, the next at all."""

    def _up(self, now_s: float, size: int) -> Leg:
        link = self.link
        idle_s, ready_s = link.idle_s(now_s), now_s + link.wake_s(now_s)
        first_s, left_s = link.up.send(ready_s, size, self._overhead_s)
        link.used_s = left_s
        self._expected_s = max(now_s, self._expected_s) + 2 * size / self._believed.uplink_bytes_per_s
        return Leg(now_s, left_s - first_s, idle_s, left_s + self._delay_s)

    def _down(self, done_s: float, size: int, index: int, *, decode: bool, busy_s: float = 0.0) -> tuple[float, float]:
        """When an answer is there, and its seconds on the wire."""
        first_s, left_s = self.link.down.send(done_s, size, busy_s)
        at_s = left_s + self._delay_s
        if self._jitter_s:
            what = What.DECODE_DELAY if decode else What.PREFILL_DELAY
            at_s += self._jitter_s * self._draws.half_normal(what, index)
        self._arrived_s = at_s = max(at_s, self._arrived_s)
        self.link.used_s = max(self.link.used_s, at_s)
        return at_s, left_s - first_s

    def _waited(self, now_s: float, at_s: float) -> tuple[float, bool]:
        """The device waits from ``now_s`` for what would come at ``at_s``.

        Returns:
            When it has it, and False; or when it gives the cloud up, and True. A cloud that was lost and is reached
            again in time owes what it owed, and nothing is lost but time.
        """
        while at_s - max(now_s, self._heard_s) > TIMEOUTS.silence_s / 3:
            lost_at_s = lost_s(
                self.link,
                heard_s=self._heard_s,
                waits_from_s=now_s,
                answer_s=at_s,
                expected_s=self._expected_s,
                rtt_s=self._rtt_s,
            )
            if lost_at_s is None:
                break
            gone_s, again_s = recovery(self.link, lost_at_s, self._rtt_s, self._believed.rtt_s, self._stranded)
            if again_s > gone_s:
                return gone_s, True
            self._heard_s = now_s = again_s
            at_s = max(at_s, again_s + self._rtt_s)
        self._heard_s = max(self._heard_s, at_s)
        return at_s, False
