"""What a strategy is: told what a real device could know, it names a plan for each request.

To add one, write a class with these four members in a file of its own and list it in ``registry.py``
(docs/simulation.md shows one in full).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation, Outcome
from splitglm_partitioner.request import Situation


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request to be planned.

    Attributes:
        now_s: the world's time.
        situation: the request; model, device and cloud as profiled; ``drafts`` with the statistics of a warm-up run;
            ``link`` as probed when the device first connected. Nothing in it follows the world: that is the
            strategy's own business, from what it observes.
        genre: of the text.
        vitals: what the device's sensors say.
        foresee: the true outcome of a plan, of one that fails together with what is done instead; for strategies whose
            ``clairvoyant`` is True, else None.
    """

    now_s: float
    situation: Situation
    genre: str
    vitals: Vitals
    foresee: Callable[[SplitPlan], Outcome] | None = None


class Strategy(Protocol):
    """One device's way of choosing. Deterministic: whatever it draws comes from the seed it was made with."""

    @property
    def clairvoyant(self) -> bool:
        """Whether it must be told the future. Such a strategy is a bound, not a competitor."""

    def probe(self, task: Task) -> Probing:
        """What to measure before ``choose`` is asked for the same request."""

    def choose(self, task: Task) -> SplitPlan:
        """The plan for this request; one that ``splitglm_partitioner.arms`` allows."""

    def observe(self, observation: Observation) -> None:
        """Learn from an exchange, or from a reply that ended."""
