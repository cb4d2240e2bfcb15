"""Seconds of computing in a reply, on the device and in the cloud: as the profiles have them, and as a run had them"""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_sims.testbed.bed import Run
from splitglm_sims.world.effort import Effort
from splitglm_sims.world.scene import Job

DEVICE_STAGES = ("front", "encode", "decode", "tail", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Seconds; 0 where nothing is computed."""

    device_s: float
    cloud_s: float


def profiled_work(model: ModelShape, device: DeviceProfile, cloud: CloudProfile, plan: SplitPlan, job: Job) -> Work:
    """What the profiles say that the job's reply takes, sealing left out."""
    effort = Effort(plan, model, device, cloud)
    chunks, one = effort.prefill(job.prompt_tokens, 0), effort.round(1)
    device_s = sum(chunk.device_s + chunk.tail_s for chunk in chunks)
    cloud_s = sum(chunk.back_s for chunk in chunks) + job.new_tokens * one.head_s
    if plan.arm in (Arm.DEVICE, Arm.USHAPE):
        device_s += device.active.head_s
    for context in range(job.prompt_tokens, job.prompt_tokens + job.new_tokens - 1):
        device_s += one.front.at(context) + one.device_s + one.tail.at(context) + one.after_s
        cloud_s += one.back.at(context)
    return Work(device_s=0.0 if plan.arm is Arm.CLOUD else device_s, cloud_s=cloud_s)


def real_work(run: Run) -> Work:
    """What computing took in ``run``, as device and cloud measured it."""
    device_s = sum(run.stats.stage_s.get(name, 0.0) for name in DEVICE_STAGES)
    return Work(device_s=device_s, cloud_s=run.stats.cloud_compute_s)
