"""The parts between a gateway and its workers, without any process: rings, messages, pulse, roster, restarts."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitglm_cloud.engine.events import Evicted, Failure, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution import messages
from splitglm_cloud.execution.payloads import ALIGN_BYTES, Memory, Reader, Ring, Writer
from splitglm_cloud.execution.pulse import Pulse, Watchdog, beats, p99_s, percentile_99
from splitglm_cloud.execution.roster import Forward, Order, Refuse, Roster
from splitglm_cloud.execution.seats import Seat, Supervision, counters
from splitglm_core.errors import InternalError, ModelInvalid
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Output, Submit
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step

CONFIG = Configure(
    plan=SplitPlan.cloud_only(4),
    sampling=SamplingParams(temperature=0.5, seed=2**64 - 1),
    generated=(1, 2, 3),
    stop_ids=(7,),
    context=256,
    keep=0,
    deadline_ms=500,
)


def step(seq: int = 1, payload: bytes = b"\1\0\0\0") -> Step:
    return Step(
        handle=1, fence=2**63, seq=seq, base=3, rows_kind=Rows.IDS, rows=1, reply=Reply.TOKEN, generate=9,
        payload=payload,
    )  # fmt: skip


class RingMachine(RuleBasedStateMachine):
    """Against a list of what is out: regions never overlap, order is kept, nothing is lost for good."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(16 * ALIGN_BYTES)
        self.out: deque[tuple[int, int]] = deque()

    @rule(size=st.integers(1, 17 * ALIGN_BYTES))
    def allocate(self, size: int) -> None:
        at = self.ring.allocate(size)
        if at is None:
            assert self.out or size > self.ring.capacity
            return
        place = at % self.ring.capacity
        assert place % ALIGN_BYTES == 0 and place + size <= self.ring.capacity
        for other, length in self.out:
            start = other % self.ring.capacity
            assert place + size <= start or start + length <= place
        self.out.append((at, size))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, len(self.out)))):
            at, size = self.out.popleft()
        self.ring.release(at + -(-size // ALIGN_BYTES) * ALIGN_BYTES)

    @invariant()
    def never_more_than_there_is(self) -> None:
        assert 0 <= self.ring.used <= self.ring.capacity


TestRing = RingMachine.TestCase


@pytest.mark.parametrize("position", [-1, 64, 10**9])
def test_a_ring_takes_back_only_what_it_gave(position: int) -> None:
    with pytest.raises(InternalError):
        Ring(1024).release(position)


def test_payloads_cross_the_memory_whole_and_room_comes_back() -> None:
    memory = Memory.create(1 << 16)
    try:
        writer, reader = Writer(memory.down, inline_bytes=64), Reader(memory.down)
        rng = np.random.default_rng(1)
        for size in rng.integers(1, 20_000, 200):
            payload = rng.bytes(int(size))
            at = writer.put(payload)
            assert (at is None) == (size <= 64)
            if at is None:
                continue
            assert reader.take(at, len(payload)) == payload
            told = reader.to_tell()
            if told is not None:
                writer.freed(told)
    finally:
        memory.close()


def test_a_full_ring_sends_payloads_the_other_way() -> None:
    memory = Memory.create(1 << 12)
    try:
        writer = Writer(memory.up, inline_bytes=0)
        placed = [writer.put(bytes(1024)) for _ in range(6)]
    finally:
        memory.close()
    assert placed == [0, 1024, 2048, 3072, None, None]


@pytest.mark.parametrize(("at", "size"), [(4000, 200), (0, 1 << 13), (-64, 10)])
def test_a_payload_outside_the_ring_is_refused(at: int, size: int) -> None:
    memory = Memory.create(1 << 12)
    try:
        with pytest.raises(InternalError):
            Reader(memory.up).take(at, size)
    finally:
        memory.close()


@pytest.mark.parametrize(
    "command",
    [
        messages.ConfigureSession(3, 1, CONFIG, Owner("somebody", 0.5)),
        messages.submit_of(3, 1, step(), 640),
        messages.submit_of(3, -1, step(), None),
        messages.AbortStep(3, 1, 2**40),
        messages.CutSession(3, 1, 0),
        messages.DropSession(3, 1),
        messages.Freed(3, 2**60),
        messages.Stop(3),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_command_arrives_as_it_was_sent(command: messages.Command) -> None:
    assert messages.decode_command(messages.encode(command)) == command


@pytest.mark.parametrize(
    "event",
    [
        Output(5, 1, b"abc", False, 7, 8, 9),
        Failure(2**33, ErrorCode.OVERLOADED, "busy", 0.5),
        Evicted(None),
        Evicted(4),
    ],
    ids=str,
)
def test_an_event_arrives_as_it_was_said(event: Output | Failure | Evicted) -> None:
    payload = event.payload if isinstance(event, Output) else b""
    report = messages.decode_report(messages.encode(messages.report_of(9, 4, event, None)))
    assert (report.epoch, report.session) == (9, 4)  # type: ignore[union-attr]
    assert messages.event_of(report, payload) == event  # type: ignore[arg-type]


def test_a_step_arrives_as_it_was_sent() -> None:
    sent = step(payload=bytes(range(100)))
    submit = messages.decode_command(messages.encode(messages.submit_of(1, 1, sent, None)))
    assert isinstance(submit, messages.SubmitStep)
    assert messages.step_of(submit, bytes(range(100))) == sent


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        msgspec.msgpack.encode(["submit", 1]),
        msgspec.msgpack.encode(["output", 1, 1, 1, 1, messages.MAX_PAYLOAD_BYTES + 1, None, True, 0, 0]),
        msgspec.msgpack.encode(["output", 1, 1, 1, 1, -1, None, True, 0, 0]),
        msgspec.msgpack.encode(["output", 1, 1, 1, 1, 5, -64, True, 0, 0]),
        msgspec.msgpack.encode(["failure", 1, 1, 1, 13, "x" * 201, 0.0]),
        msgspec.msgpack.encode(["stop", 1]),
        b"\x91\xa4\x00\x00\x00\x80",  # not UTF-8
        b"\x91" * 100_000,
    ],
)
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(InternalError):
        messages.decode_report(data)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for decode in (messages.decode_command, messages.decode_report, messages.decode_start):
        try:
            decode(data)
        except InternalError:
            pass


def test_a_command_that_breaks_a_rule_of_its_values_is_refused() -> None:
    good = messages.encode(messages.ConfigureSession(1, 1, CONFIG, Owner()))
    bad = good.replace(b"\xa6layers\x04", b"\xa6layers\x00")
    assert bad != good
    with pytest.raises(InternalError):
        messages.decode_command(bad)


def test_an_error_keeps_its_kind_on_the_way_and_cannot_name_another() -> None:
    error = messages.error_of(messages.fatal_of(1, ModelInvalid("torn", "fetch it again")))
    assert isinstance(error, ModelInvalid)
    assert (error.what, error.hint) == ("torn", "fetch it again")
    for kind in ("SystemExit", "Enum", "no such"):
        assert type(messages.error_of(messages.Fatal(1, kind, "x", ""))) is InternalError


def test_a_configuration_beyond_the_wires_bounds_is_seen() -> None:
    assert not messages.is_too_large(CONFIG, Owner())
    assert messages.is_too_large(replace(CONFIG, stop_ids=(1,) * 65), Owner())
    assert messages.is_too_large(CONFIG, Owner("x" * 257))


def test_a_pulse_counts_turns_and_tells_the_slow_batches() -> None:
    cells = memoryview(bytearray(64)).cast("Q")
    pulse = Pulse(cells)
    for i in range(200):
        pulse.batch(0.5 if i == 100 else 0.001)
        pulse.beat()
    assert beats(cells) == 200
    assert p99_s(cells) == pytest.approx(0.001)
    assert percentile_99(deque([0.1, 0.2])) == 0.2


def watch(dog: Watchdog, until_s: float, *, working: bool = True, beat_until_s: float = 0.0) -> float:
    """When the dog barks, looked at ten times a second; the pulse stands still from ``beat_until_s`` on."""
    for tick in range(int(10 * until_s)):
        now_s = tick / 10
        if dog.hangs(now_s, beats=int(10 * min(now_s, beat_until_s)), p99_s=0.0, working=working):
            return now_s
    return math.inf


def test_the_watchdog_wants_work_without_a_pulse_for_long_enough() -> None:
    assert 5.0 < watch(Watchdog(least_s=2.0, expected_s=0.1), 10, beat_until_s=3.0) <= 5.2
    assert watch(Watchdog(least_s=2.0, expected_s=0.1), 10, working=False) == math.inf
    assert watch(Watchdog(least_s=2.0, expected_s=0.1), 10, beat_until_s=10.0) == math.inf
    assert watch(Watchdog(least_s=2.0, expected_s=4.0), 12) == math.inf  # its largest batch takes four seconds
    assert Watchdog(least_s=2.0, expected_s=0.1).limit_s(1.5) == 4.5


def test_a_watchdog_that_was_held_up_itself_accuses_nobody() -> None:
    dog = Watchdog(least_s=2.0, expected_s=0.0)
    assert not dog.hangs(0.0, beats=1, p99_s=0.0, working=True)
    assert not dog.hangs(60.0, beats=1, p99_s=0.0, working=True)
    assert not dog.hangs(60.5, beats=1, p99_s=0.0, working=True)


def roster(kv_used: dict[int, float] | None = None) -> Roster:
    used = kv_used or {}
    return Roster(patience_s=10.0, window_s=300.0, kv_used=lambda worker: used.get(worker, 0.0))


def offered(book: Roster, session: int, *actions: Configure | Submit | Abort | Cut | Drop, now_s: float = 0.0) -> list:
    return [item for action in actions for item in book.offer(Order(session, action), now_s)]


def test_sessions_go_to_the_worker_with_most_room_and_stay_there() -> None:
    book = roster({0: 0.5, 1: 0.1, 2: 0.11})
    for worker in range(3):
        book.worker_ready(worker, 0.0)
    placed = [offered(book, session, CONFIG)[0].worker for session in range(5)]
    assert placed == [1, 2, 1, 2, 1]
    assert [offered(book, session, Submit(step()))[0].worker for session in range(5)] == placed


def test_what_comes_before_any_worker_waits_in_order_and_its_deadline_runs_on() -> None:
    book = roster()
    assert offered(book, 1, CONFIG, Submit(step()), Abort(1), now_s=5.0) == []
    forwards = book.worker_ready(0, 5.2)
    assert [item.order.action for item in forwards if isinstance(item, Forward)] == [
        replace(CONFIG, deadline_ms=300), Submit(step()), Abort(1),
    ]  # fmt: skip


def test_what_waits_too_long_for_a_worker_is_refused_and_later_steps_find_their_session() -> None:
    book = roster()
    offered(book, 1, CONFIG, Cut(0), Submit(step()))
    assert book.expire(9.9) == []
    (refusal,) = book.expire(10.1)
    assert isinstance(refusal, Refuse) and refusal.failure.code is ErrorCode.UNAVAILABLE
    forwards = book.worker_ready(0, 11.0) + offered(book, 1, Submit(step(2)), now_s=11.0)
    assert [type(item.order.action) for item in forwards if isinstance(item, Forward)] == [Configure, Submit]


def test_a_loss_names_the_workers_sessions_and_who_had_a_step_in_it() -> None:
    book = roster()
    book.worker_ready(0, 0.0)
    for session in range(3):
        offered(book, session, CONFIG, Submit(step()))
    book.answered(1, ended=True, progress=True)
    offered(book, 2, Drop())
    loss = book.worker_lost(0, 1.0)
    assert (loss.sessions, loss.suspects) == ((0, 1), (0,))
    assert book.worker_lost(0, 2.0).sessions == ()


def test_three_deaths_without_progress_refuse_a_session_until_they_are_long_ago() -> None:
    book = roster()

    def die(now_s: float) -> None:
        book.worker_ready(0, now_s)
        offered(book, 1, Drop(), CONFIG, Submit(step()), now_s=now_s)  # a rebuild begins with a drop
        book.worker_lost(0, now_s)

    die(0.0), die(100.0)
    book.worker_ready(0, 110.0)
    offered(book, 1, CONFIG, Submit(step()), now_s=110.0)
    book.answered(1, ended=True, progress=False)  # an earlier part once more: no acquittal
    book.worker_lost(0, 110.0)
    die(120.0)
    book.worker_ready(0, 130.0)
    (_, refusal) = offered(book, 1, CONFIG, Submit(step(9)), now_s=130.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.failure.seq, refusal.failure.code) == (9, ErrorCode.INTERNAL)
    (forward,) = offered(book, 1, Submit(step(10)), now_s=301.0)
    assert isinstance(forward, Forward)


def test_an_answer_clears_a_session_of_suspicion() -> None:
    book = roster()
    for death in range(6):
        book.worker_ready(0, float(death))
        assert len(offered(book, 1, CONFIG, Submit(step()), now_s=float(death))) == 2
        book.answered(1, ended=False, progress=True)
        book.worker_lost(0, float(death))


def test_restarts_wait_longer_each_time_and_not_for_ever() -> None:
    seat, patience, pauses = Seat(0), Supervision(first_pause_s=0.1, longest_pause_s=5.0), []
    for _ in range(100):
        seat.pause(0.0, patience)
        pauses.append(seat.next_start_s)
    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert max(pauses) == 5.0


def test_what_is_kept_of_a_dead_engine_is_what_only_grows() -> None:
    full = EngineStats(
        waiting=1, riding=2, sessions=3, kv_used_bytes=4, kv_budget_bytes=5, kv_active_bytes=6, sweeps=7, busy_s=8.0,
        row_layers=9, rows_by_layer=(1,), batches_by_layer=(2,), evictions=10, preemptions=11, oldest_wait_s=12.0,
    )  # fmt: skip
    kept = EngineStats(
        sweeps=7, busy_s=8.0, row_layers=9, rows_by_layer=(1,), batches_by_layer=(2,), evictions=10, preemptions=11
    )
    assert counters(full) == kept
