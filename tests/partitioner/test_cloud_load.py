"""The cloud's load: waits averaged, own waiting left out, and the manifest believed when nothing was seen of late."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partitioner_factory import make_cloud

from splitglm_core.ranges import LayerRange
from splitglm_partitioner.cloud_load import FRESH_S, LOOK_EVERY_S, MEMORY_S, CloudLoad
from splitglm_partitioner.device_pace import predicted_s
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import CloudHint, CloudStep
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN

CLOUD = make_cloud(12, served=LayerRange(2, 12), queue_s=0.004, sweep_s=0.001)


def connected() -> CloudLoad:
    load = CloudLoad()
    load.connected(CLOUD)
    return load


def step(at_s: float, **changes: Any) -> CloudStep:
    values: dict[str, Any] = {
        "rows": 1,
        "start": 4,
        "stop": 12,
        "context_tokens": 100,
        "queue_s": 0.0,
        "sweep_s": 0.0,
        "compute_s": predicted_s(CLOUD.times, 1, 2, 10, 100),
        "alone": True,
    }
    return CloudStep(at_s=at_s, **{**values, **changes})


def test_before_any_step_and_long_after_the_last_the_manifest_holds() -> None:
    load = connected()
    assert load.apply(CLOUD, 0.0) == CLOUD
    load.observe(step(0.0, queue_s=0.5, sweep_s=0.2, compute_s=1.0))
    assert load.apply(CLOUD, 0.0) != CLOUD
    assert load.apply(CLOUD, 20 * MEMORY_S).queue_s == pytest.approx(CLOUD.queue_s)
    assert load.apply(CLOUD, 1e9) == CLOUD


def test_waits_are_averaged_believed_while_fresh_and_return_to_the_manifest_evenly() -> None:
    load = connected()
    for queue_s in (0.1, 0.3):
        load.observe(step(0.0, queue_s=queue_s, sweep_s=queue_s / 10))
    now = load.apply(CLOUD, 0.0)
    assert (now.queue_s, now.sweep_s) == (pytest.approx(0.2), pytest.approx(0.02))
    assert load.apply(CLOUD, FRESH_S).queue_s == pytest.approx(0.2)
    half_s = MEMORY_S * math.log(2.0)
    assert load.apply(CLOUD, FRESH_S + half_s).queue_s == pytest.approx((0.2 + 0.004) / 2)
    assert load.apply(CLOUD, 0.0, for_s=2 * half_s).queue_s == pytest.approx((0.2 + 0.004) / 2)


def test_a_step_that_waited_for_its_own_kind_says_nothing_of_the_queue() -> None:
    load = connected()
    load.observe(step(0.0, queue_s=5.0, sweep_s=5.0, alone=False))
    now = load.apply(CLOUD, 0.0)
    assert (now.queue_s, now.sweep_s, now.slowdown) == (CLOUD.queue_s, CLOUD.sweep_s, pytest.approx(1.0))


def test_exponential_waits_are_known_within_a_third() -> None:
    draw, load = random.Random(3), connected()
    for i in range(200):
        load.observe(step(i / 50, queue_s=draw.expovariate(1 / 0.05)))
    assert load.apply(CLOUD, 4.0).queue_s == pytest.approx(0.05, rel=0.34)


def test_after_a_pause_the_newest_wait_weighs_more() -> None:
    load = connected()
    for i in range(50):
        load.observe(step(i / 10, queue_s=0.0))
    load.observe(step(35.0, queue_s=0.8))
    assert load.apply(CLOUD, 35.0).queue_s > 0.6


def test_a_step_that_takes_longer_than_the_manifest_says_is_a_slowdown_whichever_layers_it_ran() -> None:
    for start, stop, rows in ((2, 12, 1), (4, 9, 1), (6, 12, 64)):
        load = connected()
        compute_s = 3.0 * predicted_s(CLOUD.times, rows, start - 2, stop - 2, 100)
        load.observe(step(0.0, start=start, stop=stop, rows=rows, compute_s=compute_s))
        assert load.apply(CLOUD, 0.0).slowdown == pytest.approx(3.0)


def test_a_slowdown_is_followed_with_its_second_step_and_one_hiccup_is_not() -> None:
    load = connected()
    usual = step(0.0).compute_s
    for i in range(9):
        load.observe(step(float(i)))
    load.observe(step(9.0, compute_s=4 * usual))
    assert load.apply(CLOUD, 9.0).slowdown == pytest.approx(1.0)
    load.observe(step(10.0, compute_s=4 * usual))
    assert load.apply(CLOUD, 10.0).slowdown == pytest.approx(4.0)
    assert load.changed_s == 10.0


def test_layers_that_the_cloud_does_not_serve_and_an_unknown_cloud_say_nothing_of_its_pace() -> None:
    load = connected()
    load.observe(step(0.0, start=0, compute_s=9.0))
    assert load.apply(CLOUD, 0.0).slowdown == 1.0
    unknown = CloudLoad()
    unknown.observe(step(0.0, compute_s=9.0))
    assert unknown.apply(CLOUD, 0.0).slowdown == 1.0


def test_another_cloud_begins_anew_and_the_same_one_does_not() -> None:
    load = connected()
    load.observe(step(0.0, queue_s=0.5, compute_s=0.1))
    load.connected(make_cloud(12, served=LayerRange(2, 12), queue_s=0.009))
    assert load.apply(CLOUD, 0.0).queue_s == pytest.approx(0.5)
    other = make_cloud(12, times=LayerTimes.uniform(12, decode_s=1e-3, prefill_s_per_token=1e-4))
    load.connected(other)
    assert load.apply(other, 0.0) == other


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3), st.booleans(), st.floats(0, 100)), max_size=25),
    st.floats(0, 1e3),
)
def test_whatever_is_observed_the_profile_is_valid_and_its_waits_were_seen(
    steps: list[tuple[float, float, bool, float]], later_s: float
) -> None:
    load, now_s = connected(), 0.0
    for queue_s, compute_s, alone, pause_s in steps:
        now_s += pause_s
        load.observe(step(now_s, queue_s=queue_s, compute_s=compute_s, alone=alone))
    profile = load.apply(CLOUD, now_s + later_s)
    waits = [CLOUD.queue_s, *(queue_s for queue_s, _, alone, _ in steps if alone)]
    assert min(waits) * (1 - 1e-9) <= profile.queue_s <= max(waits) * (1 + 1e-9)
    assert MIN_SLOWDOWN <= profile.slowdown <= MAX_SLOWDOWN


def test_what_the_cloud_says_when_asked_replaces_what_own_steps_showed() -> None:
    load = connected()
    for i in range(9):
        load.observe(step(float(i), queue_s=0.4, compute_s=4 * step(0.0).compute_s))
    load.observe(CloudHint(at_s=9.0, queue_s=0.01, sweep_s=0.002, slowdown=1.2))
    now = load.apply(CLOUD, 9.0)
    assert (now.queue_s, now.sweep_s, now.slowdown) == (0.01, 0.002, pytest.approx(1.2))


def test_a_cloud_that_is_busy_now_and_then_is_expected_to_be_so_when_nobody_looked() -> None:
    load = connected()
    assert load.possible(CLOUD, 0.0) == ((1.0, CLOUD),)
    for look in range(40):
        busy = look % 4 == 0
        load.observe(CloudHint(at_s=look * LOOK_EVERY_S, queue_s=0.4 if busy else 0.0, sweep_s=0.0, slowdown=1.0))
    later_s = 40 * LOOK_EVERY_S + 20 * MEMORY_S
    loads = load.possible(CLOUD, later_s)
    assert sum(chance for chance, _ in loads) == pytest.approx(1.0)
    assert sum(chance * there.queue_s for chance, there in loads) == pytest.approx(0.25 * 0.4, rel=0.3)
    assert loads[0][1].queue_s == pytest.approx(0.4)
    assert loads[-1][1].queue_s == 0.0
    assert load.apply(CLOUD, later_s).queue_s == pytest.approx(0.25 * 0.4, rel=0.3)


def test_what_was_just_seen_is_all_there_is_to_be_expected() -> None:
    load = connected()
    for look in range(10):
        load.observe(CloudHint(at_s=look * LOOK_EVERY_S, queue_s=0.4, sweep_s=0.0, slowdown=1.0))
    assert load.fresh(9 * LOOK_EVERY_S + FRESH_S)
    assert [chance for chance, _ in load.possible(CLOUD, 9 * LOOK_EVERY_S + FRESH_S)] == [1.0]
    assert not load.fresh(9 * LOOK_EVERY_S + FRESH_S + 0.1)


def test_decode_steps_tell_what_sharing_costs_and_prompts_only_while_there_are_none() -> None:
    load = connected()
    prompt = step(0.0, rows=64, compute_s=1.2 * predicted_s(CLOUD.times, 64, 2, 10, 100))
    load.observe(prompt)
    assert load.apply(CLOUD, 0.0).slowdown == pytest.approx(1.2)
    load.observe(step(1.0, compute_s=3.0 * step(0.0).compute_s))
    assert load.apply(CLOUD, 1.0).slowdown == pytest.approx(3.0)
    load.observe(dataclasses.replace(prompt, at_s=2.0))
    assert load.apply(CLOUD, 2.0).slowdown == pytest.approx(3.0)
