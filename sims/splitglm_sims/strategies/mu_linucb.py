"""ANS / muLinUCB: a contextual bandit over partition points with forced sampling; plain, sliding and discounted.

Source: Zhang et al., *Autodidactic Neurosurgeon: Collaborative Deep Inference for Mobile Edge Intelligence via Online
Learning*, WWW 2021, arXiv 2102.02638. Taken: the delay of the device's own layers is known from its profile; the rest
(link and cloud) is unknown but linear in features of the partition; the arm of the least lower confidence bound runs;
because device-only has no unknown part, and so teaches nothing, an offloading arm is forced at a growing interval.

Differs: features are what a reply has instead of one network pass: bytes up, bytes down, cloud seconds of prefill and
of decode, round trips. As theirs they are scaled to at most 1, by the plans of the first request; ``theta`` begins at
what the profile says, theirs at 0; samples weigh by the size of the reply, as large ones scatter more. The forced
interval is ``requests ** forced_power``, as the horizon is unknown; ``forced_power`` and ``alpha`` were chosen on the
link classes for tuning. Key frames belong to video.
The sliding and discounted memories (``linear_bandit``) are the usual remedy for drift; the paper has the plain one.
Costs are seconds and the price that is known beforehand; joules are not counted. No drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.lanes import lane_of
from splitglm_partitioner.observations import Observation, ReplyEnded
from splitglm_partitioner.request import Objective, Situation
from splitglm_sims.strategies.allowed import allowed, shortlist
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.linear_bandit import LinearBandit, Vector
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.reply_seconds import ReplySeconds
from splitglm_sims.strategies.strategy import Task

FEATURES = 5
MEMORIES = ("plain", "sliding", "discounted")


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Of one plan and request: what is known, and the features of what is not, weighted as the objective says.

    Attributes:
        known: cost of the device's own work and of the cloud's price.
        features: seconds by the profile of: uplink, downlink, cloud prefill, cloud decode, round trips; ``[5]``.
    """

    known: float
    features: Vector


def terms_of(plan: SplitPlan, situation: Situation, seconds: ReplySeconds, objective: Objective) -> Terms:
    """The parts of a plan's cost."""
    total, first = objective.latency, objective.ttft
    head_s, s, t = situation.device.active.head_s, plan.s, plan.t
    link, cloud = situation.link, situation.cloud
    last = situation.model.layers
    prefill = float(seconds.device_prefill[s] + seconds.device_prefill[last] - seconds.device_prefill[t])
    decode = float(seconds.device_decode[s] + seconds.device_decode[last] - seconds.device_decode[t])
    more = seconds.new_tokens - 1
    if plan.arm in (Arm.DEVICE, Arm.USHAPE):
        prefill, decode = prefill + head_s, decode + head_s * more
    known = (total + first) * prefill + total * decode
    if plan.arm is Arm.DEVICE or link is None or cloud is None:
        return Terms(known, np.zeros(FEATURES))
    lane = lane_of(plan.arm, plan.codec, situation.model.hidden)
    alone = plan.arm is Arm.CLOUD
    cloud_head = 0.0 if plan.arm is Arm.USHAPE else cloud.head_s or 0.0
    known += objective.cloud_cost * (cloud.price_per_layer_token or 0.0) * (t - s) * (seconds.rows + more)
    up, down = 1.0 / link.uplink_bytes_per_s, 1.0 / link.downlink_bytes_per_s
    up_first, up_more = seconds.rows * lane.up_row + lane.up_sink, 0 if alone else more * lane.up_row
    down_first = (seconds.rows if t < last else 1) * lane.down_row + (lane.down_sink if t < last else 0)
    down_more = 0 if alone else more * lane.down_row  # hidden behind the next step
    trip_s = link.rtt_s + link.overhead_s
    both = np.array(
        [
            [up_first * up, up_more * up],
            [down_first * down, down_more * down],
            [float(seconds.cloud_prefill[t] - seconds.cloud_prefill[s]) + cloud_head, 0.0],
            [0.0, float(seconds.cloud_decode[t] - seconds.cloud_decode[s]) + cloud_head * more],
            [trip_s, 0.0 if alone else trip_s * more],
        ]
    )
    return Terms(known, both @ np.array([total + first, total]))


class MuLinUcb(Passive):
    """See the module.

    Args:
        alpha: widths of optimism.
        forced_power: after ``n ** forced_power`` requests without offloading, the next one is offloaded.
        cuts: values of ``s`` per arm, codec and tail.
    """

    def __init__(
        self, make_bandit: Callable[[Vector], LinearBandit], *, alpha: float, forced_power: float, cuts: int
    ) -> None:
        self._make_bandit, self._alpha, self._forced_power, self._cuts = make_bandit, alpha, forced_power, cuts
        self._learnt: tuple[LinearBandit, Vector, float] | None = None
        self._requests = self._since_offload = 0
        self._asked: Situation | None = None

    def choose(self, task: Task) -> SplitPlan:
        situation = self._asked = task.situation
        self._requests += 1
        plans = list(shortlist(allowed(situation), cuts=self._cuts))
        if self._since_offload >= math.ceil(self._requests**self._forced_power):
            plans = [plan for plan in plans if plan.arm is not Arm.DEVICE] or plans
        fresh = ReplySeconds(situation)
        warm = self._warm_seconds(situation, plans)
        objective = situation.request.objective
        terms = [terms_of(plan, situation, warm.get(plan, fresh), objective) for plan in plans]
        features = np.array([term.features for term in terms])
        known = np.array([term.known for term in terms])
        bandit, scales, unit_s = self._bandit(known, features)
        scaled = features / scales
        bound = known + unit_s * (bandit.expected(scaled) - self._alpha * bandit.width(scaled))
        chosen = plans[int(bound.argmin())]
        self._since_offload = self._since_offload + 1 if chosen.arm is Arm.DEVICE else 0
        return chosen

    def observe(self, observation: Observation) -> None:
        situation = self._asked
        if not isinstance(observation, ReplyEnded) or situation is None or observation.plan.arm is Arm.DEVICE:
            return
        if self._learnt is None:
            return
        plan, outcome, objective = observation.plan, observation.outcome, situation.request.objective
        cached = situation.request.cached_tokens(plan)
        seconds = ReplySeconds(situation, new_tokens=outcome.new_tokens, cached_tokens=cached)
        term = terms_of(plan, situation, seconds, Objective(latency=objective.latency, ttft=objective.ttft))
        bandit, scales, unit_s = self._learnt
        size = float(term.features.sum()) / unit_s  # of this reply, in replies like the first
        if size <= 0.0:
            return
        cost = objective.latency * outcome.total_s + objective.ttft * outcome.ttft_s
        bandit.observe(term.features / scales / size, (cost - term.known) / unit_s / size)

    def _bandit(self, known: Vector, features: Vector) -> tuple[LinearBandit, Vector, float]:
        """The bandit, what features are divided by, and its unit of cost: set by the first request's plans."""
        if self._learnt is None:
            largest = features.max(axis=0)
            scales = np.where(largest > 0.0, largest, 1.0)
            unit_s = max(float((known + features.sum(axis=1)).max()), 1e-9)
            self._learnt = (self._make_bandit(scales / unit_s), scales, unit_s)
        return self._learnt

    def _warm_seconds(self, situation: Situation, plans: list[SplitPlan]) -> Mapping[SplitPlan, ReplySeconds]:
        """Plans that an open session serves have fewer tokens to run."""
        served = {plan: situation.request.cached_tokens(plan) for plan in plans}
        return {plan: ReplySeconds(situation, cached_tokens=n) for plan, n in served.items() if n}


def mu_linucb(
    situation_facts: Facts,
    seed: int,
    *,
    memory: str = "plain",
    alpha: float = 0.03,
    ridge: float = 0.1,
    forced_power: float = 0.5,
    discount: float = 0.98,
    window: int = 50,
    cuts: int = 5,
) -> MuLinUcb:
    """Linear bandit over plans with forced sampling."""
    if memory not in MEMORIES:
        raise InputError(f"memory {memory!r} is none of {', '.join(MEMORIES)}")
    if not (alpha >= 0.0 and 0.0 < forced_power < 1.0 and 2 <= cuts <= 64):
        raise InputError("alpha is 0 or more, forced_power lies in (0, 1), cuts in [2, 64]")
    if memory == "sliding" and window < 1:
        raise InputError("a sliding memory keeps 1 sample or more")
    LinearBandit(np.ones(FEATURES), ridge=ridge, discount=discount, window=0)  # refuses what is out of range
    make = partial(
        LinearBandit,
        ridge=ridge,
        discount=discount if memory == "discounted" else 1.0,
        window=window if memory == "sliding" else 0,
    )
    return MuLinUcb(make, alpha=alpha, forced_power=forced_power, cuts=cuts)
