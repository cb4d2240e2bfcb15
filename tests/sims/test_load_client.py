"""Simulated sessions against a real cloud: they get what a device gets, and misbehave exactly as planned."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, running_cloud

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.errors import InputError, LinkError, ModelMismatch, PeerUntrusted
from splitglm_core.plan import Arm, Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.link import CloudLink
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_security.keys import parse_public_key
from splitglm_security.trust import PinStore, Trust, TrustPolicy
from splitglm_sims.load.client import LoadSession
from splitglm_sims.load.generator import Generator, Job, Model
from splitglm_sims.load.record import Ended, Outcome, Record, Stage
from splitglm_sims.load.result import capacity_of, recovery_s, result_of, table, to_json, verdict
from splitglm_sims.load.rows import RowBank, prompt_ids
from splitglm_sims.load.run import run_scenario
from splitglm_sims.load.scenario import Kind, Phase, Scenario
from splitglm_sims.load.schedule import SessionPlan
from splitglm_sims.load.stream import LoadStream, Target
from splitglm_sims.load.streams import Streams
from splitglm_wire import codec
from splitglm_wire.device import HiddenArrived, StepDone, TokenArrived
from splitglm_wire.frames import Reply, Rows

LAYERS = 4
PROMPT, TOKENS = 21, 5
PATIENT = Timeouts(connect_s=20.0, silence_s=20.0, step_s=60.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("load")


@pytest.fixture(scope="module")
def cloud(home: Path) -> Iterator[RunningCloud]:
    model = write_tiny_checkpoint(home / "model", layers=LAYERS)
    with running_cloud(model, home, session_ttl_s=0.0) as running:
        yield running


def target_of(cloud: RunningCloud, **other: object) -> Target:
    trust = Trust(PinStore(Path("unused")), TrustPolicy.PINNED, explicit_key=cloud.server.node_key.public)
    fields = {"address": cloud.address, "fingerprint": cloud.server.manifest.fingerprint, "trust": trust} | other
    return Target(**fields)  # type: ignore[arg-type]


def model_of(cloud: RunningCloud) -> Model:
    shape = cloud.server.facts.shape
    fingerprint = cloud.server.manifest.fingerprint.hex()
    return Model(layers=shape.layers, hidden=shape.hidden, vocab=shape.vocab, fingerprint=fingerprint)


def kind_of(arm: Arm, **fields: object) -> Kind:
    always = {"name": arm.value, "arm": arm, "chunk_rows": 8}
    sizes = {"prompt_rows": (PROMPT, PROMPT + 1), "tokens": (TOKENS, TOKENS + 1)}
    return Kind(**(always | sizes | fields))  # type: ignore[arg-type]


def scenario_of(*kinds: Kind, **fields: object) -> Scenario:
    phases = (Phase(name="only", seconds=1.0, rate_per_s=10.0),)
    return Scenario(**({"name": "test", "phases": phases, "kinds": kinds} | fields))  # type: ignore[arg-type]


def plan_of(arm: Arm, **fields: object) -> SessionPlan:
    plans = {
        Arm.CLOUD: SplitPlan.cloud_only(LAYERS),
        Arm.SPLIT: SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.CLOUD, codec=Codec.FP32),
        Arm.USHAPE: SplitPlan(layers=LAYERS, s=1, t=3, head=HeadSide.DEVICE, codec=Codec.FP32),
    }
    given = {
        "index": 3,
        "phase": 0,
        "kind": 0,
        "at_s": 0.0,
        "counted": True,
        "tenant": 0,
        "plan": plans[arm],
        "prompt_rows": PROMPT,
        "tokens": TOKENS,
        "think_s": (),
        "stop_after": None,
        "vanishes": False,
        "slow_read_s": 0.0,
        "leaks": False,
    } | fields
    return SessionPlan(**given)  # type: ignore[arg-type]


Lived = tuple[LoadSession, Ended, Record]


def live(cloud: RunningCloud, scenario: Scenario, *plans: SessionPlan) -> list[Lived]:
    """Run sessions beside each other, as one generator does."""
    shape = cloud.server.facts.shape
    record, bank = Record(), RowBank.random(shape.hidden, seed=scenario.seed)

    async def run() -> list[Lived]:
        streams = Streams(scenario, target_of(cloud), lambda plan, seconds: None)
        start_s = time.monotonic()
        sessions = [
            LoadSession(scenario, plan, start_s=start_s, bank=bank, vocab=shape.vocab, record=record) for plan in plans
        ]
        ended = await asyncio.gather(*(session.run(streams) for session in sessions))
        await streams.close()
        return [(session, end, record) for session, end in zip(sessions, ended, strict=True)]

    return asyncio.run(run())


def idle(cloud: RunningCloud) -> Callable[[], bool]:
    server = cloud.server
    return lambda: not len(server.table) and not server.table.streams


def remote_answers(cloud: RunningCloud, arm: Arm) -> list[int]:
    """The same session through the path that apps use."""
    shape, plan = cloud.server.facts.shape, plan_of(arm)
    bank = RowBank.random(shape.hidden, seed=1)
    target = target_of(cloud)
    link = CloudLink.connect(target.address, fingerprint=target.fingerprint, trust=target.trust, timeout_s=20.0)
    remote = RemoteSession(lambda: link, PATIENT)
    remote.begin(
        plan=plan.plan,
        sampling=SamplingParams(),
        context=PROMPT + TOKENS,
        keep=0,
        stop_ids=(),
        generated=(),
        deadline_s=None,
    )
    answers: list[int] = []
    if arm is Arm.CLOUD:
        ids = np.array(prompt_ids(plan.index, PROMPT, shape.vocab), "<u4").tobytes()
        remote.step(rows_kind=Rows.IDS, rows=PROMPT, payload=ids, reply=Reply.TOKEN, generate=TOKENS)
    while len(answers) < TOKENS:
        if arm is not Arm.CLOUD:
            rows = 1 if answers else PROMPT
            reply = Reply.TOKEN if arm is Arm.SPLIT else Reply.ALL_HIDDEN
            payload = bank.payload(Codec.FP32, remote.length, rows)
            generate = int(reply is Reply.TOKEN)
            remote.step(rows_kind=Rows.HIDDEN, rows=rows, payload=payload, reply=reply, generate=generate)
        while not isinstance(event := remote.wait(), StepDone):
            if isinstance(event, TokenArrived):
                answers.append(event.token)
            elif isinstance(event, HiddenArrived):
                answers.append(zlib.crc32(event.payload))
    remote.close()
    link.close()
    return answers


@pytest.mark.parametrize("arm", [Arm.SPLIT, Arm.CLOUD])
def test_a_simulated_session_gets_the_tokens_that_a_device_gets(cloud: RunningCloud, arm: Arm) -> None:
    [(session, ended, record)] = live(cloud, scenario_of(kind_of(arm, codec=Codec.FP32)), plan_of(arm))
    assert ended.outcome is Outcome.OK and ended.good and ended.answers == TOKENS
    assert session.answers == remote_answers(cloud, arm)
    assert len(record.samples(Stage.STEP)) == TOKENS - 1
    assert record.samples(Stage.TTFT).tolist() == [ended.ttft_s]
    cloud.until(idle(cloud))


def test_a_u_shape_session_gets_the_hidden_states_that_a_device_gets(cloud: RunningCloud) -> None:
    # One chunk, as the other path sends it: other chunks are other sums, equal only to the last bits.
    kind = dataclasses.replace(kind_of(Arm.USHAPE, codec=Codec.FP32), chunk_rows=64)
    [(session, ended, _)] = live(cloud, scenario_of(kind), plan_of(Arm.USHAPE))
    assert ended.outcome is Outcome.OK
    assert session.answers == remote_answers(cloud, Arm.USHAPE)


def test_a_stream_carries_many_sessions_of_all_kinds_at_once(cloud: RunningCloud) -> None:
    kinds = [kind_of(arm, codec=Codec.FP32) for arm in (Arm.SPLIT, Arm.USHAPE, Arm.CLOUD)]
    plans = [
        plan_of(kind.arm, kind=number, index=10 * number + copy)
        for number, kind in enumerate(kinds)
        for copy in range(6)
    ]
    lived = live(cloud, scenario_of(*kinds, streams_per_tenant=1), *plans)
    assert [ended.outcome for _, ended, _ in lived] == [Outcome.OK] * len(plans)
    # The rows do not depend on the index, so equal plans have equal answers whoever was in the batch.
    assert len({tuple(session.answers) for session, _, _ in lived[:6]}) == 1
    cloud.until(idle(cloud))


@pytest.mark.parametrize("arm", [Arm.SPLIT, Arm.USHAPE, Arm.CLOUD])
@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_cancelled_session_stops_where_planned_and_leaves_nothing(
    cloud: RunningCloud, arm: Arm, stop_after: int
) -> None:
    kind = kind_of(arm, codec=Codec.FP32)
    [(session, ended, _)] = live(cloud, scenario_of(kind), plan_of(arm, stop_after=stop_after))
    assert ended.outcome is Outcome.STOPPED and ended.good
    # The cloud may have been a few tokens ahead of the cancellation.
    assert len(session.answers) == stop_after or (arm is Arm.CLOUD and stop_after <= len(session.answers) <= TOKENS)
    cloud.until(idle(cloud))


def test_a_vanishing_device_says_no_goodbye_and_its_session_waits_for_it(cloud: RunningCloud) -> None:
    kind = kind_of(Arm.SPLIT, codec=Codec.FP32)
    table, forget = cloud.server.table, cloud.server.table.sweep
    held: list[int] = []
    table.sweep = lambda now_s: held.append(len(table))  # type: ignore[method-assign]
    try:
        [(_, ended, _)] = live(cloud, scenario_of(kind), plan_of(Arm.SPLIT, stop_after=2, vanishes=True))
        cloud.until(lambda: not table.streams)
        assert cloud.now(lambda: len(table)) == 1
    finally:
        table.sweep = forget  # type: ignore[method-assign]
    assert ended.outcome is Outcome.STOPPED
    cloud.until(idle(cloud))  # swept at once: this cloud keeps sessions without a stream for no time


def test_a_leaking_session_stays_in_the_cloud_until_its_stream_ends(cloud: RunningCloud) -> None:
    kind, held = kind_of(Arm.SPLIT, codec=Codec.FP32), []
    scenario = scenario_of(kind)
    shape = cloud.server.facts.shape

    async def run() -> None:
        streams = Streams(scenario, target_of(cloud), lambda plan, seconds: None)
        bank = RowBank.random(shape.hidden, seed=1)
        for leaks in (False, True):
            session = LoadSession(
                scenario,
                plan_of(Arm.SPLIT, leaks=leaks),
                start_s=time.monotonic(),
                bank=bank,
                vocab=shape.vocab,
                record=Record(),
            )
            await session.run(streams)
            await asyncio.to_thread(cloud.until, lambda n=leaks: len(cloud.server.table) == int(n))
            held.append(leaks)
        await streams.close()

    asyncio.run(run())
    assert held == [False, True]
    cloud.until(idle(cloud))


def test_a_slow_reader_ends_late_and_does_not_hold_others_up(cloud: RunningCloud) -> None:
    kind = kind_of(Arm.USHAPE, codec=Codec.FP32)
    slow_s = 0.7
    slow, other = live(cloud, scenario_of(kind), plan_of(Arm.USHAPE, slow_read_s=slow_s), plan_of(Arm.USHAPE, index=4))
    assert slow[1].outcome is other[1].outcome is Outcome.OK
    record = slow[2]
    assert len(record.samples(Stage.STEP)) == TOKENS - 1, "a step that its own device delayed is no sample"
    assert record.samples(Stage.STEP).max() < slow_s
    assert slow[0]._at_s[-1] >= slow_s > 0.0


def test_a_refusal_is_a_result_unless_retries_are_asked_for(home: Path) -> None:
    model = home / "model"
    with running_cloud(model, home, max_sessions=1, session_ttl_s=0.0) as small:
        kind = kind_of(Arm.SPLIT, codec=Codec.FP32)
        plans = [plan_of(Arm.SPLIT, index=number) for number in range(3)]
        lived = live(small, scenario_of(kind), *plans)
        outcomes = sorted(ended.outcome.value for _, ended, _ in lived)
        assert outcomes == ["ok", "refused", "refused"]
        assert {ended.reason for _, ended, _ in lived} == {"", "OVERLOADED"}
        assert len(lived[0][2].samples(Stage.REFUSAL)) == 2
        again = live(small, scenario_of(kind, retries=20), *plans)
        assert [ended.outcome for _, ended, _ in again] == [Outcome.OK] * 3
        assert len({tuple(session.answers) for session, _, _ in again}) == 1


def test_a_generator_with_every_stream_full_says_that_it_is_its_own_failure(cloud: RunningCloud) -> None:
    scenario = scenario_of(kind_of(Arm.SPLIT, codec=Codec.FP32), streams_per_tenant=1, sessions_per_stream=1)
    lived = live(cloud, scenario, *(plan_of(Arm.SPLIT, index=number) for number in range(3)))
    assert sorted((ended.outcome.value, ended.reason) for _, ended, _ in lived) == [
        ("failed", "no free stream"),
        ("failed", "no free stream"),
        ("ok", ""),
    ]


def test_a_cloud_that_dies_fails_its_sessions_and_not_the_generator(cloud: RunningCloud, home: Path) -> None:
    scenario = scenario_of(kind_of(Arm.SPLIT, codec=Codec.FP32), patience_s=20.0)
    shape, record = cloud.server.facts.shape, Record()
    # A process of its own: it must die without a word.
    with CloudProcess(str(home / "model"), arguments=("--precision", "fp32", "--threads", "1")) as doomed:
        trust = Trust(PinStore(Path("unused")), TrustPolicy.PINNED, explicit_key=parse_public_key(doomed.key))
        target = target_of(cloud, address=doomed.address, trust=trust)

        async def run() -> Ended:
            streams = Streams(scenario, target, lambda plan, seconds: None)
            bank = RowBank.random(shape.hidden, seed=1)
            plan = plan_of(Arm.SPLIT, think_s=(0.2,) * 399, tokens=400)
            session = LoadSession(scenario, plan, start_s=time.monotonic(), bank=bank, vocab=shape.vocab, record=record)
            life = asyncio.create_task(session.run(streams))
            while not session.answers and not life.done():
                await asyncio.sleep(0.005)
            os.kill(doomed.pid, signal.SIGKILL)
            return await life

        ended = asyncio.run(run())
    assert ended.outcome is Outcome.FAILED and ended.reason and ended.answers and not ended.good


def test_a_stranger_is_refused_before_anything_is_sent(cloud: RunningCloud) -> None:
    other = Trust(PinStore(Path("unused")), TrustPolicy.PINNED, explicit_key=bytes(31) + b"\1")
    with pytest.raises(PeerUntrusted):
        asyncio.run(LoadStream.connect(target_of(cloud, trust=other)))
    with pytest.raises(ModelMismatch):
        asyncio.run(LoadStream.connect(target_of(cloud, fingerprint=bytes(32))))
    with pytest.raises(LinkError):
        asyncio.run(LoadStream.connect(target_of(cloud, address="127.0.0.1:1"), timeout_s=0.5))


def test_simulated_devices_come_with_pairings_of_their_own(home: Path) -> None:
    psks = (bytes([1]) * 32, bytes([2]) * 32)
    with running_cloud(home / "model", home, psk=psks[1]) as paired:
        scenario = scenario_of(kind_of(Arm.SPLIT, codec=Codec.FP32, tenants=2))
        shape, record = paired.server.facts.shape, Record()

        async def run() -> list[Ended]:
            streams = Streams(scenario, target_of(paired, psks=psks), lambda plan, seconds: None)
            bank = RowBank.random(shape.hidden, seed=1)
            ended = []
            for tenant in (0, 1):
                plan = plan_of(Arm.SPLIT, tenant=tenant)
                session = LoadSession(
                    scenario, plan, start_s=time.monotonic(), bank=bank, vocab=shape.vocab, record=record
                )
                ended.append(await session.run(streams))
            await streams.close()
            return ended

        stranger, known = asyncio.run(run())
    assert (stranger.outcome, stranger.reason) == (Outcome.FAILED, "SecurityError")
    assert known.outcome is Outcome.OK


@pytest.mark.parametrize("kind", list(Codec))
def test_banked_rows_are_the_bytes_that_encoding_them_gives(kind: Codec) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 32)).astype(np.float32)
    bank = RowBank(rows)
    for base in (0, 1, 5, 6, 7, 20):
        for count in (1, 2, 9):
            wanted = rows[np.arange(base, base + count) % 7]
            assert bank.payload(kind, base, count) == codec.encode(wanted, kind, base=base)


def test_a_whole_run_through_generator_processes_adds_up(cloud: RunningCloud) -> None:
    kinds = (kind_of(Arm.SPLIT, codec=Codec.BF16), kind_of(Arm.CLOUD))
    scenario = scenario_of(
        *kinds,
        phases=(
            Phase(name="probe", seconds=1.0, closed_sessions=3),
            Phase(name="normal", seconds=1.5, rate_per_s=8.0),
            Phase(name="half", seconds=1.0, times_capacity=0.05),
        ),
        generators=2,
    )
    result = run_scenario(scenario, target_of(cloud), model_of(cloud))
    assert result.capacity_per_s is not None and result.capacity_per_s > 1.0
    normal = result.phase("normal").whole
    arrived = sum(line.phase == 1 for line in result.record.sessions)
    assert normal.ok == arrived > 0 and not normal.refusals and not normal.failures
    assert normal.time(Stage.TTFT).count == arrived
    assert normal.time(Stage.STEP).count == arrived * (TOKENS - 1)
    assert 0.0 < normal.time(Stage.TTFT).p50_s <= normal.time(Stage.TTFT).p99_s
    assert result.phase("half").recovery_s is not None
    document = to_json(result)
    assert document["phases"][1]["ok"] == arrived and document["phases"][1]["connect"]["p50_s"] is None
    assert len(table(result)) == 3 * (1 + len(kinds)) and verdict(result)
    cloud.until(idle(cloud))


def test_a_probe_comes_back_when_told_to_instead_of_counting_refusals(home: Path) -> None:
    with running_cloud(home / "model", home, max_sessions=2, session_ttl_s=0.0) as small:
        kind = kind_of(Arm.SPLIT, codec=Codec.FP32)
        scenario = scenario_of(kind, phases=(Phase(name="probe", seconds=1.5, closed_sessions=4),))
        job = Job(
            scenario=scenario,
            model=model_of(small),
            address=small.address,
            key=small.server.node_key.public.hex(),
            psks=(),
            share=0,
            of=1,
            probing=True,
            capacity_per_s=None,
            cores=(),
            recorded="",
            out="",
        )

        async def run() -> Record:
            generator = Generator(job)
            await generator.connect()
            await generator.run(time.monotonic())
            return generator.record

        record = asyncio.run(run())
    assert not record.outcomes(Outcome.REFUSED) and not record.outcomes(Outcome.FAILED)
    assert len(record.samples(Stage.REFUSAL)) > 0, "four at once in a cloud of two must have been refused"
    assert capacity_of(record, scenario) > 1.0


def test_a_late_generator_and_a_busy_one_void_their_run() -> None:
    record = Record()
    for lag_s in [0.0] * 90 + [0.02] * 10:
        record.add(0, 0, Stage.LAG, lag_s)
    assert "lag" in record.health.void
    busy = Record()
    busy.cpu_share = 0.9
    assert "CPU" in busy.health.void
    assert Record().health.void == ""


def test_records_of_generators_are_put_together_sample_by_sample(tmp_path: Path) -> None:
    records = [Record(), Record()]
    lines = [
        Ended(
            phase=0,
            kind=0,
            counted=True,
            at_s=float(number),
            outcome=Outcome.OK if good else Outcome.REFUSED,
            reason="" if good else "OVERLOADED",
            ttft_s=0.1 if good else math.nan,
            answers=3,
            good=good,
        )
        for number, good in enumerate((True, False))
    ]
    for record, line in zip(records, lines, strict=True):
        record.add(0, 0, Stage.STEP, line.at_s)
        record.end(line, [line.at_s, line.at_s + 1.0])
        record.save(tmp_path / "one.record")
        if line.at_s:
            records[0].merge(Record.load(tmp_path / "one.record"))
    merged = records[0]
    assert sorted(merged.samples(Stage.STEP)) == [0.0, 1.0]
    assert merged.good_answers(0.0, 5.0) == 2
    assert merged.outcomes(Outcome.REFUSED) == {"OVERLOADED": 1}
    assert repr(merged.sessions) == repr(lines)
    assert recovery_s(merged.sessions, 0, 0.5, limit_s=1.0) == 0.5
    only = scenario_of(kind_of(Arm.SPLIT), phases=(Phase(name="probe", seconds=4.0, closed_sessions=1),))
    assert capacity_of(merged, only) == pytest.approx(2 / 4.0 / 3)
    assert result_of(only, Record(), merged, 1.0).phases[0].whole.refused == (("OVERLOADED", 1),)


def test_recorded_hidden_states_are_checked_for_their_width(cloud: RunningCloud, tmp_path: Path) -> None:
    model = model_of(cloud)
    job = Job(
        scenario=scenario_of(kind_of(Arm.SPLIT)),
        model=model,
        address=cloud.address,
        key=cloud.server.node_key.public.hex(),
        psks=(),
        share=0,
        of=1,
        probing=False,
        capacity_per_s=None,
        cores=(),
        recorded=str(tmp_path / "rows.f32"),
        out="",
    )
    np.ones((3, model.hidden), np.float32).tofile(tmp_path / "rows.f32")
    assert job.bank().hidden == model.hidden
    np.ones((3, model.hidden + 1), np.float32).tofile(tmp_path / "rows.f32")
    with pytest.raises(InputError, match="width"):
        Generator(job)
