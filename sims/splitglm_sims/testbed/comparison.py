"""The simulator on the scene of a real run: the same job, plan, link traces and instant, the machines as measured"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.observations import Observation
from splitglm_sims.strategies.strategy import Probe, Task
from splitglm_sims.testbed.bed import Run
from splitglm_sims.testbed.machines import DEVICE_STAGES, Machines
from splitglm_sims.world.course import Course
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import CloudScene, DeviceScene, Job, LinkScene, Scene


@dataclass(frozen=True, slots=True)
class Told:
    """A strategy that was told its plan."""

    plan: SplitPlan
    clairvoyant: bool = False

    def probe(self, task: Task) -> Probe:
        return Probe.NONE

    def choose(self, task: Task) -> SplitPlan:
        return self.plan

    def observe(self, observation: Observation) -> None:
        """It has nothing to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds of computing in a reply: on the device, and in the cloud."""

    device_s: float
    cloud_s: float


def profiled_work(machines: Machines, model: ModelShape, plan: SplitPlan, job: Job) -> Work:
    """What the profiles say that the job's reply takes to compute."""
    effort = Effort(plan, model, machines.device, machines.cloud)
    chunks, one = effort.prefill(job.prompt_tokens, 0), effort.round(1)
    device_s = sum(chunk.device_s + chunk.tail_s for chunk in chunks)
    cloud_s = sum(chunk.back_s for chunk in chunks) + job.new_tokens * one.head_s
    if plan.arm in (Arm.DEVICE, Arm.USHAPE):
        device_s += machines.device.active.head_s
    for context in range(job.prompt_tokens, job.prompt_tokens + job.new_tokens - 1):
        device_s += one.front.at(context) + one.device_s + one.tail.at(context) + one.after_s
        cloud_s += one.back.at(context)
    return Work(device_s=0.0 if plan.arm is Arm.CLOUD else device_s, cloud_s=cloud_s)


def real_work(run: Run) -> Work:
    """What computing took in ``run``, as device and cloud measured it."""
    device_s = sum(run.stats.stage_s.get(name, 0.0) for name in DEVICE_STAGES)
    return Work(device_s=device_s, cloud_s=run.stats.cloud_compute_s)


def scene_of(machines: Machines, model: ModelShape, link: LinkScene, job: Job, arm: Arm) -> Scene:
    """The measured machines over ``link``. What waits in the cloud depends on whether that goes on by itself."""
    waits_s = machines.stream_gap_s if arm is Arm.CLOUD else machines.step_queue_s
    return Scene(
        model=model,
        device=DeviceScene(profile=machines.device),
        link=replace(link, overhead_s=machines.overhead_s),
        cloud=CloudScene(profile=machines.cloud, queue_s=Course.constant(waits_s)),
        jobs=(job,),
    )


def simulated(machines: Machines, model: ModelShape, link: LinkScene, run: Run, *, paced: bool = False) -> Record:
    """What the simulator says of ``run``, given where the link's traces stood when it was asked for.

    Args:
        paced: also given how much slower than profiled device and cloud really computed in this run, as a course of the
            scene: what is left of the error is then the link's, the exchanges' and the simulator's own.
    """
    scene = scene_of(machines, model, replace(link, offset_s=run.link_offset_s), run.job, run.plan.arm)
    if paced:
        here, profiled = real_work(run), profiled_work(machines, model, run.plan, run.job)
        device = Course.constant(here.device_s / profiled.device_s if profiled.device_s else 1.0)
        cloud = Course.constant(here.cloud_s / profiled.cloud_s if profiled.cloud_s else 1.0)
        scene = replace(
            scene, device=replace(scene.device, slowdown=device), cloud=replace(scene.cloud, slowdown=cloud)
        )
    return run_lone(scene, Told(run.plan))[0]
