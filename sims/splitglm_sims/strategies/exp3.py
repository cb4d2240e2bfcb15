"""EXP3 over the fixed arms of a device: no model of anything, no assumption on how the world changes.

Source: Auer et al. 2002 (``exponential_weights``). The arms are ``fixed.fixed_arms``: every allowed arm, both ends of
its cuts, each codec, and the drafters at hand. A reply of value ``v`` earns
``min(1, r / v)``, where ``r`` is what the profile predicts for the best plan of that request: comparable between small
and large requests, of which the algorithm itself has no notion. It needs thousands of requests where worlds have
hundreds; that is its nature, not a defect of this file.
"""

from __future__ import annotations

from splitglm_core.errors import NoFeasiblePlan
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Observation, ReplyEnded
from splitglm_partitioner.policy import decide
from splitglm_partitioner.request import Objective
from splitglm_sims.strategies.allowed import changed
from splitglm_sims.strategies.exponential_weights import ExponentialWeights
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.fixed import FixedArm, fixed_arms
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task


class Exp3(Passive):
    """See the module."""

    def __init__(self, *, gamma: float, seed: int) -> None:
        self._weights: ExponentialWeights[FixedArm] = ExponentialWeights(gamma=gamma, seed=seed)
        self._drawn: tuple[FixedArm, float, int] | None = None
        self._reference = 1.0
        self._objective = Objective()

    def choose(self, task: Task) -> SplitPlan:
        situation = task.situation
        arms = fixed_arms(situation)
        if not arms:
            raise NoFeasiblePlan("no arm is allowed", "give the device more memory or a cloud")
        self._drawn = self._weights.draw(arms)
        self._objective = situation.request.objective
        self._reference = max(decide(changed(situation, deadline_s=None)).value, 1e-9)
        return self._drawn[0].plan(situation)

    def observe(self, observation: Observation) -> None:
        if isinstance(observation, ReplyEnded) and self._drawn is not None:
            value = self._objective.value_of(observation.outcome)
            self._weights.reward(*self._drawn, min(1.0, self._reference / max(value, 1e-9)))
            self._drawn = None


def exp3(situation_facts: Facts, seed: int, *, gamma: float = 0.1) -> Exp3:
    """Exponential weights over the fixed arms."""
    return Exp3(gamma=gamma, seed=seed)
