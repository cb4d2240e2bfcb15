"""Edgent in its dynamic mode: a map from bandwidth states to plans, made offline, and change-point detection online.

Source: Li et al., *Edge AI: On-Demand Accelerating Deep Neural Network Inference via Edge Computing*, arXiv 1910.05316.
Taken: the configuration map over bandwidth states; Bayesian online change-point detection on the measured bandwidth;
a new plan is looked up only when the detected state changes.

Differs: right-sizing (leaving the network at an early exit) is left out, since it changes the answer; the rest of their
co-optimisation then is a partition under the request's objective and deadline. A state's plans are made when a request
of some size first needs them, and kept: sizes (by powers of two) take the part of their one fixed network. The
uplink's rate is the state; the downlink keeps the ratio to it that was profiled, the round trip and the cloud's load
what was profiled: their map has no such inputs. Bandwidth is measured from transfers, or by a probe after
``probe_after_s`` without any.
"""

from __future__ import annotations

import math
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy, SplitPlan
from splitglm_partitioner.bounds import MAX_BYTES_PER_S
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Direction, Observation, Transfer
from splitglm_partitioner.rates import MIN_TRANSFER_BYTES
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed, changed, cheapest, nearest
from splitglm_sims.strategies.change_points import ChangePoints
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task

LOW_BYTES_PER_S = 1e3
HIGH_BYTES_PER_S = 1e9
Kind = tuple[int, Privacy, int, int]


def state_of(bytes_per_s: float, per_decade: int) -> int:
    """The bandwidth state: the nearest of ``per_decade`` levels per factor of ten from ``LOW_BYTES_PER_S`` up."""
    clipped = min(max(bytes_per_s, LOW_BYTES_PER_S), HIGH_BYTES_PER_S)
    return round(per_decade * math.log10(clipped / LOW_BYTES_PER_S))


def rate_of(state: int, per_decade: int) -> float:
    """Bytes per second of a state."""
    return float(LOW_BYTES_PER_S * 10.0 ** (state / per_decade))


class Edgent(Passive):
    """See the module."""

    def __init__(self, *, per_decade: int, expected_run: float, probe_after_s: float) -> None:
        self._per_decade, self._expected_run, self._probe_after_s = per_decade, expected_run, probe_after_s
        self._detector: ChangePoints | None = None
        self._seen_at_s: float | None = None
        self._map: dict[Kind, SplitPlan] = {}

    def probe(self, task: Task) -> Probing:
        if task.situation.link is None:
            return Probing.NONE
        fresh = self._seen_at_s is not None and task.now_s - self._seen_at_s <= self._probe_after_s
        return Probing.NONE if fresh else Probing.RATES

    def choose(self, task: Task) -> SplitPlan:
        situation = replace(task.situation, drafts=())
        if situation.link is None:
            return cheapest(situation)
        request = situation.request
        state = state_of(self._level(situation.link.uplink_bytes_per_s), self._per_decade)
        sizes = (request.prompt_tokens.bit_length(), request.expected_new_tokens.bit_length())
        kind = (state, request.privacy, *sizes)
        if kind not in self._map:
            self._map[kind] = cheapest(changed(self._at(situation, state), warm=None))
        plan = self._map[kind]  # made for another request of this kind: allowed for this one unless it is larger
        return nearest(allowed(situation), plan.arm, s=plan.s, t=plan.t, codec=plan.codec)

    def observe(self, observation: Observation) -> None:
        if not isinstance(observation, Transfer) or observation.direction is not Direction.UP:
            return
        if observation.transfer_bytes < MIN_TRANSFER_BYTES or observation.seconds <= 0.0:
            return
        rate = min(max(observation.transfer_bytes / observation.seconds, LOW_BYTES_PER_S), HIGH_BYTES_PER_S)
        if self._detector is None:
            # A state lasts; within one, rates scatter by some tens of per cent: variance 0.05 of the logarithm.
            self._detector = ChangePoints(
                expected_run=self._expected_run, mean=math.log(rate), strength=0.1, shape=1.0, scale=0.05
            )
        self._detector.observe(math.log(rate))
        self._seen_at_s = observation.at_s

    def _level(self, profiled: float) -> float:
        return profiled if self._detector is None else math.exp(self._detector.level)

    def _at(self, situation: Situation, state: int) -> Situation:
        """``situation`` with the uplink at a state's rate."""
        link = situation.link
        if link is None:
            return situation
        rate = rate_of(state, self._per_decade)
        down = min(max(rate * link.downlink_bytes_per_s / link.uplink_bytes_per_s, 1.0), MAX_BYTES_PER_S)
        return replace(situation, link=replace(link, uplink_bytes_per_s=rate, downlink_bytes_per_s=down))


def edgent(
    situation_facts: Facts,
    seed: int,
    *,
    states_per_decade: int = 8,
    expected_run: float = 50.0,
    probe_after_s: float = 600.0,
) -> Edgent:
    """Offline map of bandwidth states, change points online."""
    if not 1 <= states_per_decade <= 100:
        raise InputError("states_per_decade lies in [1, 100]")
    if not expected_run > 1.0:
        raise InputError("expected_run is more than 1 measurement")
    return Edgent(per_decade=states_per_decade, expected_run=expected_run, probe_after_s=probe_after_s)
