"""One device of a simulated world: its link, its caches, and what it could be told before it decides

All state of a device is here and can be copied, so that a counterfactual begins where the truth stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.cloud_load import Load
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.link_estimator import PROBE_BYTES, Probing
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_partitioner.request import Request, Situation, Warm
from splitglm_partitioner.round_trips import MIN_REST_S
from splitglm_sims.world import seen
from splitglm_sims.world.account import Account, Pace
from splitglm_sims.world.drafting import drafter_of
from splitglm_sims.world.draws import Draws, What
from splitglm_sims.world.effort import Effort, Efforts
from splitglm_sims.world.judging import forbidden
from splitglm_sims.world.link import Link
from splitglm_sims.world.outage import PING_BYTES, TIMEOUTS
from splitglm_sims.world.reply import Reply, on_device
from splitglm_sims.world.scene import LinkScene, Scene

_MOST_BYTES_PER_S = 1e12


def first_estimate(scene: LinkScene) -> LinkEstimate:
    """The link as a device that connects at the world's beginning probes it: round trips, then 32 KiB each way."""
    link = Link(replace(scene, window_bytes=None))
    rates = [
        max(1.0, PROBE_BYTES / max(way.finish_s(0.0, PROBE_BYTES), PROBE_BYTES / _MOST_BYTES_PER_S))
        for way in (link.up, link.down)
    ]
    return LinkEstimate(
        uplink_bytes_per_s=min(rates[0], _MOST_BYTES_PER_S),
        downlink_bytes_per_s=min(rates[1], _MOST_BYTES_PER_S),
        rtt_s=scene.rtt_s,
        overhead_s=scene.overhead_s,
        rtt_var_s=scene.jitter_s,
        window_bytes=scene.window_bytes,
    )


class Handset:
    """The device of ``scene``, between two jobs.

    Args:
        device: its index in a crowd; part of the key of its luck.
        efforts: what plans ask of machines, shared by the devices of a crowd.
        load_at: what the cloud says of its load when it is asked; None for what the scene says.
    """

    def __init__(
        self,
        scene: Scene,
        device: int = 0,
        efforts: Efforts | None = None,
        load_at: Callable[[float], Load] | None = None,
    ) -> None:
        self.scene = scene
        self.index = device
        self.link = Link(scene.link)
        self.believed = first_estimate(scene.link)
        self.sessions: dict[int, tuple[SplitPlan, int]] = {}  # by conversation: caches of which plan, how many tokens
        self._efforts = efforts or Efforts()
        self._load_at = load_at or self._own_load_at
        self._machine = self._efforts.machine(scene.device.profile)

    def _own_load_at(self, now_s: float) -> Load:
        """What a cloud says of its load that comes from outside."""
        cloud = self.scene.cloud
        return Load(
            queue_s=cloud.queue_s.at(now_s),
            sweep_s=cloud.profile.sweep_s,
            slowdown=cloud.profile.slowdown * cloud.slowdown.at(now_s),
        )

    def draws(self, job: int) -> Draws:
        return Draws(self.scene.seed, job, self.index)

    def effort(self, plan: SplitPlan) -> Effort:
        return self._efforts.of(plan, self.scene.model, self._machine, self.scene.cloud.profile)

    def situation(self, index: int) -> Situation:
        """What is known of a job before anything is measured."""
        scene, job = self.scene, self.scene.jobs[index]
        request = Request(
            prompt_tokens=job.prompt_tokens,
            expected_new_tokens=job.max_new_tokens,
            max_new_tokens=job.max_new_tokens,
            privacy=job.privacy,
            deadline_s=job.deadline_s,
            objective=scene.objective,
            warm=self._warm(index),
        )
        return Situation(
            request=request,
            model=scene.model,
            device=scene.device.profile,
            link=self.believed,
            cloud=scene.cloud.profile,
            drafts=scene.drafts.get(job.genre, ()),
        )

    def vitals(self, now_s: float) -> Vitals:
        """What the sensors say."""
        heat, memory = self.scene.device.temperature_c, self.scene.device.memory_bytes
        return Vitals(
            temperature_c=None if heat is None else heat.at(now_s),
            memory_bytes_available=None if memory is None else int(memory.at(now_s)),
        )

    def true_situation(self, situation: Situation, now_s: float) -> Situation:
        """With the memory that is really free."""
        memory = self.scene.device.memory_bytes
        if memory is None:
            return situation
        return replace(situation, device=replace(situation.device, memory_bytes_free=int(memory.at(now_s))))

    def reply(self, index: int, plan: SplitPlan, situation: Situation, draws: Draws) -> Reply:
        """What is to run. ``situation``: with what is true of the device."""
        job = self.scene.jobs[index]
        device_only = SplitPlan.device_only(plan.layers, chunk_tokens=plan.chunk_tokens)
        can_alone = plan.arm is not Arm.DEVICE and forbidden(device_only, situation) is None
        return Reply(
            effort=self.effort(plan),
            prompt_tokens=job.prompt_tokens,
            cached_tokens=situation.request.cached_tokens(plan),
            new_tokens=job.new_tokens,
            most_tokens=job.max_new_tokens,
            pace=self.pace(draws),
            drafter=drafter_of(plan, situation.drafts),
            alone=self.effort(device_only) if can_alone else None,
            genre=job.genre,
        )

    def pace(self, draws: Draws) -> Pace:
        device = self.scene.device
        factor = device.profile.slowdown
        if device.jitter:
            factor *= draws.log_normal(What.DEVICE, 0, device.jitter)
        return Pace(factor, device.slowdown)

    def instead(self, index: int, draws: Draws, now_s: float) -> Outcome:
        """The reply on the device alone, begun at ``now_s`` from nothing; as if its memory sufficed."""
        job, layers = self.scene.jobs[index], self.scene.model.layers
        effort = self.effort(SplitPlan.device_only(layers))
        whole = Reply(
            effort=effort,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=0,
            new_tokens=job.new_tokens,
            most_tokens=job.max_new_tokens,
            pace=self.pace(draws),
        )
        account = Account(now_s)
        return account.outcome(on_device(whole, effort, account, now_s), self.scene.device.profile.power, None)

    def keep(self, index: int, plan: SplitPlan | None) -> None:
        """A reply has ended: what the conversation's caches hold now; ``plan`` None for nothing."""
        job = self.scene.jobs[index]
        self.sessions.pop(job.conversation, None)
        if plan is not None:
            # The last token is known but was not run.
            self.sessions[job.conversation] = plan, job.prompt_tokens + job.new_tokens - 1

    def probe(self, kind: Probing, account: Account, draws: Draws, now_s: float) -> float:
        """Ask the link; returns when the answer is there, or when the device stops waiting for it."""
        if kind is Probing.NONE:
            return now_s
        idle_s = self.link.idle_s(now_s)
        account.used_link(now_s)
        round_trip_s = 0.0
        for place in range(2 if idle_s >= MIN_REST_S else 1):  # the first one may have to wake a radio
            at_s = self._ping(draws, place, now_s, PING_BYTES, PING_BYTES)
            round_trip_s = at_s - now_s
            seen.round_trip(account, at_s, round_trip_s, idle_s if place == 0 else 0.0)
            seen.hint(account, at_s, self._load_at(at_s))
            now_s = at_s
            if round_trip_s >= TIMEOUTS.silence_s:
                return now_s
        if kind is Probing.ROUND_TRIP:
            return now_s
        for place, (up, down) in enumerate(((PROBE_BYTES, PING_BYTES), (PING_BYTES, PROBE_BYTES)), 2):
            at_s = self._ping(draws, place, now_s, up, down)
            account.up_bytes += up
            account.down_bytes += down
            seen.probed(account, at_s, up, down, max(at_s - now_s - round_trip_s, 1e-6))
            now_s = at_s
        return now_s

    def _ping(self, draws: Draws, place: int, now_s: float, up: int, down: int) -> float:
        link, scene = self.link, self.scene.link
        _, left_s = link.up.send(now_s + link.wake_s(now_s), up)
        _, back_s = link.down.send(left_s + scene.rtt_s / 2, down)
        at_s = back_s + scene.rtt_s / 2
        if scene.jitter_s:
            at_s += scene.jitter_s * draws.half_normal(What.PROBE_DELAY, place)
        at_s = min(at_s, now_s + TIMEOUTS.connect_s)
        link.used_s = max(link.used_s, at_s)
        return at_s

    def _warm(self, index: int) -> Warm | None:
        job = self.scene.jobs[index]
        kept = self.sessions.get(job.conversation)
        if kept is None:
            return None
        cached = min(job.shared_tokens, kept[1], job.prompt_tokens - 1)
        return Warm(plan=replace(kept[0], drafter="none", draft_tokens=0), cached_tokens=cached) if cached else None
