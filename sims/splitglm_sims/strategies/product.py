"""The product's own strategy: the advisor that the agent runs, told what the agent would tell it."""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.errors import NoFeasiblePlan
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.advisor import Advisor, AdvisorSettings
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.guidance import SteeringSettings
from splitglm_partitioner.link_estimator import PROBE_BYTES, Probing
from splitglm_partitioner.observations import Direction, Observation, ReplyEnded, RoundTrip, Transfer
from splitglm_partitioner.request import Request
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.strategy import Task

STEERING = SteeringSettings()


class Product:
    """``Advisor`` as a strategy.

    Args:
        advisor: fresh.
        facts: the cloud that it is connected to with the first request, and the link as probed then.
    """

    clairvoyant = False

    def __init__(self, advisor: Advisor, facts: Facts) -> None:
        self._advisor, self._facts, self._connected = advisor, facts, False
        self._decision: Decision | None = None

    def probe(self, task: Task) -> Probing:
        """What the advisor wants to know of the link first."""
        self._connect(task)
        return self._advisor.wants(self._asked(task), now_s=task.now_s, vitals=task.vitals, genre=task.genre)

    def choose(self, task: Task) -> SplitPlan:
        """The advisor's decision."""
        self._connect(task)
        request = self._asked(task)
        try:
            decision = self._decide(request, task)
        except NoFeasiblePlan:
            if request.deadline_s is None:
                raise
            decision = self._decide(replace(request, deadline_s=None), task)  # late is better than never
        self._advisor.began(decision, task.now_s)
        self._decision = decision
        return decision.plan

    def observe(self, observation: Observation) -> None:
        """All is handed on; of a reply that ended, also what was decided."""
        if isinstance(observation, ReplyEnded) and self._decision is not None:
            self._advisor.ended(self._decision, observation)
            self._decision = None
        else:
            self._advisor.observe(observation)

    @property
    def predicted(self) -> tuple[float, float] | None:
        """Seconds to the first token, and of each further one, predicted for the reply that runs."""
        if self._decision is None:
            return None
        return self._decision.breakdown.ttft_s, self._decision.breakdown.per_token_s

    def _decide(self, request: Request, task: Task) -> Decision:
        return self._advisor.decide(
            request, now_s=task.now_s, vitals=task.vitals, genre=task.genre, use_cloud=self._cloud(task)
        )

    def _connect(self, task: Task) -> None:
        if not self._connected and self._facts.cloud is not None and self._cloud(task):
            self._advisor.connected(self._facts.cloud)
            for seen in _as_probed(task):
                self._advisor.observe(seen)
            self._connected = True

    def _asked(self, task: Task) -> Request:
        request = task.situation.request
        most = request.max_new_tokens or request.expected_new_tokens
        expected = self._advisor.expected_new_tokens(task.genre, most)
        return replace(request, expected_new_tokens=expected, max_new_tokens=most)

    @staticmethod
    def _cloud(task: Task) -> bool:
        return task.situation.link is not None and task.situation.cloud is not None


def _as_probed(task: Task) -> tuple[Observation, ...]:
    """What the agent sees when it connects: a round trip, and ``PROBE_BYTES`` each way."""
    link, now_s = task.situation.link, task.now_s
    if link is None:
        return ()
    ways = ((Direction.UP, link.uplink_bytes_per_s), (Direction.DOWN, link.downlink_bytes_per_s))
    transfers = [
        Transfer(at_s=now_s, direction=way, transfer_bytes=PROBE_BYTES, seconds=PROBE_BYTES / rate)
        for way, rate in ways
    ]
    return RoundTrip(at_s=now_s, seconds=link.rtt_s), *transfers


def product(
    situation_facts: Facts,
    seed: int,
    *,
    cloud_drafts: bool = False,
    margin: float = STEERING.margin,
    patience: int = STEERING.patience,
    explore_share: float = STEERING.explore_share,
) -> Product:
    """The product's advisor. ``cloud_drafts``: also with drafters in the cloud, which the product's cloud has not."""
    drafts = {
        genre: tuple(one for one in known if cloud_drafts or not one.in_cloud)
        for genre, known in situation_facts.drafts.items()
    }
    steering = replace(STEERING, margin=margin, patience=patience, explore_share=explore_share)
    advisor = Advisor(
        model=situation_facts.model,
        device=situation_facts.device,
        drafts=drafts,
        settings=AdvisorSettings(steering=steering),
    )
    return Product(advisor, situation_facts)
