"""What the simulator must be told of the real machines: measured, each term by its name

The device's and the cloud's profiles are measured by the product itself, alone and in a loop. What a reply costs beyond
them is measured here on real replies over a link of known rate and round trip: everything that is neither a stage on
the device, nor the cloud's own computing and waiting as it reports them, nor the link. In a loop such an exchange would
be cheaper than it is beside a model that has just pushed everything else out of the processor's caches; so are layers
that run over the same warm memory again and again, which is why the pace of real replies is measured too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from splitglm_core.plan import Arm, Codec
from splitglm_partitioner.arms import make_plan
from splitglm_partitioner.lanes import lane_of
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_sims.testbed.bed import Run, Testbed, job_of
from splitglm_sims.testbed.work import DEVICE_STAGES, profiled_work, real_work
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.scene import LinkScene

_RATE_BYTES_PER_S = 125e6
_RTT_S = 0.04
_CHUNK = 128
_PROMPT_TOKENS, _LONG_PROMPT_TOKENS = 8, _CHUNK
_FEW, _MANY = 2, 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Real machines in the simulator's terms, and what it has no term for.

    Attributes:
        device, cloud: profiles; the cloud's is the one of its manifest.
        device_pace, cloud_pace: how many times longer than profiled they compute in real replies.
        overhead_s: per exchange, what is neither model nor link nor sealing; the emulator's own lateness is part of it.
        step_queue_s: what the cloud says that a step of a session alone waits, for a place and for the sweep.
        stream_gap_s: per token of a cloud that goes on by itself, what its layers and head do not explain.
        start_s: from the call of a reply until the device computes: planning, caches, text. No term of the simulator.
        open_s: extra of a reply's first exchange, which opens a session in the cloud. No term of the simulator.
        frame_up_bytes, frame_down_bytes: per exchange on the link, what is not payload: frame, padding, record, gRPC,
            HTTP/2.
    """

    device: DeviceProfile
    cloud: CloudProfile
    device_pace: float
    cloud_pace: float
    overhead_s: float
    step_queue_s: float
    stream_gap_s: float
    start_s: float
    open_s: float
    frame_up_bytes: float
    frame_down_bytes: float


def measure_machines(bed: Testbed, *, repetitions: int = 5) -> Machines:
    """Run replies of device, split and cloud over a fast link with a round trip, in turn; about a minute.

    Time per exchange and per token is the difference of long and short replies, so that what a reply costs once is not
    in it; medians of ``repetitions``. It leaves that fast link shown.
    """
    agent = bed.agent
    model, rate = agent.checkpoint.config.shape, RateTrace.constant(_RATE_BYTES_PER_S)
    bed.link.show(LinkScene(up=rate, down=rate, rtt_s=_RTT_S, window_bytes=None))
    plans = {
        arm: make_plan(model.layers, arm, model.layers // 2, model.layers, Codec.BF16, _CHUNK)
        for arm in (Arm.DEVICE, Arm.SPLIT, Arm.CLOUD)
    }
    asked = [(arm, _PROMPT_TOKENS, tokens) for arm in plans for tokens in (1, _FEW, _MANY)]
    asked += [(arm, _LONG_PROMPT_TOKENS, _MANY) for arm in plans]
    runs: dict[tuple[Arm, int, int], list[Run]] = {key: [] for key in asked}
    for repetition in range(repetitions + 1):
        for (arm, prompt, tokens), kept in runs.items():
            run = bed.run(job_of(prompt, tokens), offset_s=0.0, plan=plans[arm], seed=repetition)
            if repetition:  # the first round loads layers
                kept.append(run)
    # As in its manifest: what it is at its present load is measured here.
    device, cloud = agent.profile, replace(agent.link()[1], queue_s=0.0, sweep_s=0.0, slowdown=1.0)

    def paces(arm: Arm, place: str) -> list[float]:
        profiled = profiled_work(model, device, cloud, plans[arm], job_of(_LONG_PROMPT_TOKENS, _MANY))
        return [
            getattr(real_work(run), place) / getattr(profiled, place) for run in runs[arm, _LONG_PROMPT_TOKENS, _MANY]
        ]

    start_s = median(map(_unexplained_s, runs[Arm.DEVICE, _PROMPT_TOKENS, 1]))
    few, many = ({arm: runs[arm, _PROMPT_TOKENS, tokens] for arm in plans} for tokens in (_FEW, _MANY))
    exchange_s = _growth(list(map(_unexplained_s, few[Arm.SPLIT])), list(map(_unexplained_s, many[Arm.SPLIT])))
    up_bytes = _growth([run.tcp_up_bytes for run in few[Arm.SPLIT]], [run.tcp_up_bytes for run in many[Arm.SPLIT]])
    down_bytes = _growth(
        [run.tcp_down_bytes for run in few[Arm.SPLIT]], [run.tcp_down_bytes for run in many[Arm.SPLIT]]
    )
    lane = lane_of(Arm.SPLIT, Codec.BF16, model.hidden)
    sealing_s = 2 * (device.seal_s_per_record or 0.0) + (device.seal_s_per_byte or 0.0) * (lane.up_row + lane.down_row)
    wire_s = (up_bytes + down_bytes) / _RATE_BYTES_PER_S
    return Machines(
        device=device,
        cloud=cloud,
        device_pace=median(paces(Arm.DEVICE, "device_s") + paces(Arm.SPLIT, "device_s")),
        cloud_pace=median(paces(Arm.CLOUD, "cloud_s") + paces(Arm.SPLIT, "cloud_s")),
        overhead_s=max(0.0, exchange_s - wire_s - sealing_s),
        step_queue_s=max(0.0, _growth(list(map(_waited_s, few[Arm.SPLIT])), list(map(_waited_s, many[Arm.SPLIT])))),
        stream_gap_s=max(0.0, _growth(list(map(_idle_s, few[Arm.CLOUD])), list(map(_idle_s, many[Arm.CLOUD])))),
        start_s=max(0.0, start_s),
        open_s=max(0.0, median(map(_unexplained_s, runs[Arm.SPLIT, _PROMPT_TOKENS, 1])) - start_s - exchange_s),
        frame_up_bytes=up_bytes - lane.up_row,
        frame_down_bytes=down_bytes - lane.down_row,
    )


def _growth(few: list[float] | list[int], many: list[float] | list[int]) -> float:
    """What a further token adds."""
    return (median(many) - median(few)) / (_MANY - _FEW)


def _waited_s(run: Run) -> float:
    return run.stats.cloud_queue_s + run.stats.cloud_sweep_s


def _idle_s(run: Run) -> float:
    """Everything of a reply of the cloud's but computing and the round trip."""
    return run.outcome.total_s - run.stats.cloud_compute_s - _RTT_S


def _unexplained_s(run: Run) -> float:
    """Seconds of a reply that are neither device stages, nor the cloud's, nor round trips."""
    stats = run.stats
    stages_s = sum(stats.stage_s.get(name, 0.0) for name in DEVICE_STAGES)
    cloud_s = stats.cloud_compute_s + stats.cloud_queue_s + stats.cloud_sweep_s
    return run.outcome.total_s - stages_s - cloud_s - stats.round_trips * _RTT_S
