"""The priced pipeline against an event simulation that knows nothing of recurrences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from event_simulation import counted_joules, simulated_token_s, simulated_ttft_s
from hypothesis import given, settings
from hypothesis import strategies as st
from partitioner_factory import (
    make_cloud,
    make_device,
    make_link,
    make_model,
    make_request,
    situations_of_plans,
    ushape,
)

from splitglm_core.plan import Codec, SplitPlan
from splitglm_partitioner.cost import cost_in, cost_of
from splitglm_partitioner.pipeline import (
    TOLERANCE,
    growing_knots_of,
    knots_of,
    last_leaves,
    leaving,
    most_growing_knots,
)
from splitglm_partitioner.request import Situation, Warm


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_prices_are_what_an_event_simulation_takes(data: st.DataObject) -> None:
    """Chunks, queues, slow start, sealing, slowdowns, drafts: everything, one event and one number at a time."""
    x, plan = data.draw(situations_of_plans())
    assert x.link is not None and x.cloud is not None
    request = x.request
    priced = cost_in(x, plan)
    cached = request.cached_tokens(plan)
    ttft_s = simulated_ttft_s(plan, request.prompt_tokens, cached, x.device, x.link, x.cloud)
    assert is_close_enough(priced.ttft_s, ttft_s, growing=grows(x))
    drafter = next((entry for entry in x.drafts if entry.name == plan.drafter), None)
    token_s = simulated_token_s(plan, request.mean_context_tokens, x.device, x.link, x.cloud, drafter)
    assert priced.per_token_s == pytest.approx(token_s, rel=1e-9)
    assert priced.step.busy_s == pytest.approx(token_s, rel=1e-9)
    assert priced.ttft_s <= priced.prefill.busy_s * (1 + 1e-9)
    assert (priced.energy_j is None) == (x.device.power is None)
    if x.device.power is not None:
        assert priced.energy_j == pytest.approx(counted_joules(x, plan, cached, priced.ttft_s, token_s), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(situations_of_plans(), st.integers(15, 160), st.integers(0, 40), st.floats(1e-5, 1e-2), st.floats(1e-5, 1e-2))
def test_long_prompts_that_grow_are_within_the_tolerance_of_an_event_simulation(
    drawn: tuple[Situation, SplitPlan], chunks: int, warm_chunks: int, device_growth: float, cloud_growth: float
) -> None:
    """Which machine is the slowest may change on the way: growth is up to ten times a layer's time."""
    x, plan = drawn
    assert x.link is not None and x.cloud is not None
    device = make_device(
        plan.layers, times=replace(x.device.active.times, prefill_s_per_token_per_1k_context=device_growth)
    )
    cloud = replace(x.cloud, times=replace(x.cloud.times, prefill_s_per_token_per_1k_context=cloud_growth))
    cached, prompt = (
        warm_chunks * plan.chunk_tokens,
        (warm_chunks + chunks) * plan.chunk_tokens - plan.chunk_tokens // 3,
    )
    request = make_request(
        prompt_tokens=prompt,
        chunk_tokens=plan.chunk_tokens,
        warm=Warm(plan=plan, cached_tokens=cached) if cached else None,
    )
    priced = cost_of(plan, request, x.model, device, x.link, cloud, x.drafts)
    exact_s = simulated_ttft_s(plan, prompt, cached, device, x.link, cloud)
    assert is_close_enough(priced.ttft_s, exact_s, growing=True)


def grows(x: Situation) -> bool:
    assert x.cloud is not None
    return any(times.prefill_s_per_token_per_1k_context for times in (x.device.active.times, x.cloud.times))


def is_close_enough(priced_s: float, exact_s: float, *, growing: bool) -> bool:
    """Equal, or where chunks grow, never above and at most ``TOLERANCE`` below."""
    return exact_s * (1 - (TOLERANCE if growing else 0.0) - 1e-9) <= priced_s <= exact_s * (1 + 1e-9)


@pytest.mark.parametrize("prompt", [1, 40, 300])
@pytest.mark.parametrize("t", [8, 12])
def test_the_attention_sink_pays_for_its_bytes_both_ways(prompt: int, t: int) -> None:
    device, cloud = make_device(seal_s_per_byte=1e-6), make_cloud()
    link = make_link(uplink_bytes_per_s=5e4, downlink_bytes_per_s=1e4)
    plan, request = ushape(12, 4, t, Codec.INT8), make_request(prompt_tokens=prompt)
    priced = cost_of(plan, request, make_model(), device, link, cloud)
    assert priced.ttft_s == pytest.approx(simulated_ttft_s(plan, prompt, 0, device, link, cloud), rel=1e-12)


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=3, max_size=3),
    st.lists(st.floats(0, 10), min_size=3, max_size=3),
    st.integers(1, 40),
)
def test_the_knots_of_a_long_run_give_what_the_recurrence_gives(
    times: list[list[float]], extra: list[float], jobs: int
) -> None:
    """``times[kind][machine]`` of a first, an ordinary and a last job; the first carries ``extra`` besides."""
    ordinary, last = np.array(times[1]), np.array(times[2])
    ends = np.zeros(3)
    for job in range(jobs):
        seconds = (last if job == jobs - 1 else ordinary) + (np.array(extra) if job == 0 else 0.0)
        for machine in range(3):
            ends[machine] = max(ends[machine], ends[machine - 1] if machine else 0.0) + seconds[machine]
    counts = knots_of(jobs, 4)
    work = (counts @ np.array([ordinary, last, extra]))[:, :, None]
    through, before = work[:4], work[4:]
    at_end = leaving(leaving(through[:, 0], through[:, 1], before[:, 1]), through[:, 2], before[:, 2])
    assert at_end[-1, 0] == pytest.approx(ends[2], rel=1e-9, abs=1e-12)
    assert last_leaves(leaving(through[:, 0], through[:, 1], before[:, 1]), through[3, 2], before[:, 2])[0] == (
        pytest.approx(ends[2], rel=1e-9, abs=1e-12)
    )


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(0, 60),
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 1)), min_size=5, max_size=5),
    st.lists(st.floats(0, 100), min_size=5, max_size=5),
    st.lists(st.floats(0, 100), min_size=5, max_size=5),
)
def test_few_knots_bound_what_a_long_run_of_growing_jobs_may_miss(
    jobs: int, lead: int, lines: list[tuple[float, float]], last: list[float], extra: list[float]
) -> None:
    """Five machines, each with its own seconds of the first job and growth per job, against the recurrence itself."""
    lines = [(start + lead * step, step) for start, step in lines]
    machines, ends = len(lines), np.zeros(len(lines))
    for job in range(jobs):
        for machine, (start, step) in enumerate(lines):
            seconds = (last[machine] if job == jobs - 1 else start + step * job) + (extra[machine] if job == 0 else 0.0)
            ends[machine] = max(ends[machine], ends[machine - 1] if machine else 0.0) + seconds
    width = most_growing_knots(jobs, lead)
    assert width <= min(jobs, 12)
    starts, steps = zip(*lines, strict=True)
    work = (growing_knots_of(jobs, lead, width + 2) @ np.array([starts, last, extra, steps]))[:, :, None]
    through, before = work[: width + 2], work[width + 2 :]
    arrive = through[:, 0]
    for machine in range(1, machines):
        arrive = leaving(arrive, through[:, machine], before[:, machine])
    assert is_close_enough(float(arrive[-1, 0]), float(ends[-1]), growing=any(steps))


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
