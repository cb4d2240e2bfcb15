"""The simulator on the scene of a real run: the same job, plan, link traces and instant, the machines as measured"""

from __future__ import annotations

from dataclasses import dataclass, replace

from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation
from splitglm_sims.strategies.strategy import Task
from splitglm_sims.testbed.bed import Run
from splitglm_sims.testbed.machines import Machines
from splitglm_sims.testbed.work import profiled_work, real_work
from splitglm_sims.world.course import Course
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import CloudScene, DeviceScene, Job, LinkScene, Scene


@dataclass(frozen=True, slots=True)
class Told:
    """A strategy that was told its plan."""

    plan: SplitPlan
    clairvoyant: bool = False

    def probe(self, task: Task) -> Probing:
        return Probing.NONE

    def choose(self, task: Task) -> SplitPlan:
        return self.plan

    def observe(self, observation: Observation) -> None:
        """It has nothing to learn."""


def scene_of(machines: Machines, model: ModelShape, link: LinkScene, job: Job, arm: Arm) -> Scene:
    """The measured machines over ``link``. What waits in the cloud depends on whether that goes on by itself.

    The simulator's messages are payload; their framing is added to each exchange, at the mean rates of the traces.
    """
    framing_s = (
        machines.frame_up_bytes / link.up.mean_bytes_per_s + machines.frame_down_bytes / link.down.mean_bytes_per_s
    )
    waits_s = machines.stream_gap_s if arm is Arm.CLOUD else machines.step_queue_s
    return Scene(
        model=model,
        device=DeviceScene(profile=machines.device, slowdown=Course.constant(machines.device_pace)),
        link=replace(link, overhead_s=machines.overhead_s + framing_s),
        cloud=CloudScene(
            profile=machines.cloud,
            slowdown=Course.constant(machines.cloud_pace),
            queue_s=Course.constant(waits_s),
        ),
        jobs=(job,),
    )


def simulated(machines: Machines, model: ModelShape, link: LinkScene, run: Run, *, paced: bool = False) -> Record:
    """What the simulator says of ``run``, given where the link's traces stood when it was asked for.

    Args:
        paced: at the pace at which device and cloud really computed in this very run, instead of the one that was
            measured before: what is left of the error is then the link's, the exchanges' and the simulator's own.
    """
    scene = scene_of(machines, model, replace(link, offset_s=run.link_offset_s), run.job, run.plan.arm)
    if paced:
        here = real_work(run)
        profiled = profiled_work(model, machines.device, machines.cloud, run.plan, run.job)
        device = Course.constant(here.device_s / profiled.device_s if profiled.device_s else 1.0)
        cloud = Course.constant(here.cloud_s / profiled.cloud_s if profiled.cloud_s else 1.0)
        scene = replace(
            scene, device=replace(scene.device, slowdown=device), cloud=replace(scene.cloud, slowdown=cloud)
        )
    return run_lone(scene, Told(run.plan))[0]
