"""Admission: what is refused, in which order, with which hint; and what it costs to refuse."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.gateway.load import LONGEST_RETRY_S, SHARES, SHORTEST_RETRY_S, Claim, LoadGate, LoadLimits
from splitglm_cloud.gateway.refusal import Refusal
from splitglm_cloud.gateway.speed import Speed
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_wire.frames import ErrorCode

LAYERS = 20
CALM = EngineStats(kv_budget_bytes=1000)
MINE, OTHER = Owner("mine"), Owner("other")
PER_ROW_S = 1e-4  # of one layer; nothing per batch


def gate(**limits: float) -> LoadGate:
    """A gate whose engine needs ``PER_ROW_S`` for a row of a layer, whatever the batch."""
    speed = Speed(prior={1: PER_ROW_S, 100: 100 * PER_ROW_S})
    return LoadGate(layers=LAYERS, limits=LoadLimits(**limits), speed=speed)  # type: ignore[arg-type]


def claim(seconds: float, owner: Owner = MINE) -> Claim:
    rows = round(seconds / PER_ROW_S / LAYERS)
    return Claim(owner, rows=rows, row_layers=rows * LAYERS, payload_bytes=rows)


def step(
    to: LoadGate,
    criticality: Criticality = Criticality.CRITICAL,
    stats: EngineStats = CALM,
    *,
    owner: Owner = MINE,
    under_way: bool = False,
    size: int = 1,
    nonce: int = 0,
) -> Refusal | None:
    return to.judge_step(owner, criticality, stats, payload_bytes=size, under_way=under_way, nonce=nonce)


loads = st.builds(
    EngineStats,
    oldest_wait_s=st.floats(0, 20),
    kv_active_bytes=st.integers(0, 1000),
    kv_budget_bytes=st.just(1000),
)
owners = st.builds(Owner, st.sampled_from(["mine", "a", "b"]), st.just(1.0))
held = st.lists(st.tuples(owners, st.floats(0, 3)), max_size=6)


def filled(claims: list[tuple[Owner, float]]) -> LoadGate:
    full = gate()
    for session, (owner, seconds) in enumerate(claims):
        full.hold(session, claim(seconds, owner))
    return full


@given(held, loads)
def test_who_is_more_critical_is_never_refused_where_who_is_less_is_let_in(
    claims: list[tuple[Owner, float]], stats: EngineStats
) -> None:
    for judge in (
        lambda c: step(filled(claims), c, stats),
        lambda c: filled(claims).judge_open(MINE, c, stats, nonce=0),
    ):
        refused = [judge(criticality) is not None for criticality in Criticality]  # most critical first
        assert refused == sorted(refused)


@given(held, loads, owners, st.floats(0, 3), st.floats(0, 20), st.integers(0, 1000), st.sampled_from(Criticality))
def test_more_load_never_opens_the_gate(
    claims: list[tuple[Owner, float]],
    stats: EngineStats,
    owner: Owner,
    seconds: float,
    wait_s: float,
    kv_bytes: int,
    criticality: Criticality,
) -> None:
    more = replace(
        stats,
        oldest_wait_s=stats.oldest_wait_s + wait_s,
        kv_active_bytes=min(1000, stats.kv_active_bytes + kv_bytes),
    )
    fuller = [*claims, (owner, seconds)]
    for judge in (
        lambda held, load: step(filled(held), criticality, load),
        lambda held, load: filled(held).judge_open(MINE, criticality, load, nonce=0),
    ):
        if judge(claims, stats) is not None:
            assert judge(fuller, more) is not None


@given(held, loads, st.sampled_from(Criticality), st.integers(0, 2**40))
def test_hints_are_bounded_and_refusals_are_called_overload(
    claims: list[tuple[Owner, float]], stats: EngineStats, criticality: Criticality, nonce: int
) -> None:
    full = filled(claims)
    for refusal in (
        step(full, criticality, stats, nonce=nonce),
        full.judge_open(MINE, criticality, stats, nonce=nonce),
    ):
        if refusal is not None:
            assert refusal.code is ErrorCode.OVERLOADED
            assert SHORTEST_RETRY_S <= refusal.retry_after_s <= LONGEST_RETRY_S


@given(held, st.sampled_from(Criticality), st.floats(0, 1), st.integers(0, 849), st.integers(0, 10_000))
def test_nobody_is_refused_below_capacity(
    claims: list[tuple[Owner, float]], criticality: Criticality, fill: float, kv_bytes: int, size: int
) -> None:
    room = 0.99 * SHARES[criticality] * 2.0 * fill / max(1.0, sum(seconds for _, seconds in claims))
    calm = filled([(owner, seconds * room) for owner, seconds in claims])
    stats = EngineStats(kv_budget_bytes=1000, kv_active_bytes=kv_bytes, oldest_wait_s=4.0 * fill)
    assert step(calm, criticality, stats, size=size) is None
    assert calm.judge_open(MINE, criticality, stats, nonce=0) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), owners, st.floats(0, 3)), max_size=40))
def test_what_is_held_is_the_sum_of_what_was_said_last(
    events: list[tuple[int, bool, Owner, float]],
) -> None:
    ledger, last = gate(), dict[int, Claim]()
    for session, gone, owner, seconds in events:
        if gone:
            ledger.release(session)
            last.pop(session, None)
        else:
            last[session] = claim(seconds, owner)
            ledger.hold(session, last[session])
        assert ledger.queue_bytes == sum(one.payload_bytes for one in last.values())
        assert ledger.queue_s == pytest.approx(sum(one.rows for one in last.values()) * LAYERS * PER_ROW_S)
        for name in ("mine", "a", "b"):
            assert ledger.sessions_of(name) == sum(one.owner.tenant == name for one in last.values())
        busy = {one.owner.tenant for one in last.values() if one.rows}
        assert ledger._busy_weight == pytest.approx(len(busy))
    for session in list(last):
        ledger.release(session)
    assert not ledger._tenants and not ledger._claims and ledger.queue_bytes == 0


@pytest.mark.parametrize(
    ("queue_s", "let_in"),
    [(1.1, 4), (1.25, 3), (1.55, 2), (2.1, 1), (2.45, 0)],
)
def test_classes_are_shed_one_after_the_other(queue_s: float, let_in: int) -> None:
    full = gate()
    full.hold(1, claim(queue_s))
    assert [step(full, criticality) is None for criticality in Criticality] == [n < let_in for n in range(4)]


def test_a_reply_under_way_is_finished_however_full_it_is() -> None:
    full = gate()
    full.hold(1, claim(30.0))
    starving = EngineStats(kv_budget_bytes=1000, kv_active_bytes=1000, oldest_wait_s=60.0)
    assert step(full, Criticality.SHEDDABLE, starving, under_way=True) is None
    assert step(full, Criticality.CRITICAL_PLUS, starving) is not None


def test_bytes_are_a_bound_for_everybody() -> None:
    full = gate(max_queue_bytes=100)
    full.hold(1, Claim(MINE, rows=1, row_layers=1, payload_bytes=60))
    assert step(full, size=40, under_way=True) is None
    for criticality in Criticality:
        assert step(full, criticality, size=41, under_way=True) is not None


@pytest.mark.parametrize(
    ("active", "opens", "prompts"), [(849, 4, 4), (850, 3, 4), (874, 2, 4), (897, 1, 4), (920, 0, 0)]
)
def test_memory_closes_the_door_before_the_prompts(active: int, opens: int, prompts: int) -> None:
    stats = EngineStats(kv_budget_bytes=1000, kv_active_bytes=active, kv_used_bytes=1000)
    assert [gate().judge_open(MINE, c, stats, nonce=0) is None for c in Criticality] == [n < opens for n in range(4)]
    assert [step(gate(), c, stats) is None for c in Criticality] == [n < prompts for n in range(4)]


def test_memory_that_idle_sessions_hold_refuses_nobody() -> None:
    stats = EngineStats(kv_budget_bytes=1000, kv_active_bytes=0, kv_used_bytes=1000)
    assert gate().judge_open(MINE, Criticality.SHEDDABLE, stats, nonce=0) is None
    assert step(gate(), Criticality.SHEDDABLE, stats) is None


def test_a_greedy_tenant_does_not_close_the_gate_for_others() -> None:
    full = gate()
    full.hold(1, claim(3.0, OTHER))
    assert step(full, owner=OTHER) is not None
    assert step(full, owner=MINE) is None
    full.hold(2, claim(0.9, MINE))  # still below half of two seconds
    assert step(full, owner=MINE) is None
    full.hold(2, claim(1.1, MINE))
    assert step(full, owner=MINE) is not None
    full.hold(2, claim(0.1, MINE))
    full.hold(1, claim(4.0, OTHER))  # there is a bound for all together
    assert step(full, owner=MINE) is not None


def test_a_share_of_the_queue_goes_by_weight() -> None:
    heavy, light = Owner("heavy", 3.0), Owner("light", 1.0)
    full = gate()
    full.hold(1, claim(1.45, heavy))
    full.hold(2, claim(0.6, light))
    assert step(full, owner=heavy) is None  # below three quarters of two seconds
    assert step(full, owner=light) is not None  # above one quarter


def test_sessions_of_one_tenant_are_bounded() -> None:
    full = gate(max_sessions_per_tenant=3)
    for session in range(3):
        assert not full.is_full_for(MINE)
        full.hold(session, Claim(MINE))
    assert full.is_full_for(MINE) and not full.is_full_for(OTHER)
    full.release(1)
    assert not full.is_full_for(MINE)


def test_a_huge_step_is_served_when_it_is_alone() -> None:
    alone = gate()
    assert step(alone, Criticality.SHEDDABLE, size=10_000) is None
    alone.hold(1, claim(60.0))
    assert step(alone) is not None
    alone.hold(1, claim(0.0))
    assert step(alone) is None


def test_the_hint_is_when_the_queue_will_have_room_and_never_the_same_twice() -> None:
    full = gate()
    full.hold(1, claim(6.0))
    hints = [refusal.retry_after_s for n in range(200) if (refusal := step(full, nonce=n)) is not None]
    assert len(set(hints)) == 200
    # In five seconds half of the two that are allowed will be free.
    assert min(hints) >= 2.499 and max(hints) <= 7.5 and sum(hints) / 200 == pytest.approx(5.0, rel=0.02)
    # Spread evenly: no tenth of the interval is left out.
    assert {int((hint - 2.499) / 0.5) for hint in hints} == set(range(10))


def test_a_stuck_engine_refuses_by_the_age_of_what_waits() -> None:
    late = EngineStats(kv_budget_bytes=1000, oldest_wait_s=4.1)
    assert all(step(gate(), criticality, late) is None for criticality in Criticality)
    stuck = replace(late, oldest_wait_s=5.1)
    assert all(step(gate(), criticality, stuck) is not None for criticality in Criticality)
    assert step(gate(), Criticality.SHEDDABLE, stuck, under_way=True) is None


def test_an_engine_of_which_nothing_is_known_refuses_nobody() -> None:
    new = LoadGate(layers=LAYERS)
    new.hold(1, claim(1000.0))
    assert step(new, Criticality.SHEDDABLE) is None


@pytest.mark.parametrize(
    "limits",
    [
        {"max_queue_s": 0.0},
        {"max_queue_s": math.inf},
        {"max_wait_s": -1.0},
        {"max_queue_bytes": 0},
        {"max_sessions_per_tenant": 0},
        {"kv_admit": 0.0},
        {"kv_admit": 0.95, "kv_high": 0.9},
        {"kv_high": 1.1},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LoadLimits(**limits)  # type: ignore[arg-type]


def engine(batches: int, rows: int, per_batch_s: float, per_row_s: float, before: EngineStats) -> EngineStats:
    """After ``batches`` more of ``rows`` rows each through one layer."""
    return replace(
        before,
        row_layers=before.row_layers + batches * rows,
        batches_by_layer=(sum(before.batches_by_layer) + batches,),
        busy_s=before.busy_s + batches * (per_batch_s + per_row_s * rows),
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), min_size=20, max_size=60), st.floats(1e-5, 1e-2), st.floats(1e-6, 1e-3))
def test_the_speed_is_learnt_from_batches_of_different_size(
    sizes: list[int], per_batch_s: float, per_row_s: float
) -> None:
    speed, stats = Speed(), EngineStats()
    for rows in [*sizes, 1, 512]:
        stats = engine(30, rows, per_batch_s, per_row_s, stats)
        speed.observe(stats)
    assert speed.layer_s == pytest.approx((per_batch_s, per_row_s), rel=1e-3)
    # 1024 rows go through 20 layers in two batches.
    expected = 2 * LAYERS * per_batch_s + 1024 * LAYERS * per_row_s
    assert speed.seconds(rows=1024, row_layers=1024 * LAYERS, layers=LAYERS) == pytest.approx(expected, rel=1e-3)


def test_small_batches_alone_do_not_make_large_ones_look_slow() -> None:
    """One device decoding alone: its rate per row says little about what many can have."""
    speed = Speed()
    speed.observe(engine(1000, 1, 1e-3, 0.0, EngineStats()))
    assert speed.seconds(rows=128, row_layers=128 * LAYERS, layers=LAYERS) == pytest.approx(LAYERS * 1e-3)


def test_the_speed_follows_an_engine_that_becomes_slower() -> None:
    speed, stats = Speed(), EngineStats()
    for rows, _ in itertools.product((1, 64, 8, 200), range(50)):
        stats = engine(100, rows, 1e-3, 1e-4, stats)
        speed.observe(stats)
    for _, rows in itertools.product(range(1000), (1, 64, 8, 200)):
        stats = engine(100, rows, 3e-3, 3e-4, stats)
        speed.observe(stats)
    assert speed.layer_s == pytest.approx((3e-3, 3e-4), rel=0.01)


def test_a_replaced_engine_counts_from_nothing_and_teaches_no_nonsense() -> None:
    speed, stats = Speed(), EngineStats()
    for rows in (1, 100) * 10:
        stats = engine(100, rows, 1e-3, 1e-4, stats)
        speed.observe(stats)
    stats = EngineStats()
    for rows in (1, 100) * 10:
        stats = engine(100, rows, 1e-3, 1e-4, stats)
        speed.observe(stats)
        assert speed.layer_s == pytest.approx((1e-3, 1e-4), rel=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0, 1e-2), st.floats(0, 1e-3))
def test_more_work_never_takes_less_time(rows: int, more: int, per_batch_s: float, per_row_s: float) -> None:
    speed, stats = Speed(), EngineStats()
    for size in (1, 64, 256):
        stats = engine(100, size, per_batch_s, per_row_s, stats)
        speed.observe(stats)
    few = speed.seconds(rows=rows, row_layers=rows * 3, layers=LAYERS)
    assert 0.0 <= few <= speed.seconds(rows=rows + more, row_layers=(rows + more) * 3, layers=LAYERS)


def test_a_refusal_costs_little() -> None:
    full = gate(max_sessions_per_tenant=10_000)
    for session in range(2000):
        full.hold(session, claim(0.01, Owner(f"tenant {session % 500}")))
    started_s = time.process_time()
    for nonce in range(2000):
        assert step(full, nonce=nonce, owner=Owner("tenant 3")) is not None
    assert (time.process_time() - started_s) / 2000 < 1e-3
