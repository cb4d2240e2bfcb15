"""DynaSplit: an offline Pareto front of configurations, and one of them online for each request.

Source: May et al., *DynaSplit: A Hardware-Software Co-Design Framework for Energy-Aware Inference on Edge*,
arXiv 2410.23881. Taken: an offline phase that evaluates configurations on several objectives and keeps the ones that no
other beats; an online phase that picks, for a request with a latency bound, the kept configuration of least energy that
meets it, and the fastest if none does; nothing is learnt online.

Differs: objectives are latency, joules on the device (where its power is known) and the cloud's price (where stated).
They search with NSGA-III because each evaluation is a measurement; here one is a price by the cost model, so the search
is exhaustive over every arm, tail, codec and ``cuts`` values of ``s``: no front of a sample is better. Hardware knobs
(clock speeds, accelerators) are not the product's. The front is made per size class (powers of two) and privacy, with
the profile and the link as first probed. A request without a latency bound takes the kept configuration of the
least value by its own objective: the paper has no such requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy, SplitPlan
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.request import Objective, Situation
from splitglm_sims.strategies.allowed import allowed, changed, shortlist
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task


def front_of(costs: NDArray[np.float64]) -> list[int]:
    """Rows of ``costs`` ``[n, objectives]`` (lower is better) that no other row dominates; of equal rows the first."""
    out: list[int] = []
    for i, row in enumerate(costs):
        no_worse, better = (costs <= row).all(axis=1), (costs < row).any(axis=1)
        twin = (costs[:i] == row).all(axis=1).any()
        if not twin and not (no_worse & better).any():
            out.append(i)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A plan and what it was found to cost offline, for the largest request of its size class."""

    plan: SplitPlan
    ttft_s: float
    total_s: float
    energy_j: float
    price: float

    def value(self, objective: Objective) -> float:
        """By the weights of ``objective``."""
        seconds = objective.latency * self.total_s + objective.ttft * self.ttft_s
        return seconds + objective.energy * self.energy_j + objective.cloud_cost * self.price


def pareto_front(situation: Situation, *, cuts: int) -> tuple[Configuration, ...]:
    """The configurations of a situation that none beats in latency, joules and price at once, fastest first."""
    found = []
    for plan in shortlist(allowed(situation), cuts=cuts):
        request, cloud = situation.request, situation.cloud
        cost = cost_of(plan, request, situation.model, situation.device, situation.link, cloud)
        found.append(
            Configuration(
                plan=plan,
                ttft_s=cost.ttft_s,
                total_s=cost.total_s,
                energy_j=cost.energy_j or 0.0,
                price=cost.price or 0.0,
            )
        )
    costs = np.array([(one.total_s, one.energy_j, one.price) for one in found])
    return tuple(sorted((found[i] for i in front_of(costs)), key=lambda one: one.total_s))


class DynaSplit(Passive):
    """See the module."""

    def __init__(self, *, cuts: int) -> None:
        self._cuts = cuts
        self._fronts: dict[tuple[int, int, Privacy], tuple[Configuration, ...]] = {}

    def choose(self, task: Task) -> SplitPlan:
        situation, request = task.situation, task.situation.request
        key = (request.prompt_tokens.bit_length(), request.expected_new_tokens.bit_length(), request.privacy)
        if key not in self._fronts:
            plain = changed(situation, warm=None, deadline_s=None)
            self._fronts[key] = pareto_front(plain, cuts=self._cuts)
        candidates = allowed(situation)
        front = [one for one in self._fronts[key] if self._still(one.plan, candidates.blocks)]
        if not front:  # a larger request of the class may fit fewer plans
            front = list(pareto_front(changed(situation, warm=None, deadline_s=None), cuts=self._cuts))
        return self._pick(front, request.objective, request.deadline_s)

    @staticmethod
    def _pick(front: Sequence[Configuration], objective: Objective, deadline_s: float | None) -> SplitPlan:
        if deadline_s is None:
            return min(front, key=lambda one: one.value(objective)).plan
        timely = [one for one in front if one.total_s <= deadline_s]
        if not timely:
            return front[0].plan
        return min(timely, key=lambda one: (one.energy_j, one.price, one.total_s)).plan

    @staticmethod
    def _still(plan: SplitPlan, blocks: Sequence[tuple[object, int, int, int]]) -> bool:
        return any(arm is plan.arm and t == plan.t and start <= plan.s < stop for arm, t, start, stop in blocks)


def dynasplit(situation_facts: Facts, seed: int, *, cuts: int = 5) -> DynaSplit:
    """Offline Pareto front, online pick."""
    if not 2 <= cuts <= 64:
        raise InputError("cuts lies in [2, 64]")
    return DynaSplit(cuts=cuts)
