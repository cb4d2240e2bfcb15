"""The testbed: a real device, cloud and link against the simulator on the same scene.

Times are bounded loosely: the link is slow enough to dominate, and a busy machine only adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from glm_factory import write_tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from running_cloud import PATIENT, RunningCloud, running_cloud

from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Arm, Codec, Precision, SplitPlan
from splitglm_glm.store import ModelStore
from splitglm_partitioner.arms import make_plan
from splitglm_partitioner.lanes import lane_of
from splitglm_sims.testbed.bed import Testbed, fixed_of, job_of, open_testbeds, prompt_ids
from splitglm_sims.testbed.comparison import simulated
from splitglm_sims.testbed.machines import Machines, measure_machines
from splitglm_sims.testbed.orders import rotated
from splitglm_sims.testbed.replayed_link import ReplayedLink
from splitglm_sims.testbed.stretches import calm_offsets, emulated
from splitglm_sims.testbed.work import profiled_work, real_work
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.scene import LinkScene
from splitglm_wire import framing
from splitglm_wire.frames import Reply, Rows, Step

LAYERS = 4
FAST = 1e7
SLOW = 6e3  # bytes per second: a prompt of 40 rows of 128 bytes takes most of a second
PLANS = {
    "cloud": make_plan(LAYERS, Arm.CLOUD, 0, LAYERS, Codec.BF16, 128),
    "split": make_plan(LAYERS, Arm.SPLIT, 2, LAYERS, Codec.BF16, 128),
    "ushape": make_plan(LAYERS, Arm.USHAPE, 1, 3, Codec.INT8, 128),
}


def link_of(up: float, down: float, rtt_s: float = 0.02) -> LinkScene:
    return LinkScene(up=RateTrace.constant(up), down=RateTrace.constant(down), rtt_s=rtt_s, window_bytes=None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("testbed")


@pytest.fixture(scope="module")
def cloud(home: Path) -> Iterator[RunningCloud]:
    with running_cloud(write_tiny_checkpoint(home / "model", layers=LAYERS), home) as running:
        yield running


@pytest.fixture(scope="module")
def bed(home: Path, cloud: RunningCloud) -> Iterator[Testbed]:
    with ReplayedLink(cloud.address) as link:
        link.show(link_of(FAST, FAST))
        opened = open_testbeds(
            str(home / "model"),
            link,
            key=cloud.key,
            precision=Precision.FP32,
            store=ModelStore(home),
            timeouts=PATIENT,
        )
        with opened as (one,):
            for plan in PLANS.values():
                one.run(job_of(8, 2), offset_s=0.0, plan=plan)  # loads the layers
            yield one


def machines_of(bed: Testbed) -> Machines:
    """Machines as profiled; what an exchange costs besides hardly counts on the links of these tests."""
    return Machines(
        device=bed.agent.profile,
        cloud=replace(bed.agent.link()[1], queue_s=0.0, sweep_s=0.0, slowdown=1.0),
        device_pace=1.0,
        cloud_pace=1.0,
        overhead_s=0.002,
        step_queue_s=0.0,
        stream_gap_s=0.0,
        start_s=0.0,
        open_s=0.0,
        frame_up_bytes=0.0,
        frame_down_bytes=0.0,
    )


@pytest.mark.parametrize("name", PLANS)
def test_over_a_slow_link_the_real_first_token_comes_when_the_simulator_says(bed: Testbed, name: str) -> None:
    """Never earlier than the link allows, and at most twice as late: framing and a busy machine add to it."""
    # Ids are small: of them the round trip dominates.
    link = link_of(FAST, FAST, rtt_s=0.6) if name == "cloud" else link_of(SLOW, SLOW, rtt_s=0.1)
    bed.link.show(link)
    run = bed.run(job_of(40, 3), offset_s=0.0, plan=PLANS[name])
    predicted = simulated(machines_of(bed), bed.agent.checkpoint.config.shape, link, run)
    assert predicted.failed is None
    assert 0.9 * predicted.outcome.ttft_s <= run.outcome.ttft_s <= 2.0 * predicted.outcome.ttft_s + 0.5
    assert run.outcome.new_tokens == predicted.outcome.new_tokens == 3
    assert predicted.outcome.ttft_s > 0.3, "the link must dominate for this test to say anything"


def test_a_further_token_adds_the_simulated_payload_in_one_record_each_way(bed: Testbed) -> None:
    """Bytes are compared exactly: what is sealed is the simulated payload in a padded frame and a record around it."""
    link, plan = link_of(FAST, FAST), PLANS["split"]
    bed.link.show(link)
    few, many = (bed.run(job_of(12, tokens), offset_s=0.0, plan=plan) for tokens in (2, 7))
    shape = bed.agent.checkpoint.config.shape
    told = [simulated(machines_of(bed), shape, link, run).outcome for run in (few, many)]
    payload, rest = divmod(told[1].uplink_bytes - told[0].uplink_bytes, 5)
    assert (payload, rest) == (lane_of(Arm.SPLIT, Codec.BF16, shape.hidden).up_row, 0)
    frame = framing.encode(
        Step(
            handle=1, fence=1, seq=1, base=12, rows_kind=Rows.HIDDEN, rows=1, reply=Reply.TOKEN, generate=1,
            payload=bytes(payload),
        )
    )  # fmt: skip
    sealed, rest = divmod(many.outcome.uplink_bytes - few.outcome.uplink_bytes, 5)
    assert rest == 0 and len(frame) < sealed <= len(frame) + 64
    answers, rest = divmod(many.outcome.downlink_bytes - few.outcome.downlink_bytes, 5)
    assert rest == 0 and 64 < answers <= 128
    assert many.tcp_up_bytes > many.outcome.uplink_bytes and many.tcp_down_bytes > many.outcome.downlink_bytes


def test_a_reply_begins_where_the_traces_were_told_to_stand(bed: Testbed) -> None:
    """Within an outage of a second it waits for its end, after it not; the simulator, told where, knows both."""
    gap = RateTrace((0.0, 4.0, 5.0), (FAST, 0.0, FAST), 10.0)
    link = LinkScene(up=gap, down=RateTrace.constant(FAST), rtt_s=0.02, window_bytes=None)
    bed.link.show(link)
    shape = bed.agent.checkpoint.config.shape
    into, past = (bed.run(job_of(12, 2), offset_s=at_s, plan=PLANS["split"]) for at_s in (4.05, 5.05))
    simulations = [simulated(machines_of(bed), shape, link, run).outcome for run in (into, past)]
    assert 4.05 <= into.link_offset_s < 4.5 and 5.05 <= past.link_offset_s < 5.5
    assert into.outcome.ttft_s >= 5.0 - into.link_offset_s
    assert simulations[0].ttft_s == pytest.approx(5.0 - into.link_offset_s, abs=0.2)
    assert simulations[1].ttft_s < 0.2
    assert into.outcome.ttft_s - simulations[0].ttft_s < 1.0 and past.outcome.ttft_s < into.outcome.ttft_s + 1.0


def test_without_a_plan_the_policy_decides_and_the_same_tokens_come(bed: Testbed) -> None:
    bed.link.show(link_of(FAST, FAST))
    run = bed.run(job_of(12, 4), offset_s=0.0)
    assert run.stats.new_tokens == 4 and not run.stats.fallbacks
    device = bed.run(job_of(12, 4), offset_s=0.0, plan=SplitPlan.device_only(LAYERS))
    assert device.plan.arm is Arm.DEVICE and device.outcome.uplink_bytes == 0


def test_work_of_a_run_is_told_by_place(bed: Testbed) -> None:
    bed.link.show(link_of(FAST, FAST))
    shape, machines = bed.agent.checkpoint.config.shape, machines_of(bed)
    for name, plan in PLANS.items():
        run = bed.run(job_of(12, 3), offset_s=0.0, plan=plan)
        here, profiled = real_work(run), profiled_work(shape, machines.device, machines.cloud, plan, run.job)
        assert here.cloud_s > 0.0 and profiled.cloud_s > 0.0
        assert (here.device_s == 0.0) == (profiled.device_s == 0.0) == (name == "cloud")


def test_machines_are_measured_term_by_term(bed: Testbed) -> None:
    """Of times only what holds on a busy machine too; of bytes what the wire format says."""
    machines = measure_machines(bed, repetitions=1)
    assert machines.device_pace > 0.0 and machines.cloud_pace > 0.0
    assert machines.device.active.times.prefill_s_per_token_per_1k_context is not None
    assert machines.cloud.times.prefill_s_per_token_per_1k_context is not None
    assert machines.cloud.slowdown == 1.0 and machines.cloud.queue_s == 0.0
    assert machines.overhead_s >= 0.0 and machines.step_queue_s >= 0.0 and machines.start_s > 0.0
    assert 64 < machines.frame_up_bytes < 400 and 64 < machines.frame_down_bytes < 400


def test_a_fixed_plan_is_asked_for_by_its_cut(bed: Testbed) -> None:
    assert fixed_of(PLANS["ushape"]).t == 3 and fixed_of(PLANS["cloud"]).s is None
    assert len(prompt_ids(40, 320, seed=1)) == 40 and prompt_ids(40, 320, 1) != prompt_ids(40, 320, 2)
    with pytest.raises(InputError):
        prompt_ids(4, 150, seed=0)
    with pytest.raises(InputError):
        bed.run(replace(job_of(8, 2), shared_tokens=4), offset_s=0.0)


def test_the_emulator_shows_no_more_than_it_can(bed: Testbed) -> None:
    restless = replace(link_of(FAST, FAST), jitter_s=0.01, rest_after_s=5.0, promotion_s=0.5, window_bytes=14600)
    with pytest.raises(InputError):
        bed.link.show(restless)
    bed.link.show(emulated(restless))
    assert emulated(restless) == link_of(FAST, FAST)


def test_a_link_to_nowhere_says_so_and_a_closed_one_too() -> None:
    with pytest.raises(DeviceError):
        ReplayedLink("nowhere").__enter__()
    link = ReplayedLink("127.0.0.1:1")
    with pytest.raises(InputError):
        link.carried_bytes()
    with link, pytest.raises(DeviceError):
        link.begin(1.0)  # before any link was shown


def test_calm_instants_keep_away_from_silence() -> None:
    trace = RateTrace((0.0, 12.0, 14.0), (FAST, 0.0, FAST), 60.0)
    link = LinkScene(up=trace, down=RateTrace.constant(FAST), rtt_s=0.02)
    assert calm_offsets(link, 3, span_s=10.0) == (0.0, 15.0, 20.0)
    assert calm_offsets(link_of(FAST, FAST), 2, span_s=10.0) == (0.0, 0.0)
    with pytest.raises(InputError):
        calm_offsets(link, 1, span_s=60.0)


rates = st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=8).filter(any)


@given(rates, st.floats(-1e4, 1e4), st.floats(0.0, 100.0))
def test_a_rotated_trace_is_the_same_trace_from_another_instant(values: list[float], by_s: float, at_s: float) -> None:
    trace = RateTrace(tuple(float(i) for i in range(len(values))), tuple(values), float(len(values)))
    turned = rotated(trace, by_s)
    assert turned.period_s == trace.period_s
    assert turned.mean_bytes_per_s == pytest.approx(trace.mean_bytes_per_s, rel=1e-6)
    carried = trace.bytes_before((by_s % trace.period_s) + at_s) - trace.bytes_before(by_s % trace.period_s)
    assert turned.bytes_before(at_s) == pytest.approx(carried, rel=1e-6, abs=1e-3)
