"""The world of one device: luck is common, plans are judged, sessions are kept, the agent's patience ends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from world_scenes import (
    CLOUD,
    CLOUD_ONLY,
    DEVICE,
    DEVICE_ONLY,
    LAYERS,
    MODEL,
    OnePlan,
    device_profile,
    jobs,
    link_scene,
    scene,
    split,
    ushape,
)

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan
from splitglm_partitioner.arms import enumerate_arms
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import (
    CloudHint,
    CloudStep,
    DevicePass,
    DraftRound,
    ReplyEnded,
    RoundTrip,
    Transfer,
)
from splitglm_partitioner.request import Objective
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.registry import make_strategy
from splitglm_sims.strategies.strategy import Task
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.course import Course
from splitglm_sims.world.handset import Handset
from splitglm_sims.world.hindsight import best_of
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.scene import CloudScene, DeviceScene, LinkScene, Scene
from splitglm_sims.world.trial import LATE, candidates_tried

ALL = (
    DEVICE_ONLY,
    CLOUD_ONLY,
    split(2),
    split(5, codec=Codec.INT8, drafter="ngram", draft_tokens=3),
    ushape(3),
    ushape(3, 9, chunk_tokens=64),
)


def rough(**fields: object) -> Scene:
    """A world in which everything varies."""
    rates = RateTrace((0.0, 3.0, 7.0), (4e5, 2e6, 9e5), 11.0)
    return scene(
        link=LinkScene(
            up=rates,
            down=rates,
            rtt_s=0.05,
            jitter_s=0.01,
            offset_s=2.0,
            rest_after_s=5.0,
            promotion_s=0.3,
        ),
        device=DeviceScene(profile=DEVICE, slowdown=Course((0.0, 30.0), (1.0, 1.7)), jitter=0.2),
        cloud=CloudScene(
            profile=CLOUD, slowdown=Course((0.0, 25.0), (1.0, 2.0)), queue_s=Course.constant(0.004), jitter=0.2
        ),
        **fields,
    )


def dump() -> str:
    """Every figure of some records, for comparison between processes."""
    return "\n".join(repr(record) for plan in ALL for record in run_lone(rough(seed=7), OnePlan(plan, Probing.RATES)))


def test_the_same_seed_gives_the_same_records_in_every_process() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_world_lone; print(test_world_lone.dump())"
    where = Path(__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == dump()


def test_another_seed_gives_other_records() -> None:
    assert run_lone(rough(seed=1), OnePlan(split(2))) != run_lone(rough(seed=2), OnePlan(split(2)))


@pytest.mark.parametrize("plan", ALL, ids=str)
def test_a_counterfactual_is_what_would_have_happened(plan: SplitPlan) -> None:
    """Asked before each job what the plan would come to, and then made to run it: the same to the last bit."""
    foreseen: list[object] = []

    class Foresees(OnePlan):
        clairvoyant = True

        def choose(self, task: Task) -> SplitPlan:
            assert task.foresee is not None
            foreseen.append(task.foresee(self.plan))
            for other in ALL:
                task.foresee(other)
            return super().choose(task)

    records = run_lone(rough(), Foresees(plan))
    assert [record.outcome.total_s for record in records] == [outcome.total_s for outcome in foreseen]  # type: ignore[attr-defined]
    assert records == run_lone(rough(), OnePlan(plan))


def test_the_best_plan_in_hindsight_is_never_beaten_by_any_allowed_plan_by_more_than_half_a_percent() -> None:
    early = DraftStatistics(
        name="early",
        s_per_token=6e-3,
        survival=(0.9, 0.8, 0.7, 0.6),
        front_layers=3,
        shares_front=True,
        arms=(Arm.SPLIT, Arm.USHAPE),
    )
    private = jobs(2, privacy=Privacy.NO_TEXT)
    for world in (
        rough(),
        scene(link=link_scene(up=2e5, rtt_s=0.02)),
        scene(link=link_scene(up=2e7, rtt_s=0.2)),
        rough(jobs=private, drafts={"chat": (early,)}),
    ):
        handset = Handset(world)
        for index in range(2):
            situation = handset.situation(index)
            attempt = candidates_tried(handset, index, situation, world.jobs[index].at_s)
            _, best = best_of(situation, attempt)
            every = [
                replace(plan, drafter=drafter.name, draft_tokens=length) if length else plan
                for plan in enumerate_arms(situation).plans()
                for drafter in situation.drafts
                for length in range(len(drafter.survival) + 1)
                if not length or (plan.arm in drafter.arms and plan.s >= drafter.front_layers)
            ]
            assert len(every) > 100
            assert best.value <= 1.005 * min(attempt(plan).value for plan in every)


def test_comparing_changes_nothing_and_names_the_best() -> None:
    plain = run_lone(rough(), OnePlan(split(2)))
    compared = run_lone(rough(), OnePlan(split(2)), compare=True)
    for one, other in zip(plain, compared, strict=True):
        assert other.best_plan is not None and other.best_value is not None
        assert other.best_value <= other.value
        assert replace(other, best_plan=None, best_value=None) == one


def test_jobs_run_in_order_and_one_at_a_time() -> None:
    records = run_lone(scene(jobs=jobs(6, every_s=0.01)), OnePlan(DEVICE_ONLY))
    for before, after in pairwise(records):
        assert after.start_s == pytest.approx(before.start_s + before.outcome.total_s)


def test_a_turn_goes_on_in_the_caches_of_the_turn_before() -> None:
    first = jobs(1, prompt=300)[0]
    second = replace(first, at_s=30.0, turn=1, prompt_tokens=360, shared_tokens=323)
    for plan in (DEVICE_ONLY, CLOUD_ONLY, split(2), ushape(2, 9)):
        strategy = OnePlan(plan)
        warm, cold = run_lone(scene(jobs=(first, second)), strategy), run_lone(scene(jobs=(second,)), OnePlan(plan))
        assert warm[1].outcome.ttft_s < 0.6 * cold[0].outcome.ttft_s
        situation = strategy.tasks[1].situation
        assert situation.request.warm is not None and situation.request.warm.cached_tokens == 323
        assert situation.request.warm.serves(plan)


def test_a_plan_that_is_not_allowed_fails_and_costs_the_device_only_reply() -> None:
    private = scene(jobs=jobs(1, privacy=Privacy.NO_TEXT))
    alone = run_lone(private, OnePlan(DEVICE_ONLY))[0]
    unknown = ushape(2, drafter="none-such", draft_tokens=2)
    for plan, why in ((CLOUD_ONLY, "prompt"), (split(2), "answer"), (unknown, "no drafter")):
        record = run_lone(private, OnePlan(plan))[0]
        assert record.failed is not None and why in record.failed
        assert record.value == pytest.approx(alone.value)
    small = scene(device=DeviceScene(profile=DEVICE, memory_bytes=Course.constant(2.5e7)))
    assert "MB are free" in str(run_lone(small, OnePlan(DEVICE_ONLY))[0].failed)
    assert run_lone(small, OnePlan(CLOUD_ONLY))[0].failed is None


def test_a_late_reply_is_cut_at_its_deadline_and_pays_for_another() -> None:
    whole = run_lone(scene(jobs=jobs(1)), OnePlan(DEVICE_ONLY))[0]
    deadline_s = 0.5 * (whole.outcome.ttft_s + whole.outcome.total_s)
    record = run_lone(scene(jobs=jobs(1, deadline_s=deadline_s)), OnePlan(DEVICE_ONLY))[0]
    assert record.failed == LATE and record.outcome.total_s == pytest.approx(deadline_s)
    assert record.value == pytest.approx(deadline_s + whole.value)
    assert 1 < record.outcome.new_tokens < whole.outcome.new_tokens


@pytest.mark.parametrize("plan", [CLOUD_ONLY, split(2), ushape(2, 9)], ids=str)
def test_a_link_that_dies_for_long_leaves_the_device_to_finish_alone(plan: SplitPlan) -> None:
    healthy = run_lone(scene(jobs=jobs(1, new=60)), OnePlan(plan))[0]
    # The link dies in the middle of the answer and stays dead for longer than the agent tries to connect again.
    dies_s = 0.5 * (healthy.outcome.ttft_s + healthy.outcome.total_s)
    trace = RateTrace((0.0, dies_s, dies_s + 60.0), (1.25e6, 0.0, 1.25e6), 1000.0)
    world = scene(jobs=jobs(1, new=60), link=replace(link_scene(), up=trace, down=trace))
    strategy = OnePlan(plan)
    record = run_lone(world, strategy)[0]
    alone = run_lone(world, OnePlan(DEVICE_ONLY))[0]
    assert record.failed is None and record.outcome.new_tokens == 60
    assert dies_s + 1.5 < record.outcome.total_s < dies_s + 1.5 + 5.0 + 2 * alone.outcome.total_s
    tight = replace(world, device=DeviceScene(profile=device_profile(memory_bytes=33_000_000)))
    assert "lost" in str(run_lone(tight, OnePlan(plan))[0].failed)


def test_a_short_outage_only_delays() -> None:
    healthy = run_lone(scene(jobs=jobs(1, new=60)), OnePlan(split(2)))[0]
    dies_s = 0.5 * (healthy.outcome.ttft_s + healthy.outcome.total_s)
    trace = RateTrace((0.0, dies_s, dies_s + 0.8), (1.25e6, 0.0, 1.25e6), 1000.0)
    world = scene(jobs=jobs(1, new=60), link=replace(link_scene(), up=trace, down=trace))
    record = run_lone(world, OnePlan(split(2)))[0]
    assert record.outcome.total_s == pytest.approx(healthy.outcome.total_s + 0.8, abs=0.1)
    assert record.outcome.uplink_bytes == healthy.outcome.uplink_bytes


def test_a_radio_that_rested_costs_its_promotion_once() -> None:
    waking = link_scene(rest_after_s=5.0, promotion_s=0.5)
    records = run_lone(scene(link=waking), OnePlan(CLOUD_ONLY))
    plain = run_lone(scene(), OnePlan(CLOUD_ONLY))
    for one, other in zip(records, plain, strict=True):
        assert one.outcome.total_s - other.outcome.total_s == pytest.approx(0.5, abs=1e-6)


def test_probes_cost_the_request_their_time_and_are_told() -> None:
    none = run_lone(scene(), OnePlan(CLOUD_ONLY))[0]
    for kind, kinds in (
        (Probing.ROUND_TRIP, {RoundTrip, CloudHint}),
        (Probing.RATES, {RoundTrip, CloudHint, Transfer}),
    ):
        strategy = OnePlan(CLOUD_ONLY, kind)
        record = run_lone(scene(jobs=jobs(1)), strategy)[0]
        assert record.probe_s >= 0.04
        assert record.outcome.total_s == pytest.approx(none.outcome.total_s + record.probe_s)
        assert {type(one) for one in strategy.told} - {CloudStep, ReplyEnded} == kinds


def test_a_strategy_is_told_what_happened_in_order_and_never_the_answer_length_before() -> None:
    strategy = OnePlan(split(2, drafter="ngram", draft_tokens=2))
    records = run_lone(rough(), strategy)
    times = [observation.at_s for observation in strategy.told]
    assert times == sorted(times)
    kinds = {type(observation) for observation in strategy.told}
    assert {DevicePass, CloudStep, DraftRound, ReplyEnded, Transfer} <= kinds
    ended = [one for one in strategy.told if isinstance(one, ReplyEnded)]
    assert [one.outcome for one in ended] == [record.outcome for record in records]
    for task in strategy.tasks:
        assert task.foresee is None
        assert task.situation.request.expected_new_tokens == 64
    kept = sum(one.accepted + 1 for one in strategy.told if isinstance(one, DraftRound))
    assert kept >= sum(record.outcome.new_tokens - 1 for record in records)


def test_energy_and_price_are_the_devices_and_the_clouds() -> None:
    job = jobs(1)[0]
    cloud = run_lone(scene(jobs=(job,)), OnePlan(CLOUD_ONLY))[0].outcome
    device = run_lone(scene(jobs=(job,)), OnePlan(DEVICE_ONLY))[0].outcome
    assert cloud.price == pytest.approx(1e-6 * LAYERS * (job.prompt_tokens + job.new_tokens - 1))
    assert device.price == 0.0 and device.energy_j == pytest.approx(4.0 * device.total_s)
    assert cloud.energy_j is not None and cloud.energy_j < 1.5 * 0.8 * cloud.total_s


def test_a_job_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(InputError, match="exceeds the model"):
        run_lone(scene(jobs=jobs(1, prompt=MODEL.max_positions)), OnePlan(DEVICE_ONLY))


def test_the_cheapest_arm_is_found_where_it_is_plain() -> None:
    slow = run_lone(scene(link=link_scene(up=2e4, rtt_s=2.0), jobs=jobs(1)), OnePlan(CLOUD_ONLY), compare=True)[0]
    quick = run_lone(scene(jobs=jobs(1)), OnePlan(DEVICE_ONLY), compare=True)[0]
    assert slow.best_plan is not None and slow.best_plan.arm is Arm.DEVICE
    assert quick.best_plan is not None and quick.best_plan.arm is Arm.CLOUD


def test_a_clairvoyant_strategy_does_not_fail_because_failing_early_spends_little() -> None:
    # One token by the cloud would use less energy than by the device, but comes after the deadline.
    slow = link_scene(up=100.0, down=100.0)
    job = replace(jobs(1, new=1)[0], deadline_s=3.0)
    world = scene(jobs=(job,), link=slow, objective=Objective(latency=0.0, energy=1.0))
    cloud, device = (run_lone(world, OnePlan(plan))[0] for plan in (CLOUD_ONLY, DEVICE_ONLY))
    assert cloud.failed == LATE and device.failed is None
    assert (cloud.outcome.energy_j or 0.0) < (device.outcome.energy_j or 0.0) < cloud.value
    (record,) = run_lone(world, make_strategy("oracle", situation_facts=Facts.of(world), seed=0), compare=True)
    assert record.failed is None and record.value == record.best_value
