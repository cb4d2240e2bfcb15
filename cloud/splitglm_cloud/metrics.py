"""Prometheus metrics of one server. Names come from ``splitglm_core.telemetry``; nothing here ever sees content."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from splitglm_cloud.engine_metrics import EngineMetrics
from splitglm_core import telemetry as names
from splitglm_core.criticality import Criticality
from splitglm_wire.frames import ErrorCode

METRICS_HOST = "127.0.0.1"
_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_NEXT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Every metric of a server in a registry of its own, so that several servers can live in one process.

    Attributes:
        engine: what is read from the engine when the page is; give it its sources with ``engine.watch``.
    """

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None
        self.ready = Gauge(names.READY, "1 while new work is taken", registry=r)
        self.sessions = Gauge(names.SESSIONS_OPEN, "Sessions held, attached to a stream or not", registry=r)
        self.streams = Gauge(names.STREAMS_OPEN, "Open gRPC streams", registry=r)
        self.steps = Counter(
            names.STEPS_TOTAL, "Steps by class and outcome (refused: never computed)", ["class", "outcome"], registry=r
        )
        self.opens = Counter(
            names.OPENS_TOTAL, "Requests to open a session by class and outcome", ["class", "outcome"], registry=r
        )
        self.handshakes = Counter(names.HANDSHAKES_TOTAL, "Handshakes by result", ["result"], registry=r)
        self.errors = Counter(names.ERRORS_TOTAL, "Error frames sent by code", ["code"], registry=r)
        self.tokens = Counter(names.TOKENS_TOTAL, "Positions prefilled and tokens generated", ["kind"], registry=r)
        self.wire_bytes = Counter(names.WIRE_BYTES_TOTAL, "Bytes of sealed records", ["direction"], registry=r)
        self.rebuilds = Counter(
            names.REBUILDS_TOTAL,
            "Lost keys and values: computed anew here, or left to the device",
            ["result"],
            registry=r,
        )
        self.stage = Histogram(names.STAGE_SECONDS, "Seconds by stage", ["stage"], buckets=_SECONDS, registry=r)
        # Of what is counted for every step, the children are kept: finding one takes longer than counting.
        self.in_stage = {stage: self.stage.labels(stage) for stage in names.STAGES}
        self.bytes_up, self.bytes_down = (self.wire_bytes.labels(direction) for direction in ("up", "down"))
        self.generated = self.tokens.labels("generated")
        self.first_token = Histogram(
            names.TIME_TO_FIRST_TOKEN_SECONDS,
            "From a reply's first step to its first answer, as the cloud sees it",
            ["class"],
            buckets=_FIRST_S,
            registry=r,
        )
        self.next_token = Histogram(
            names.INTER_TOKEN_LATENCY_SECONDS,
            "Of each further answer, from its step or the answer before; without device and link",
            ["class"],
            buckets=_NEXT_S,
            registry=r,
        )
        # From the start: a rate sees nothing of a counter's first appearance.
        for criticality in Criticality:
            for outcome in names.STEP_OUTCOMES:
                self.steps.labels(class_label(criticality), outcome)
            for outcome in names.OPEN_OUTCOMES:
                self.opens.labels(class_label(criticality), outcome)
        for result in names.REBUILD_RESULTS:
            self.rebuilds.labels(result)
        for result in names.HANDSHAKE_RESULTS:
            self.handshakes.labels(result)
        for code in ErrorCode:
            self.errors.labels(code.name)
        for kind in names.TOKEN_KINDS:
            self.tokens.labels(kind)
        for direction in ("up", "down"):
            self.wire_bytes.labels(direction)
        self.engine = EngineMetrics()
        r.register(self.engine)

    def serve(self, port: int) -> int:
        """Serve ``/metrics`` on a thread until ``close``; returns the port (useful with port 0).

        On the loopback address only, wherever the service itself listens: the page has no access control.
        """
        self._server, self._thread = start_http_server(port, addr=METRICS_HOST, registry=self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving; harmless when it never began."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join()
        self._server = self._thread = None


def class_label(criticality: Criticality) -> str:
    """``critical_plus``, ``critical``, ``sheddable_plus`` or ``sheddable``: the value of a label ``class``."""
    return criticality.name.lower()
