"""Traces of replies: one span with its parts, no content, and nothing at all unless a collector is named."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from splitglm_cloud.gateway.reply_watch import Part, ReplyRecord
from splitglm_cloud.tracing import Tracing
from splitglm_core.criticality import Criticality
from splitglm_core.errors import DeviceError
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.telemetry import SPANS

RECORD = ReplyRecord(
    session=7,
    criticality=Criticality.SHEDDABLE,
    plan=SplitPlan(layers=4, s=1, t=3, head=HeadSide.DEVICE, codec=Codec.BF16),
    start_s=100.0,
    end_s=104.0,
    first_answer_s=102.0,
    rows=9,
    answers=5,
    queue_s=0.5,
    sweep_s=0.125,
    back_s=1.5,
    rebuild_s=0.25,
    outcome="ok",
    parts=(Part("rebuild", 100.0, 100.25), Part("queue", 100.25, 100.75), Part("back", 100.75, 102.0)),
)


def spans_of(*records: ReplyRecord):  # type: ignore[no-untyped-def]
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing("http://127.0.0.1:4318", exporter=exporter)
    for record in records:
        tracing.record(record)
    found = exporter.get_finished_spans()
    tracing.close()
    return found


def test_a_reply_is_one_span_with_its_parts_as_children() -> None:
    *parts, reply = spans_of(RECORD)
    assert reply.name == SPANS[0] and reply.parent is None
    assert [part.name for part in parts] == ["rebuild", "queue", "back"] and {p.name for p in parts} <= set(SPANS)
    assert all(part.parent.span_id == reply.context.span_id for part in parts)
    assert all(part.context.trace_id == reply.context.trace_id for part in parts)
    assert [(part.end_time - part.start_time) / 1e9 for part in parts] == pytest.approx([0.25, 0.5, 1.25], abs=1e-6)
    assert (reply.end_time - reply.start_time) / 1e9 == pytest.approx(4.0, abs=1e-6)
    assert [(event.timestamp - reply.start_time) / 1e9 for event in reply.events] == pytest.approx([2.0], abs=1e-6)
    assert reply.resource.attributes["service.name"] == "splitglm-cloud"


def test_a_span_says_what_was_done_and_nothing_that_singles_out() -> None:
    *_, reply = spans_of(RECORD)
    assert dict(reply.attributes) == {
        "splitglm.session": 7, "splitglm.class": "sheddable", "splitglm.arm": "ushape", "splitglm.s": 1,
        "splitglm.t": 3, "splitglm.codec": "bf16", "splitglm.rows": 9, "splitglm.answers": 5, "splitglm.queue_s": 0.5,
        "splitglm.sweep_s": 0.125,
        "splitglm.back_s": 1.5, "splitglm.rebuild_s": 0.25, "splitglm.outcome": "ok",
    }  # fmt: skip


def test_a_reply_that_failed_is_an_error() -> None:
    from dataclasses import replace

    *_, reply = spans_of(replace(RECORD, outcome="BAD_TENSOR", first_answer_s=None, parts=()))
    assert reply.status.description == "BAD_TENSOR" and not reply.status.is_ok
    assert reply.events == ()


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys\n"
        "import splitglm_cloud.server\n"
        "from splitglm_cloud.operation import Operation\n"
        "from splitglm_cloud.settings import CloudSettings\n"
        "assert Operation(CloudSettings(model='m'), None).on_reply is None\n"
        "print(*(name for name in sys.modules if name.startswith('opentelemetry')))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(DeviceError) as error:
        Tracing("http://127.0.0.1:4318")
    assert "splitglm[otel]" in error.value.hint


def test_spans_reach_a_collector_and_one_that_is_away_costs_nothing_but_them() -> None:
    pytest.importorskip("opentelemetry.sdk")
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tracing = Tracing(f"http://127.0.0.1:{server.server_port}")
        tracing.record(RECORD)
        tracing.close()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces" and SPANS[0].encode() in body
    away = Tracing(f"http://127.0.0.1:{server.server_port}")
    away.record(RECORD)
    started_s = time.monotonic()
    away.close()
    assert time.monotonic() - started_s < 15
