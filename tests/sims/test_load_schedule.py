"""Load schedules: equal seeds give equal runs, arrivals have the statistics they claim, bad scenarios are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec
from splitglm_sims.load.scenario import Kind, Phase, Process, Scenario, load_scenario, parse_scenario, shipped
from splitglm_sims.load.schedule import arrival_times, draw_session, phase_starts, schedule

LAYERS = 12
MIX = (
    Kind(name="split", arm=Arm.SPLIT, share=2.0, think_s=0.01),
    Kind(name="u-shape", arm=Arm.USHAPE, codec=Codec.INT8, cut=(0.25, 0.5)),
    Kind(name="cloud", arm=Arm.CLOUD, cancel_chance=0.3, disconnect_chance=0.2, slow_chance=0.1, leak_chance=0.1),
)


def scenario(**fields: object) -> Scenario:
    given_fields: dict[str, object] = {
        "name": "test",
        "phases": (Phase(name="only", seconds=20.0, rate_per_s=10.0),),
        "kinds": MIX,
    } | fields
    return Scenario(**given_fields)  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**32), rate=st.floats(0.1, 50.0))
@settings(max_examples=20, deadline=None)
def test_equal_seeds_give_equal_schedules_and_other_seeds_others(seed: int, rate: float) -> None:
    phases = (Phase(name="only", seconds=4.0, rate_per_s=rate),)
    first = schedule(scenario(seed=seed, phases=phases), layers=LAYERS)
    assert first == schedule(scenario(seed=seed, phases=phases), layers=LAYERS)
    assert not first or first != schedule(scenario(seed=seed + 1, phases=phases), layers=LAYERS)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_poisson_arrivals_have_the_rate_and_the_variance_of_poisson(seed: int) -> None:
    times = arrival_times(scenario(), 20.0, 1000.0, np.random.default_rng(seed))
    counts = np.histogram(times, bins=1000, range=(0.0, 1000.0))[0]
    # 20 000 arrivals: the mean is known to 0.7 %, the ratio of variance to mean to 4.5 %; five times that is allowed.
    assert abs(counts.mean() / 20.0 - 1.0) < 0.035
    assert abs(counts.var() / counts.mean() - 1.0) < 0.23
    gaps = np.diff(times)
    assert abs(np.exp(-1.0) - np.mean(gaps > gaps.mean())) < 0.02


def test_gamma_arrivals_keep_the_rate_and_come_in_bursts() -> None:
    bursty = scenario(process=Process.GAMMA, burstiness=0.2)
    times = arrival_times(bursty, 20.0, 2000.0, np.random.default_rng(0))
    assert abs(len(times) / 40_000 - 1.0) < 0.05
    gaps = np.diff(times)
    assert abs(gaps.var() / gaps.mean() ** 2 - 5.0) < 0.6  # 1 / shape


def test_constant_and_trace_arrivals_are_as_stated() -> None:
    steady = arrival_times(scenario(process=Process.CONSTANT), 4.0, 1.0, np.random.default_rng(0))
    assert steady.tolist() == [0.0, 0.25, 0.5, 0.75]
    traced = scenario(process=Process.TRACE, trace_s=(0.5, 1.0, 2.0))
    assert arrival_times(traced, 0.0, 3.2, np.random.default_rng(0)).tolist() == [0.5, 1.0, 2.0, 2.5, 3.0]


@given(rate=st.floats(0.0, 100.0), seconds=st.floats(0.01, 20.0), process=st.sampled_from(Process))
@settings(max_examples=50, deadline=None)
def test_arrivals_ascend_within_their_phase(rate: float, seconds: float, process: Process) -> None:
    traced = (0.1, 0.3) if process is Process.TRACE else ()
    times = arrival_times(scenario(process=process, trace_s=traced), rate, seconds, np.random.default_rng(1))
    assert np.all(np.diff(times) >= 0.0) and np.all((times >= 0.0) & (times < seconds))


@given(index=st.integers(0, 100_000), layers=st.integers(2, 60))
@settings(max_examples=200, deadline=None)
def test_every_session_is_one_that_the_mix_allows(index: int, layers: int) -> None:
    plan = draw_session(scenario(), index, layers, phase=0, at_s=1.0)
    kind = MIX[plan.kind]
    assert plan.plan.arm is kind.arm and plan.plan.layers == layers
    assert kind.prompt_rows[0] <= plan.prompt_rows < kind.prompt_rows[1]
    assert kind.tokens[0] <= plan.tokens < kind.tokens[1]
    assert plan.stop_after is None or 0 <= plan.stop_after < plan.tokens
    assert not plan.vanishes or plan.stop_after is not None
    if kind.arm is Arm.USHAPE:
        low, high = (min(max(round(bound * layers), 1), layers - 1) for bound in kind.cut)
        assert low <= plan.plan.s <= high < layers
    assert len(plan.think_s) == (plan.tokens - 1 if kind.think_s else 0)


def test_what_a_session_does_depends_on_neither_rate_nor_process() -> None:
    slow = schedule(scenario(phases=(Phase(name="a", seconds=50.0, rate_per_s=1.0),)), layers=LAYERS)
    fast = schedule(
        scenario(phases=(Phase(name="a", seconds=10.0, rate_per_s=20.0),), process=Process.CONSTANT), layers=LAYERS
    )
    assert [dataclasses.replace(plan, at_s=0.0) for plan in slow[:30]] == [
        dataclasses.replace(plan, at_s=0.0) for plan in fast[:30]
    ]


def test_shares_and_chances_are_met() -> None:
    plans = [draw_session(scenario(), index, LAYERS, phase=0, at_s=0.0) for index in range(4000)]
    assert abs(np.mean([plan.kind == 0 for plan in plans]) - 0.5) < 0.04
    cloud = [plan for plan in plans if plan.kind == 2]
    assert abs(np.mean([plan.vanishes for plan in cloud]) - 0.2) < 0.06
    assert abs(np.mean([plan.stop_after is not None and not plan.vanishes for plan in cloud]) - 0.3) < 0.06
    cuts = {plan.plan.s for plan in plans if plan.kind == 0}
    assert cuts == set(range(1, LAYERS))


def test_phases_follow_each_other_and_multiples_of_the_capacity_are_taken() -> None:
    phases = (
        Phase(name="probe", seconds=5.0, closed_sessions=4),
        Phase(name="2x", seconds=40.0, times_capacity=2.0),
        Phase(name="0.5x", seconds=40.0, times_capacity=0.5),
    )
    planned = scenario(phases=phases, warmup_s=1.0)
    assert phase_starts(planned) == (0.0, 0.0, 40.0)
    plans = schedule(planned, layers=LAYERS, capacity_per_s=10.0)
    counts = [sum(plan.phase == number for plan in plans) for number in range(3)]
    assert counts[0] == 0 and 700 < counts[1] < 900 and 150 < counts[2] < 250
    assert all(40.0 <= plan.at_s < 80.0 for plan in plans if plan.phase == 2)
    assert all(plan.counted == (plan.at_s % 40.0 >= 1.0) for plan in plans)
    with pytest.raises(InputError, match="capacity that nobody has measured"):
        schedule(planned, layers=LAYERS)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_can_be_read_and_scheduled(name: str) -> None:
    found = load_scenario(name)
    assert found.name == name and found.about
    assert schedule(found, layers=30, capacity_per_s=3.0)


def test_the_list_of_scenarios_is_the_one_that_is_promised() -> None:
    assert set(shipped()) == {
        *("steady", "burst", "overload-2x", "overload-5x", "overload-10x", "abort-storm"),
        *("disconnect-storm", "slow-readers", "greedy-tenant", "soak-mix"),
    }


GOOD = """
name = "x"
[[phases]]
name = "p"
seconds = 1.0
rate_per_s = 1
[[kinds]]
name = "k"
arm = "split"
"""


def test_a_scenario_needs_no_more_than_phases_and_kinds() -> None:
    found = parse_scenario(GOOD, "x.toml")
    assert found.kinds[0].codec is Codec.BF16 and found.phases[0].rate_per_s == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour = 1\n", "unknown field 'colour'"),
        (GOOD.replace('arm = "split"', 'arm = "device"'), "no load on a cloud"),
        (GOOD.replace('arm = "split"', 'arm = "spilt"'), "must be one of"),
        (GOOD.replace('arm = "split"\n', ""), "lacks the field 'arm'"),
        (GOOD.replace("rate_per_s = 1", ""), "exactly one of"),
        (GOOD.replace("seconds = 1.0", "seconds = -1.0"), "seconds of a phase"),
        (GOOD.replace("rate_per_s = 1", "times_capacity = 2.0"), "needs a probe"),
        (GOOD + "prompt_rows = [4, 4]\n", "half-open range"),
        (GOOD + "cut = [0.5]\n", "cut is"),
        (GOOD + "cancel_chance = 0.7\ndisconnect_chance = 0.7\n", "ends in one way"),
        (GOOD.replace('name = "x"', 'name = "x"\nprocess = "trace"'), "trace_s goes with"),
        (GOOD.replace('name = "x"', 'name = "x"\nwarmup_s = 2.0'), "warmup_s is within"),
        ("name = ", "not TOML"),
        ("", "lacks the field"),
    ],
)
def test_a_malformed_scenario_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_scenario(text, "x.toml")


def test_an_unknown_scenario_names_those_that_exist() -> None:
    with pytest.raises(InputError, match="there is no scenario") as error:
        load_scenario("no-such-thing")
    assert "overload-2x" in error.value.hint


def test_a_schedule_is_bounded() -> None:
    with pytest.raises(InputError, match="arrivals"):
        schedule(scenario(phases=(Phase(name="a", seconds=86400.0, rate_per_s=1000.0),)), layers=LAYERS)
