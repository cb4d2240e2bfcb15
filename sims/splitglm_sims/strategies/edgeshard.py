"""EdgeShard: where each layer runs, by dynamic programming over (layer, machine) on profiled times.

Source: Zhang et al., arXiv 2405.14371 (IEEE IoT Journal 2025). Taken: joint choice of machines and layers by dynamic
programming for least latency or, for many requests in a row, least bottleneck stage; the first layer stays at the
source and results return to it; memory of each machine as a constraint; one static profile.

Differs: two machines; a plan has one back, so the stages are device, cloud, device (``stage_plans``); where privacy
lets the cloud sample, only the token returns. A layer's time is its share of the whole reply (prefill and all decode
steps) where the paper averages the two phases. As in the paper the first layer never leaves the source, so cloud-only
is no candidate unless ``first_layer_at_source`` is off; and chunks do not overlap in its latency.
"""

from __future__ import annotations

import math

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.arms import Block, make_plan
from splitglm_partitioner.lanes import lane_of
from splitglm_partitioner.profiles import CloudProfile, LinkEstimate
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.reply_seconds import ReplySeconds
from splitglm_sims.strategies.stage_plans import Line, least_bottleneck, least_latency
from splitglm_sims.strategies.strategy import Task

SOLVERS = {"latency": least_latency, "throughput": least_bottleneck}


class EdgeShard(Passive):
    """See the module. ``aim`` is a key of ``SOLVERS``."""

    def __init__(self, *, aim: str, first_layer_at_source: bool) -> None:
        self._aim, self._at_source = aim, first_layer_at_source

    def choose(self, task: Task) -> SplitPlan:
        situation = task.situation
        candidates = allowed(situation)
        seconds = ReplySeconds(situation)
        best, chosen = math.inf, None
        for block in candidates.blocks:
            if block.arm is Arm.CLOUD and self._at_source and len(candidates.blocks) > 1:
                continue
            for codec in candidates.codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
                value, stages = self._solve(block, codec, situation, seconds)
                if stages and value < best:
                    best = value
                    s = stages.count(0) if block.arm is not Arm.DEVICE else candidates.layers
                    chosen = make_plan(candidates.layers, block.arm, s, block.t, codec, candidates.chunk_tokens)
        if chosen is None:  # every block holds at least one cut, so the programme always finds one
            raise InputError("no layer may run anywhere")
        return chosen

    def _solve(
        self, block: Block, codec: Codec, situation: Situation, seconds: ReplySeconds
    ) -> tuple[float, tuple[int, ...]]:
        """The best cut within ``block``."""
        line = line_of(block, codec, situation, seconds)
        if self._aim == "throughput" and block.arm is Arm.USHAPE:
            line = _tail_on_front(line, block.t)
        return SOLVERS[self._aim](line)


def line_of(block: Block, codec: Codec, situation: Situation, seconds: ReplySeconds) -> Line:
    """Stages device, cloud, device for the cuts of ``block``."""
    layers, link, cloud = situation.model.layers, situation.link, situation.cloud
    compute = np.full((layers, 3), math.inf)
    head = situation.device.active.head_s * seconds.new_tokens
    if block.arm is Arm.DEVICE or link is None or cloud is None:
        compute[:, 0] = np.diff(seconds.device)
        never = np.array([0.0, math.inf, math.inf])
        return Line(compute, never, np.array([math.inf, math.inf]), np.array([head, math.inf, math.inf]))
    compute[: block.s_stop - 1, 0] = np.diff(seconds.device)[: block.s_stop - 1]
    compute[block.s_start : block.t, 1] = np.diff(seconds.cloud)[block.s_start : block.t]
    compute[block.t :, 2] = np.diff(seconds.device)[block.t :]
    up_s, down_s = _moves(block, codec, situation, link, cloud, seconds)
    if block.arm is Arm.USHAPE:
        leave = np.array([math.inf, down_s + head, head])
        return Line(compute, np.array([0.0, math.inf, math.inf]), np.array([up_s, down_s]), leave)
    compute[-1, 1] += (cloud.head_s or 0.0) * seconds.new_tokens
    entry = np.array([math.inf, up_s, math.inf]) if block.arm is Arm.CLOUD else np.array([0.0, math.inf, math.inf])
    return Line(compute, entry, np.array([up_s, math.inf]), np.array([math.inf, down_s, math.inf]))


def _moves(
    block: Block, codec: Codec, situation: Situation, link: LinkEstimate, cloud: CloudProfile, seconds: ReplySeconds
) -> tuple[float, float]:
    """Seconds up and down of the whole reply; half of each round trip and of each wait lies on either side."""
    arm, layers = block.arm, situation.model.layers
    lane = lane_of(arm, codec, situation.model.hidden)
    trips = 1 if arm is Arm.CLOUD else seconds.new_tokens
    waits = trips * (link.rtt_s + link.overhead_s) + seconds.new_tokens * cloud.queue_s
    up_rows = seconds.rows if arm is Arm.CLOUD else seconds.rows + seconds.new_tokens - 1
    up_s = (up_rows * lane.up_row + lane.up_sink) / link.uplink_bytes_per_s
    deep = block.t < layers  # a tail caches every position, so all of the prompt comes back
    down_rows = seconds.rows + seconds.new_tokens - 1 if deep else seconds.new_tokens
    down_s = (down_rows * lane.down_row + (lane.down_sink if deep else 0)) / link.downlink_bytes_per_s
    return up_s + waits / 2, down_s + waits / 2


def _tail_on_front(line: Line, t: int) -> Line:
    """The same with tail and head on stage 0, which is the same machine: its first layer carries their seconds."""
    layers = len(line.compute)
    compute, down_s = line.compute.copy(), float(line.move[1])
    compute[0, 0] += float(line.compute[t:, 2].sum()) + float(line.leave[2])
    compute[t:, 2] = 0.0
    leave = np.array([math.inf, down_s, math.inf] if t == layers else [math.inf, math.inf, 0.0])
    return Line(compute, line.entry, line.move, leave)


def edgeshard(
    situation_facts: Facts, seed: int, *, aim: str = "latency", first_layer_at_source: bool = True
) -> EdgeShard:
    """Dynamic programme over (layer, machine)."""
    if aim not in SOLVERS:
        raise InputError(f"aim {aim!r} is none of {', '.join(SOLVERS)}")
    return EdgeShard(aim=aim, first_layer_at_source=first_layer_at_source)
