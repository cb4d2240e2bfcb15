"""Learners learn: in a world that stands still their regret falls, and where it changes they follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from strategy_worlds import (
    DRAFTS,
    LAYERS,
    LINK,
    Truth,
    live,
    make_cloud,
    make_device,
    make_facts,
    make_situation,
    make_task,
    quarters,
    seen,
)

from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import CloudHint, CloudStep, Direction, Outcome, ReplyEnded, RoundTrip
from splitglm_partitioner.policy import decide
from splitglm_partitioner.request import Objective, Situation
from splitglm_sims.strategies.fixed import fixed_arms
from splitglm_sims.strategies.registry import make_strategy

# The device could answer alone in 3.4 s, the cloud in 0.4 s if the link were as fast as first measured; it is not.
SLOW = replace(LINK, uplink_bytes_per_s=2e3, downlink_bytes_per_s=2e3, rtt_s=2.0)
SMALL = {"prompt_tokens": 64, "expected_new_tokens": 20}


def too_small_for_the_model(cloud_layer_s: float = 5e-4) -> Situation:
    """A device that must use the cloud, whose cut is the question: layers that the cloud computes more slowly stay."""
    times = LayerTimes.uniform(LAYERS, decode_s=cloud_layer_s, prefill_s_per_token=3e-5, chunk_tokens=64)
    device, cloud = make_device(max_layers=8), make_cloud(times=times)
    return make_situation(device=device, cloud=cloud, privacy=Privacy.NO_TEXT, **SMALL)


def regrets(name: str, believed: Situation, truth: Situation, requests: int, seed: int, **options: Any) -> list[float]:
    """Seconds beyond the best arm of each reply."""
    strategy = make_strategy(name, situation_facts=make_facts(believed), seed=seed, options=options)
    plans = [plan for plan, _ in live(strategy, believed, lambda _: truth, requests=requests, seed=seed, noise=0.05)]
    best = decide(truth).breakdown.total_s
    return [Truth(truth).outcome(plan).total_s - best for plan in plans]


@pytest.mark.parametrize("memory", ["plain", "sliding", "discounted"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mu_linucb_learns_that_the_cloud_is_not_as_fast_as_it_says(memory: str, seed: int) -> None:
    believed, truth = too_small_for_the_model(), too_small_for_the_model(cloud_layer_s=0.02)
    first, last = quarters(regrets("mu-linucb", believed, truth, 100, seed, memory=memory))
    assert last < 0.5 * first


def test_mu_linucb_leaves_the_device_when_the_link_turns_out_good_because_it_is_forced_to_look() -> None:
    believed = replace(make_situation(**SMALL), link=SLOW)
    good = replace(believed, link=replace(LINK, rtt_s=0.02, uplink_bytes_per_s=1e7))
    strategy = make_strategy("mu-linucb", situation_facts=make_facts(believed), seed=0, options={"alpha": 0.0})
    arms = [plan.arm for plan, _ in live(strategy, believed, lambda _: good, requests=60)]
    assert arms[0] is Arm.DEVICE and set(arms[-10:]) != {Arm.DEVICE}


@pytest.mark.parametrize("memory", ["sliding", "discounted"])
def test_mu_linucb_with_a_short_memory_beats_the_plain_one_after_a_change(memory: str) -> None:
    believed, bad = too_small_for_the_model(), too_small_for_the_model(cloud_layer_s=0.02)

    def total(**options: Any) -> float:
        strategy = make_strategy("mu-linucb", situation_facts=make_facts(believed), seed=1, options=options)
        run = live(strategy, believed, lambda i: believed if i < 150 else bad, requests=190, noise=0.02)
        return sum(outcome.total_s for _, outcome in list(run)[150:])

    assert total(memory=memory, window=20, discount=0.8) < total(memory="plain")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exp3_draws_good_arms_more_often(seed: int) -> None:
    believed = make_situation(**SMALL)
    first, last = quarters(regrets("exp3", believed, replace(believed, link=SLOW), 1200, seed))
    assert last < 0.8 * first


def test_neurosurgeon_follows_the_bandwidth_last_measured_and_asks_when_blind() -> None:
    situation = make_situation(privacy=Privacy.NO_TEXT, **SMALL)
    strategy = make_strategy("neurosurgeon", situation_facts=make_facts(situation), seed=0)
    assert strategy.probe(make_task(situation, 0.0)) is Probing.RATES
    assert strategy.choose(make_task(situation)) == decide(situation).plan
    for direction in Direction:
        strategy.observe(seen(direction, 100_000, 2e3, 5.0))
    strategy.observe(RoundTrip(at_s=5.0, seconds=2.0))
    assert strategy.probe(make_task(situation, 604.0)) is Probing.NONE
    assert strategy.probe(make_task(situation, 606.0)) is Probing.RATES
    measured = replace(situation, link=replace(SLOW, overhead_s=LINK.overhead_s))
    assert strategy.choose(make_task(situation, 10.0)) == decide(measured).plan
    strategy.observe(seen(Direction.UP, 1000, 1e9, 11.0))  # too small to tell a rate
    assert strategy.choose(make_task(situation, 12.0)) == decide(measured).plan


def test_neurosurgeon_takes_the_servers_load_from_its_steps_and_from_its_own_word() -> None:
    situation = too_small_for_the_model()
    task = make_task(situation)
    profiled = make_strategy("neurosurgeon", situation_facts=make_facts(situation), seed=0).choose(task)
    loaded = replace(situation, cloud=make_cloud(times=situation.cloud.times, slowdown=40.0))  # type: ignore[union-attr]
    step = CloudStep(
        at_s=1.0, rows=1, start=2, stop=LAYERS, context_tokens=0, queue_s=0.0, sweep_s=0.0,
        compute_s=40.0 * (LAYERS - 2) * 5e-4, alone=True,
    )  # fmt: skip
    for load in (step, CloudHint(at_s=1.0, queue_s=0.0, sweep_s=0.0, slowdown=40.0)):
        strategy = make_strategy("neurosurgeon", situation_facts=make_facts(situation), seed=0)
        strategy.observe(load)
        assert strategy.choose(task) == decide(loaded).plan != profiled


def test_edgent_changes_its_plan_after_a_change_of_bandwidth_and_not_for_one_outlier() -> None:
    situation = make_situation(privacy=Privacy.NO_TEXT, prompt_tokens=400)
    strategy = make_strategy("edgent", situation_facts=make_facts(situation), seed=0)

    def after(rates: list[float]) -> Arm:
        for rate in rates:
            strategy.observe(seen(Direction.UP, 100_000, rate, 1.0))
        return strategy.choose(make_task(situation, 2.0)).arm

    fast = after([1.2e6, 1.3e6, 1.25e6, 1.2e6, 1.3e6, 1.25e6, 1.22e6, 1.28e6] * 3)
    assert fast is Arm.USHAPE
    assert after([2e5]) is fast
    assert after([1.2e6, 1.3e6, 1.25e6, 1.2e6, 1.3e6]) is fast
    assert after([2e4] * 6) is Arm.DEVICE


def test_edgents_map_keeps_a_plan_per_state() -> None:
    situation = make_situation(privacy=Privacy.NO_TEXT)
    strategy = make_strategy("edgent", situation_facts=make_facts(situation), seed=0)
    plans = {strategy.choose(make_task(replace(situation, link=replace(LINK, rtt_s=rtt_s)))) for rtt_s in (0.04, 5.0)}
    assert len(plans) == 1  # the map has no round trip: made once, it stands


def test_dynasplit_takes_the_thriftiest_configuration_that_is_in_time() -> None:
    cloud = make_cloud(price_per_layer_token=1e-6)
    situation = make_situation(cloud=cloud)
    strategy = make_strategy("dynasplit", situation_facts=make_facts(situation), seed=0)

    def arm(deadline_s: float | None) -> Arm:
        request = replace(situation.request, deadline_s=deadline_s)
        return strategy.choose(make_task(replace(situation, request=request))).arm

    assert arm(100.0) is Arm.DEVICE  # costs nothing
    assert arm(0.01) is arm(None) is Arm.CLOUD  # nothing is in time: the fastest
    thrifty = replace(situation.request, objective=Objective(latency=0.0, cloud_cost=1.0))
    assert strategy.choose(make_task(replace(situation, request=thrifty))).arm is Arm.DEVICE


def test_edgeshard_finds_the_best_cut_that_keeps_the_first_layer_at_the_source() -> None:
    situation = make_situation(prompt_tokens=60)
    strategy = make_strategy("edgeshard", situation_facts=make_facts(situation), seed=0)
    plan = strategy.choose(make_task(situation))
    assert plan.arm is not Arm.CLOUD and plan.s >= 1
    best = min(
        (arm.plan(situation) for arm in fixed_arms(situation) if arm.arm is not Arm.CLOUD),
        key=lambda one: Truth(situation).outcome(one).total_s,
    )
    assert Truth(situation).outcome(plan).total_s == pytest.approx(Truth(situation).outcome(best).total_s, rel=0.02)
    anywhere = make_strategy(
        "edgeshard", situation_facts=make_facts(situation), seed=0, options={"first_layer_at_source": False}
    )
    assert anywhere.choose(make_task(situation)).arm is Arm.CLOUD


def test_edgeshard_balances_stages_for_throughput() -> None:
    """With machines alike and a free link, the least bottleneck is an even split; the least latency is not."""
    device = make_device(layer_s=1e-3, prefill_s=1e-3)
    cloud = make_cloud(times=device.active.times, head_s=3e-3)
    link = replace(LINK, uplink_bytes_per_s=1e10, downlink_bytes_per_s=1e10, rtt_s=0.0, overhead_s=0.0)
    situation = make_situation(device=device, cloud=cloud, link=link, privacy=Privacy.NO_TEXT)
    facts = make_facts(situation)
    plan = make_strategy("edgeshard", situation_facts=facts, seed=0, options={"aim": "throughput"}).choose(
        make_task(situation)
    )
    assert plan.arm is Arm.USHAPE and 4 <= plan.s + situation.model.layers - plan.t <= 6


@pytest.mark.parametrize("best", [0, 2, 3])
def test_draft_lengths_settle_on_the_cheapest(best: int) -> None:
    situation = make_situation(drafts=DRAFTS, privacy=Privacy.NO_TEXT)
    strategy = make_strategy("draft-lengths", situation_facts=make_facts(situation), seed=0)
    lengths = []
    for index in range(120):
        plan = strategy.choose(make_task(situation, float(index)))
        lengths.append(plan.draft_tokens)
        per_token_s = 0.1 * (1.0 + 0.3 * abs(plan.draft_tokens - best))
        outcome = Outcome(ttft_s=0.5, total_s=0.5 + 39 * per_token_s, new_tokens=40, uplink_bytes=0, downlink_bytes=0)
        strategy.observe(
            ReplyEnded(
                at_s=float(index),
                plan=plan,
                genre="chat",
                max_new_tokens=40,
                predicted_ttft_s=0.0,
                predicted_per_token_s=0.0,
                outcome=outcome,
            )
        )
    first, last = quarters([float(abs(length - best)) for length in lengths])
    assert last < first and lengths[-30:].count(best) >= 20


def test_published_baselines_plan_for_the_length_that_answers_turned_out_to_have() -> None:
    """At a bound of 512 tokens the device is too slow; for the ten that come, a slow upload costs more."""
    link = replace(LINK, uplink_bytes_per_s=5e4, rtt_s=0.005)
    believed = make_situation(link=link, privacy=Privacy.NO_TEXT, prompt_tokens=60, expected_new_tokens=512)
    short = replace(believed, request=replace(believed.request, expected_new_tokens=4))
    assert decide(believed).plan.arm is Arm.USHAPE and decide(short).plan.arm is Arm.DEVICE
    strategy = make_strategy(
        "neurosurgeon", situation_facts=make_facts(believed), seed=0, options={"probe_after_s": 1e6}
    )
    arms = [plan.arm for plan, _ in live(strategy, believed, lambda _: short, requests=30)]
    assert arms[0] is Arm.USHAPE and arms[-1] is Arm.DEVICE
