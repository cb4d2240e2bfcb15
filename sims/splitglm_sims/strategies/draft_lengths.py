"""A draft length learnt by an upper confidence bound, one bandit per delay class: after UCB-SpecStop.

Source: UCB-SpecStop, arXiv 2606.20591 (abstract read, not the body). Taken: the draft length is learnt online by upper
confidence bounds from what rounds cost, apart for each state of the channel; the best length grows with the delay.
Differs: they stop within a round, on confidences that our plans do not carry; here one length holds for a reply, so the
bandit (UCB1: Auer, Cesa-Bianchi and Fischer, Machine Learning 47, 2002) is over lengths, its cost the seconds per token
of the reply in units of what the profile predicts without drafts. A delay class is the last round trip by factors of 2.
"""

from __future__ import annotations

import math
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.drafts import MAX_DRAFT_TOKENS
from splitglm_partitioner.observations import Observation, ReplyEnded
from splitglm_sims.strategies.decoding import plan_with_drafts
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.last_seen import LastSeen
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task


class LowestCost:
    """UCB1 turned round: the arm of the lowest ``mean - width * sqrt(2 ln n / n_arm)``, each tried once first."""

    def __init__(self, arms: int, *, width: float) -> None:
        self._counts, self._sums, self._width = [0] * arms, [0.0] * arms, width

    def choose(self) -> int:
        """The arm to play."""
        if 0 in self._counts:
            return self._counts.index(0)
        bounds = [self.bound(arm) for arm in range(len(self._counts))]
        return bounds.index(min(bounds))

    def bound(self, arm: int) -> float:
        """The optimistic cost of an arm that was played."""
        count, played = self._counts[arm], sum(self._counts)
        return self._sums[arm] / count - self._width * math.sqrt(2.0 * math.log(played) / count)

    def observe(self, arm: int, cost: float) -> None:
        """What a play cost, of the order of 1."""
        self._counts[arm] += 1
        self._sums[arm] += cost


class DraftLengths(Passive):
    """See the module."""

    def __init__(self, arms: tuple[Arm, ...], drafter: str, *, longest: int, width: float) -> None:
        self._arms, self._drafter, self._longest, self._width = arms, drafter, longest, width
        self._seen = LastSeen()
        self._bandits: dict[tuple[int, str], LowestCost] = {}
        self._played: tuple[LowestCost, int, float] | None = None

    def choose(self, task: Task) -> SplitPlan:
        situation = task.situation
        plan = plan_with_drafts(situation, self._arms, self._drafter, self._longest)
        self._played = None
        if not plan.draft_tokens:
            return plan
        link = self._seen.apply(situation).link
        rtt_s = 0.0 if link is None else link.rtt_s
        key = (round(math.log2(max(rtt_s, 1e-3))), task.genre)
        bandit = self._bandits.setdefault(key, LowestCost(plan.draft_tokens + 1, width=self._width))
        length = bandit.choose()
        plain = replace(plan, drafter="none", draft_tokens=0)
        priced = cost_of(plain, situation.request, situation.model, situation.device, situation.link, situation.cloud)
        self._played = (bandit, length, max(priced.per_token_s, 1e-9))
        return replace(plan, draft_tokens=length) if length else plain

    def observe(self, observation: Observation) -> None:
        self._seen.observe(observation)
        if isinstance(observation, ReplyEnded) and self._played is not None and observation.outcome.new_tokens > 1:
            bandit, length, unit_s = self._played
            bandit.observe(length, observation.outcome.per_token_s / unit_s)
            self._played = None


def draft_lengths(
    situation_facts: Facts,
    seed: int,
    *,
    arm: str = "ushape",
    drafter: str = "exit12",
    longest: int = 6,
    width: float = 0.1,
) -> DraftLengths:
    """A draft length learnt per delay class."""
    arms = {one.value: one for one in (Arm.CLOUD, Arm.SPLIT, Arm.USHAPE)}
    if arm not in arms:
        raise InputError(f"arm {arm!r} is none of {', '.join(arms)}")
    if not (1 <= longest <= MAX_DRAFT_TOKENS and width >= 0.0):
        raise InputError(f"longest lies in [1, {MAX_DRAFT_TOKENS}], width is 0 or more")
    return DraftLengths((arms[arm],), drafter, longest=longest, width=width)
