"""What an advisor's calibration learns: a lasting bias of an arm, and nothing that an estimator follows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitioner_factory import drafting, make_cloud, make_device, make_link, make_model, make_request

from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.advisor import Advisor, AdvisorSettings
from splitglm_partitioner.attribution import MAX_RUNNING, Running
from splitglm_partitioner.cost import cost_in
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.factors import MAX_FACTOR
from splitglm_partitioner.guidance import SteeringSettings
from splitglm_partitioner.observations import (
    CloudStep,
    DevicePass,
    Direction,
    DraftRound,
    Observation,
    Outcome,
    ReplyEnded,
    RoundTrip,
    Transfer,
)
from splitglm_partitioner.request import Request

PLAIN = AdvisorSettings(steering=SteeringSettings(margin=0.0, patience=1, explore_share=0.0))
SHORT = make_request(privacy=Privacy.OPEN, prompt_tokens=40, expected_new_tokens=10)


def connected(**cloud: Any) -> Advisor:
    advisor = Advisor(
        model=make_model(), device=make_device(), drafts={"": (drafting(arms=(Arm.USHAPE,)),)}, settings=PLAIN
    )
    advisor.connected(make_cloud(**cloud), link=make_link())
    return advisor


def run(
    advisor: Advisor,
    request: Request,
    at_s: float,
    *,
    ttft: float = 1.0,
    per_token: float = 1.0,
    seen: tuple[Observation, ...] = (),
) -> Decision:
    """A reply that takes ``ttft`` and ``per_token`` times what the bare model says, ``seen`` being told within."""
    decision = advisor.decide(request, now_s=at_s)
    bare = cost_in(dataclasses.replace(decision.situation, factors=()), decision.plan)
    advisor.began(decision, at_s)
    for observation in seen:
        advisor.observe(observation)
    first_s, token_s = ttft * bare.ttft_s, per_token * bare.per_token_s
    further = request.expected_new_tokens - 1
    total_s = first_s + further * token_s
    outcome = Outcome(ttft_s=first_s, total_s=total_s, new_tokens=further + 1, uplink_bytes=0, downlink_bytes=0)
    ended = ReplyEnded(
        at_s=at_s + max([total_s, *(observation.at_s - at_s for observation in seen)]),
        plan=decision.plan,
        genre="",
        max_new_tokens=request.expected_new_tokens,
        predicted_ttft_s=decision.breakdown.ttft_s,
        predicted_per_token_s=decision.breakdown.per_token_s,
        outcome=outcome,
    )
    advisor.ended(decision, ended)
    return decision


def fixed(arm: Arm, request: Request = SHORT) -> Request:
    return dataclasses.replace(request, fixed=dataclasses.replace(request.fixed, arm=arm))


def test_an_arm_that_takes_longer_than_its_price_is_learnt_and_left() -> None:
    """The cloud is a little cheaper by the model and a good deal dearer in fact."""
    request = make_request(privacy=Privacy.OPEN, prompt_tokens=300, expected_new_tokens=1)
    advisor = connected(queue_s=2.0)
    assert advisor.decide(request, now_s=0.0).plan.arm is Arm.CLOUD
    rivals = [choice.value for choice in advisor.decide(request, now_s=0.0).runners_up]
    assert min(rivals) < 1.6 * advisor.decide(request, now_s=0.0).value
    arms = [run(advisor, request, 30.0 * index, ttft=1.6).plan.arm for index in range(40)]
    assert arms[0] is Arm.CLOUD and arms[-1] is not Arm.CLOUD
    factors = advisor.calibration.factors(Arm.CLOUD, 0.0)
    assert 1.05 < factors.ttft <= 1.6 and factors.per_token == 1.0


@pytest.mark.parametrize("arm", [Arm.CLOUD, Arm.USHAPE, Arm.DEVICE])
@pytest.mark.parametrize("bias", [0.7, 1.6])
def test_a_lasting_bias_ends_up_in_the_predictions_and_is_not_compounded(arm: Arm, bias: float) -> None:
    advisor = connected()
    for index in range(80):
        run(advisor, fixed(arm), 30.0 * index, ttft=bias, per_token=bias)
    learnt = advisor.calibration.factors(arm, 0.0)
    assert (learnt.ttft, learnt.per_token) == (pytest.approx(bias, rel=0.05), pytest.approx(bias, rel=0.05))
    decision = advisor.decide(fixed(arm), now_s=2500.0)
    assert decision.situation.factors == (learnt,)
    first, second = advisor.calibration.residuals(arm)
    assert first.count == second.count == 80
    later = run(advisor, fixed(arm), 2500.0, ttft=bias, per_token=bias).breakdown
    bare = cost_in(dataclasses.replace(decision.situation, factors=()), decision.plan)
    assert later.ttft_s == pytest.approx(bias * bare.ttft_s, rel=0.05)


def step(at_s: float, *, queue_s: float = 2e-3, slowdown: float = 1.0) -> CloudStep:
    compute_s = 12 * 5e-4 * slowdown
    return CloudStep(
        at_s=at_s, rows=1, start=0, stop=12, context_tokens=0, queue_s=queue_s, sweep_s=0.0, compute_s=compute_s,
        alone=True,
    )  # fmt: skip


def changes(at_s: float) -> dict[str, tuple[Arm, tuple[Observation, ...]]]:
    """What is seen when something else than the model is the cause, and an arm that it concerns."""
    times = [at_s + 0.1 * index for index in range(6)]
    return {
        "waits in the cloud": (Arm.CLOUD, tuple(step(t, queue_s=0.2) for t in times)),
        "a slower cloud": (Arm.CLOUD, tuple(step(t, slowdown=6.0) for t in times)),
        "a slower device": (
            Arm.DEVICE,
            tuple(DevicePass(at_s=t, rows=1, layers=12, context_tokens=0, seconds=12 * 4e-3 * 2) for t in times),
        ),
        "a longer round trip": (Arm.CLOUD, tuple(RoundTrip(at_s=t, seconds=0.3) for t in times)),
        "a slower uplink": (
            Arm.USHAPE,
            tuple(Transfer(at_s=t, direction=Direction.UP, transfer_bytes=64 << 10, seconds=0.5) for t in times),
        ),
        "drafts that fail": (
            Arm.USHAPE,
            tuple(
                DraftRound(at_s=at_s + index / 100, drafter="lookup", genre="", proposed=4, accepted=0)
                for index in range(60)
            ),
        ),
    }


@pytest.mark.parametrize("change", list(changes(0.0)))
def test_a_change_that_an_estimator_follows_does_not_leak_into_the_factors(change: str) -> None:
    """The reply that it met took twice as long; those after it are predicted with it."""
    arm, seen = changes(200.0)[change]
    advisor = connected()
    for index in range(10):
        run(advisor, fixed(arm), 10.0 * index)
    run(advisor, fixed(arm), 200.0, ttft=2.0, per_token=2.0, seen=seen)
    first, _ = advisor.calibration.residuals(arm)
    assert first.count == 11 and first.mean_abs_pct_error > 4.0
    factors = advisor.calibration.factors(arm, 0.0)
    assert (factors.ttft, factors.per_token) == pytest.approx((1.0, 1.0), rel=1e-12)


def test_a_change_that_was_over_before_the_end_teaches_nothing_either() -> None:
    """The estimate is back where it was at the decision; that it was elsewhere meanwhile was found."""
    advisor = connected()
    for index in range(10):
        run(advisor, fixed(Arm.DEVICE), 10.0 * index)
    paces = [2.0] * 12 + [1.0] * 12
    seen = tuple(
        DevicePass(at_s=200.0 + k / 10, rows=1, layers=12, context_tokens=0, seconds=12 * 4e-3 * pace)
        for k, pace in enumerate(paces)
    )
    decision = run(advisor, fixed(Arm.DEVICE), 200.0, ttft=1.5, per_token=1.5, seen=seen)
    now = advisor.decide(fixed(Arm.DEVICE), now_s=203.0)
    assert now.breakdown.ttft_s == pytest.approx(decision.breakdown.ttft_s, rel=0.01)
    assert advisor.calibration.factors(Arm.DEVICE, 0.0).ttft == pytest.approx(1.0, rel=1e-12)


def test_steady_observations_are_no_change() -> None:
    advisor = connected()
    for index in range(20):
        at_s = 10.0 * index
        same = (
            *(step(at_s + 0.1 * k) for k in range(5)),
            RoundTrip(at_s=at_s + 0.6, seconds=0.04 * (1 + 0.05 * (-1) ** index)),
            DevicePass(at_s=at_s + 0.7, rows=1, layers=12, context_tokens=0, seconds=12 * 4e-3 * 1.02),
        )
        run(advisor, fixed(Arm.CLOUD), at_s, ttft=1.6, seen=same)
    assert advisor.calibration.factors(Arm.CLOUD, 0.0).ttft > 1.3


def test_a_reply_whose_beginning_or_decision_was_not_told_is_counted_and_not_learnt_from() -> None:
    advisor = connected()
    decision = advisor.decide(SHORT, now_s=0.0)
    slow = Outcome(ttft_s=9.0, total_s=99.0, new_tokens=10, uplink_bytes=0, downlink_bytes=0)
    ended = ReplyEnded(
        at_s=99.0,
        plan=decision.plan,
        genre="",
        max_new_tokens=10,
        predicted_ttft_s=decision.breakdown.ttft_s,
        predicted_per_token_s=decision.breakdown.per_token_s,
        outcome=slow,
    )
    advisor.observe(ended)
    advisor.ended(decision, ended)
    assert advisor.calibration.residuals(decision.plan.arm)[0].count == 2
    assert advisor.calibration.learnt(0.0) == ()


def test_another_cloud_since_the_decision_teaches_nothing() -> None:
    advisor = connected()
    decision = advisor.decide(fixed(Arm.CLOUD), now_s=0.0)
    advisor.began(decision, 0.0)
    advisor.connected(make_cloud(has_embedding=False), link=make_link())
    outcome = Outcome(ttft_s=9.0, total_s=99.0, new_tokens=10, uplink_bytes=0, downlink_bytes=0)
    advisor.ended(
        decision,
        ReplyEnded(
            at_s=99.0, plan=decision.plan, genre="", max_new_tokens=10, predicted_ttft_s=1.0,
            predicted_per_token_s=1.0, outcome=outcome,
        ),
    )  # fmt: skip
    assert advisor.calibration.learnt(0.0) == ()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(Arm)), st.floats(0.0, 1e3), st.floats(0.0, 1e3)), min_size=1, max_size=25)
)
def test_whatever_replies_take_the_factors_of_decisions_stay_within_their_bounds(
    replies: list[tuple[Arm, float, float]],
) -> None:
    advisor = connected()
    for index, (arm, ttft, per_token) in enumerate(replies):
        decision = run(advisor, fixed(arm), 1e5 * index, ttft=ttft, per_token=per_token)
        for factors in decision.situation.factors:
            assert min(factors.ttft, factors.per_token) >= 1 / MAX_FACTOR
            assert max(factors.ttft, factors.per_token) <= MAX_FACTOR


def test_replies_that_never_end_are_forgotten() -> None:
    advisor, running = connected(), Running()
    decisions = [advisor.decide(SHORT, now_s=0.0) for _ in range(MAX_RUNNING + 1)]
    for index, decision in enumerate(decisions):
        running.began(decision, float(index))
    assert running.ended(decisions[0]) is None
    assert running.ended(decisions[1]) == 1.0
    assert running.ended(decisions[1]) is None
    assert running.ended(decisions[-1]) == float(MAX_RUNNING)
