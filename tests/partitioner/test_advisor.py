"""The advisor: what is seen changes what is chosen, questions are asked only when they matter, nothing else counts."""

from __future__ import annotations

import dataclasses

import pytest
from partitioner_factory import make_cloud, make_device, make_link, make_model, make_request

from splitglm_core.errors import NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.advisor import Advisor, AdvisorSettings
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.guidance import SteeringSettings
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import (
    CloudHint,
    CloudStep,
    DevicePass,
    Direction,
    DraftRound,
    Outcome,
    ReplyEnded,
    RoundTrip,
    Transfer,
)
from splitglm_partitioner.policy import Decision
from splitglm_partitioner.request import Request

OPEN = make_request(privacy=Privacy.OPEN)
PLAIN = AdvisorSettings(steering=SteeringSettings(margin=0.0, patience=1, explore_share=0.0))


def connected(**changes: object) -> Advisor:
    advisor = Advisor(model=make_model(), device=make_device(), settings=PLAIN)
    advisor.connected(make_cloud(**changes), link=make_link())
    return advisor


def run(advisor: Advisor, request: Request, at_s: float, *, total_s: float = 2.0) -> Decision:
    decision = advisor.decide(request, now_s=at_s)
    advisor.began(decision, at_s)
    outcome = Outcome(ttft_s=total_s / 2, total_s=total_s, new_tokens=20, uplink_bytes=0, downlink_bytes=0)
    advisor.ended(
        decision,
        ReplyEnded(
            at_s=at_s + total_s,
            plan=decision.plan,
            genre="chat",
            max_new_tokens=request.expected_new_tokens,
            predicted_ttft_s=decision.breakdown.ttft_s,
            predicted_per_token_s=decision.breakdown.per_token_s,
            outcome=outcome,
        ),
    )
    return decision


def test_without_a_cloud_the_device_answers() -> None:
    advisor = Advisor(model=make_model(), device=make_device())
    assert advisor.decide(OPEN, now_s=0.0).plan.arm is Arm.DEVICE
    with pytest.raises(NoFeasiblePlan):
        advisor.decide(dataclasses.replace(OPEN, fixed=dataclasses.replace(OPEN.fixed, arm=Arm.CLOUD)), now_s=0.0)


def test_a_known_cloud_is_left_alone_when_it_must_be() -> None:
    assert connected().decide(OPEN, now_s=0.0).plan.arm is Arm.CLOUD
    assert connected().decide(OPEN, now_s=0.0, use_cloud=False).plan.arm is Arm.DEVICE


def test_a_slow_cloud_that_told_so_is_left_and_comes_back_when_it_told_that() -> None:
    advisor = connected()
    for index in range(6):
        step = CloudStep(
            at_s=index / 10, rows=1, start=0, stop=12, context_tokens=300, queue_s=5.0, sweep_s=0.5, compute_s=1.0,
            alone=True,
        )  # fmt: skip
        advisor.observe(step)
    assert advisor.decide(OPEN, now_s=1.0).plan.arm is Arm.DEVICE
    for index in range(30):
        advisor.observe(dataclasses.replace(step, at_s=2.0 + index, queue_s=0.0, sweep_s=0.0, compute_s=0.006))
    assert advisor.decide(OPEN, now_s=33.0).plan.arm is Arm.CLOUD


def test_a_slow_device_gives_its_layers_away() -> None:
    advisor = connected(queue_s=0.4)
    request = make_request(privacy=Privacy.OPEN, prompt_tokens=20, expected_new_tokens=1)
    assert advisor.decide(request, now_s=0.0).plan.arm is Arm.DEVICE
    for index in range(5):
        advisor.observe(DevicePass(at_s=index / 10, rows=1, layers=12, context_tokens=0, seconds=12 * 4e-3 * 10))
    assert advisor.decide(request, now_s=1.0).plan.arm is Arm.CLOUD


def test_a_hot_device_runs_fewer_layers_but_still_answers_alone_when_it_must() -> None:
    advisor = Advisor(model=make_model(), device=make_device(), settings=PLAIN)
    hot = Vitals(temperature_c=90.0)
    assert advisor.decide(OPEN, now_s=0.0, vitals=hot).plan.arm is Arm.DEVICE  # nobody else could
    advisor.connected(make_cloud(queue_s=3.0), link=make_link())
    assert advisor.decide(OPEN, now_s=1.0).plan.arm is not Arm.DEVICE
    private = dataclasses.replace(OPEN, privacy=Privacy.LOCAL)
    assert advisor.decide(private, now_s=2.0, vitals=hot).plan.arm is Arm.DEVICE


def test_a_link_that_got_slow_is_noticed_by_its_transfers() -> None:
    advisor = connected()
    request = make_request(privacy=Privacy.NO_TEXT, prompt_tokens=2000, expected_new_tokens=2)
    assert advisor.decide(request, now_s=0.0).plan.arm is Arm.USHAPE
    for index in range(3):
        slow = Transfer(at_s=1.0 + index, direction=Direction.UP, transfer_bytes=64 << 10, seconds=6.0)
        advisor.observe(slow)
    assert advisor.decide(request, now_s=4.0).plan.arm is Arm.DEVICE


def test_a_link_is_asked_about_only_when_the_answer_decides() -> None:
    advisor = Advisor(model=make_model(), device=make_device(), settings=PLAIN)
    vague = make_link(uplink_bytes_per_s=2e4, uplink_rel_error=1.0, downlink_rel_error=1.0, rtt_var_s=0.02)
    advisor.connected(make_cloud(), link=vague)
    long = make_request(privacy=Privacy.NO_TEXT, prompt_tokens=3000, expected_new_tokens=100)
    assert advisor.wants(long, now_s=0.0) is Probing.RATES
    assert advisor.wants(dataclasses.replace(long, privacy=Privacy.LOCAL), now_s=0.0) is Probing.NONE
    short = make_request(privacy=Privacy.NO_TEXT, prompt_tokens=1, expected_new_tokens=1)
    assert advisor.wants(short, now_s=0.0) is Probing.NONE  # the question would cost more than the wrong answer


def test_what_was_just_measured_is_not_asked_again() -> None:
    advisor = connected()
    for way in Direction:
        advisor.observe(Transfer(at_s=0.0, direction=way, transfer_bytes=64 << 10, seconds=0.05))
    advisor.observe(RoundTrip(at_s=0.0, seconds=0.04))
    assert advisor.wants(OPEN, now_s=1.0) is Probing.NONE


def test_drafts_that_fail_are_dropped() -> None:
    lookup = DraftStatistics(name="lookup", s_per_token=1e-5, survival=(0.8, 0.7, 0.6))
    advisor = Advisor(model=make_model(), device=make_device(), drafts={"": (lookup,)}, settings=PLAIN)
    advisor.connected(make_cloud(), link=make_link())
    request = make_request(privacy=Privacy.NO_TEXT, prompt_tokens=300, expected_new_tokens=200)
    fixed = dataclasses.replace(request, fixed=dataclasses.replace(request.fixed, arm=Arm.USHAPE))
    assert advisor.decide(fixed, now_s=0.0, genre="chat").plan.drafter == "lookup"
    for index in range(300):
        advisor.observe(DraftRound(at_s=float(index), drafter="lookup", genre="chat", proposed=3, accepted=0))
    assert advisor.decide(fixed, now_s=301.0, genre="chat").plan.drafter == "none"


def test_replies_teach_how_long_replies_are() -> None:
    advisor = connected()
    assert advisor.expected_new_tokens("chat", 50) == 50
    for index in range(20):
        run(advisor, OPEN, 10.0 * index)
    assert advisor.expected_new_tokens("chat", 50) <= 25


def test_deciding_changes_nothing() -> None:
    advisor = connected()
    first = advisor.decide(OPEN, now_s=0.0)
    for _ in range(5):
        advisor.decide(make_request(privacy=Privacy.NO_TEXT), now_s=0.0)
    again = advisor.decide(OPEN, now_s=0.0)
    assert (again.plan, again.value, again.why) == (first.plan, first.value, first.why)


def test_the_same_history_gives_the_same_plans() -> None:
    def plans() -> list[str]:
        advisor, out = connected(), []
        for index in range(20):
            at_s = 7.0 * index
            advisor.observe(RoundTrip(at_s=at_s, seconds=0.02 + 0.01 * (index % 5), idle_s=3.0))
            request = make_request(privacy=Privacy.OPEN, prompt_tokens=20 + 400 * (index % 3))
            out.append(str(run(advisor, request, at_s).plan))
        return out

    assert plans() == plans()


def test_a_cloud_that_is_busy_now_and_then_is_asked_before_much_is_left_to_it() -> None:
    advisor = connected()
    for way in Direction:
        advisor.observe(Transfer(at_s=330.0, direction=way, transfer_bytes=64 << 10, seconds=0.05))
    for look in range(10):
        busy = look % 2 == 0
        advisor.observe(CloudHint(at_s=30.0 * look, queue_s=1.0 if busy else 0.0, sweep_s=0.0, slowdown=1.0))
    advisor.observe(RoundTrip(at_s=330.0, seconds=0.04))
    long = make_request(privacy=Privacy.OPEN, prompt_tokens=300, expected_new_tokens=100)
    assert advisor.wants(long, now_s=331.0) is Probing.ROUND_TRIP
    advisor.observe(CloudHint(at_s=331.0, queue_s=0.0, sweep_s=0.0, slowdown=1.0))
    assert advisor.wants(long, now_s=331.1) is Probing.NONE
    assert advisor.decide(long, now_s=331.1).plan.arm is Arm.CLOUD
    advisor.observe(CloudHint(at_s=332.0, queue_s=1.0, sweep_s=0.0, slowdown=1.0))
    assert advisor.decide(long, now_s=332.1).plan.arm is Arm.DEVICE


def test_a_cloud_that_is_always_far_slower_than_its_own_account_says_is_left() -> None:
    advisor, arms = connected(), []
    for index in range(20):
        now_s = 31.0 * index
        alone = advisor.decide(OPEN, now_s=now_s).plan.arm is Arm.DEVICE
        arms.append(run(advisor, OPEN, now_s, total_s=5.0 if alone else 30.0).plan.arm)
    assert arms[0] is Arm.CLOUD
    assert arms[-6:] == [Arm.DEVICE] * 6
