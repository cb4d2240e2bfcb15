"""Prometheus metrics of one server. Names come from ``splitglm_core.telemetry``; nothing here ever sees content."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from splitglm_core import telemetry as names

METRICS_HOST = "127.0.0.1"
_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """Every metric of a server in a registry of its own, so that several servers can live in one process."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None
        self.sessions = Gauge(names.SESSIONS_OPEN, "Sessions held, attached to a stream or not", registry=r)
        self.streams = Gauge(names.STREAMS_OPEN, "Open gRPC streams", registry=r)
        self.waiting = Gauge(names.STEPS_WAITING, "Steps waiting for their batch", registry=r)
        self.kv_bytes = Gauge(names.KV_BYTES, "Bytes of keys and values accounted to sessions", registry=r)
        self.kv_ratio = Gauge(names.KV_USAGE_RATIO, "Share of the KV budget in use", registry=r)
        self.steps = Counter(names.STEPS_TOTAL, "Steps by outcome", ["outcome"], registry=r)
        self.handshakes = Counter(names.HANDSHAKES_TOTAL, "Handshakes by result", ["result"], registry=r)
        self.errors = Counter(names.ERRORS_TOTAL, "Error frames sent by code", ["code"], registry=r)
        self.tokens = Counter(names.TOKENS_TOTAL, "Positions prefilled and tokens generated", ["kind"], registry=r)
        self.wire_bytes = Counter(names.WIRE_BYTES_TOTAL, "Bytes of sealed records", ["direction"], registry=r)
        self.stage = Histogram(names.STAGE_SECONDS, "Seconds by stage", ["stage"], buckets=_SECONDS, registry=r)

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
