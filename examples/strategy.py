"""A strategy of one's own: the device while it is cool, the product's search with the link last seen when it is hot.

PYTHONPATH=examples, then name it ``strategy:CoolHeaded`` wherever a simulation names a strategy.
"""

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Observation
from splitglm_sims.strategies.allowed import cheapest
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.fixed import device_only
from splitglm_sims.strategies.last_seen import LastSeen
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task


class CoolHeaded(Passive):
    def __init__(self, facts: Facts, seed: int, *, hot_c: float = 70.0) -> None:
        self.hot_c, self.alone, self.seen = hot_c, device_only(facts, seed), LastSeen()

    def choose(self, task: Task) -> SplitPlan:
        hot = (task.vitals.temperature_c or 0.0) >= self.hot_c
        return cheapest(self.seen.apply(task.situation)) if hot else self.alone.choose(task)

    def observe(self, observation: Observation) -> None:
        self.seen.observe(observation)
