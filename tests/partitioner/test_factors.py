"""Factors of an arm: they multiply its times and nothing else, are a term of their own, and are in the log."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitioner_factory import (
    POWER,
    arm_factors,
    make_cloud,
    make_device,
    make_link,
    make_model,
    make_request,
    pick,
    situations_of_plans,
)

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner import explain
from splitglm_partitioner.cost import cost_in
from splitglm_partitioner.decision_log import replay
from splitglm_partitioner.factors import MAX_FACTOR, ArmFactors, factors_of
from splitglm_partitioner.policy import Decision, decide
from splitglm_partitioner.request import Request, Situation

OPEN = make_request(privacy=Privacy.OPEN)
SLOW_CLOUD = ArmFactors(arm=Arm.CLOUD, ttft=1.5, per_token=2.0)
FAST_DEVICE = ArmFactors(arm=Arm.DEVICE, ttft=0.5, per_token=0.5)


def deciding(request: Request, *factors: ArmFactors) -> Decision:
    return decide(
        Situation(
            request=request,
            model=make_model(),
            device=make_device(power=POWER),
            link=make_link(),
            cloud=make_cloud(price_per_layer_token=1e-6),
            factors=factors,
        )
    )


@settings(max_examples=150, deadline=None)
@given(situations_of_plans(), arm_factors())
def test_factors_multiply_the_times_of_their_arm_and_the_parts_still_add_up(
    drawn: tuple[Situation, object], factors: tuple[ArmFactors, ...]
) -> None:
    x, plan = drawn
    bare, cost = cost_in(x, plan), cost_in(dataclasses.replace(x, factors=factors), plan)
    own = next((f for f in factors if f.arm is plan.arm), ArmFactors(arm=plan.arm))
    further = x.request.expected_new_tokens - 1
    assert cost.ttft_s == pytest.approx(own.ttft * bare.ttft_s, rel=1e-9)
    assert cost.per_token_s == pytest.approx(own.per_token * bare.per_token_s, rel=1e-9)
    assert cost.total_s == pytest.approx(cost.ttft_s + further * cost.per_token_s, rel=1e-9)
    assert cost.step.busy_s == pytest.approx(cost.per_token_s, rel=1e-9)
    assert cost.ttft_s <= cost.prefill.busy_s * (1 + 1e-9)
    added = cost.prefill.calibration_s, cost.step.calibration_s
    assert added == pytest.approx((cost.ttft_s - bare.ttft_s, cost.per_token_s - bare.per_token_s), abs=1e-9)
    assert cost.prefill._replace(calibration_s=0.0) == bare.prefill
    assert cost.step._replace(calibration_s=0.0) == bare.step
    same = ("uplink_bytes", "downlink_bytes", "device_memory_bytes", "cloud_layer_tokens", "price")
    assert [getattr(cost, name) for name in same] == [getattr(bare, name) for name in same]


@settings(max_examples=60, deadline=None)
@given(situations_of_plans(), st.floats(0.5, 2), st.floats(0.5, 2))
def test_only_the_radios_seconds_are_calibrated_in_joules(
    drawn: tuple[Situation, object], ttft: float, per_token: float
) -> None:
    """Joules are linear in the radio's power; what they gain by a watt of it are the seconds that it is on."""
    x, plan = drawn
    factors = (ArmFactors(arm=plan.arm, ttft=ttft, per_token=per_token),)

    def joules(radio_w: float, known: tuple[ArmFactors, ...], new_tokens: int) -> float:
        device = dataclasses.replace(x.device, power=dataclasses.replace(POWER, radio_w=radio_w))
        request = dataclasses.replace(x.request, expected_new_tokens=new_tokens)
        found = cost_in(dataclasses.replace(x, device=device, request=request, factors=known), plan).energy_j
        assert found is not None
        return found

    assert joules(0.0, factors, 50) == pytest.approx(joules(0.0, (), 50), rel=1e-9)
    radio_s = [joules(1.0, known, 1) - joules(0.0, known, 1) for known in ((), factors)]
    assert radio_s[1] == pytest.approx(ttft * radio_s[0], rel=1e-6, abs=1e-9)
    assert (radio_s[0] > 0.0) == (plan.arm is not Arm.DEVICE)


def test_a_factor_changes_which_arm_is_chosen() -> None:
    assert deciding(OPEN).plan.arm is Arm.CLOUD
    near = make_request(privacy=Privacy.OPEN, prompt_tokens=8, expected_new_tokens=2)
    plain, slow = deciding(near, ArmFactors(arm=Arm.DEVICE)), deciding(near, SLOW_CLOUD, FAST_DEVICE)
    assert plain.plan.arm is Arm.CLOUD and slow.plan.arm is Arm.DEVICE
    assert slow.value == pytest.approx(slow.breakdown.total_s, rel=1e-9)


def test_a_deadline_is_promised_with_the_factor() -> None:
    fixed = dataclasses.replace(OPEN, fixed=dataclasses.replace(OPEN.fixed, arm=Arm.CLOUD))
    seconds = deciding(fixed).breakdown.total_s
    bounded = dataclasses.replace(fixed, deadline_s=1.2 * seconds)
    assert deciding(bounded).plan.arm is Arm.CLOUD
    with pytest.raises(NoFeasiblePlan, match="deadline"):
        deciding(bounded, SLOW_CLOUD)
    tight = dataclasses.replace(fixed, deadline_s=0.8 * seconds)
    with pytest.raises(NoFeasiblePlan, match="deadline"):
        deciding(tight)
    assert deciding(tight, ArmFactors(arm=Arm.CLOUD, ttft=0.6, per_token=0.6)).plan.arm is Arm.CLOUD


def test_the_log_line_reproduces_a_decision_with_factors_and_notes() -> None:
    decision = dataclasses.replace(deciding(OPEN, SLOW_CLOUD, FAST_DEVICE), notes=("the device is hot",))
    line = decision.log_line()
    again = replay(line)
    assert again == decision and again.breakdown == decision.breakdown
    assert again.situation.factors == (SLOW_CLOUD, FAST_DEVICE)
    assert decision.inputs_digest != deciding(OPEN).inputs_digest
    plain = json.loads(line)
    plain["inputs"]["factors"][0]["ttft"] = 1.4
    with pytest.raises(InputError, match="digest"):
        replay(json.dumps(plain))
    plain = json.loads(line)
    plain["notes"] = "hot"
    with pytest.raises(InputError, match="notes"):
        replay(json.dumps(plain))


def test_what_a_factor_adds_or_takes_is_said() -> None:
    slow, fast = deciding(OPEN, SLOW_CLOUD), deciding(OPEN, ArmFactors(arm=Arm.CLOUD, ttft=0.5, per_token=0.5))
    assert slow.plan.arm is fast.plan.arm is Arm.CLOUD
    assert "calibration" in explain.terms_table(slow)
    assert "calibration -" in explain.in_words(fast) and "calibration -" not in explain.in_words(slow)
    assert "calibration" not in explain.terms_table(pick(OPEN)) + explain.in_words(pick(OPEN))


def test_factors_are_bounded_and_each_arm_has_one() -> None:
    for name in ("ttft", "per_token"):
        for value in (0.99 / MAX_FACTOR, 1.01 * MAX_FACTOR, float("nan")):
            with pytest.raises(InputError):
                ArmFactors(arm=Arm.SPLIT, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="twice"):
        deciding(OPEN, SLOW_CLOUD, dataclasses.replace(SLOW_CLOUD, ttft=1.0))
    assert factors_of(Arm.SPLIT, (SLOW_CLOUD,)) == ArmFactors(arm=Arm.SPLIT)
