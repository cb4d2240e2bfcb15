"""The load that a cloud tells when it is asked: bounds, decay, what counts, and a real server's answers."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_client import Client
from running_cloud import running_cloud

from splitglm_cloud.gateway.recent_load import FORGOTTEN_S, HALF_LIFE_S, RecentLoad, RecentMean
from splitglm_cloud.server import CloudServer
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_partitioner.device_pace import MIN_PASS_S
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.observations import CloudHint
from splitglm_partitioner.profiles import MAX_SLOWDOWN, MIN_SLOWDOWN, CloudProfile
from splitglm_wire import framing
from splitglm_wire.actions import Output
from splitglm_wire.frames import Open, Opened, Ping, Pong, Reply, Result, Rows, Step

LAYERS, LAYER_S, HEAD_S = 8, 1e-3, 2e-3
TIMES = LayerTimes.uniform(LAYERS, decode_s=LAYER_S, prefill_s_per_token=1e-4, decode_s_per_1k_context=5e-4)
PROFILE = CloudProfile(
    layers=LAYERS, served=LayerRange(0, LAYERS), times=TIMES, has_embedding=True, has_head=True, head_s=HEAD_S,
    queue_s=0.0, codecs=(Codec.FP32,),
)  # fmt: skip
WHOLE = SplitPlan.cloud_only(LAYERS)
USHAPE = SplitPlan(layers=LAYERS, s=2, t=6, head=HeadSide.DEVICE, codec=Codec.FP32)


def step(*, seq: int = 1, base: int = 0, rows: int = 1, reply: Reply = Reply.TOKEN, generate: int = 1) -> Step:
    return Step(
        handle=1, fence=1, seq=seq, base=base, rows_kind=Rows.IDS, rows=rows, reply=reply, generate=generate,
        payload=bytes(4 * rows),
    )  # fmt: skip


def output(
    *, seq: int = 1, rows: int = 1, last: bool = True, queue_us: int = 0, sweep_us: int = 0, compute_s: float = 1e-6
) -> Output:
    return Output(seq, rows, b"", last, queue_us, sweep_us, round(1e6 * compute_s))


class Told(RecentLoad):
    """A load that is fed whole steps."""

    def add(self, now_s: float, told: Output, *, plan: SplitPlan = WHOLE, asked: Step | None = None) -> None:
        self.submitted(1, plan, asked or step())
        self.answered(1, told, now_s)

    def at(self, now_s: float) -> tuple[int, int, int]:
        """Waits in microseconds, slowdown in thousandths."""
        pong = self.pong(Ping(handle=3, nonce=4, reply_size=5), now_s)
        assert (pong.handle, pong.nonce, pong.size) == (3, 4, 5)
        return pong.queue_us, pong.sweep_us, pong.slowdown_permille


# --- the mean ---


VALUES = st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 100), st.floats(1e-3, 1e3)), min_size=1, max_size=30)


@given(values=VALUES, idle=st.floats(0, 1e9), after_s=st.floats(0, 100), busy=st.booleans())
def test_a_mean_lies_between_its_values_and_idle(
    values: list[tuple[float, float, float]], idle: float, after_s: float, busy: bool
) -> None:
    mean, now_s = RecentMean(idle), 1000.0
    for value, pause_s, weight in values:
        now_s += pause_s
        mean.add(value, now_s, weight)
    got = mean.value(now_s + after_s, busy=busy)
    every = [value for value, _, _ in values]
    low, high = (min(every), max(every)) if busy else (min(*every, idle), max(*every, idle))
    if busy and now_s + after_s - now_s > FORGOTTEN_S:
        low = high = idle
    assert low - 1e-6 * (1 + abs(low)) <= got <= high + 1e-6 * (1 + abs(high))


@given(old=st.floats(0, 1e6), new=st.floats(0, 1e6), pause_s=st.floats(0, 40))
def test_a_value_counts_half_as_much_after_each_half_life(old: float, new: float, pause_s: float) -> None:
    mean = RecentMean(0.0)
    mean.add(old, 50.0)
    mean.add(new, 50.0 + pause_s)
    share = 0.5 ** (pause_s / HALF_LIFE_S)
    expected = (share * old + new) / (share + 1.0)
    assert mean.value(50.0 + pause_s, busy=False) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(value=st.floats(2, 100), silences=st.lists(st.floats(0, 2 * FORGOTTEN_S), min_size=2, max_size=10))
def test_silence_only_brings_it_nearer_to_idle_unless_something_is_under_way(
    value: float, silences: list[float]
) -> None:
    mean = RecentMean(1.0)
    mean.add(value, 7.0)
    told = [mean.value(7.0 + silent_s, busy=False) for silent_s in sorted(silences)]
    assert all(later <= earlier for earlier, later in pairwise(told)) and min(told) >= 1.0
    assert mean.value(7.0 + HALF_LIFE_S, busy=False) == pytest.approx(1.0 + (value - 1.0) / 2)
    assert mean.value(7.0 + 0.99 * FORGOTTEN_S, busy=True) == pytest.approx(value)
    assert mean.value(7.1 + FORGOTTEN_S, busy=True) == mean.value(7.1 + FORGOTTEN_S, busy=False) == 1.0


def test_an_eternity_between_values_leaves_only_the_new_one() -> None:
    mean = RecentMean(0.0)
    mean.add(5.0, 0.0)
    mean.add(8.0, 1e12)
    assert mean.value(1e12, busy=False) == 8.0
    mean.add(6.0, 1e12 - 5.0)  # a clock that went back counts as one that stood
    assert mean.value(1e12, busy=True) == 7.0


# --- what counts ---


def test_an_idle_cloud_tells_no_wait_and_no_slowdown() -> None:
    load = Told(PROFILE)
    assert load.at(5.0) == (0, 0, 1000)
    load.add(5.0, output(queue_us=900, sweep_us=700, compute_s=0.1))
    assert load.at(5.0)[:2] == (900, 700)
    assert load.at(5.0 + FORGOTTEN_S + 1e-3) == (0, 0, 1000)


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40),
            st.sampled_from([1, 2, 300]), st.integers(0, 100_000), st.sampled_from(Reply),
            st.sampled_from([WHOLE, USHAPE]),
        ),
        max_size=20,
    ),
    pause_s=st.floats(0, 20),
)  # fmt: skip
def test_whatever_is_told_fits_a_frame_and_an_observation(steps: list[Any], pause_s: float) -> None:
    load, now_s = Told(PROFILE), 0.0
    for queue_us, sweep_us, compute_us, rows, base, reply, plan in steps:
        now_s += pause_s
        load.add(now_s, Output(1, 1, b"", True, queue_us, sweep_us, compute_us), plan=plan,
                 asked=step(rows=rows, base=base, reply=reply))  # fmt: skip
        pong = framing.decode(framing.encode(load.pong(Ping(handle=1, nonce=1), now_s)))
        assert isinstance(pong, Pong)
        assert 1000 * MIN_SLOWDOWN <= pong.slowdown_permille <= 1000 * MAX_SLOWDOWN
        CloudHint(
            at_s=now_s, queue_s=1e-6 * pong.queue_us, sweep_s=1e-6 * pong.sweep_us,
            slowdown=1e-3 * pong.slowdown_permille,
        )  # fmt: skip
    assert load.under_way == 0


@pytest.mark.parametrize("plan", [WHOLE, USHAPE])
@pytest.mark.parametrize("reply", [Reply.TOKEN, Reply.LAST_HIDDEN, Reply.ACK])
@pytest.mark.parametrize("context", [0, 2000])
def test_the_slowdown_is_against_the_profile_at_the_steps_layers_context_and_head(
    plan: SplitPlan, reply: Reply, context: int
) -> None:
    load = Told(PROFILE)
    alone_s = len(plan.back) * (LAYER_S + context / 1000 * 5e-4) + (HEAD_S if reply is Reply.TOKEN else 0.0)
    load.add(1.0, output(compute_s=2.5 * alone_s), plan=plan, asked=step(base=context, reply=reply))
    assert load.at(1.0)[2] == 2500


def test_layers_are_those_that_are_served() -> None:
    served = LayerRange(4, 8)
    times = LayerTimes(
        decode_s=(1e-3, 2e-3, 3e-3, 4e-3), decode_context_tokens=0, decode_s_per_1k_context=0.0,
        prefill=LayerTimes.uniform(4, decode_s=1e-3, prefill_s_per_token=1e-4).prefill,
    )  # fmt: skip
    load = Told(replace(PROFILE, served=served, times=times))
    plan = SplitPlan(layers=LAYERS, s=6, t=8, head=HeadSide.CLOUD, codec=Codec.FP32)
    load.add(1.0, output(compute_s=2 * 7e-3), plan=plan, asked=step(reply=Reply.LAST_HIDDEN))
    assert load.at(1.0)[2] == 2000


def test_many_rows_count_for_the_waits_only_and_later_tokens_at_their_own_context() -> None:
    load = Told(PROFILE)
    load.submitted(1, WHOLE, step(rows=500, base=1000, generate=9))
    load.answered(1, output(last=False, queue_us=100, compute_s=9.0), 1.0)
    assert load.at(1.0) == (100, 0, 1000)
    load.answered(1, output(last=False, queue_us=300, compute_s=3 * (LAYERS * (LAYER_S + 1.5 * 5e-4) + HEAD_S)), 1.0)
    assert load.at(1.0) == (200, 0, 3000)


def test_steps_count_by_their_time_alone() -> None:
    load = Told(PROFILE)
    load.add(1.0, output(compute_s=8 * LAYER_S), asked=step(reply=Reply.LAST_HIDDEN))
    load.add(1.0, output(compute_s=4 * 4 * LAYER_S), plan=USHAPE, asked=step(reply=Reply.LAST_HIDDEN))
    assert load.at(1.0)[2] == 2000  # (8 * 1 + 4 * 4) / 12


def test_layers_too_short_to_be_timed_tell_of_the_waits_only() -> None:
    short = LayerTimes.uniform(LAYERS, decode_s=0.9 * MIN_PASS_S / LAYERS, prefill_s_per_token=1e-5)
    load = Told(replace(PROFILE, times=short))
    load.add(1.0, output(queue_us=40, compute_s=1.0))
    assert load.at(1.0) == (40, 0, 1000)


def test_what_never_boarded_was_computed_anew_or_is_of_another_step_does_not_count() -> None:
    load = Told(PROFILE)
    load.add(1.0, output(queue_us=40, compute_s=0.0))
    load.submitted(1, WHOLE, step(generate=2))
    load.rebuilt(1)
    load.rebuilt(2)
    load.answered(1, output(queue_us=40, compute_s=0.5, last=False), 1.0)
    load.answered(1, output(seq=2, queue_us=40, compute_s=0.5), 1.0)
    load.answered(2, output(queue_us=40, compute_s=0.5), 1.0)
    assert load.at(1.0) == (0, 0, 1000) and load.under_way == 1
    load.answered(1, output(queue_us=60), 1.0)
    assert load.at(1.0)[0] == 60 and load.under_way == 0


def test_a_step_under_way_keeps_the_load_from_fading_until_it_ends() -> None:
    load = Told(PROFILE)
    load.add(1.0, output(queue_us=8000))
    load.submitted(2, WHOLE, step(seq=7))
    assert load.at(1.0 + 2 * HALF_LIFE_S)[0] == 8000
    load.ended(2, 6)
    assert load.under_way == 1
    load.ended(2, 7)
    assert load.at(1.0 + 2 * HALF_LIFE_S)[0] == 2000


def test_a_step_costs_next_to_nothing() -> None:
    load, one, told = Told(PROFILE), step(base=1000), output(queue_us=5, sweep_us=5, compute_s=1e-3)
    best_s = math.inf
    for _ in range(5):
        started_s = time.process_time()
        for number in range(2000):
            load.submitted(1, WHOLE, one)
            load.answered(1, told, 1e-3 * number)
        best_s = min(best_s, (time.process_time() - started_s) / 2000)
    assert best_s < 50e-6


# --- a real server ---


QUEUE_US, SWEEP_US, SLOWDOWN = 40_000, 9_000, 3


@pytest.fixture
def busy_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor's answers say that they waited and were slow."""
    take = CloudServer._on_event
    profile = replace(PROFILE, layers=4, served=LayerRange(0, 4), times=LayerTimes.uniform(4, decode_s=LAYER_S,
                      prefill_s_per_token=1e-4))  # fmt: skip
    compute_us = round(1e6 * SLOWDOWN * (4 * LAYER_S + HEAD_S))

    def slow(self: CloudServer, session: int, event: Any) -> None:
        if isinstance(event, Output):
            assert event.compute_us > 0  # it came through the executor as the engine measured it
            event = replace(event, queue_us=QUEUE_US, sweep_us=SWEEP_US, compute_us=compute_us)
        self.table._load._profile = profile  # of a model that is not too small to be timed
        take(self, session, event)

    monkeypatch.setattr(CloudServer, "_on_event", slow)


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_ping_tells_the_load_of_other_devices_whatever_executes(
    model: Path, home: Path, executor: str, busy_engine: None, request: pytest.FixtureRequest
) -> None:
    if executor == "process":
        request.getfixturevalue("importable")
    now_s = 1000.0
    with running_cloud(model, home, executor=executor) as cloud:
        cloud.server.table._clock = lambda: now_s
        worker, asker = (Client(cloud).shake_hands() for _ in range(2))
        try:
            assert told(asker) == (0, 0, 1000)
            worker.frame(opening(4))
            assert isinstance(worker.receive(), Opened)
            worker.frame(step(rows=3, generate=5))
            results = [worker.receive() for _ in range(5)]
            assert all(isinstance(it, Result) and (it.queue_us, it.sweep_us) == (QUEUE_US, SWEEP_US) for it in results)
            assert told(asker) == told(worker) == (QUEUE_US, SWEEP_US, 1000 * SLOWDOWN)
            now_s += HALF_LIFE_S
            assert told(asker) == (QUEUE_US // 2, SWEEP_US // 2, 1000 + 1000 * (SLOWDOWN - 1) // 2)
            now_s += FORGOTTEN_S
            assert told(asker) == (0, 0, 1000)
        finally:
            worker.close()
            asker.close()


def opening(layers: int) -> Open:
    return Open(
        handle=1, session_id=bytes(16), fence=1, request=1, plan=SplitPlan.cloud_only(layers), context=64, keep=0,
        sampling=SamplingParams(),
    )  # fmt: skip


def told(client: Client) -> tuple[int, int, int]:
    client.frame(Ping(handle=5, nonce=1))
    pong = client.receive()
    assert isinstance(pong, Pong)
    return pong.queue_us, pong.sweep_us, pong.slowdown_permille
