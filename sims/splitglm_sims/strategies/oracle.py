"""The clairvoyant bound: for each request, what would turn out best.

It asks ``Task.foresee``, which runs a plan in a copy of the world, for every arm, tail and codec at both ends and the
middle of its cuts and for the drafters at hand, and then climbs from the best of each arm: the cut by halving steps,
the draft length by one. Cost is near-linear in the cut, so that finds the best one but for noise. It is greedy in time:
a plan that would serve the *next* request better (a warm cache, an awake radio) is not preferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.arms import Candidates
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed, nearest, shortlist, usable, with_drafts
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task

LENGTHS = (1, 2, 4, 8, 16)


class Oracle(Passive):
    """See the module."""

    clairvoyant = True

    def choose(self, task: Task) -> SplitPlan:
        foresee, objective = task.foresee, task.situation.request.objective
        if foresee is None:
            raise InputError("the oracle needs a world that lets it foresee")
        known: dict[SplitPlan, float] = {}

        def value(plan: SplitPlan) -> float:
            if plan not in known:
                known[plan] = objective.value_of(foresee(plan))
            return known[plan]

        candidates = allowed(task.situation)
        best: dict[Arm, SplitPlan] = {}
        for plan in shortlist(candidates, cuts=3):
            if plan.arm not in best or value(plan) < value(best[plan.arm]):
                best[plan.arm] = plan
        for plain in list(best.values()):
            for plan in _drafted(plain, candidates, task.situation):
                if value(plan) < value(best[plan.arm]):
                    best[plan.arm] = plan
        return min((_climbed(plan, candidates, task.situation, value) for plan in best.values()), key=value)


def _drafted(plain: SplitPlan, candidates: Candidates, situation: Situation) -> Iterator[SplitPlan]:
    """``plain`` with each drafter that serves it, at its cut or at the least one that the drafter needs."""
    for statistics in situation.drafts:
        s = max(plain.s, statistics.front_layers) if plain.arm is not Arm.DEVICE else plain.s
        plan = nearest(candidates, plain.arm, s=s, t=plain.t, codec=plain.codec)
        for length in LENGTHS:
            if length <= len(statistics.survival) and usable(statistics, plan):
                yield with_drafts(plan, statistics, length)


def _climbed(
    plan: SplitPlan, candidates: Candidates, situation: Situation, value: Callable[[SplitPlan], float]
) -> SplitPlan:
    """A plan from which no step of one layer or one drafted token gains."""
    cuts = next(block for block in candidates.blocks if block.arm is plan.arm and block.t == plan.t)
    statistics = next((d for d in situation.drafts if d.name == plan.drafter), None)
    step = max(1, (cuts.s_stop - cuts.s_start) // 4)
    while True:
        around = [
            replace(plan, s=s)
            for s in (plan.s - step, plan.s + step)
            if cuts.s_start <= s < cuts.s_stop and (statistics is None or s >= statistics.front_layers)
        ]
        if statistics is not None:
            lengths = (plan.draft_tokens - 1, plan.draft_tokens + 1)
            around += [replace(plan, draft_tokens=k) for k in lengths if 1 <= k <= len(statistics.survival)]
        better = min(around, key=value, default=plan)
        if value(better) < value(plan):
            plan = better
        elif step > 1:
            step //= 2
        else:
            return plan


def oracle(situation_facts: Facts, seed: int) -> Oracle:
    """What would turn out best, request by request."""
    return Oracle()
