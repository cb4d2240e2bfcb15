"""What else is chosen with the cut: drafts, chunks, joules; and outcomes judged by the same weights."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from partitioner_factory import (
    POWER,
    decide_or_none,
    drafting,
    make_cloud,
    make_device,
    make_link,
    make_request,
    pick,
    situations,
)

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.constraints import Constraint
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.request import PREFILL_IN_FLIGHT, Fixed, Objective, Situation, Warm

N = 12


def test_a_far_cloud_is_asked_to_verify_drafts_and_useless_ones_are_never_taken() -> None:
    far, request = make_link(rtt_s=0.3), make_request(fixed=Fixed(arm=Arm.USHAPE))
    plain, drafted = pick(request, link=far), pick(request, link=far, drafts=(drafting(),))
    assert (drafted.plan.drafter, drafted.plan.draft_tokens) == ("lookup", 4)
    assert drafted.value < 0.5 * plain.value and "draft=lookup:4" in drafted.why
    for hopeless in (drafting(survival=(0.0, 0.0)), drafting(s_per_token=5.0), drafting(arms=(Arm.SPLIT,))):
        assert pick(request, link=far, drafts=(hopeless,)).plan == plain.plan


@settings(max_examples=60, deadline=None)
@given(situations())
def test_no_drafter_or_chunk_size_ever_makes_the_choice_dearer(x: Situation) -> None:
    """What may be left alone does no harm: without bounds a choice among more is no dearer.

    The request's own size is left out where it needs more steps in flight than the agent allows and another does not.
    """
    request = dataclasses.replace(x.request, deadline_s=None, energy_budget_j=None)
    assume(request.chunk_tokens in request.chunk_sizes)
    more = decide_or_none(dataclasses.replace(x, request=request))
    less = decide_or_none(dataclasses.replace(x, request=dataclasses.replace(request, chunks=()), drafts=()))
    assert (more is None) == (less is None)
    if more is not None and less is not None and (x.request.warm is None):
        assert more.value <= less.value * (1 + 1e-9)


def test_a_drafter_that_needs_the_front_pulls_the_cut_up_when_that_pays() -> None:
    """A long round trip: two more layers on the device for four tokens in a round."""
    early = drafting(name="early-exit", front_layers=3, shares_front=True, s_per_token=1e-3)
    far, request = make_link(rtt_s=0.5), make_request(fixed=Fixed(arm=Arm.USHAPE))
    assert pick(request, link=far).plan.s == 1
    decision = pick(request, link=far, drafts=(early,))
    assert (decision.plan.s, decision.plan.drafter) == (3, "early-exit")


def test_a_cloud_that_drafts_for_itself_makes_no_trips() -> None:
    inside = drafting(name="mtp", arms=(Arm.CLOUD,), in_cloud=True)
    decision = pick(make_request(privacy=Privacy.OPEN), link=make_link(rtt_s=0.5), drafts=(inside,))
    assert decision.plan.arm is Arm.CLOUD and decision.plan.drafter == "mtp"
    assert decision.breakdown.step.rtt_s == decision.breakdown.step.uplink_s == 0.0
    assert decision.breakdown.step.draft_s > 0.0
    assert decision.breakdown.uplink_bytes == 4 * 300


def test_small_chunks_fill_the_line_sooner_and_are_chosen_for_it() -> None:
    """Front, uplink and back work side by side; one chunk as long as the prompt leaves two of them idle."""
    request = make_request(chunk_tokens=512)
    decision = pick(dataclasses.replace(request, chunks=(32, 64)))
    assert decision.plan.chunk_tokens in (32, 64) and f"chunk={decision.plan.chunk_tokens}" in decision.why
    assert decision.value < pick(request).value
    warm = Warm(plan=dataclasses.replace(decision.plan, chunk_tokens=512), cached_tokens=290)
    assert pick(dataclasses.replace(request, chunks=(32, 64), warm=warm)).plan.chunk_tokens == 512


def test_a_chunk_size_that_the_agent_would_hold_back_is_left_out_where_another_is_not() -> None:
    prompt = 64 * PREFILL_IN_FLIGHT
    for tokens, offered, left in (
        (prompt, (32, 64, 128), (64, 128)),
        (prompt + 1, (32, 64, 128), (128,)),
        (prompt + 1, (128, 64, 256), (128, 256)),  # in the order that they were offered in
        (prompt + 1, (32, 64), (32, 64)),  # held back all alike
        (prompt + 1, (64,), (64,)),
    ):
        request = make_request(prompt_tokens=tokens, chunk_tokens=offered[0], chunks=offered[1:])
        assert request.chunk_sizes == left
    far = make_request(prompt_tokens=4000, chunk_tokens=512, chunks=(32, 64))
    assert pick(far).plan.chunk_tokens == 512
    assert pick(dataclasses.replace(far, prompt_tokens=64 * PREFILL_IN_FLIGHT)).plan.chunk_tokens == 64


def test_an_open_session_keeps_its_chunk_size_however_long_its_prompt_is() -> None:
    request = make_request(prompt_tokens=4000, chunk_tokens=64, chunks=(512,))
    plan = pick(dataclasses.replace(request, prompt_tokens=300)).plan
    assert plan.chunk_tokens == 64
    warm = dataclasses.replace(request, warm=Warm(plan=plan, cached_tokens=3990))
    assert warm.chunk_sizes == (64, 512)
    assert pick(warm).plan == plan and "warm=1" in pick(warm).why


def test_weighing_energy_trades_time_for_joules_and_a_budget_forbids() -> None:
    device, link = make_device(N, power=POWER), make_link(rtt_s=0.12)
    hasty = pick(make_request(), device=device, link=link)
    thrifty = pick(make_request(objective=Objective(latency=0.01, energy=1.0)), device=device, link=link)
    assert hasty.plan.arm is not thrifty.plan.arm
    used, spared = hasty.breakdown.energy_j, thrifty.breakdown.energy_j
    assert used is not None and spared is not None and spared < used
    bounded = pick(make_request(energy_budget_j=(used + spared) / 2), device=device, link=link)
    assert bounded.plan.arm is thrifty.plan.arm
    assert {e.arm: e.constraint for e in bounded.excluded}[hasty.plan.arm] is Constraint.ENERGY
    with pytest.raises(NoFeasiblePlan) as caught:
        pick(make_request(energy_budget_j=0.0), device=device, link=link)
    assert "joules" in caught.value.hint


def test_an_outcome_is_judged_by_the_weights_that_chose_its_plan() -> None:
    cloud = make_cloud(N, price_per_layer_token=1e-5)
    weights = Objective(latency=1.0, ttft=2.0, energy=0.3, cloud_cost=4.0)
    decision = pick(make_request(objective=weights), device=make_device(N, power=POWER), cloud=cloud)
    cost = decision.breakdown
    measured = Outcome(
        ttft_s=cost.ttft_s,
        total_s=cost.total_s,
        new_tokens=50,
        uplink_bytes=cost.uplink_bytes,
        downlink_bytes=cost.downlink_bytes,
        energy_j=cost.energy_j,
        price=cost.price,
    )
    assert weights.value_of(measured) == pytest.approx(decision.value, rel=1e-9)
    for unknown in ({"energy_j": None}, {"price": None}):
        with pytest.raises(InputError, match="is not known"):
            weights.value_of(dataclasses.replace(measured, **unknown))
    assert Objective().value_of(dataclasses.replace(measured, energy_j=None, price=None)) == measured.total_s
