"""The choice: optimal among what is allowed, never beyond privacy or memory, reproducible."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from partitioner_factory import (
    POWER,
    decide_or_none,
    make_cloud,
    make_device,
    make_link,
    make_model,
    make_request,
    pick,
    situations,
    split,
)

from splitglm_core.errors import InputError, NoFeasiblePlan, PromptTooLong
from splitglm_core.plan import Arm, Codec, HeadSide, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_partitioner import pricing
from splitglm_partitioner.arms import choices_of, enumerate_arms
from splitglm_partitioner.constraints import Constraint
from splitglm_partitioner.cost import cost_of
from splitglm_partitioner.decision_log import replay
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.policy import Choice, Decision, choose, decide
from splitglm_partitioner.request import Fixed, Objective, Situation, Warm

N = 12


def choices(decision: Decision) -> tuple[Choice, ...]:
    return (decision.chosen, *decision.runners_up)


def every_plan(x: Situation) -> list[SplitPlan]:
    """All allowed plans with all codecs in common (those too that the policy drops as beaten everywhere), in every
    chunk size, with every draft."""
    fixed, offered = x.request.fixed.codec, x.cloud.codecs if x.cloud is not None else ()
    codecs = [c for c in x.request.codecs if c in offered and fixed in (None, c)]
    out: dict[SplitPlan, None] = {}
    for plan in enumerate_arms(x).plans():
        for codec in codecs if plan.arm in (Arm.SPLIT, Arm.USHAPE) else [plan.codec]:
            out.update(dict.fromkeys(choices_of(dataclasses.replace(plan, codec=codec), x)))
    return list(out)


def value_of(x: Situation, plan: SplitPlan) -> float | None:
    """The objective of one plan priced alone; None when it breaks a bound."""
    request, weights = x.request, x.request.objective
    cost = cost_of(plan, request, x.model, x.device, x.link, x.cloud, x.drafts, x.factors)
    link = x.link.pessimistic() if x.link is not None else None
    if request.deadline_s is not None or request.energy_budget_j is not None:
        promised = cost_of(plan, request, x.model, x.device, link, x.cloud, x.drafts, x.factors)
        if request.deadline_s is not None and promised.total_s > request.deadline_s:
            return None
        if request.energy_budget_j is not None and (promised.energy_j or 0.0) > request.energy_budget_j:
            return None
    money, joules = cost.price or 0.0, cost.energy_j or 0.0
    bare = weights.latency * cost.total_s + weights.ttft * cost.ttft_s
    return bare + weights.energy * joules + weights.cloud_cost * money


@settings(max_examples=150, deadline=None)
@given(situations())
def test_no_choice_ever_breaks_a_constraint(x: Situation) -> None:
    decision = decide_or_none(x)
    if decision is None:
        return
    request = x.request
    for choice in choices(decision):
        plan, cost = choice.plan, choice.breakdown
        if request.privacy is Privacy.LOCAL:
            assert plan.arm is Arm.DEVICE and cost.uplink_bytes == cost.downlink_bytes == 0
        if request.privacy is not Privacy.OPEN:
            assert plan.arm is not Arm.CLOUD and plan.s >= min(request.s_min, plan.layers)
        if request.privacy is Privacy.NO_TEXT or request.head_on_device:
            assert plan.head is HeadSide.DEVICE
        if plan.arm is not Arm.DEVICE:
            assert x.cloud is not None and x.cloud.served.covers(plan.back)
            assert plan.head is HeadSide.DEVICE or x.cloud.has_head
            assert plan.arm is not Arm.CLOUD or x.cloud.has_embedding
            if plan.arm is not Arm.CLOUD:
                assert plan.codec in x.cloud.codecs and plan.codec in request.codecs
        assert cost.device_memory_bytes <= x.device.memory_bytes_free
        assert plan.arm is Arm.CLOUD or len(plan.front) + len(plan.tail) <= x.device.max_layers
        fixed = request.fixed
        assert fixed.arm in (None, plan.arm) and fixed.s in (None, plan.s) and fixed.t in (None, plan.t)
        if request.deadline_s is not None:
            link = x.link.pessimistic() if x.link is not None else None
            promised = cost_of(plan, request, x.model, x.device, link, x.cloud, x.drafts, x.factors)
            assert promised.total_s <= request.deadline_s * (1 + 1e-9)
        if request.energy_budget_j is not None:
            link = x.link.pessimistic() if x.link is not None else None
            promised = cost_of(plan, request, x.model, x.device, link, x.cloud, x.drafts, x.factors)
            assert promised.energy_j is not None and promised.energy_j <= request.energy_budget_j * (1 + 1e-9)
        assert plan.chunk_tokens in request.chunk_sizes
    assert {c.plan.arm for c in choices(decision)} | {e.arm for e in decision.excluded} == set(Arm)


@settings(max_examples=80, deadline=None)
@given(situations())
def test_the_choice_is_the_best_of_pricing_every_allowed_plan_alone(x: Situation) -> None:
    try:
        decision = decide(x)
    except NoFeasiblePlan:
        assert all(value_of(x, plan) is None for plan in every_plan(x))
        return
    except InputError:
        return  # a fixed cut that the model does not have
    values: dict[Arm, float] = {}
    for plan in every_plan(x):
        value = value_of(x, plan)
        if value is not None:
            values[plan.arm] = min(value, values.get(plan.arm, value))
    assert values.keys() == {c.plan.arm for c in choices(decision)}
    for choice in choices(decision):
        assert choice.value == pytest.approx(values[choice.plan.arm], rel=1e-9)
        assert choice.value == pytest.approx(value_of(x, choice.plan), rel=1e-9)
    assert decision.value == pytest.approx(min(values.values()), rel=1e-9)


@pytest.mark.parametrize("device_is_faster", [True, False])
@pytest.mark.parametrize("privacy", [Privacy.OPEN, Privacy.NO_PROMPT, Privacy.NO_TEXT])
def test_with_equal_layers_the_best_cut_is_an_end_point_of_the_allowed_range(
    privacy: Privacy, device_is_faster: bool
) -> None:
    """One chunk and equal layers: time is linear in s (research: the split objective of a transformer is bang-bang)."""
    fast = LayerTimes.uniform(N, decode_s=1e-4, prefill_s_per_token=1e-6, chunk_tokens=512)
    slow = LayerTimes.uniform(N, decode_s=4e-3, prefill_s_per_token=1e-3, chunk_tokens=512)
    device = make_device(N, times=fast if device_is_faster else slow)
    cloud = make_cloud(N, times=slow if device_is_faster else fast)
    request = make_request(privacy=privacy, s_min=3, chunk_tokens=512)
    decision = pick(request, device=device, cloud=cloud)
    low = 1 if privacy is Privacy.OPEN else 3
    for choice in choices(decision):
        plan = choice.plan
        if plan.arm is Arm.SPLIT:
            assert plan.s == (N - 1 if device_is_faster else low)
        if plan.arm is Arm.USHAPE:
            # Device layers may sit before or behind the back; either way the back is as short, or as long, as allowed.
            held = plan.s + N - plan.t
            assert held == (N - 1 if device_is_faster else low)
    assert decision.plan.arm is (
        Arm.DEVICE
        if device_is_faster
        else {Privacy.OPEN: Arm.CLOUD, Privacy.NO_PROMPT: Arm.SPLIT}.get(privacy, Arm.USHAPE)
    )


def test_a_constraint_makes_the_cut_interior_and_the_reasons_name_it() -> None:
    """A fast device with room for five layers takes five and no more."""
    fast = LayerTimes.uniform(N, decode_s=1e-5, prefill_s_per_token=1e-7)
    slow = LayerTimes.uniform(N, decode_s=4e-3, prefill_s_per_token=1e-3)
    request = make_request(privacy=Privacy.NO_TEXT)
    room = 5 * (1_000_000 + request.positions * 1024) + 900_000
    decision = pick(request, device=make_device(N, times=fast, memory_bytes_free=room), cloud=make_cloud(N, times=slow))
    assert decision.plan.arm is Arm.USHAPE and decision.plan.s + N - decision.plan.t == 5
    assert "cut=high" in decision.why and "limited-by=device-memory" in decision.why
    reasons = {e.arm: e.constraint for e in decision.excluded}
    assert reasons == {Arm.DEVICE: Constraint.MEMORY, Arm.CLOUD: Constraint.PRIVACY, Arm.SPLIT: Constraint.PRIVACY}


@pytest.mark.parametrize(
    ("changes", "arm", "constraint"),
    [
        ({"request": {"privacy": Privacy.LOCAL}}, Arm.USHAPE, Constraint.PRIVACY),
        ({"request": {"head_on_device": True}}, Arm.SPLIT, Constraint.DEVICE_HEAD),
        ({"request": {"fixed": Fixed(arm=Arm.DEVICE)}}, Arm.SPLIT, Constraint.FIXED),
        ({"request": {"fixed": Fixed(s=4)}}, Arm.CLOUD, Constraint.FIXED),
        ({"request": {"objective": Objective(cloud_cost=1.0)}}, Arm.CLOUD, Constraint.PRICE),
        ({"request": {"deadline_s": 1.0}}, Arm.DEVICE, Constraint.DEADLINE),
        ({"cloud": {"has_head": False, "head_s": None}}, Arm.SPLIT, Constraint.CLOUD_HEAD),
        ({"cloud": {"has_embedding": False}}, Arm.CLOUD, Constraint.CLOUD_EMBEDDING),
        ({"cloud": {"codecs": ()}}, Arm.USHAPE, Constraint.CODEC),
        ({"device": {"max_layers": 4}}, Arm.DEVICE, Constraint.MAX_LAYERS),
        ({"device": {"memory_bytes_free": 10**6}}, Arm.SPLIT, Constraint.MEMORY),
    ],
)
def test_every_excluded_arm_names_its_constraint(
    changes: dict[str, dict[str, object]], arm: Arm, constraint: Constraint
) -> None:
    request = dataclasses.replace(make_request(privacy=Privacy.OPEN), **changes.get("request", {}))  # type: ignore[arg-type]
    device = dataclasses.replace(make_device(N), **changes.get("device", {}))  # type: ignore[arg-type]
    cloud = dataclasses.replace(make_cloud(N), **changes.get("cloud", {}))  # type: ignore[arg-type]
    decision = pick(request, device=device, cloud=cloud)
    assert {e.arm: e.constraint for e in decision.excluded}[arm] is constraint


def test_a_cloud_with_the_middle_layers_only_serves_a_ushape_within_them() -> None:
    served = LayerRange(3, 9)
    cloud = make_cloud(N, served=served, times=LayerTimes.uniform(6, decode_s=5e-4, prefill_s_per_token=3e-5))
    decision = pick(make_request(privacy=Privacy.OPEN), cloud=cloud)
    assert decision.plan.arm is Arm.USHAPE and served.covers(decision.plan.back)
    assert {e.constraint for e in decision.excluded} == {Constraint.SERVED}


def test_without_a_cloud_the_device_answers_alone() -> None:
    decision = choose(make_request(), make_model(N), make_device(N), None, None)
    assert decision.plan.arm is Arm.DEVICE and decision.runners_up == ()


def test_when_nothing_is_allowed_the_error_names_each_constraint_and_what_to_relax() -> None:
    with pytest.raises(NoFeasiblePlan) as caught:
        choose(make_request(privacy=Privacy.LOCAL), make_model(N), make_device(N, memory_bytes_free=10), None, None)
    assert "device: at least 17 MB are needed for 12 layers" in caught.value.what
    assert "free device memory" in caught.value.hint and "privacy" in caught.value.hint


def test_a_deadline_is_promised_on_the_pessimistic_link() -> None:
    """A split that meets the deadline on average but not at the worst recent rate gives way to the device."""
    request = make_request(privacy=Privacy.NO_PROMPT, expected_new_tokens=1)
    steady, shaky = make_link(), make_link(uplink_rel_error=9.0)
    expected = pick(request, link=steady).breakdown.total_s
    bounded = dataclasses.replace(request, deadline_s=expected * 1.1)
    assert pick(bounded, link=steady).plan.arm is Arm.SPLIT
    with pytest.raises(NoFeasiblePlan, match="deadline"):
        pick(bounded, link=shaky)
    assert pick(dataclasses.replace(request, deadline_s=60.0), link=shaky).plan.arm is Arm.SPLIT


def test_an_open_session_is_preferred_although_another_cut_would_be_cheaper_cold() -> None:
    plan = split(N, 2, Codec.INT8)
    cold = make_request(privacy=Privacy.NO_PROMPT, expected_new_tokens=10)
    assert pick(cold).plan.s == 1
    warm = pick(dataclasses.replace(cold, warm=Warm(plan=plan, cached_tokens=280)))
    assert warm.plan == plan and "warm=1" in warm.why
    assert warm.breakdown.uplink_bytes < pick(cold).breakdown.uplink_bytes
    # With a long answer ahead the per-token gain of the better cut outweighs the prefill saved.
    long = dataclasses.replace(cold, warm=Warm(plan=plan, cached_tokens=280), expected_new_tokens=500)
    assert pick(long).plan.s == 1


def test_an_open_session_never_forces_a_plan_that_is_no_longer_allowed() -> None:
    request = make_request(privacy=Privacy.NO_TEXT, warm=Warm(plan=split(N, 5), cached_tokens=290))
    assert pick(request).plan.arm is Arm.USHAPE


def test_an_open_session_of_other_chunks_is_priced_as_what_it_is_a_cold_start() -> None:
    plan = split(N, 2, Codec.INT8)
    cold = make_request(privacy=Privacy.NO_PROMPT, expected_new_tokens=10)
    warm = dataclasses.replace(cold, warm=Warm(plan=plan, cached_tokens=280))
    for chunk in (plan.chunk_tokens // 2, plan.chunk_tokens * 2):
        decision = pick(dataclasses.replace(warm, chunk_tokens=chunk))
        expected = pick(dataclasses.replace(cold, chunk_tokens=chunk))
        assert (decision.plan, decision.value) == (expected.plan, expected.value)
        assert "warm=0" in decision.why
        assert warm.cached_tokens(dataclasses.replace(plan, chunk_tokens=chunk)) == 0
    assert warm.cached_tokens(plan) == 280


def test_cloud_cost_moves_layers_to_the_device() -> None:
    cloud = make_cloud(N, price_per_layer_token=1.0)
    free = pick(make_request(privacy=Privacy.NO_PROMPT), cloud=cloud)
    dear = pick(make_request(privacy=Privacy.NO_PROMPT, objective=Objective(cloud_cost=1e3)), cloud=cloud)
    assert free.breakdown.cloud_layer_tokens > dear.breakdown.cloud_layer_tokens == 0


def test_exact_ties_go_to_fewer_bytes_then_to_the_smaller_cut() -> None:
    """Layers that cost nothing anywhere make all cuts of a codec equal, and a free link makes codecs equal too."""
    free = LayerTimes.uniform(N, decode_s=0.0, prefill_s_per_token=0.0)
    link = make_link(uplink_bytes_per_s=1e12, downlink_bytes_per_s=1e12, rtt_s=1000.0)
    request = make_request(
        privacy=Privacy.NO_PROMPT, codecs=(Codec.FP32, Codec.BF16, Codec.INT8), fixed=Fixed(arm=Arm.SPLIT)
    )
    device, cloud = make_device(N, times=free), make_cloud(N, times=free)
    decision = pick(request, device=device, cloud=cloud, link=link)
    assert (decision.plan.s, decision.plan.codec) == (1, Codec.INT8)
    assert decision == pick(request, device=device, cloud=cloud, link=link)


@settings(max_examples=60, deadline=None)
@given(situations())
def test_a_log_line_replays_to_the_same_decision(x: Situation) -> None:
    decision = decide_or_none(x)
    if decision is None:
        return
    line = decision.log_line()
    assert "\n" not in line
    assert replay(line) == decision
    assert replay(line).inputs_digest == decision.inputs_digest


def test_an_altered_or_foreign_log_line_is_refused() -> None:
    line = pick(make_request()).log_line()
    altered = json.loads(line)
    altered["inputs"]["request"]["prompt_tokens"] += 1
    with pytest.raises(InputError, match="digest"):
        replay(json.dumps(altered))
    altered = json.loads(line)
    altered["version"] = 99
    with pytest.raises(InputError, match="version"):
        replay(json.dumps(altered))
    for text in ("", "{}", "[]", "null", line[:-1], "[" * 100_000):
        with pytest.raises(InputError):
            replay(text)


def test_requests_and_profiles_of_different_models_are_refused() -> None:
    with pytest.raises(InputError, match="device profile"):
        choose(make_request(), make_model(N + 1), make_device(N), make_link(), make_cloud(N))
    with pytest.raises(InputError, match="cloud profile"):
        pick(make_request(), cloud=make_cloud(N + 1))
    with pytest.raises(PromptTooLong):
        short = dataclasses.replace(make_model(N), max_positions=349)
        choose(make_request(), short, make_device(N), make_link(), make_cloud(N))
    with pytest.raises(InputError, match="exceeds"):
        pick(make_request(fixed=Fixed(s=N + 1)))


@pytest.mark.parametrize("changes", [{"objective": Objective(energy=1.0)}, {"energy_budget_j": 50.0}])
def test_energy_counts_only_where_the_device_states_its_power(changes: dict[str, Any]) -> None:
    request = make_request(**changes)
    with pytest.raises(InputError, match="does not state its power") as caught:
        pick(request)
    assert "compute_w" in caught.value.hint
    assert pick(request, device=make_device(N, power=POWER)).breakdown.energy_j is not None


@pytest.mark.parametrize("constraint", list(Constraint))
def test_every_constraint_has_a_remedy(constraint: Constraint) -> None:
    assert constraint.remedy


@settings(max_examples=40, deadline=None)
@given(situations())
def test_pricing_in_turns_to_spare_memory_changes_no_choice(x: Situation) -> None:
    """A prompt of thousands of chunks that each cost more than the last is priced some plans at a time."""
    whole = decide_or_none(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pricing, "_MOST_CELLS", 200)
        in_turns = decide_or_none(x)
    assert (whole is None) == (in_turns is None)
    if whole is not None and in_turns is not None:
        assert in_turns.value == pytest.approx(whole.value, rel=1e-12)
        assert {c.plan.arm for c in choices(in_turns)} == {c.plan.arm for c in choices(whole)}
