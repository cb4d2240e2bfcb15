"""Neurosurgeon: scan every cut with regression models of the layers and the bandwidth last measured.

Source: Kang et al., *Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge*, ASPLOS 2017. Taken:
per-layer prediction models (here the measured layer times), the current bandwidth and the server's load as inputs, a
scan of all cuts, for least latency or least energy on the device. No forecast, no smoothing, no memory of the reply.

Differs: the scan also covers U-shapes, codecs and both ends of the model, since a chain of equal layers has nothing to
choose otherwise; times are of a whole reply (prompt and answer), which the paper's one-shot networks do not have; no
drafts. The paper has the device measure the bandwidth by itself: here passively from transfers, and with a probe when
nothing was seen for ``probe_after_s``, or it would never leave device-only again.
"""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation
from splitglm_partitioner.request import Objective
from splitglm_sims.strategies.allowed import changed, cheapest
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.last_seen import LastSeen
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task

AIMS: dict[str, Objective | None] = {
    "objective": None,
    "latency": Objective(latency=1.0),
    "energy": Objective(latency=0.0, energy=1.0),
}


class Neurosurgeon(Passive):
    """See the module. ``aim`` None minimises what the request asks for."""

    def __init__(self, *, aim: Objective | None = None, probe_after_s: float = 600.0) -> None:
        self._aim, self._probe_after_s = aim, probe_after_s
        self._seen = LastSeen()

    def probe(self, task: Task) -> Probing:
        seen_s = self._seen.rate_at_s
        if task.situation.link is None or (seen_s is not None and task.now_s - seen_s <= self._probe_after_s):
            return Probing.NONE
        return Probing.RATES

    def choose(self, task: Task) -> SplitPlan:
        situation = replace(self._seen.apply(task.situation), drafts=())
        return cheapest(situation if self._aim is None else changed(situation, objective=self._aim))

    def observe(self, observation: Observation) -> None:
        self._seen.observe(observation)


def neurosurgeon(
    situation_facts: Facts, seed: int, *, aim: str = "objective", probe_after_s: float = 600.0
) -> Neurosurgeon:
    """Scan of all cuts at the bandwidth last measured."""
    if aim not in AIMS:
        raise InputError(f"aim {aim!r} is none of {', '.join(AIMS)}")
    if aim == "energy" and situation_facts.device.power is None:
        raise InputError("aim energy needs a device whose profile states its power")
    return Neurosurgeon(aim=AIMS[aim], probe_after_s=probe_after_s)
