"""Everything that is known, in one place: observations in, plans out. A pure state machine; the caller brings the time.

The device's agent and the simulator use this same class. It owns the estimators, the governor's state and the
policy's memory; it never asks the clock, never draws, and does no I/O. ``wants`` says what to ask of the link.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitglm_core.errors import NoFeasiblePlan
from splitglm_core.plan import Arm
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.acceptance import Acceptance
from splitglm_partitioner.asking import Stakes, question, rates_may_be, trip_may_be
from splitglm_partitioner.attribution import Running, priced_alike
from splitglm_partitioner.calibration import Calibration
from splitglm_partitioner.cloud_load import CloudLoad
from splitglm_partitioner.device_pace import DevicePace
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.factors import factors_of
from splitglm_partitioner.governor import Governor, GovernorSettings, Vitals
from splitglm_partitioner.guidance import SteeringSettings
from splitglm_partitioner.link_estimator import LinkEstimator, Probing
from splitglm_partitioner.observations import (
    CloudHint,
    CloudStep,
    DevicePass,
    DraftRound,
    Observation,
    ReplyEnded,
)
from splitglm_partitioner.policy import Decision, decide
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.reply_length import ReplyLength
from splitglm_partitioner.request import Request, Situation
from splitglm_partitioner.round_trips import MIN_REST_S
from splitglm_partitioner.steering import Steering, steer


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisorSettings:
    """What tunes an advisor. The defaults were chosen on the link classes marked for tuning (docs/simulation.md)."""

    steering: SteeringSettings = field(default_factory=SteeringSettings)
    governor: GovernorSettings = field(default_factory=GovernorSettings)


class Advisor:
    """One device, one model and at most one cloud. Not thread-safe."""

    def __init__(
        self,
        *,
        model: ModelShape,
        device: DeviceProfile,
        drafts: Mapping[str, tuple[DraftStatistics, ...]] | None = None,
        settings: AdvisorSettings | None = None,
    ) -> None:
        """Begin with what was measured before.

        Args:
            drafts: the drafters that the device has with their statistics by genre; "" is for any other genre.
        """
        settings = settings or AdvisorSettings()
        self._model = model
        self._device = device
        self._links = LinkEstimator()
        self._pace = DevicePace(device)
        self._load = CloudLoad()
        self._acceptance = Acceptance(drafts or {})
        self._lengths = ReplyLength()
        self._governor = Governor(settings.governor)
        self._steering = Steering(settings.steering)
        self.calibration = Calibration()
        self._running = Running()
        self._cloud: CloudProfile | None = None
        self._layers_in_use: int | None = None  # on the device, by the newest plan

    def connected(self, cloud: CloudProfile, *, link: LinkEstimate | None = None) -> None:
        """A cloud told its profile: the one asked from now on. ``link`` is what is believed until something is seen."""
        self._cloud = cloud
        if link is not None:
            self._links.start(link)
        self._load.connected(cloud)

    def wants(self, request: Request, *, now_s: float, vitals: Vitals | None = None, genre: str = "") -> Probing:
        """What to ask of the link before deciding on ``request``.

        Something only when it is worth its time: the seconds that knowing the link, or the cloud's load, is expected to
        save by another plan, against those of asking. Every answer tells the load too.
        """
        blind, link = self._links.blind(now_s), self.link(now_s)
        if self._cloud is None:
            return blind
        loads = self._load.possible(self._cloud, now_s, for_s=_cloud_s(request, self._cloud))
        if blind is Probing.NONE and len(loads) == 1:
            return blind
        asked = (request, now_s, vitals, genre)
        try:
            arm = self._cheapest(*asked, link).plan.arm
            stakes = Stakes(
                rates=[self._stake(arm, *asked, there) for there in rates_may_be(link)]
                if blind is Probing.RATES
                else [],
                trip=[self._stake(arm, *asked, there) for there in trip_may_be(link)]
                if self._links.trip_blind(now_s)
                else [],
                load=[(p, self._stake(arm, *asked, link, there)) for p, there in loads] if len(loads) > 1 else [],
            )
        except NoFeasiblePlan:
            return blind
        return question(
            stakes,
            link,
            rested=self._links.idle_s(now_s) >= MIN_REST_S,
            wakes=arm is Arm.DEVICE,
            weight=request.objective.latency + request.objective.ttft,
        )

    def observe(self, observation: Observation) -> None:
        """Learn from something that happened.

        Of a ``ReplyEnded`` that comes without its decision (``ended``) the calibration learns nothing: which factors
        its predictions contain is not known.
        """
        if isinstance(observation, DevicePass):
            self._pace.observe(observation)
        elif isinstance(observation, ReplyEnded):
            if observation.comparable:
                self._lengths.observe(observation)
                self.calibration.observe(observation, settled=False)
        else:
            self._links.observe(observation)  # whatever came over it shows that it is not at rest
            if isinstance(observation, CloudStep | CloudHint):
                self._load.observe(observation)
            elif isinstance(observation, DraftRound):
                self._acceptance.observe(observation)

    def link(self, now_s: float) -> LinkEstimate:
        """The link as estimated; an ordinary one, hardly believed, before anything was seen of it."""
        return self._links.estimate(now_s)

    def queued(self, until_s: float) -> None:
        """What was handed to the link so far will have left the device at ``until_s``."""
        self._links.queued(until_s)

    def cloud(self, now_s: float, *, for_s: float = 0.0) -> CloudProfile | None:
        """The cloud's profile at the load to be expected over the next ``for_s``; None without one."""
        return None if self._cloud is None else self._load.apply(self._cloud, now_s, for_s=for_s)

    def expected_new_tokens(self, genre: str, max_new_tokens: int) -> int:
        """How long an answer is expected to be, at most ``max_new_tokens``."""
        return self._lengths.expected(genre, max_new_tokens)

    def decide(
        self,
        request: Request,
        *,
        now_s: float,
        vitals: Vitals | None = None,
        genre: str = "",
        use_cloud: bool = True,
    ) -> Decision:
        """The plan for ``request`` now. Only the governor moves on with the sensors' readings: ``began`` says that the
        plan is going to run.

        Raises:
            NoFeasiblePlan and what else ``policy.decide`` raises.
        """
        link = self.link(now_s) if use_cloud else None
        cheapest = self._cheapest(request, now_s, vitals, genre, link)
        return steer(cheapest, self._steering.guidance(request, now_s))

    def began(self, decision: Decision, now_s: float) -> None:
        """The reply is going to run as decided."""
        self._steering.decided(decision, now_s)
        self._running.began(decision, now_s)
        self._layers_in_use = decision.plan.s + len(decision.plan.tail)

    def ended(self, decision: Decision, observation: ReplyEnded) -> None:
        """A reply that ``decide`` planned has ended.

        What an exploration cost is known now. Of one that ran to its end under this plan the length is learnt, and the
        arm is calibrated unless what the estimators follow changed since (``attribution``).
        """
        settled = self._settled(decision, observation)
        if observation.comparable:
            self._lengths.observe(observation)
            applied = factors_of(decision.plan.arm, decision.situation.factors)
            self.calibration.observe(observation, applied=applied, settled=settled)
        value = decision.situation.request.objective.value_of(observation.outcome)
        self._steering.ended(decision, value, observation.outcome.new_tokens)

    def _settled(self, decision: Decision, ended: ReplyEnded) -> bool:
        """Whether link, device, cloud and drafts are still as ``decision`` took them to be."""
        began_s = self._running.ended(decision)
        if began_s is None:
            return False
        for found_s in (self._links.changed_s, self._pace.changed_s, self._load.changed_s):
            if found_s is not None and found_s >= began_s:
                return False
        return priced_alike(
            decision,
            slowdown=self._pace.slowdown(ended.at_s),
            link=self.link(ended.at_s),
            cloud=self._cloud_for(decision.situation.request, ended.at_s),
            drafts=self._acceptance.statistics(ended.genre),
        )

    def _cloud_for(self, request: Request, now_s: float) -> CloudProfile | None:
        """The cloud as it is to be expected while it serves ``request``."""
        return None if self._cloud is None else self.cloud(now_s, for_s=_cloud_s(request, self._cloud))

    def _cheapest(
        self,
        request: Request,
        now_s: float,
        vitals: Vitals | None,
        genre: str,
        link: LinkEstimate | None,
        cloud: CloudProfile | None = None,
    ) -> Decision:
        """The exact search on what is known, within the governor's bounds as far as they leave a plan."""
        if cloud is None and link is not None:
            cloud = self._cloud_for(request, now_s)
        ruling = self._governor.rule(vitals or Vitals(), self._device, now_s, layers_in_use=self._layers_in_use)
        device = replace(self._device, slowdown=self._pace.slowdown(now_s))
        situation = Situation(
            request=_weighed(request, ruling.energy_weight),
            model=self._model,
            device=ruling.applied(device),
            link=None if cloud is None else link,
            cloud=cloud,
            drafts=self._acceptance.statistics(genre),
            factors=self.calibration.learnt(now_s),
        )
        try:
            decision = decide(situation)
        except NoFeasiblePlan:
            hard = ruling.applied(device, hard_only=True)
            if hard == situation.device:
                raise
            # A warm device that answers is better than none.
            decision = decide(replace(situation, device=hard))
        return replace(decision, notes=ruling.reasons) if ruling.reasons else decision

    def _stake(
        self,
        arm: Arm,
        request: Request,
        now_s: float,
        vitals: Vitals | None,
        genre: str,
        link: LinkEstimate,
        cloud: CloudProfile | None = None,
    ) -> float:
        """How much dearer ``arm`` would be than the best one if link and cloud were so."""
        there = self._cheapest(request, now_s, vitals, genre, link, cloud)
        ours = next((c for c in (there.chosen, *there.runners_up) if c.plan.arm is arm), None)
        return ours.value - there.value if ours is not None else 0.0


def _cloud_s(request: Request, cloud: CloudProfile) -> float:
    """How long a reply would keep the cloud decoding, roughly."""
    return request.expected_new_tokens * cloud.times.decode_s[0] * cloud.times.layers


def _weighed(request: Request, energy_weight: float) -> Request:
    """``request`` with joules counted at least so much."""
    if energy_weight <= request.objective.energy:
        return request
    return replace(request, objective=replace(request.objective, energy=energy_weight))
