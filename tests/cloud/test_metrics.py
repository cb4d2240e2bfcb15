"""Metrics of one server: what a session's steps leave in them, and what is read from the engine."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client import generate_latest

from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.gateway.reply_watch import MAX_PARTS, SILENCE_S, ReplyRecord, ReplyWatch
from splitglm_cloud.metrics import Metrics, class_label
from splitglm_cloud.status import WorkerStatus
from splitglm_core import telemetry as names
from splitglm_core.criticality import Criticality
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step

PLAN = SplitPlan.cloud_only(4)


def configure(*, generated: tuple[int, ...] = (), criticality: Criticality = Criticality.CRITICAL) -> Configure:
    return Configure(
        plan=PLAN, sampling=SamplingParams(), generated=generated, stop_ids=(), context=64, keep=0, deadline_ms=0,
        criticality=criticality,
    )  # fmt: skip


def step(rows: int = 1, seq: int = 1) -> Step:
    return Step(
        handle=1, fence=1, seq=seq, base=0, rows_kind=Rows.IDS, rows=rows, reply=Reply.TOKEN, generate=1,
        payload=bytes(4 * rows),
    )  # fmt: skip


def answer(*, last: bool = True, rows: int = 1, queue_us: int = 0, sweep_us: int = 0, compute_us: int = 0) -> Output:
    return Output(1, rows, b"", last, queue_us, sweep_us, compute_us)


class Watched:
    """A watch with everything that it tells."""

    def __init__(self, *, traced: bool = True) -> None:
        self.metrics = Metrics()
        self.replies: list[ReplyRecord] = []
        self.watch = ReplyWatch(7, self.metrics, self.replies.append if traced else None)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def labels(criticality: Criticality = Criticality.CRITICAL, **more: str) -> dict[str, str]:
    return {"class": class_label(criticality), **more}


def test_first_and_further_answers_are_timed_by_class() -> None:
    it = Watched()
    batch = Criticality.SHEDDABLE
    it.watch.configured(configure(criticality=batch), 10.0)
    it.watch.submitted(step(8), 11.0)
    it.watch.answered(answer(rows=0), 11.5)  # an acknowledged chunk is no answer
    it.watch.submitted(step(8, 2), 12.0)
    it.watch.answered(answer(last=False), 13.0)
    it.watch.answered(answer(), 13.25)
    it.watch.submitted(step(1, 3), 20.0)  # the device's own time is not counted
    it.watch.answered(answer(), 20.25)
    first, further = names.TIME_TO_FIRST_TOKEN_SECONDS, names.INTER_TOKEN_LATENCY_SECONDS
    assert it.value(first + "_sum", **labels(batch)) == 2.0
    assert it.value(first + "_count", **labels(batch)) == 1.0
    assert it.value(further + "_sum", **labels(batch)) == 0.5
    assert it.value(further + "_count", **labels(batch)) == 2.0
    assert it.value(names.STEPS_TOTAL, **labels(batch, outcome="ok")) == 3.0
    assert it.value(first + "_count", **labels()) is None
    assert it.watch.answers_per_s == pytest.approx(2 / 7.25)


def test_with_the_tail_on_the_device_the_last_answer_to_the_prompt_is_the_first_token() -> None:
    it = Watched()
    it.watch.configured(configure(), 0.0)
    for seq, now_s in ((1, 1.0), (2, 2.0)):
        it.watch.submitted(step(100, seq), now_s)
        it.watch.answered(answer(rows=100), now_s + 0.5)
    assert it.value(names.TIME_TO_FIRST_TOKEN_SECONDS + "_count", **labels()) is None
    it.watch.submitted(step(1, 3), 4.0)
    it.watch.answered(answer(), 4.25)
    assert it.value(names.TIME_TO_FIRST_TOKEN_SECONDS + "_sum", **labels()) == 1.5
    assert it.value(names.INTER_TOKEN_LATENCY_SECONDS + "_sum", **labels()) == 0.25
    it.watch.ended(5.0)
    assert (it.replies[0].rows, it.replies[0].answers, it.replies[0].first_answer_s) == (201, 2, 2.5)


def test_every_step_ends_in_one_outcome() -> None:
    it = Watched()
    it.watch.configured(configure(), 0.0)
    it.watch.refused(ErrorCode.OVERLOADED)
    it.watch.submitted(step(), 1.0)
    it.watch.failed(ErrorCode.OVERLOADED, 2.0)
    it.watch.submitted(step(), 2.0)
    it.watch.failed(ErrorCode.BAD_TENSOR, 3.0)
    it.watch.submitted(step(), 4.0)
    it.watch.answered(answer(), 5.0)
    it.watch.submitted(step(), 6.0)
    it.watch.ended(7.0)
    it.watch.ended(8.0)
    outcomes = {outcome: it.value(names.STEPS_TOTAL, **labels(outcome=outcome)) for outcome in names.STEP_OUTCOMES}
    assert outcomes == {"ok": 1.0, "failed": 1.0, "refused": 2.0, "lost": 1.0}


def test_a_reply_ends_with_the_next_with_its_session_or_in_silence() -> None:
    it = Watched()
    for now_s, end in (
        (0.0, lambda: it.watch.configured(configure(), 2.0)),
        (10.0, lambda: it.watch.ended(12.0)),
        (20.0, lambda: it.watch.swept(21.5 + SILENCE_S)),
    ):
        it.watch.configured(configure(), now_s)
        it.watch.submitted(step(5), now_s)
        it.watch.answered(answer(queue_us=250_000, sweep_us=125_000, compute_us=500_000), now_s + 1)
        it.watch.swept(now_s + SILENCE_S)  # not silent for long enough
        before = len(it.replies)
        end()
        assert len(it.replies) == before + 1
        reply = it.replies[-1]
        assert (reply.session, reply.rows, reply.answers, reply.outcome) == (7, 5, 1, "ok")
        assert (reply.start_s, reply.first_answer_s, reply.end_s) == (now_s, now_s + 1, now_s + 1)
        assert [(part.name, part.end_s - part.start_s) for part in reply.parts] == [
            ("queue", 0.25),
            ("sweep", 0.125),
            ("back", 0.5),
        ]
        assert (reply.queue_s, reply.sweep_s, reply.back_s) == (0.25, 0.125, 0.5)
    it.watch.configured(configure(generated=(1,)), 90.0)
    it.watch.submitted(step(), 90.0)
    it.watch.configured(configure(generated=(1, 2)), 91.0)  # the same reply on another stream
    assert len(it.replies) == 3


def test_a_reply_under_way_is_never_silent() -> None:
    it = Watched()
    it.watch.configured(configure(), 0.0)
    it.watch.submitted(step(), 0.0)
    it.watch.swept(10 * SILENCE_S)
    assert it.replies == []


def test_rebuilds_are_counted_by_result_and_timed() -> None:
    it = Watched()
    it.watch.configured(configure(), 0.0)
    it.watch.submitted(step(), 0.0)
    assert not it.watch.rebuilding
    it.watch.rebuild_began(1.0)
    assert it.watch.rebuilding
    it.watch.rebuild_ended(3.0, ok=True)
    it.watch.rebuild_ended(4.0, ok=True)
    it.watch.rebuild_began(5.0)
    it.watch.ended(6.0)
    counts = {result: it.value(names.REBUILDS_TOTAL, result=result) for result in ("ok", "failed")}
    assert counts == {"ok": 1.0, "failed": 1.0}
    assert it.replies[0].rebuild_s == 3.0


def test_parts_are_bounded_and_none_are_kept_without_a_listener() -> None:
    for traced in (True, False):
        it = Watched(traced=traced)
        it.watch.configured(configure(), 0.0)
        for i in range(MAX_PARTS):
            it.watch.submitted(step(), float(i))
            it.watch.answered(answer(queue_us=10, compute_us=10), i + 0.5)
        parts = it.watch._reply.parts  # type: ignore[union-attr]
        assert len(parts) == (MAX_PARTS if traced else 0)
        it.watch.ended(1e6)
        assert [len(reply.parts) for reply in it.replies] == [MAX_PARTS] * traced


def samples(metrics: Metrics) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_the_engine_is_read_when_the_page_is() -> None:
    metrics = Metrics()
    asked = []
    stats = EngineStats(
        waiting_rows=5, waiting_by_class=(1, 2, 0, 3), riding=4, oldest_wait_s=0.5, kv_used_bytes=30,
        kv_budget_bytes=120, kv_active_bytes=20, sweeps=9, sweep_s=0.25, busy_s=2.5, row_layers=24,
        rows_by_layer=(16, 8), batches_by_layer=(4, 1), evictions=2, preemptions=1, sessions=6,
    )  # fmt: skip
    workers = [
        WorkerStatus(number=0, pid=11, state="ready", restarts=2),
        WorkerStatus(number=1, pid=0, state="down", restarts=3),
    ]
    metrics.engine.watch(lambda: asked.append(1) or stats, lambda: workers)  # type: ignore[func-returns-value]
    assert asked == []
    page = samples(metrics)
    assert asked == [1]
    assert page[names.ROWS_WAITING, ()] == 5 and page[names.OLDEST_WAIT_SECONDS, ()] == 0.5
    assert page[names.KV_USAGE_RATIO, ()] == 0.25 and page[names.KV_ACTIVE_BYTES, ()] == 20
    assert page[names.STEPS_WAITING, (("class", "critical"),)] == 2
    assert page[names.STEPS_WAITING, (("class", "sheddable"),)] == 3
    assert page[names.LAYER_ROWS_TOTAL, (("layer", "0"),)] / page[names.LAYER_BATCHES_TOTAL, (("layer", "0"),)] == 4
    assert page[names.SWEEPS_TOTAL, ()] == 9 and page[names.EVICTIONS_TOTAL, ()] == 2
    assert page[names.WORKERS, (("state", "ready"),)] == 1 and page[names.WORKERS, (("state", "down"),)] == 1
    assert page[names.WORKER_RESTARTS_TOTAL, ()] == 5


def test_every_declared_name_is_on_the_page_of_a_server_that_has_done_nothing() -> None:
    page = generate_latest(Metrics().registry).decode()
    declared = [value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)]
    assert [name for name in declared if name not in page] == []
    assert 'outcome="refused"} 0.0' in page


def test_every_counter_is_there_before_it_counts() -> None:
    # A rate sees nothing of a counter's first appearance: an error that comes once would never be seen.
    page = generate_latest(Metrics().registry).decode()
    wanted = {
        names.HANDSHAKES_TOTAL: [("result", result) for result in names.HANDSHAKE_RESULTS],
        names.ERRORS_TOTAL: [("code", code.name) for code in ErrorCode],
        names.TOKENS_TOTAL: [("kind", kind) for kind in names.TOKEN_KINDS],
        names.WIRE_BYTES_TOTAL: [("direction", "up"), ("direction", "down")],
        names.REBUILDS_TOTAL: [("result", result) for result in names.REBUILD_RESULTS],
    }
    for name, labels in wanted.items():
        for label, value in labels:
            assert f'{name}{{{label}="{value}"}} 0.0' in page
