"""What most strategies have in common: no clairvoyance, no probe, nothing learnt. Each overrides what it needs."""

from __future__ import annotations

from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation
from splitglm_sims.strategies.strategy import Task


class Passive:
    """Three of the four members of ``Strategy``; ``choose`` is left to the subclass."""

    clairvoyant: bool = False

    def probe(self, task: Task) -> Probing:
        """Nothing is asked of the link."""
        return Probing.NONE

    def observe(self, observation: Observation) -> None:
        """Nothing is learnt."""
