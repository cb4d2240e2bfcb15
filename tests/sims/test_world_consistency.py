"""An undisturbed world comes to what the cost model predicts, and a crowd of one to what a lone device does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from world_scenes import (
    CLOUD,
    CLOUD_ONLY,
    DEVICE,
    DEVICE_ONLY,
    LAYERS,
    MODEL,
    OnePlan,
    cloud_profile,
    device_profile,
    jobs,
    link_scene,
    scene,
    split,
    ushape,
)

from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan
from splitglm_partitioner.breakdown import Breakdown
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_partitioner.request import PREFILL_IN_FLIGHT, Request
from splitglm_sims.world.crowd import CrowdScene, run_crowd
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.scene import CloudScene, DeviceScene, Scene

SURE = DraftStatistics(name="sure", s_per_token=2e-4, survival=(1.0,) * 4)
EARLY = DraftStatistics(
    name="early", s_per_token=3e-3, survival=(1.0,) * 4, front_layers=2, shares_front=True, arms=(Arm.SPLIT, Arm.USHAPE)
)
INSIDE = DraftStatistics(name="inside", s_per_token=2e-4, survival=(1.0,) * 4, arms=(Arm.CLOUD,), in_cloud=True)


def predicted(world: Scene, plan: SplitPlan) -> Breakdown:
    job, link = world.jobs[0], world.link
    return cost_of(
        plan,
        Request(prompt_tokens=job.prompt_tokens, expected_new_tokens=job.new_tokens, privacy=Privacy.OPEN),
        MODEL,
        world.device.profile,
        LinkEstimate(
            uplink_bytes_per_s=link.up.mean_bytes_per_s,
            downlink_bytes_per_s=link.down.mean_bytes_per_s,
            rtt_s=link.rtt_s,
            overhead_s=link.overhead_s,
            window_bytes=link.window_bytes,
        ),
        world.cloud.profile,
        world.drafts["chat"],
    )


def happened(world: Scene, plan: SplitPlan) -> Outcome:
    record = run_lone(world, OnePlan(plan))[0]
    assert record.failed is None
    return record.outcome


@st.composite
def shallow_plans(draw: st.DrawFn) -> SplitPlan:
    """Of every arm, without a tail."""
    chunk = draw(st.integers(16, 256))
    codec = draw(st.sampled_from(Codec))
    s = draw(st.integers(1, LAYERS - 1))
    made = (
        DEVICE_ONLY,
        CLOUD_ONLY,
        split(s, codec=codec),
        ushape(s, codec=codec),
    )
    return replace(draw(st.sampled_from(made)), chunk_tokens=chunk)


growths = st.none() | st.floats(0.0, 3.0)
worlds = st.builds(
    lambda up, down, rtt_s, prompt, new, device_s, cloud_s, device_growth, cloud_growth: scene(
        link=link_scene(up=up, down=down, rtt_s=rtt_s),
        jobs=jobs(1, prompt=prompt, new=new),
        device=DeviceScene(profile=device_profile(device_s, growth=device_growth)),
        cloud=CloudScene(profile=cloud_profile(cloud_s, growth=cloud_growth)),
    ),
    up=st.floats(1e5, 2e7),
    down=st.floats(1e5, 5e7),
    rtt_s=st.floats(1e-3, 0.1),
    prompt=st.integers(1, 900),
    new=st.integers(2, 60),
    device_s=st.floats(5e-4, 2e-2),
    cloud_s=st.floats(5e-5, 1e-3),
    device_growth=growths,
    cloud_growth=growths,
)


@settings(max_examples=60, deadline=None)
@given(world=worlds, plan=shallow_plans())
def test_an_undisturbed_reply_takes_what_the_cost_model_predicts(world: Scene, plan: SplitPlan) -> None:
    assume(world.jobs[0].prompt_tokens <= PREFILL_IN_FLIGHT * plan.chunk_tokens)  # the agent holds back what exceeds it
    cost, outcome = predicted(world, plan), happened(world, plan)
    assert outcome.ttft_s == pytest.approx(cost.ttft_s, rel=0.01)
    # The last token of a stream is sent after all computing; per token, the model counts the longer of both.
    last_s = world.link.overhead_s + 4 / world.link.down.mean_bytes_per_s if plan.arm is Arm.CLOUD else 0.0
    assert outcome.total_s == pytest.approx(cost.total_s, abs=0.01 * cost.total_s + last_s)
    assert (outcome.uplink_bytes, outcome.downlink_bytes) == (cost.uplink_bytes, cost.downlink_bytes)
    assert outcome.price == pytest.approx(cost.price)
    assert cost.energy_j is not None
    assert outcome.energy_j == pytest.approx(cost.energy_j, abs=0.03 * cost.energy_j + last_s)


@settings(max_examples=30, deadline=None)
@given(world=worlds, s=st.integers(1, 6), t=st.integers(8, LAYERS - 1), chunk=st.integers(16, 256))
def test_a_tail_is_never_faster_than_predicted_and_later_by_its_own_work_at_most(
    world: Scene, s: int, t: int, chunk: int
) -> None:
    """The model runs all fronts before any tail; the agent runs a tail as soon as its rows have come."""
    plan = ushape(s, t, chunk_tokens=chunk)
    cost, outcome = predicted(world, plan), happened(world, plan)
    chunks = -(-world.jobs[0].prompt_tokens // chunk)
    tails_s = (cost.prefill.tail_s + (cost.prefill.codec_s or 0.0) + (cost.prefill.seal_s or 0.0)) * (chunks - 1)
    assert 0.99 * cost.ttft_s <= outcome.ttft_s <= 1.01 * cost.ttft_s + tails_s / chunks
    if chunks == 1:
        assert outcome.total_s == pytest.approx(cost.total_s, rel=0.01)
    assert (outcome.uplink_bytes, outcome.downlink_bytes) == (cost.uplink_bytes, cost.downlink_bytes)


@pytest.mark.parametrize("drafts", [1, 3, 4])
@pytest.mark.parametrize(
    ("plan", "drafter"),
    [
        (CLOUD_ONLY, SURE),
        (CLOUD_ONLY, INSIDE),
        (split(3), SURE),
        (split(3), EARLY),
        (ushape(3), EARLY),
        (ushape(3, 9), SURE),
    ],
    ids=str,
)
def test_rounds_of_drafts_take_what_the_cost_model_predicts(
    plan: SplitPlan, drafter: DraftStatistics, drafts: int
) -> None:
    # Every draft is kept, so the answer is a whole number of rounds and luck has no part in it.
    world = scene(jobs=jobs(1, prompt=100, new=1 + 12 * (drafts + 1)), drafts={"chat": (drafter,)})
    plan = replace(plan, drafter=drafter.name, draft_tokens=drafts)
    cost, outcome = predicted(world, plan), happened(world, plan)
    assert outcome.ttft_s == pytest.approx(cost.ttft_s, rel=0.01)
    assert outcome.total_s == pytest.approx(cost.total_s, rel=0.01)


@pytest.mark.parametrize("plan", [DEVICE_ONLY, CLOUD_ONLY, split(4), ushape(3, codec=Codec.INT8)], ids=str)
def test_a_prompt_of_thousands_costs_its_context_in_the_world_as_in_the_cost_model(plan: SplitPlan) -> None:
    def ttft_s(growth: float | None) -> tuple[float, float]:
        world = scene(
            jobs=jobs(1, prompt=PREFILL_IN_FLIGHT * 250, new=2),
            device=DeviceScene(profile=device_profile(growth=growth)),
            cloud=CloudScene(profile=cloud_profile(growth=growth)),
        )
        chunked = replace(plan, chunk_tokens=250)
        return predicted(world, chunked).ttft_s, happened(world, chunked).ttft_s

    (priced, real), (level, _) = ttft_s(0.5), ttft_s(None)
    assert real == pytest.approx(priced, rel=0.01)
    assert priced > 1.2 * level


@pytest.mark.parametrize("rtt_s", [0.02, 0.1, 0.3])
def test_slow_start_costs_the_first_upload_what_the_cost_model_says(rtt_s: float) -> None:
    world = scene(link=link_scene(up=5e6, rtt_s=rtt_s, window_bytes=14_600), jobs=jobs(1, prompt=120))
    plan = split(2)
    cost = predicted(world, plan)
    assert cost.prefill.slow_start_s > 0.0
    assert happened(world, plan).ttft_s == pytest.approx(cost.ttft_s, rel=0.01)


@pytest.mark.parametrize(
    "plan",
    [
        DEVICE_ONLY,
        CLOUD_ONLY,
        replace(CLOUD_ONLY, drafter="ngram", draft_tokens=2),
        split(2),
        split(2, drafter="ngram", draft_tokens=3),
        ushape(3, codec=Codec.INT8),
        ushape(3, 9, chunk_tokens=50),
    ],
    ids=lambda plan: f"{plan.arm.value}-{plan.t}-{plan.draft_tokens}",
)
def test_a_crowd_of_one_is_a_lone_device(plan: SplitPlan) -> None:
    world = scene(device=DeviceScene(profile=DEVICE, jitter=0.1), jobs=jobs(5, prompt=230))
    alone = run_lone(world, OnePlan(plan))
    crowd = CrowdScene(devices=1, device=lambda _: world, cloud=CloudScene(profile=CLOUD))
    among = run_crowd(crowd, lambda _: OnePlan(plan)).records[0]
    assert len(alone) == len(among) == 5
    for mine, theirs in zip(alone, among, strict=True):
        assert theirs.outcome.ttft_s == pytest.approx(mine.outcome.ttft_s, rel=0.01)
        assert theirs.outcome.total_s == pytest.approx(mine.outcome.total_s, rel=0.01)
        assert theirs.outcome.uplink_bytes == mine.outcome.uplink_bytes
        assert theirs.outcome.downlink_bytes == mine.outcome.downlink_bytes
