"""The priced pipeline against an event simulation that knows nothing of recurrences."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitioner_factory import layer_times, make_cloud, make_device, make_link, make_model, make_request, plans

from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.pipeline import run_jobs
from splitglm_partitioner.profiles import CloudProfile as Cloud
from splitglm_partitioner.profiles import CodecTime, DeviceProfile, LinkEstimate

HIDDEN = 256


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

    def run(self, jobs: list[list[tuple[str, float, float]]]) -> float:
        for number in range(len(jobs)):
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


def simulated_ttft_s(plan: SplitPlan, prompt: int, device: DeviceProfile, link: LinkEstimate, cloud: Cloud) -> float:
    profile, arm, n = device.active, plan.arm, plan.layers
    codec_s = device.codec_s_per_token(plan.codec) or 0.0
    jobs: list[list[tuple[str, float, float]]] = []
    for base in range(0, prompt, plan.chunk_tokens):
        rows = min(plan.chunk_tokens, prompt - base)
        stages: list[tuple[str, float, float]] = []
        if plan.s:
            front = rows * profile.embed_s + sum(layer_s(profile.times, i, rows, base) for i in plan.front)
            stages.append(("device", front + (rows * codec_s if arm is not Arm.DEVICE else 0.0), 0.0))
        if arm is not Arm.DEVICE:
            size = 4 * rows if arm is Arm.CLOUD else payload(plan.codec, rows, base)
            lag = link.rtt_s / 2 + cloud.queue_s
            stages.append(("up", size / link.uplink_bytes_per_s + link.overhead_s, lag))
            stages.append(("cloud", sum(layer_s(cloud.times, i, rows, base) for i in plan.back), 0.0))
        if arm is Arm.USHAPE and plan.t < n:
            stages.append(("down", payload(plan.codec, rows, base) / link.downlink_bytes_per_s, link.rtt_s / 2))
            tail = sum(layer_s(profile.times, i, rows, base) for i in plan.tail)
            stages.append(("device", tail + rows * codec_s, 0.0))
        jobs.append(stages)
    end = Machines().run(jobs)
    if arm is Arm.DEVICE:
        return end + profile.head_s
    if arm is Arm.USHAPE and plan.t < n:
        return end + profile.head_s
    if arm is Arm.USHAPE:
        last = payload(plan.codec, 1, prompt - 1) / link.downlink_bytes_per_s
        return end + link.rtt_s / 2 + last + codec_s + profile.head_s
    assert cloud.head_s is not None
    return end + cloud.head_s + link.rtt_s / 2 + 4 / link.downlink_bytes_per_s


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ttft_is_what_an_event_simulation_of_the_chunks_takes(data: st.DataObject) -> None:
    layers = data.draw(st.integers(2, 5))
    times = data.draw(st.sampled_from([(), tuple(CodecTime(codec=c, s_per_token=3e-5) for c in Codec)]))
    device = make_device(layers, times=data.draw(layer_times(layers)), codecs=times)
    cloud = make_cloud(layers, times=data.draw(layer_times(layers)))
    rate = st.floats(1e4, 1e8)
    link = make_link(
        uplink_bytes_per_s=data.draw(rate), downlink_bytes_per_s=data.draw(rate), rtt_s=data.draw(st.floats(0, 0.3))
    )
    plan = data.draw(plans(layers))
    # Up to fourteen chunks: both the step-by-step and the closed form of a run of equal chunks occur.
    prompt = data.draw(st.integers(1, 14 * plan.chunk_tokens))
    request = make_request(prompt_tokens=prompt, chunk_tokens=plan.chunk_tokens)
    priced = cost_of(plan, request, make_model(layers, HIDDEN), device, link, cloud)
    assert priced.ttft_s == pytest.approx(simulated_ttft_s(plan, prompt, device, link, cloud), rel=1e-9)


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), min_size=2, max_size=2),
    st.integers(7, 60),
)
def test_the_closed_form_of_a_long_run_equals_the_recurrence(rows: list[list[float]], count: int) -> None:
    starts, times = rows
    long = [np.array([x]) for x in starts]
    single = [np.array([x]) for x in starts]
    run_jobs(long, [np.array([x]) for x in times], count)
    for _ in range(count):
        run_jobs(single, [np.array([x]) for x in times], 1)
    assert np.allclose(np.concatenate(long), np.concatenate(single), rtol=1e-12)


def test_overlap_hides_the_faster_stages() -> None:
    """Ten equal chunks cost one fill plus nine times the bottleneck, far less than the sum of the parts."""
    request = make_request(prompt_tokens=640)
    priced = cost_of(
        SplitPlan(layers=12, s=6, t=12, head=SplitPlan.cloud_only(12).head, chunk_tokens=64),
        request,
        make_model(),
        make_device(),
        make_link(),
        make_cloud(),
    )
    front_per_chunk = priced.prefill.front_s / 10
    fill = priced.prefill.busy_s - priced.prefill.front_s
    assert priced.prefill.front_s < priced.ttft_s < priced.prefill.front_s + fill / 2
    assert priced.ttft_s > 9 * front_per_chunk
