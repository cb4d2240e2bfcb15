"""Steering: habits are kept cheaply and left fast, explorations stay within their budget, and nothing is drawn."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partitioner_factory import make_cloud, make_device, make_link, make_model, make_request

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.guidance import Guidance, Habit, SteeringSettings
from splitglm_partitioner.policy import Choice, Decision, choose
from splitglm_partitioner.request import Fixed, Request
from splitglm_partitioner.steering import MAX_KINDS, Steering, habit_after, kind_of, steer

SETTINGS = SteeringSettings(margin=0.1, patience=3, explore_share=0.01, explore_within=0.5, stale_s=60.0)


def priced(values: dict[Arm, float], request: Request | None = None) -> Decision:
    """A decision whose arms have these values, whatever their plans cost."""
    request = request or make_request(privacy=Privacy.OPEN)
    real = choose(request, make_model(), make_device(), make_link(), make_cloud())
    by_arm = {choice.plan.arm: choice for choice in (real.chosen, *real.runners_up)}
    ranked = sorted(values, key=lambda arm: values[arm])
    choices = [_valued(by_arm[arm], values[arm]) for arm in ranked]
    return dataclasses.replace(real, chosen=choices[0], runners_up=tuple(choices[1:]))


def _valued(choice: Choice, value: float) -> Choice:
    return dataclasses.replace(choice, value=value)


def guided(habit: Habit | None = None, budget: float = 0.0, stale: tuple[Arm, ...] = ()) -> Guidance:
    return Guidance(settings=SETTINGS, habit=habit, budget=budget, stale=stale)


def test_without_memory_the_cheapest_price_decides() -> None:
    steered = steer(priced({Arm.CLOUD: 1.0, Arm.DEVICE: 2.0}), guided())
    assert steered.plan.arm is Arm.CLOUD
    assert steered.why.endswith("steering=cheapest")


def test_the_device_takes_over_at_once_when_it_is_cheaper() -> None:
    steered = steer(priced({Arm.DEVICE: 0.999, Arm.CLOUD: 1.0}), guided(Habit(arm=Arm.CLOUD)))
    assert steered.plan.arm is Arm.DEVICE
    assert steered.why.endswith("steering=switched")


def test_the_cloud_takes_over_at_once_only_when_it_is_much_cheaper() -> None:
    habit = Habit(arm=Arm.DEVICE)
    assert steer(priced({Arm.CLOUD: 0.95, Arm.DEVICE: 1.0}), guided(habit)).plan.arm is Arm.DEVICE
    assert steer(priced({Arm.CLOUD: 0.85, Arm.DEVICE: 1.0}), guided(habit)).plan.arm is Arm.CLOUD


def test_a_small_advantage_that_lasts_wins_after_the_stated_patience() -> None:
    habit: Habit | None = Habit(arm=Arm.DEVICE)
    arms = []
    for _ in range(4):
        guidance = guided(habit)
        steered = steer(priced({Arm.CLOUD: 0.95, Arm.DEVICE: 1.0}), guidance)
        arms.append(steered.plan.arm)
        habit = habit_after(steered, guidance)
    assert arms == [Arm.DEVICE, Arm.DEVICE, Arm.CLOUD, Arm.CLOUD]


def test_an_advantage_that_wavers_does_not_make_the_plan_waver() -> None:
    habit: Habit | None = Habit(arm=Arm.DEVICE)
    for turn in range(20):
        value = 0.97 if turn % 2 else 1.03
        guidance = guided(habit)
        steered = steer(priced({Arm.CLOUD: value, Arm.DEVICE: 1.0}), guidance)
        assert steered.plan.arm is Arm.DEVICE
        habit = habit_after(steered, guidance)


@given(
    st.dictionaries(st.sampled_from(list(Arm)), st.floats(0.5, 2.0), min_size=2, max_size=4),
    st.none() | st.builds(Habit, arm=st.sampled_from(list(Arm)), streak=st.integers(0, 3)),
)
def test_a_habit_is_never_dearer_than_its_margin(values: dict[Arm, float], habit: Habit | None) -> None:
    steered = steer(priced(values), guided(habit))
    assert steered.value <= min(values.values()) / (1.0 - SETTINGS.margin) * (1 + 1e-9)
    assert {c.plan.arm for c in (steered.chosen, *steered.runners_up)} == set(values)


def test_an_affordable_arm_that_has_not_run_for_long_is_tried() -> None:
    values = {Arm.DEVICE: 1.0, Arm.CLOUD: 1.2, Arm.SPLIT: 1.1}
    steered = steer(priced(values), guided(Habit(arm=Arm.DEVICE), budget=0.3, stale=(Arm.CLOUD, Arm.SPLIT)))
    assert steered.plan.arm is Arm.CLOUD
    assert steered.why.endswith("steering=explored")


def test_an_exploration_leaves_the_habit_as_it_was() -> None:
    guidance = guided(Habit(arm=Arm.DEVICE), budget=0.3, stale=(Arm.CLOUD,))
    assert habit_after(steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2}), guidance), guidance) == guidance.habit


@pytest.mark.parametrize("budget", [0.0, 0.19])
def test_what_the_budget_does_not_hold_is_not_tried(budget: float) -> None:
    steered = steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2}), guided(Habit(arm=Arm.DEVICE), budget, (Arm.CLOUD,)))
    assert steered.plan.arm is Arm.DEVICE


def test_a_hopeless_arm_is_not_tried_however_large_the_budget() -> None:
    steered = steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.6}), guided(Habit(arm=Arm.DEVICE), 100.0, (Arm.CLOUD,)))
    assert steered.plan.arm is Arm.DEVICE


@pytest.mark.parametrize("change", [{"deadline_s": 1e3}, {"fixed": Fixed(s=3)}])
def test_a_request_with_a_deadline_or_a_fixed_cut_is_no_occasion_to_explore(change: dict[str, object]) -> None:
    plain = priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2})
    request = dataclasses.replace(plain.situation.request, **change)
    bound = dataclasses.replace(plain, situation=dataclasses.replace(plain.situation, request=request))
    assert steer(bound, guided(None, 1.0, (Arm.CLOUD,))).plan.arm is Arm.DEVICE


@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(1.0, 1.5), st.floats(0.0, 3.0)), max_size=60))
def test_explorations_cost_no_more_than_their_share_and_one_overshoot(steps: list[tuple[float, float, float]]) -> None:
    steering = Steering(SETTINGS)
    spent, total, overshoot, now_s = 0.0, 0.0, 0.0, 0.0
    for best, ratio, surprise in steps:
        now_s += 61.0
        decision = steer(
            priced({Arm.DEVICE: best, Arm.CLOUD: best * ratio}),
            steering.guidance(make_request(privacy=Privacy.OPEN), now_s),
        )
        actual = decision.value + surprise
        steering.decided(decision, now_s)
        steering.ended(decision, actual, 50)
        total += actual
        if decision.why.endswith("explored"):
            spent += actual - best
            overshoot = max(overshoot, surprise)
        assert spent <= SETTINGS.explore_share * total + overshoot + 1e-9


def test_a_short_answer_is_compared_with_the_best_plans_price_for_as_few_tokens() -> None:
    steering = Steering(SETTINGS)
    decision = steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2}), guided(budget=1.0, stale=(Arm.CLOUD,)))
    best = decision.runners_up[0].breakdown
    shorter = (best.ttft_s + 4 * best.per_token_s) / best.total_s  # of the best plan's price, for 5 tokens
    steering.ended(decision, 1.2 * shorter, 5)
    budget = steering.guidance(make_request(privacy=Privacy.OPEN), 0.0).budget
    assert budget == pytest.approx(SETTINGS.explore_share * 1.2 * shorter - 0.2 * shorter)


def test_arms_grow_stale_with_time_and_fresh_by_running() -> None:
    steering = Steering(SETTINGS)
    request = make_request(privacy=Privacy.OPEN)
    assert steering.guidance(request, 0.0).stale == ()
    decision = steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2}), steering.guidance(request, 50.0))
    steering.decided(decision, 50.0)
    assert set(steering.guidance(request, 61.0).stale) == set(Arm) - {Arm.DEVICE}


def test_kinds_keep_apart_what_differs_and_together_what_is_alike() -> None:
    base = make_request(prompt_tokens=300, expected_new_tokens=50)
    assert kind_of(base) == kind_of(dataclasses.replace(base, prompt_tokens=310))
    assert kind_of(base) != kind_of(dataclasses.replace(base, prompt_tokens=3000))
    assert kind_of(base) != kind_of(dataclasses.replace(base, privacy=Privacy.OPEN))


def test_the_memory_is_bounded() -> None:
    steering = Steering(SETTINGS)
    for length in range(1, 3 * MAX_KINDS):
        request = make_request(prompt_tokens=1 + length % 40, expected_new_tokens=length * 97, privacy=Privacy.OPEN)
        steering.decided(steer(priced({Arm.DEVICE: 1.0}, request), steering.guidance(request, 1.0)), 1.0)
    assert len(steering._habits) <= MAX_KINDS


@pytest.mark.parametrize("value", [1e25, 1e300])
def test_a_price_beyond_measure_leaves_a_budget_that_can_be_decided_on(value: float) -> None:
    steering, request = Steering(SETTINGS), make_request(privacy=Privacy.OPEN)
    decision = steer(priced({Arm.DEVICE: 1.0, Arm.CLOUD: 1.2}), guided(budget=1.0, stale=(Arm.CLOUD,)))
    assert decision.plan.arm is Arm.CLOUD
    steering.ended(decision, value, 50)
    assert steering.guidance(request, 0.0).budget < 0.0
    steering.ended(priced({Arm.DEVICE: 1.0}), value, 50)
    assert steer(priced({Arm.DEVICE: 1.0}), steering.guidance(request, 1.0)).plan.arm is Arm.DEVICE


def test_the_same_history_gives_the_same_choice() -> None:
    def run() -> list[Arm]:
        steering, out = Steering(SETTINGS), []
        for turn in range(30):
            request = make_request(privacy=Privacy.OPEN)
            values = {Arm.DEVICE: 1.0, Arm.CLOUD: 0.8 + 0.02 * turn}
            decision = steer(priced(values, request), steering.guidance(request, 10.0 * turn))
            steering.decided(decision, 10.0 * turn)
            steering.ended(decision, decision.value * 1.1, 50)
            out.append(decision.plan.arm)
        return out

    assert run() == run()


@pytest.mark.parametrize("bad", [{"margin": 0.9}, {"patience": 0}, {"explore_share": 1.0}, {"stale_s": -1.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(SETTINGS, **bad)
