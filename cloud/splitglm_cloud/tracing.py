"""Traces of replies for an OpenTelemetry collector. Nothing of OpenTelemetry is imported before tracing begins.

One span per reply and one child for each part of its time. Attributes are counts, the cut and the class: no content, no
session id, no tenant, no address.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from splitglm_cloud.gateway.reply_watch import ReplyRecord
from splitglm_cloud.metrics import class_label
from splitglm_core.errors import DeviceError
from splitglm_core.telemetry import SPANS
from splitglm_core.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_TRACES_PATH: Final = "/v1/traces"
_EXPORT_TIMEOUT_S: Final = 5


class Tracing:
    """Turns finished replies into spans; they are sent in the background, and dropped when the collector is away.

    Args:
        endpoint: URL of the collector; without a path the one of OTLP over HTTP is added.
        exporter: takes the spans instead, one by one.

    Raises:
        DeviceError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError as error:
            raise DeviceError("OpenTelemetry is not installed", "pip install 'splitglm[otel]'") from error
        resource = Resource.create({"service.name": "splitglm-cloud", "service.version": VERSION})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor: SpanProcessor
        if exporter is not None:
            processor = SimpleSpanProcessor(exporter)
        else:
            where = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _TRACES_PATH
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=where, timeout=_EXPORT_TIMEOUT_S))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("splitglm_cloud", VERSION)
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def record(self, reply: ReplyRecord) -> None:
        """Make the spans of a finished reply."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        attributes: dict[str, str | int | float] = {
            "splitglm.session": reply.session,
            "splitglm.class": class_label(reply.criticality),
            "splitglm.arm": reply.plan.arm.value,
            "splitglm.s": reply.plan.s,
            "splitglm.t": reply.plan.t,
            "splitglm.codec": reply.plan.codec.value,
            "splitglm.rows": reply.rows,
            "splitglm.answers": reply.answers,
            "splitglm.queue_s": reply.queue_s,
            "splitglm.sweep_s": reply.sweep_s,
            "splitglm.back_s": reply.back_s,
            "splitglm.rebuild_s": reply.rebuild_s,
            "splitglm.outcome": reply.outcome,
        }
        span = self._tracer.start_span(SPANS[0], start_time=self._ns(reply.start_s), attributes=attributes)
        if reply.first_answer_s is not None:
            span.add_event("first answer", timestamp=self._ns(reply.first_answer_s))
        if reply.outcome != "ok":
            span.set_status(StatusCode.ERROR, reply.outcome)
        context = set_span_in_context(span)
        for part in reply.parts:
            child = self._tracer.start_span(part.name, context, start_time=self._ns(part.start_s))
            child.end(self._ns(part.end_s))
        span.end(self._ns(reply.end_s))

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and stop; blocks."""
        self._provider.shutdown()

    def _ns(self, monotonic_s: float) -> int:
        return self._epoch_ns + int(monotonic_s * 1e9)
