"""The clairvoyant bound: for each request, what would turn out best.

It asks ``Task.foresee``, which runs a plan in a copy of the world, for the plans that hindsight tries (every arm, tail
and codec, cuts spread over the allowed range) without drafts, for the best of each arm with drafts of several lengths,
and then climbs from the best of each arm: the cut by halving steps, the draft length by one. It is greedy in time: a
plan that would serve the *next* request better (a warm cache, an awake radio) is not preferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.arms import Candidates
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed, nearest, usable, with_drafts
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task
from splitglm_sims.world.candidates import candidates as worth_trying

LENGTHS = (1, 2, 4, 8)


class Oracle(Passive):
    """See the module."""

    clairvoyant = True

    def choose(self, task: Task) -> SplitPlan:
        foresee, objective = task.foresee, task.situation.request.objective
        if foresee is None:
            raise InputError("the oracle needs a world that lets it foresee")
        known: dict[SplitPlan, float] = {}

        def rank(plan: SplitPlan) -> float:
            if plan not in known:
                known[plan] = objective.value_of(foresee(plan))
            return known[plan]

        candidates = allowed(task.situation)
        best: dict[Arm, SplitPlan] = {}
        for plan in worth_trying(task.situation):
            if plan.arm not in best or rank(plan) < rank(best[plan.arm]):
                best[plan.arm] = plan
        for plain in list(best.values()):
            for plan in _drafted(plain, candidates, task.situation):
                if rank(plan) < rank(best[plan.arm]):
                    best[plan.arm] = plan
        return min((_climbed(plan, candidates, task.situation, rank) for plan in best.values()), key=rank)


def _drafted(plain: SplitPlan, candidates: Candidates, situation: Situation) -> Iterator[SplitPlan]:
    """``plain`` with each drafter that serves it, at its cut or at the least one that the drafter needs."""
    if plain.arm is Arm.DEVICE:
        return
    for statistics in situation.drafts:
        s = max(plain.s, statistics.front_layers)
        plan = nearest(candidates, plain.arm, s=s, t=plain.t, codec=plain.codec)
        for length in LENGTHS:
            if length <= len(statistics.survival) and usable(statistics, plan):
                yield with_drafts(plan, statistics, length)


def _climbed(
    plan: SplitPlan, candidates: Candidates, situation: Situation, rank: Callable[[SplitPlan], float]
) -> SplitPlan:
    """A plan from which no step of one layer or one drafted token gains."""
    cuts = next(block for block in candidates.blocks if block.arm is plan.arm and block.t == plan.t)
    statistics = next((d for d in situation.drafts if d.name == plan.drafter), None)
    step = max(1, (cuts.s_stop - cuts.s_start) // 8)
    while True:
        around = [
            replace(plan, s=s)
            for s in (plan.s - step, plan.s + step)
            if cuts.s_start <= s < cuts.s_stop and (statistics is None or s >= statistics.front_layers)
        ]
        if statistics is not None:
            lengths = (plan.draft_tokens - 1, plan.draft_tokens + 1)
            around += [replace(plan, draft_tokens=k) for k in lengths if 1 <= k <= len(statistics.survival)]
        better = min(around, key=rank, default=plan)
        if rank(better) < rank(plan):
            plan = better
        elif step > 1:
            step //= 2
        else:
            return plan


def oracle(situation_facts: Facts, seed: int) -> Oracle:
    """What would turn out best, request by request."""
    return Oracle()
