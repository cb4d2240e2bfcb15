"""What a request takes, one event, layer and number at a time: an oracle that knows nothing of recurrences."""

from __future__ import annotations

import heapq
import math

import numpy as np
from partitioner_factory import HIDDEN

from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.profiles import CloudProfile as Cloud
from splitglm_partitioner.profiles import DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Situation


class Machines:
    """Event simulation: every job visits (machine, seconds, delay after); machines serve by priority, then arrival."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int, str, tuple[int, int]]] = []
        self.queues: dict[str, list[tuple[int, int, int]]] = {}
        self.busy: dict[str, bool] = {}
        self.count = 0

    def post(self, at: float, kind: str, what: tuple[int, int]) -> None:
        self.count += 1
        # Arrivals at an instant are seen before a machine picks its next job at that instant.
        heapq.heappush(self.events, (at, self.count if kind == "arrive" else self.count + 10**9, kind, what))

    def run(self, jobs: list[list[tuple[str, float, float]]], first_ready: int | None = None) -> float:
        for number in sorted(range(len(jobs)), key=lambda number: number != first_ready):
            self.post(0.0, "arrive", (number, 0))
        end = 0.0
        while self.events:
            now, _, kind, (number, stage) = heapq.heappop(self.events)
            machine, _, delay = jobs[number][stage]
            if kind == "arrive":
                heapq.heappush(self.queues.setdefault(machine, []), (stage, number, stage))
                if not self.busy.get(machine):
                    self.post(now, "pick", (number, stage))
                continue
            if kind == "done":
                self.busy[machine] = False
                if stage + 1 < len(jobs[number]):
                    self.post(now + delay, "arrive", (number, stage + 1))
                else:
                    end = max(end, now + delay)
            if self.queues.get(machine) and not self.busy.get(machine):
                _, number, stage = heapq.heappop(self.queues[machine])
                self.busy[machine] = True
                self.post(now + jobs[number][stage][1], "done", (number, stage))
        return end


def waiting_s(size: int, link: LinkEstimate) -> float:
    """Round trips of slow start, one at a time: what each leaves unused of the link."""
    window, lost = float(link.window_bytes or math.inf), 0.0
    while size > window and window < link.uplink_bytes_per_s * link.rtt_s:
        lost += link.rtt_s - window / link.uplink_bytes_per_s
        size, window = size - int(window), 2 * window
    return lost


def layer_s(times: LayerTimes, layer: int, tokens: int, context: int) -> float:
    """Seconds of one chunk in one layer, read off the measured points one by one."""
    sizes = [1, *(point.chunk_tokens for point in times.prefill)]
    whole = [times.decode_s[layer], *(p.chunk_tokens * p.s_per_token[layer] for p in times.prefill)]
    if tokens > sizes[-1]:
        out = tokens * times.prefill[-1].s_per_token[layer]
    else:
        out = float(np.interp(tokens, sizes, whole))
    return out + (times.prefill_s_per_token_per_1k_context or 0.0) * tokens * context / 1000


def payload(codec: Codec, rows: int, base: int) -> int:
    row = {Codec.FP32: 4 * HIDDEN, Codec.BF16: 2 * HIDDEN, Codec.INT8: HIDDEN + 28}[codec]
    return (rows - 1) * row + 4 * HIDDEN if codec is Codec.INT8 and base == 0 else rows * row


def sealing_s(device: DeviceProfile, size: int) -> float:
    return (device.seal_s_per_record or 0.0) + (device.seal_s_per_byte or 0.0) * size


def cloud_layers(cloud: Cloud, plan: SplitPlan) -> list[int]:
    """Of the layers of the back, their places in the cloud's profile."""
    return [layer - cloud.served.start for layer in plan.back]


def simulated_ttft_s(
    plan: SplitPlan, prompt: int, cached: int, device: DeviceProfile, link: LinkEstimate, cloud: Cloud
) -> float:
    profile, arm, n, slow = device.active, plan.arm, plan.layers, device.slowdown
    codec_s = (device.codec_s_per_token(plan.codec) or 0.0) * slow
    jobs: list[list[tuple[str, float, float]]] = []
    deep = arm is Arm.USHAPE and plan.t < n
    upload = 4 * (prompt - cached) if arm is Arm.CLOUD else payload(plan.codec, prompt - cached, cached)
    for base in range(cached, prompt, plan.chunk_tokens):
        rows = min(plan.chunk_tokens, prompt - base)
        stages: list[tuple[str, float, float]] = []
        size = 4 * rows if arm is Arm.CLOUD else payload(plan.codec, rows, base)
        front = sum(layer_s(profile.times, i, rows, base) for i in plan.front) + (
            rows * profile.embed_s if plan.s else 0
        )
        coding = rows * codec_s if arm in (Arm.SPLIT, Arm.USHAPE) else 0.0
        sealing = 0.0 if arm is Arm.DEVICE else sealing_s(device, size)
        stages.append(("device", front * slow + coding + sealing, 0.0))
        if arm is not Arm.DEVICE:
            lag = link.rtt_s / 2 + cloud.queue_s + cloud.sweep_s
            waking = link.promotion_s + waiting_s(upload, link) if base == cached else 0.0
            stages.append(("up", size / link.uplink_bytes_per_s + link.overhead_s + waking, lag))
            back = sum(layer_s(cloud.times, i, rows, base) for i in cloud_layers(cloud, plan))
            stages.append(("cloud", back * cloud.slowdown, 0.0))
        if deep:
            down = payload(plan.codec, rows, base)
            stages.append(("down", down / link.downlink_bytes_per_s, link.rtt_s / 2))
            tail = sum(layer_s(profile.times, i, rows, base) for i in plan.tail) * slow
            stages.append(("device", tail + rows * codec_s + sealing_s(device, down), 0.0))
        jobs.append(stages)
    if arm is not Arm.DEVICE and link.uplink_queue_s:
        jobs.append([("up", link.uplink_queue_s, 0.0)])  # what others handed over before: ready at once
    end = Machines().run(jobs, first_ready=len(jobs) - 1 if arm is not Arm.DEVICE and link.uplink_queue_s else None)
    head_s = profile.head_s * slow
    if arm is Arm.DEVICE or deep:
        return end + head_s
    down = payload(plan.codec, 1, prompt - 1) if arm is Arm.USHAPE else 4
    end += link.rtt_s / 2 + down / link.downlink_bytes_per_s + sealing_s(device, down)
    if arm is Arm.USHAPE:
        return end + codec_s + head_s
    return end + (cloud.head_s or 0.0) * cloud.slowdown


def pass_s(times: LayerTimes, layers: list[int], rows: int, context: float) -> float:
    """Seconds of a decode step of ``rows`` positions: of a chunk as long, and the growth of attention with context."""
    seconds = sum(layer_s(times, i, rows, 0) for i in layers)
    growth = times.decode_s_per_1k_context * (context - times.decode_context_tokens) / 1000
    further = (times.prefill_s_per_token_per_1k_context or 0.0) * (rows - 1) * context / 1000
    return seconds + len(layers) * (growth + further)


def simulated_token_s(
    plan: SplitPlan,
    context: float,
    device: DeviceProfile,
    link: LinkEstimate,
    cloud: Cloud,
    drafter: DraftStatistics | None,
) -> float:
    """Seconds per token of one round after another."""
    profile, arm, rows, slow = device.active, plan.arm, plan.draft_tokens + 1, device.slowdown
    kept = sum(math.prod([1.0, drafter.survival[j]]) for j in range(plan.draft_tokens)) if drafter is not None else 0.0
    drafting = plan.draft_tokens * drafter.s_per_token if drafter is not None else 0.0
    front = pass_s(profile.times, list(plan.front), rows, context) + (rows * profile.embed_s if plan.s else 0.0)
    if drafter is not None and drafter.shares_front:
        early = list(range(drafter.front_layers))
        front -= pass_s(profile.times, early, rows, context) - pass_s(profile.times, early, 1, context)
        front -= plan.draft_tokens * profile.embed_s
    tail = pass_s(profile.times, list(plan.tail), rows, context) if arm is Arm.USHAPE else 0.0
    if arm is Arm.DEVICE:
        return (front + profile.head_s) * slow
    back = pass_s(cloud.times, cloud_layers(cloud, plan), rows, context)
    in_cloud = (back + (0.0 if arm is Arm.USHAPE else rows * (cloud.head_s or 0.0))) * cloud.slowdown
    waits = cloud.queue_s + cloud.sweep_s
    up = 4 * rows if arm is Arm.CLOUD else payload(plan.codec, rows, 1)
    down = payload(plan.codec, rows, 1) if arm is Arm.USHAPE else 4 * rows
    receiving = down / link.downlink_bytes_per_s + link.overhead_s + sealing_s(device, down)
    if arm is Arm.CLOUD and (drafter is None or drafter.in_cloud):
        return max(waits + in_cloud + drafting * cloud.slowdown, receiving) / (1 + kept)
    here = front + drafting + (tail + rows * profile.head_s if arm is Arm.USHAPE else 0.0)
    coded = 0 if arm is Arm.CLOUD else rows * (2 if arm is Arm.USHAPE else 1)
    here += coded * (device.codec_s_per_token(plan.codec) or 0.0)
    sending = sealing_s(device, up) + up / link.uplink_bytes_per_s + link.rtt_s
    return (here * slow + sending + waits + in_cloud + receiving) / (1 + kept)


def counted_joules(x: Situation, plan: SplitPlan, cached: int, ttft_s: float, token_s: float) -> float:
    """Joules of one request, counted pass by pass and record by record."""
    device, link, cloud, request = x.device, x.link, x.cloud, x.request
    assert device.power is not None and link is not None and cloud is not None
    profile, arm, power, slow = device.active, plan.arm, device.power, device.slowdown
    prompt, further, context = request.prompt_tokens, request.expected_new_tokens - 1, request.mean_context_tokens
    drafter = next((entry for entry in x.drafts if entry.name == plan.drafter), None)
    coding = (device.codec_s_per_token(plan.codec) or 0.0) * slow if arm in (Arm.SPLIT, Arm.USHAPE) else 0.0
    hidden_down, deep = arm is Arm.USHAPE, arm is Arm.USHAPE and plan.t < plan.layers
    first_front_s, busy_s, up, down = None, 0.0, 0, 0
    for base in range(cached, prompt, plan.chunk_tokens):
        rows = min(plan.chunk_tokens, prompt - base)
        front = sum(layer_s(profile.times, i, rows, base) for i in plan.front) + (
            rows * profile.embed_s if plan.s else 0
        )
        here = front * slow + rows * coding
        if arm is not Arm.DEVICE:
            size = 4 * rows if arm is Arm.CLOUD else payload(plan.codec, rows, base)
            up, here = up + size, here + sealing_s(device, size)
        first_front_s = here if first_front_s is None else first_front_s
        busy_s += here
        answered = rows if deep else int(base + rows == prompt)
        if arm is not Arm.DEVICE and answered:
            size = payload(plan.codec, answered, base if deep else prompt - 1) if hidden_down else 4
            tail = sum(layer_s(profile.times, i, rows, base) for i in plan.tail) * slow
            down, busy_s = down + size, busy_s + sealing_s(device, size) + tail + answered * coding * hidden_down
    head_s = profile.head_s * slow if arm in (Arm.DEVICE, Arm.USHAPE) else 0.0
    busy_s += head_s
    rows, alone = plan.draft_tokens + 1, arm is Arm.CLOUD and (drafter is None or drafter.in_cloud)
    rounds = further / (1.0 + sum(drafter.survival[: plan.draft_tokens]) if drafter and plan.draft_tokens else 1.0)
    here, sent, got = 0.0, 0, 0
    if not alone:
        here = pass_s(profile.times, list(plan.front), rows, context) + (rows * profile.embed_s if plan.s else 0.0)
        if drafter is not None and plan.draft_tokens:
            here += plan.draft_tokens * drafter.s_per_token
            if drafter.shares_front:
                early = list(range(drafter.front_layers))
                here -= pass_s(profile.times, early, rows, context) - pass_s(profile.times, early, 1, context)
                here -= plan.draft_tokens * profile.embed_s
        here += pass_s(profile.times, list(plan.tail), rows, context)
        here = here * slow + rows * (head_s + coding * (1 + hidden_down))
    if arm is not Arm.DEVICE:
        sent = 0 if alone else 4 * rows if arm is Arm.CLOUD else payload(plan.codec, rows, 1)
        got = payload(plan.codec, rows, 1) if hidden_down else 4 * rows
        here += sealing_s(device, got) + (0.0 if alone else sealing_s(device, sent))
    joules = power.compute_w * (busy_s + rounds * here)
    if arm is not Arm.DEVICE:
        linked_s = ttft_s - (first_front_s or 0.0) + further * token_s
        joules += power.radio_w * linked_s + power.uplink_j_per_byte * (up + rounds * sent)
        joules += power.downlink_j_per_byte * (down + rounds * got)
    return joules
