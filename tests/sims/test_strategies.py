"""Every strategy of the registry: made by name, deterministic, and never a plan that is not allowed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
)

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_partitioner.arms import enumerate_arms
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile
from splitglm_partitioner.request import Fixed, Situation
from splitglm_sims.strategies.cloud_mtp import cloud_mtp, with_cloud_mtp
from splitglm_sims.strategies.fixed import FixedArm, fixed_arms
from splitglm_sims.strategies.registry import make_strategy, options_of, registered, strategy_names

EXAMPLES = Path(__file__).parents[2] / "examples"


def with_all_drafts(cloud: CloudProfile) -> tuple[DraftStatistics, ...]:
    return (*DRAFTS, cloud_mtp(cloud))


def is_allowed(plan: SplitPlan, situation: Situation) -> bool:
    candidates = enumerate_arms(situation)
    if plan.draft_tokens:
        statistics = next(d for d in situation.drafts if d.name == plan.drafter)
        fits = plan.arm in statistics.arms and plan.s >= statistics.front_layers
        if not fits or plan.draft_tokens > len(statistics.survival):
            return False
    cut = any(b.arm is plan.arm and b.t == plan.t and b.s_start <= plan.s < b.s_stop for b in candidates.blocks)
    return cut and (plan.arm in (Arm.DEVICE, Arm.CLOUD) or plan.codec in candidates.codecs)


@st.composite
def machines(draw: st.DrawFn) -> tuple[DeviceProfile, CloudProfile]:
    start = draw(st.sampled_from([0, 0, 1, 4]))
    served = LayerRange(start, draw(st.sampled_from([LAYERS, LAYERS - 1])))
    times = LayerTimes.uniform(len(served), decode_s=5e-4, prefill_s_per_token=3e-5, chunk_tokens=64)
    last = served.stop == LAYERS
    cloud = make_cloud(
        served=served, times=times, has_embedding=start == 0, has_head=last, head_s=1e-3 if last else None
    )
    return make_device(memory_bytes_free=draw(st.sampled_from([1 << 40, 9_000_000]))), cloud


@st.composite
def lives(draw: st.DrawFn) -> list[Situation]:
    """Requests of one device, whose link is another each time, and gone at times."""
    device, cloud = draw(machines())
    out = []
    for _ in range(draw(st.integers(1, 4))):
        link = replace(LINK, uplink_bytes_per_s=draw(st.floats(1e3, 1e8)), rtt_s=draw(st.floats(1e-3, 0.5)))
        situation = make_situation(
            device=device,
            cloud=cloud,
            link=draw(st.sampled_from([link, link, None])),
            drafts=with_all_drafts(cloud),
            prompt_tokens=draw(st.integers(1, 500)),
            expected_new_tokens=draw(st.integers(1, 60)),
            privacy=draw(st.sampled_from(list(Privacy))),
            deadline_s=draw(st.none() | st.floats(1e-3, 10.0)),
        )
        out.append(situation)
    return out


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_says_what_it_is(name: str) -> None:
    entry = registered(name)
    assert entry.about and entry.source and not entry.about.endswith(".")
    assert isinstance(options_of(name), dict)
    strategy = make_strategy(name, situation_facts=make_facts(make_situation(drafts=DRAFTS)), seed=1)
    assert strategy.clairvoyant is entry.clairvoyant


@pytest.mark.parametrize("name", strategy_names())
@settings(max_examples=12, deadline=None)
@given(sequence=lives())
def test_plans_are_always_allowed_ones_whatever_the_situation(name: str, sequence: list[Situation]) -> None:
    strategy = make_strategy(name, situation_facts=make_facts(sequence[0]), seed=0)
    for number, situation in enumerate(sequence):
        foresee = Truth(situation).outcome if strategy.clairvoyant else None
        task = make_task(situation, 10.0 * number, foresee=foresee)
        if not enumerate_arms(situation).blocks:
            with pytest.raises(NoFeasiblePlan):
                strategy.choose(task)
            continue
        strategy.probe(task)
        assert is_allowed(strategy.choose(task), situation)


@pytest.mark.parametrize("name", [name for name in strategy_names() if not registered(name).clairvoyant])
def test_a_strategy_repeats_itself_with_the_same_seed(name: str) -> None:
    situation = make_situation(drafts=with_all_drafts(make_cloud()))

    def plans(seed: int) -> list[SplitPlan]:
        strategy = make_strategy(name, situation_facts=make_facts(situation), seed=seed)
        return [plan for plan, _ in live(strategy, situation, lambda _: situation, requests=12, noise=0.3)]

    assert plans(5) == plans(5)


def test_exp3_with_another_seed_draws_other_arms() -> None:
    situation = make_situation()
    runs = []
    for seed in (1, 2):
        strategy = make_strategy("exp3", situation_facts=make_facts(situation), seed=seed)
        runs.append([plan for plan, _ in live(strategy, situation, lambda _: situation, requests=20)])
    assert runs[0] != runs[1]


def test_an_unknown_name_lists_the_ones_that_exist() -> None:
    with pytest.raises(InputError) as error:
        registered("neurosurgon")
    assert "neurosurgeon" in error.value.hint


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fixed", {"arn": "cloud"}, "arm='ushape'"),
        ("device-only", {"cut": 3}, "none"),
        ("exp3", {"gamma": "much"}, "float"),
        ("exp3", {"gamma": 2.0}, "(0, 1]"),
        ("fixed", {"arm": "clouds"}, "device, cloud, split, ushape"),
        ("fixed", {"cut": "left"}, "middle"),
        ("fixed", {"drafter": "lookup"}, "drafter"),
        ("mu-linucb", {"memory": "elephant"}, "sliding"),
        ("edgeshard", {"aim": "beauty"}, "throughput"),
        ("neurosurgeon", {"aim": "energy"}, "power"),
        ("edgent", {"expected_run": 0.5}, "expected_run"),
        ("lookup", {"drafter": "elephant"}, "exit12"),
        ("dynasplit", {"cuts": 1}, "cuts"),
        ("draft-lengths", {"longest": 99}, "longest"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_possible(name: str, options: dict[str, object], said: str) -> None:
    situation = make_situation(drafts=DRAFTS)
    with pytest.raises(InputError) as error:
        strategy = make_strategy(name, situation_facts=make_facts(situation), seed=0, options=options)  # type: ignore[arg-type]
        strategy.choose(make_task(situation))
        list(live(strategy, situation, lambda _: situation, requests=2))
    assert said in error.value.one_line()


def test_a_strategy_of_ones_own_is_named_by_module_and_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (EXAMPLES / "strategy.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 30
    assert source in (EXAMPLES.parent / "docs" / "simulation.md").read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "strategy", raising=False)
    situation = make_situation()
    facts = make_facts(situation)
    own = make_strategy("strategy:CoolHeaded", situation_facts=facts, seed=0, options={"hot_c": 60})
    assert own.choose(make_task(situation)).arm is Arm.DEVICE
    hot = make_task(situation, vitals=Vitals(temperature_c=65.0))
    assert own.choose(hot).arm is not Arm.DEVICE
    assert own.choose(make_task(situation, vitals=Vitals(temperature_c=55.0))).arm is Arm.DEVICE
    with pytest.raises(InputError, match="float"):
        make_strategy("strategy:CoolHeaded", situation_facts=facts, seed=0, options={"hot_c": "warm"})
    with pytest.raises(InputError, match="cannot be imported"):
        registered("strategy:Missing")
    with pytest.raises(InputError, match="cannot be imported"):
        registered("no_such_module_at_all:make")
    with pytest.raises(InputError, match="not a factory"):
        registered("os:environ")


@pytest.mark.parametrize("cut", ["--3", "\u00b2", "3.5", "", "9" * 5000])
def test_a_cut_that_is_neither_a_number_nor_a_word_is_refused(cut: str) -> None:
    with pytest.raises(InputError, match="neither a number"):
        make_strategy("fixed", situation_facts=make_facts(make_situation()), seed=0, options={"cut": cut})


@pytest.mark.parametrize(
    ("privacy", "arm", "s"),
    [
        (Privacy.OPEN, Arm.CLOUD, 0),
        (Privacy.NO_PROMPT, Arm.SPLIT, 2),
        (Privacy.NO_TEXT, Arm.USHAPE, 2),
        (Privacy.LOCAL, Arm.DEVICE, LAYERS),
    ],
)
def test_cloud_only_becomes_the_nearest_plan_that_privacy_allows(privacy: Privacy, arm: Arm, s: int) -> None:
    situation = make_situation(privacy=privacy, s_min=2)
    plan = make_strategy("cloud-only", situation_facts=make_facts(situation), seed=0).choose(make_task(situation))
    assert (plan.arm, plan.s, plan.t) == (arm, s, LAYERS)


def test_device_only_without_memory_keeps_as_many_layers_as_fit() -> None:
    device = make_device(memory_bytes_free=8_000_000)
    situation = make_situation(device=device, privacy=Privacy.NO_TEXT)
    plan = make_strategy("device-only", situation_facts=make_facts(situation), seed=0).choose(make_task(situation))
    block = max(b.s_stop - 1 + LAYERS - b.t for b in enumerate_arms(situation).blocks)
    assert plan.arm is Arm.USHAPE and plan.s + LAYERS - plan.t <= block and plan.s == 5


def test_cloud_drafted_asks_the_cloud_to_draft_for_itself() -> None:
    cloud = make_cloud()
    own = cloud_mtp(cloud)
    assert own.in_cloud and 2.2 <= own.tokens_per_round(3) <= 2.5
    situation = make_situation(drafts=with_cloud_mtp({"chat": DRAFTS}, cloud)["chat"])
    strategy = make_strategy("cloud-drafted", situation_facts=make_facts(situation), seed=0)
    plan = strategy.choose(make_task(situation))
    assert (plan.arm, plan.drafter, plan.draft_tokens) == (Arm.CLOUD, "cloud-mtp", 3)


def test_decoding_baselines_draft_as_their_papers_do() -> None:
    situation = make_situation(drafts=DRAFTS)
    facts = make_facts(situation)

    def plan(name: str) -> SplitPlan:
        return make_strategy(name, situation_facts=facts, seed=0).choose(make_task(situation))

    assert (plan("one-token-per-trip").arm, plan("one-token-per-trip").draft_tokens) == (Arm.SPLIT, 0)
    assert (plan("lookup").arm, plan("lookup").drafter, plan("lookup").draft_tokens) == (Arm.USHAPE, "lookup", 2)
    hat = plan("hat-like")
    assert (hat.arm, hat.drafter, hat.draft_tokens) == (Arm.USHAPE, "exit12", 3) and hat.s >= 4
    assert (plan("draft-verify").arm, plan("draft-verify").drafter) == (Arm.CLOUD, "draft-int4")


def test_fixed_arms_are_allowed_distinct_and_make_the_same_plans_through_the_registry() -> None:
    situation = make_situation(drafts=DRAFTS)
    arms = fixed_arms(situation)
    assert len({arm.label for arm in arms}) == len(arms) >= 8
    assert {arm.arm for arm in arms} == set(Arm) and any(arm.drafter == "exit12" for arm in arms)
    for arm in arms:
        plan = arm.plan(situation)
        assert is_allowed(plan, situation) and plan.arm is arm.arm
        made = make_strategy("fixed", situation_facts=make_facts(situation), seed=0, options=arm.options())
        assert made.choose(make_task(situation)) == plan


def test_a_fixed_arm_counts_layers_from_either_end_and_keeps_its_codec() -> None:
    situation = make_situation()
    assert FixedArm(arm=Arm.SPLIT, cut=-3, codec=Codec.INT8).plan(situation).s == LAYERS - 3
    deep = FixedArm(arm=Arm.USHAPE, cut="middle", tail_layers=4).plan(situation)
    assert (deep.s, deep.t) == (6, LAYERS - 4)


def test_the_callers_own_wishes_bind_every_strategy() -> None:
    situation = make_situation(fixed=Fixed(arm=Arm.USHAPE, s=3), drafts=DRAFTS)
    for name in strategy_names():
        strategy = make_strategy(name, situation_facts=make_facts(situation), seed=0)
        if name == "cloud-drafted":
            continue  # its drafter is not at hand here
        foresee = Truth(situation).outcome if strategy.clairvoyant else None
        plan = strategy.choose(make_task(situation, foresee=foresee))
        assert (plan.arm, plan.s) == (Arm.USHAPE, 3) or plan.drafter == "exit12", name


def test_the_oracle_is_never_worse_than_any_fixed_arm() -> None:
    situation = make_situation(drafts=DRAFTS)
    for rate in (2e4, 4e5, 1e7):
        link = replace(LINK, uplink_bytes_per_s=rate)
        truth = Truth(replace(situation, link=link))
        strategy = make_strategy("oracle", situation_facts=make_facts(situation), seed=0)
        chosen = truth.outcome(strategy.choose(make_task(situation, foresee=truth.outcome))).total_s
        assert chosen <= min(truth.outcome(arm.plan(situation)).total_s for arm in fixed_arms(situation)) + 1e-12
