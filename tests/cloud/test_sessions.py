"""The table of sessions: who owns what, who gives way, what is refused; with a fake executor and fake streams."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from splitglm_cloud.engine.events import Evicted, Failure, Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.gateway.load import LoadGate, LoadLimits
from splitglm_cloud.gateway.reaction import Rebuild
from splitglm_cloud.gateway.recent_load import HALF_LIFE_S, RecentLoad
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_cloud.gateway.speed import Speed
from splitglm_cloud.metrics import Metrics
from splitglm_core.criticality import Criticality
from splitglm_core.plan import Codec, HeadSide, Precision, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.layer_times import LayerTimes
from splitglm_partitioner.profiles import CloudProfile
from splitglm_wire.cloud import Output
from splitglm_wire.frames import (
    Cancel,
    Close,
    Draining,
    Ended,
    Error,
    ErrorCode,
    Frame,
    Open,
    Opened,
    Ping,
    Pong,
    Reply,
    Result,
    Rows,
    Scope,
    Step,
    Truncate,
)
from splitglm_wire.limits import MAX_SESSIONS_PER_STREAM
from splitglm_wire.manifest import CloudManifest

SHAPE = ModelShape(
    layers=4, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocab=100, max_positions=512, tied_head=False
)
PROFILE = CloudProfile(
    layers=4, served=LayerRange(0, 4), times=LayerTimes.uniform(4, decode_s=2e-3, prefill_s_per_token=1e-3),
    has_embedding=True, has_head=True, head_s=2e-3, queue_s=0.0, codecs=(Codec.FP32, Codec.BF16),
)  # fmt: skip
PLAN = SplitPlan.cloud_only(4)
USHAPE = SplitPlan(layers=4, s=1, t=3, head=HeadSide.DEVICE, codec=Codec.FP32)
CALM = EngineStats()
SOMEBODY = Owner("somebody")


@dataclass
class FakeExecutor:
    """Writes down what it is told."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    load: EngineStats = CALM
    ready: bool = True

    def stats(self) -> EngineStats:
        return self.load

    def __getattr__(self, name: str) -> Any:
        if name not in ("configure", "submit", "abort", "cut", "drop"):
            raise AttributeError(name)
        return lambda *values: self.calls.append((name, *values))

    def names(self, session: int) -> list[str]:
        return [call[0] for call in self.calls if call[1] == session]


@dataclass(eq=False)
class FakeStream:
    owner: Owner = SOMEBODY
    frames: list[Frame] = field(default_factory=list)

    def send(self, frame: Frame) -> None:
        self.frames.append(frame)

    def codes(self) -> list[ErrorCode]:
        return [frame.code for frame in self.frames if isinstance(frame, Error)]

    def results(self) -> list[Result]:
        return [frame for frame in self.frames if isinstance(frame, Result)]


class World:
    def __init__(
        self, *, max_sessions: int = 4, ttl_s: float = 60.0, idle_s: float = 1e12, queue_bytes: int = 1 << 20,
        of_tenant: int = 10_000, apart: bool = False, **manifest: Any,
    ) -> None:  # fmt: skip
        offer = {
            "version": "1", "fingerprint": bytes(32), "layers": LayerRange(0, 4), "embedding": True, "head": True,
            "precision": Precision.FP32, "codecs": (Codec.FP32, Codec.BF16), "max_context": 256, "profile": "{}",
        } | manifest  # fmt: skip
        self.executor = FakeExecutor()
        limits = LoadLimits(max_queue_bytes=queue_bytes, max_sessions_per_tenant=of_tenant)
        # One layer takes a tenth of a second for any batch, and a hundredth more for each row.
        self.gate = LoadGate(layers=4, limits=limits, speed=Speed(prior={1: 0.11, 100: 1.1}))
        self.metrics = Metrics()
        self.now_s = 100.0
        self.table = SessionTable(
            manifest=CloudManifest(**offer), shape=SHAPE, executor=self.executor,  # type: ignore[arg-type]
            metrics=self.metrics, max_sessions=max_sessions, session_ttl_s=ttl_s, attached_idle_s=idle_s,
            gate=self.gate, load=RecentLoad(PROFILE), tenants_apart=apart, clock=lambda: self.now_s,
        )  # fmt: skip

    def stream(self, owner: Owner = SOMEBODY) -> FakeStream:
        stream = FakeStream(owner)
        self.table.attach(stream)
        return stream

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"splitglm_{name}", labels) or 0.0


def open_frame(name: int, *, handle: int = 1, fence: int = 1, plan: SplitPlan = PLAN, context: int = 128) -> Open:
    return Open(
        handle=handle, session_id=bytes([name] * 16), fence=fence, request=1, plan=plan, context=context, keep=0,
        sampling=SamplingParams(),
    )  # fmt: skip


def step_frame(*, handle: int = 1, fence: int = 1, seq: int = 1, base: int = 0, generate: int = 2) -> Step:
    return Step(
        handle=handle, fence=fence, seq=seq, base=base, rows_kind=Rows.IDS, rows=2, reply=Reply.TOKEN,
        generate=generate, payload=struct.pack("<2I", 5, 6),
    )  # fmt: skip


def token(number: int, *, seq: int = 1, last: bool = False) -> Output:
    return Output(seq, 1, struct.pack("<I", number), last)


def test_a_session_is_opened_stepped_and_answered_on_its_stream() -> None:
    world = World()
    mine, other = world.stream(), world.stream()
    world.table.receive(mine, open_frame(1))
    world.table.receive(mine, step_frame())
    world.table.on_outcome(1, token(42))
    world.table.on_outcome(1, token(43, last=True))
    assert world.executor.names(1) == ["configure", "submit"]
    assert isinstance(mine.frames[0], Opened)
    assert [bytes(result.payload) for result in mine.results()] == [struct.pack("<I", 42), struct.pack("<I", 43)]
    assert other.frames == [] and len(world.table) == 1
    assert world.metric("tokens_total", kind="generated") == 2.0
    assert world.metric("tokens_total", kind="prefill") == 2.0
    assert world.metric("sessions_open") == 1.0 and world.metric("streams_open") == 2.0


def test_a_handle_of_another_stream_is_unknown() -> None:
    """D5: a foreign session cannot be told from one that does not exist."""
    world = World()
    mine, stranger = world.stream(), world.stream()
    world.table.receive(mine, open_frame(1))
    for frame in (step_frame(), Truncate(handle=1, fence=1, length=0), Cancel(handle=1, fence=1, seq=1)):
        world.table.receive(stranger, frame)
    world.table.receive(stranger, Close(handle=1, fence=1))
    assert stranger.codes() == [ErrorCode.NO_SESSION] * 4
    assert len({(e.text, e.scope, e.have) for e in stranger.frames}) == 1  # type: ignore[union-attr]
    assert len(world.table) == 1 and world.executor.names(1) == ["configure"]


def test_the_newest_fence_owns_the_session() -> None:
    world = World()
    old, new = world.stream(), world.stream()
    world.table.receive(old, open_frame(1))
    world.table.receive(new, open_frame(1, handle=7, fence=1))  # not higher: refused
    assert new.codes() == [ErrorCode.FENCED]
    world.table.receive(new, open_frame(1, handle=7, fence=2))
    assert isinstance(new.frames[-1], Opened) and new.frames[-1].handle == 7
    world.table.receive(old, step_frame())
    assert old.codes() == [ErrorCode.NO_SESSION]
    world.table.receive(new, step_frame(handle=7, fence=2))
    world.table.on_outcome(1, token(9, last=True))
    assert not old.results() and [result.handle for result in new.results()] == [7]
    world.table.detach(old, 0.0)  # the old stream's end concerns nobody
    world.table.sweep(1e9)
    assert len(world.table) == 1


def test_an_open_of_the_past_changes_nothing_and_counts_as_refused() -> None:
    world = World(max_context=512)
    stream = world.stream()
    world.table.receive(stream, open_frame(1, fence=3))
    late = replace(open_frame(1, fence=3), criticality=Criticality.SHEDDABLE, generated=(7,), request=9)
    world.table.receive(stream, late)
    assert stream.codes() == [ErrorCode.FENCED] and last_error(stream).fence == 3
    (held,) = world.table._by_key.values()
    assert (held.criticality, held.under_way, held.request) == (Criticality.CRITICAL, False, 1)
    assert world.metric("opens_total", **{"class": "critical", "outcome": "ok"}) == 1
    assert world.metric("opens_total", **{"class": "sheddable", "outcome": "refused"}) == 1


def test_one_handle_names_one_session() -> None:
    """Otherwise the first session would be held for ever: no stream would own it and no sweep would find it."""
    world = World(ttl_s=1.0)
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, open_frame(2))
    assert stream.codes() == [ErrorCode.BAD_REQUEST]
    world.table.detach(stream, 10.0)
    world.table.sweep(20.0)
    assert len(world.table) == 0


def test_a_session_outlives_its_stream_by_its_ttl() -> None:
    world = World(ttl_s=5.0)
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame(generate=50))
    world.table.detach(stream, now_s=100.0)
    assert world.executor.calls[-1] == ("abort", 1, 1)  # nobody listens: no token is computed for nothing
    world.table.on_outcome(1, token(5, last=True))
    world.table.sweep(104.9)
    assert len(world.table) == 1
    again = world.stream()
    world.table.receive(again, open_frame(1, fence=2))
    opened = again.frames[-1]
    assert isinstance(opened, Opened) and (opened.last_seq, opened.have) == (1, 0)  # it asked to keep nothing
    world.table.sweep(1e9)
    assert len(world.table) == 1  # attached: its age does not count
    world.table.detach(again, now_s=200.0)
    world.table.sweep(205.1)
    assert len(world.table) == 0 and world.executor.calls[-1] == ("drop", 1)
    assert world.metric("sessions_open") == 0.0


def test_an_outcome_for_a_forgotten_session_is_dropped() -> None:
    world = World(ttl_s=0.0)
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    world.table.detach(stream, 0.0)
    world.table.sweep(1.0)
    world.table.on_outcome(1, token(5, last=True))
    assert len(world.table) == 0 and not stream.results()


def test_when_the_table_is_full_the_longest_idle_session_gives_way() -> None:
    world = World(max_sessions=3)
    for name, left_s in ((1, 20.0), (2, 10.0)):
        stream = world.stream()
        world.table.receive(stream, open_frame(name))
        world.table.detach(stream, left_s)
    stays = world.stream()
    world.table.receive(stays, open_frame(3))
    world.table.receive(stays, open_frame(4, handle=2))
    assert stays.codes() == [] and len(world.table) == 3
    assert world.executor.calls[-2] == ("drop", 2)  # session 2 left first
    world.table.receive(stays, open_frame(5, handle=3))
    world.table.receive(stays, open_frame(6, handle=4))
    assert stays.codes() == [ErrorCode.OVERLOADED]  # nobody idle is left
    refusal = stays.frames[-1]
    assert isinstance(refusal, Error) and refusal.retry_after_ms > 0


def test_a_busy_session_never_gives_way() -> None:
    world = World(max_sessions=1)
    gone = world.stream()
    world.table.receive(gone, open_frame(1))
    world.table.receive(gone, step_frame())
    world.table.detach(gone, 0.0)
    stream = world.stream()
    world.table.receive(stream, open_frame(2))
    assert stream.codes() == [ErrorCode.OVERLOADED] and len(world.table) == 1


def test_an_attached_session_that_nothing_is_asked_of_ends() -> None:
    world = World(idle_s=100.0, ttl_s=1.0)
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, open_frame(2, handle=2))
    world.table.sweep(1000.0)
    world.table.receive(stream, step_frame(handle=2))  # a step that takes its time
    world.table.receive(stream, Ping(handle=1, nonce=1))  # shows that the link lives, not that the session is wanted
    world.table.sweep(1050.0)
    world.table.sweep(1100.0)
    assert len(world.table) == 2
    world.table.sweep(1100.5)
    assert len(world.table) == 1 and world.executor.calls[-1] == ("drop", 1)
    world.table.receive(stream, step_frame())
    assert stream.codes() == [ErrorCode.NO_SESSION]  # the device opens it anew
    world.table.on_outcome(2, token(5, last=True))
    world.table.sweep(1200.0)  # was busy until 1100.5
    assert len(world.table) == 1
    world.table.sweep(1200.6)
    assert len(world.table) == 0


def ack_frame(size: int, *, handle: int = 1, seq: int = 1, base: int = 0) -> Step:
    return Step(
        handle=handle, fence=1, seq=seq, base=base, rows_kind=Rows.IDS, rows=size // 4, reply=Reply.ACK, generate=0,
        payload=bytes(size),
    )  # fmt: skip


def acked(seq: int) -> Output:
    return Output(seq, 0, b"", True)


def test_queued_steps_of_all_sessions_share_one_budget() -> None:
    world = World(queue_bytes=100)
    first, second = world.stream(), world.stream()
    world.table.receive(first, open_frame(1))
    world.table.receive(second, open_frame(2))
    world.table.receive(first, ack_frame(40))
    world.table.receive(first, ack_frame(20, seq=2, base=10))
    world.table.receive(second, ack_frame(44))
    refusal = second.frames[-1]
    assert isinstance(refusal, Error) and refusal.resumable and refusal.retry_after_ms > 0
    assert (refusal.code, refusal.scope, refusal.seq) == (ErrorCode.OVERLOADED, Scope.STEP, 1)
    world.table.receive(second, ack_frame(40))  # exactly what is left
    assert len(second.codes()) == 1
    world.table.on_outcome(1, acked(1))  # 40 bytes are free again
    world.table.receive(first, ack_frame(40, seq=3, base=15))
    assert first.codes() == []
    world.table.receive(first, ack_frame(4, seq=4, base=25))
    assert first.codes() == [ErrorCode.OVERLOADED]


@pytest.mark.parametrize("how", ["failure", "lost", "closed", "opened anew"])
def test_no_way_to_end_keeps_a_part_of_the_budget(how: str) -> None:
    world = World(queue_bytes=100, ttl_s=1.0)
    stream, other = world.stream(), world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, ack_frame(40))
    world.table.receive(stream, ack_frame(40, seq=2, base=10))
    if how == "failure":
        world.table.on_outcome(1, Failure(1, ErrorCode.INTERNAL, "it failed"))
    elif how == "lost":
        world.table.detach(stream, 0.0)
        world.table.on_outcome(1, acked(1))
    elif how == "closed":
        world.table.receive(stream, Close(handle=1, fence=1))
    else:
        world.table.receive(stream, open_frame(1, fence=2))
        world.table.on_outcome(1, acked(1))
    world.table.receive(other, open_frame(2))
    world.table.receive(other, ack_frame(100))
    assert other.codes() == []


def test_sessions_of_one_stream_are_bounded() -> None:
    world = World(max_sessions=1000)
    stream = world.stream()
    for number in range(MAX_SESSIONS_PER_STREAM + 1):
        world.table.receive(stream, replace(open_frame(0, handle=number), session_id=number.to_bytes(16)))
    assert stream.codes() == [ErrorCode.OVERLOADED]
    assert len(world.table) == MAX_SESSIONS_PER_STREAM


def test_close_frees_the_session_and_says_so() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, Close(handle=1, fence=1))
    assert isinstance(stream.frames[-1], Ended) and len(world.table) == 0
    assert world.executor.calls[-1] == ("drop", 1)
    world.table.receive(stream, open_frame(2))  # the handle is free again
    assert stream.codes() == []


@pytest.mark.parametrize(
    ("frame", "manifest", "code"),
    [
        (open_frame(1, plan=SplitPlan.cloud_only(5)), {}, ErrorCode.BAD_REQUEST),
        (open_frame(1, plan=SplitPlan.device_only(4)), {}, ErrorCode.BAD_REQUEST),
        (open_frame(1), {"layers": LayerRange(1, 4)}, ErrorCode.BAD_REQUEST),
        (open_frame(1), {"embedding": False}, ErrorCode.BAD_REQUEST),
        (open_frame(1), {"head": False}, ErrorCode.BAD_REQUEST),
        (open_frame(1, plan=replace(USHAPE, codec=Codec.INT8)), {}, ErrorCode.BAD_REQUEST),
        (open_frame(1, context=257), {}, ErrorCode.TOO_LARGE),
        (replace(open_frame(1, context=100), generated=(1,) * 101), {}, ErrorCode.BAD_REQUEST),
    ],
)
def test_what_the_cloud_does_not_serve_is_refused_before_anything_is_made(
    frame: Open, manifest: dict[str, Any], code: ErrorCode
) -> None:
    world = World(**manifest)
    stream = world.stream()
    world.table.receive(stream, frame)
    assert stream.codes() == [code] and len(world.table) == 0 and world.executor.calls == []
    assert world.metric("errors_total", code=code.name) == 1.0


def test_a_cloud_without_text_serves_the_u_shape() -> None:
    world = World(embedding=False, head=False)
    stream = world.stream()
    world.table.receive(stream, open_frame(1, plan=USHAPE))
    assert stream.codes() == [] and isinstance(stream.frames[0], Opened)


def test_while_draining_running_sessions_go_on_and_new_ones_are_sent_away() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    world.table.draining = True
    assert world.table.busy == 1
    world.table.receive(stream, open_frame(2, handle=2))
    assert stream.codes() == [ErrorCode.DRAINING]
    world.table.on_outcome(1, token(3, last=True))
    assert len(stream.results()) == 1 and world.table.busy == 0


def test_a_failed_step_is_told_and_its_session_goes_on() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    world.table.on_outcome(1, Failure(1, ErrorCode.BAD_TENSOR, "bad"))
    assert stream.codes() == [ErrorCode.BAD_TENSOR]
    assert world.executor.names(1) == ["configure", "submit", "cut"]
    world.table.receive(stream, step_frame())
    assert world.executor.names(1)[-1] == "submit"
    assert world.metric("steps_total", outcome="failed", **{"class": "critical"}) == 1.0


def test_pings_are_answered_with_the_size_asked_for() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, Ping(handle=3, nonce=77, size=10, reply_size=1000))
    assert stream.frames == [Pong(handle=3, nonce=77, size=1000)]


def loads(stream: FakeStream, world: World) -> tuple[int, int, int]:
    """What a ping is told of the load: waits in microseconds, slowdown in thousandths."""
    world.table.receive(stream, Ping(handle=9, nonce=1))
    pong = stream.frames.pop()
    assert isinstance(pong, Pong)
    return pong.queue_us, pong.sweep_us, pong.slowdown_permille


def test_every_device_is_told_the_load_of_all() -> None:
    world = World()
    busy, other = world.stream(), world.stream(Owner("other"))
    assert loads(other, world) == (0, 0, 1000)
    world.table.receive(busy, open_frame(1))
    world.table.receive(busy, step_frame(generate=3))
    timed = {"queue_us": 4000, "sweep_us": 500, "compute_us": 30_000}
    world.table.on_outcome(1, replace(token(42), **timed))
    assert loads(other, world) == (4000, 500, 1000)  # its two rows are no decode step
    world.table.on_outcome(1, replace(token(43), **timed))
    assert loads(other, world) == loads(busy, world) == (4000, 500, 3000)  # 4 layers and the head at 2 ms each
    world.table.on_outcome(1, token(44, last=True))
    world.now_s += HALF_LIFE_S
    assert loads(other, world) == (2000, 250, 2000)


@pytest.mark.parametrize("how", ["failure", "eviction", "close"])
def test_a_step_that_ends_without_an_answer_is_no_longer_under_way(how: str) -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    assert world.table._load.under_way == world.table.busy == 1
    if how == "failure":
        world.table.on_outcome(1, Failure(1, ErrorCode.INTERNAL, "it failed"))
    elif how == "eviction":
        world.table.on_outcome(1, Evicted(1))
    else:
        world.table.receive(stream, Close(handle=1, fence=1))
    assert world.table._load.under_way == world.table.busy == 0


def test_what_a_rebuild_took_is_not_told_as_load() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame(generate=3))
    world.table.on_rebuild(1, Rebuild.BEGAN)
    world.table.on_rebuild(1, Rebuild.OK)
    world.table.on_outcome(1, replace(token(42), queue_us=5_000_000, compute_us=900_000))
    assert loads(stream, world) == (0, 0, 1000)
    world.table.on_outcome(1, replace(token(43), queue_us=70, compute_us=10_000))
    assert loads(stream, world) == (70, 0, 1000)


@pytest.mark.parametrize("frame", [Draining(handle=1, deadline_ms=1), Ended(handle=1), Pong(handle=1, nonce=1)])
def test_frames_that_only_a_cloud_sends_are_refused(frame: Frame) -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, frame)
    assert stream.codes() == [ErrorCode.BAD_REQUEST] and len(world.table) == 1


SLOW = 45
"""Rows that need 4 * (0.1 + 45 * 0.01) s in this world: more than the two seconds that may wait."""


def prompt_frame(rows: int, *, handle: int = 1, fence: int = 1, seq: int = 1, base: int = 0) -> Step:
    return replace(ack_frame(4 * rows, handle=handle, seq=seq, base=base), fence=fence)


def long_open(name: int, **changes: Any) -> Open:
    return replace(open_frame(name, context=512), **changes)


def busy_world() -> tuple[World, FakeStream]:
    """Somebody's prompt is being computed, and it takes long."""
    world = World(max_context=512)
    other = world.stream()
    world.table.receive(other, long_open(9))
    world.table.receive(other, prompt_frame(SLOW))
    assert other.codes() == [] and world.gate.queue_s > 2.0
    return world, other


def last_error(stream: FakeStream) -> Error:
    error = stream.frames[-1]
    assert isinstance(error, Error)
    return error


def test_work_belongs_to_the_owner_of_its_stream() -> None:
    world = World()
    lab, shop = Owner("lab", 2.0), Owner("shop")
    first, second = world.stream(lab), world.stream(shop)
    world.table.receive(first, open_frame(1))
    world.table.receive(second, open_frame(2))
    assert [call[3] for call in world.executor.calls if call[0] == "configure"] == [lab, shop]
    world.table.receive(second, open_frame(1, handle=5, fence=2))  # who knows the session's id may take it along
    assert world.executor.calls[-1][3] == shop
    assert (world.gate.sessions_of("lab"), world.gate.sessions_of("shop")) == (0, 2)
    assert [status.tenant for status in world.table.status()] == ["shop", "shop"]


def test_a_prompt_that_would_wait_too_long_is_refused_with_a_hint_and_its_session_stays_as_it_was() -> None:
    world, other = busy_world()
    stream = world.stream()
    world.table.receive(stream, long_open(1, criticality=Criticality.SHEDDABLE))
    assert last_error(stream).code is ErrorCode.OVERLOADED and len(world.table) == 1  # nothing is held for it
    world.table.on_outcome(1, acked(1))
    world.table.receive(stream, long_open(1, criticality=Criticality.SHEDDABLE))
    world.table.receive(other, prompt_frame(150, seq=2, base=SLOW))
    calls = len(world.executor.calls)
    world.table.receive(stream, prompt_frame(SLOW))
    refusal = last_error(stream)
    assert (refusal.code, refusal.scope, refusal.seq, refusal.have) == (ErrorCode.OVERLOADED, Scope.STEP, 1, 0)
    assert refusal.resumable and 50 <= refusal.retry_after_ms <= 10_000
    assert len(world.executor.calls) == calls  # nothing was computed, cut or configured
    world.table.on_outcome(1, acked(2))
    world.table.receive(stream, prompt_frame(SLOW))  # the very same step
    assert len(stream.codes()) == 2 and world.executor.names(2) == ["configure", "submit"]


def test_who_is_more_critical_is_served_where_others_are_refused() -> None:
    world, _ = busy_world()
    for number, criticality in enumerate(Criticality):
        stream = world.stream()
        world.table.receive(stream, long_open(number, criticality=criticality))
        assert bool(stream.codes()) is (criticality > Criticality.CRITICAL_PLUS)


@pytest.mark.parametrize("said", Criticality)
def test_a_tenants_requests_are_no_more_critical_than_it_may_say(said: Criticality) -> None:
    world = World()
    stream = world.stream(Owner("lab", highest=Criticality.SHEDDABLE_PLUS))
    world.table.receive(stream, replace(open_frame(1), criticality=said))
    (configure,) = [call[2] for call in world.executor.calls if call[0] == "configure"]
    least = max(said, Criticality.SHEDDABLE_PLUS)
    assert configure.criticality == least
    assert world.table.status()[0].criticality == least.name.lower()
    assert world.metric("opens_total", **{"class": least.name.lower(), "outcome": "ok"}) == 1


def test_a_reply_under_way_goes_on_in_an_overloaded_cloud() -> None:
    world = World(max_context=512)
    stream, other = world.stream(), world.stream()
    low = long_open(1, plan=USHAPE, criticality=Criticality.SHEDDABLE)
    world.table.receive(stream, low)
    hidden = Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=1, reply=Reply.ALL_HIDDEN, generate=0,
        payload=bytes(32),
    )  # fmt: skip
    world.table.receive(stream, hidden)
    world.table.on_outcome(1, Output(1, 1, bytes(32), True))
    world.table.receive(other, long_open(2))
    world.table.receive(other, prompt_frame(SLOW))
    assert world.gate.queue_s > 2.0
    world.table.receive(stream, replace(hidden, seq=2, base=1))
    world.table.on_outcome(1, Output(2, 1, bytes(32), True))
    # Also after its stream broke, when the device says what it has.
    world.table.detach(stream, 1.0)
    again = world.stream()
    world.table.receive(again, replace(low, fence=2, keep=2))
    world.table.receive(again, replace(hidden, fence=2, seq=3, base=2))
    assert stream.codes() == again.codes() == []
    # The next reply begins with a prompt like every other.
    world.table.on_outcome(1, Output(3, 1, bytes(32), True))
    world.table.receive(again, replace(low, fence=3, keep=3, request=2))
    world.table.receive(again, replace(hidden, fence=3, seq=4, base=3))
    assert again.codes() == [ErrorCode.OVERLOADED]


def test_a_prompts_chunks_do_not_pass_for_a_reply() -> None:
    world = World(max_context=512)
    stream, other = world.stream(), world.stream()
    world.table.receive(stream, long_open(1, plan=USHAPE))
    chunk = Step(
        handle=1, fence=1, seq=1, base=0, rows_kind=Rows.HIDDEN, rows=64, reply=Reply.ALL_HIDDEN, generate=0,
        payload=bytes(64 * 32),
    )  # fmt: skip
    world.table.receive(stream, chunk)
    world.table.on_outcome(1, Output(1, 64, bytes(64 * 32), True))
    world.table.receive(other, long_open(2))
    world.table.receive(other, prompt_frame(SLOW))
    world.table.receive(stream, replace(chunk, seq=2, base=64))
    assert stream.codes() == [ErrorCode.OVERLOADED]


def test_a_prompt_in_small_pieces_does_not_pass_for_a_reply_because_its_device_says_so() -> None:
    world = World(max_context=4096)
    stream = world.stream()
    world.table.receive(stream, replace(long_open(1), generated=(7,)))
    for number in range(60):
        piece = Step(
            handle=1, fence=1, seq=number + 1, base=32 * number, rows_kind=Rows.IDS, rows=32, reply=Reply.ACK,
            generate=0, payload=bytes(128),
        )  # fmt: skip
        world.table.receive(stream, piece)
    assert ErrorCode.OVERLOADED in stream.codes()
    assert world.gate.queue_s <= 2.0 + 4 * 0.01 * 32  # what waited when the last one was let in, and that one


@pytest.mark.parametrize("apart", [True, False])
def test_a_tenant_cannot_take_another_tenants_session_even_by_its_id(apart: bool) -> None:
    world = World(apart=apart)
    mine, theirs = world.stream(Owner("a")), world.stream(Owner("b"))
    world.table.receive(mine, open_frame(1))
    world.table.receive(theirs, open_frame(1, fence=9))
    # Without tenants an owner is an address, and a device may come back from another one.
    assert theirs.codes() == ([ErrorCode.FENCED] if apart else [])
    assert len(world.table) == 1
    world.table.receive(mine, step_frame())
    assert bool(mine.codes()) is not apart


def test_a_lost_answer_is_fetched_however_busy_the_cloud_is() -> None:
    world = World(max_context=512)
    stream, other = world.stream(), world.stream()
    world.table.receive(stream, long_open(1))
    world.table.receive(stream, prompt_frame(40))
    world.table.on_outcome(1, acked(1))
    world.table.receive(other, long_open(2))
    world.table.receive(other, prompt_frame(SLOW))
    world.table.receive(stream, prompt_frame(40))
    assert stream.codes() == [] and len(stream.results()) == 2


def test_without_a_ready_worker_new_sessions_are_sent_away_as_unavailable() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.executor.ready = False
    world.table.receive(stream, open_frame(2, handle=2))
    refusal = last_error(stream)
    assert refusal.code is ErrorCode.UNAVAILABLE and not refusal.resumable and refusal.retry_after_ms > 0
    world.table.receive(stream, open_frame(1, fence=2))  # who is held already waits for the new worker
    world.table.receive(stream, step_frame(fence=2))
    assert len(stream.codes()) == 1 and world.executor.names(1)[-1] == "submit"


def test_a_tenants_sessions_are_bounded_and_its_longest_idle_one_gives_way() -> None:
    world = World(max_sessions=100, of_tenant=2)
    lab = Owner("lab")
    gone, here, other = world.stream(lab), world.stream(lab), world.stream(Owner("shop"))
    world.table.receive(gone, open_frame(1))
    world.table.detach(gone, 1.0)
    for name in (2, 3):
        world.table.receive(here, open_frame(name, handle=name))
    assert here.codes() == [] and world.executor.names(1)[-1] == "drop"
    world.table.receive(here, open_frame(4, handle=4))
    assert last_error(here).code is ErrorCode.OVERLOADED and "tenant" in last_error(here).text
    world.table.receive(other, open_frame(5))
    assert other.codes() == []


def test_nothing_stays_booked_when_all_are_gone() -> None:
    world, other = busy_world()
    stream = world.stream()
    world.table.receive(stream, long_open(1, criticality=Criticality.CRITICAL_PLUS))
    world.table.receive(stream, prompt_frame(30))
    world.table.receive(stream, Close(handle=1, fence=1))
    world.table.on_outcome(1, Failure(1, ErrorCode.INTERNAL, "it failed"))
    assert (world.gate.queue_s, world.gate.queue_bytes) == (0.0, 0)
    world.table.receive(other, Close(handle=1, fence=1))
    assert world.gate.sessions_of("somebody") == 0 and len(world.table) == 0


def test_a_refusal_costs_less_than_a_millisecond() -> None:
    world, _ = busy_world()
    stream = world.stream()
    frame = long_open(1)
    started_s = time.process_time()
    for _ in range(300):
        world.table.receive(stream, frame)
    assert (time.process_time() - started_s) / 300 < 1e-3
    assert stream.codes() == [ErrorCode.OVERLOADED] * 300


def test_the_status_tells_what_a_session_does_and_gives_no_right_to_it() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(200))
    (opened,) = world.table.status()
    assert (opened.number, opened.arm, opened.s, opened.t, opened.state) == (1, "cloud", 0, 4, "idle")
    assert opened.tenant == SOMEBODY.tenant and opened.criticality == "critical"
    world.table.receive(stream, step_frame())
    world.table.on_outcome(1, token(42))
    (running,) = world.table.status()
    assert running.state == "running" and (running.up_bytes, running.down_bytes) == (8, 4)
    world.table.on_outcome(1, token(43, last=True))
    world.table.detach(stream, 5.0)
    (away,) = world.table.status()
    assert away.state == "away" and away.positions == 3
    assert away.kv_bytes == 3 * SHAPE.kv_bytes_per_token(layers=4)
    shown = repr(away)
    assert bytes([200] * 16).hex() not in shown and repr(bytes([200] * 16)) not in shown
    world.table.sweep(1e9)
    assert world.table.status() == ()


def test_finished_replies_are_told_to_who_traces_them() -> None:
    world = World()
    replies: list[Any] = []
    world.table._on_reply = replies.append
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    world.table.on_outcome(1, token(42, last=True))
    assert replies == []
    world.table.receive(stream, Close(handle=1, fence=1))
    (reply,) = replies
    assert (reply.session, reply.rows, reply.answers, reply.outcome) == (1, 2, 1, "ok")


def test_a_rebuild_shows_in_the_status_and_is_counted() -> None:
    world = World()
    stream = world.stream()
    world.table.receive(stream, open_frame(1))
    world.table.receive(stream, step_frame())
    world.table.on_rebuild(1, Rebuild.FAILED)  # of none
    world.table.on_rebuild(1, Rebuild.BEGAN)
    assert [session.state for session in world.table.status()] == ["rebuilding"]
    world.table.on_rebuild(1, Rebuild.OK)
    assert [session.state for session in world.table.status()] == ["running"]
    world.table.on_rebuild(99, Rebuild.BEGAN)
    assert world.metric("rebuilds_total", result="ok") == 1.0
    assert world.metric("rebuilds_total", result="failed") == 0.0
    world.table.on_rebuild(1, Rebuild.LEFT)
    assert world.metric("rebuilds_total", result="left") == 1.0


@pytest.mark.parametrize(("stated_s", "least_ms", "most_ms"), [(0.0, 1000, 3600), (0.9, 300, 900)])
def test_work_that_waited_too_long_comes_back_with_a_hint(stated_s: float, least_ms: int, most_ms: int) -> None:
    world, _ = busy_world()
    stream = world.stream()
    world.table.receive(stream, long_open(1, criticality=Criticality.CRITICAL_PLUS))
    world.table.receive(stream, prompt_frame(2))
    world.table.on_outcome(2, Failure(1, ErrorCode.OVERLOADED, "the step waited too long for its turn", stated_s))
    error = last_error(stream)
    assert (error.code, error.scope, error.seq, error.resumable) == (ErrorCode.OVERLOADED, Scope.STEP, 1, True)
    assert least_ms <= error.retry_after_ms <= most_ms


def test_works_that_became_too_old_together_do_not_come_back_together() -> None:
    world = World(max_sessions=64, max_context=512)
    stream = world.stream()
    for number in range(1, 17):
        world.table.receive(stream, long_open(number, handle=number))
        world.table.receive(stream, prompt_frame(1, handle=number))
    assert stream.codes() == []
    for number in range(1, 17):
        world.table.on_outcome(number, Failure(1, ErrorCode.OVERLOADED, "the step waited too long for its turn", 4.0))
    hints_ms = sorted(frame.retry_after_ms for frame in stream.frames if isinstance(frame, Error))
    assert len(hints_ms) == 16 and hints_ms[-1] <= 4000
    assert hints_ms[-1] - hints_ms[0] > 2000
    assert max(late - early for early, late in pairwise(hints_ms)) < 500
