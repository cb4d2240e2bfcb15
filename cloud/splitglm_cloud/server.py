"""Wiring of a cloud server: model, engine, table, gRPC, health, metrics, and a graceful end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import grpc
from grpc_reflection.v1alpha import reflection

from splitglm_cloud.configured import engine_spec, load_limits
from splitglm_cloud.engine.events import Event
from splitglm_cloud.execution.building import SystemClock
from splitglm_cloud.execution.choosing import open_executor
from splitglm_cloud.gateway.back import Back
from splitglm_cloud.gateway.load import LoadGate
from splitglm_cloud.gateway.rebuild import Rebuilder
from splitglm_cloud.gateway.received import ReceivedLog
from splitglm_cloud.gateway.recent_load import RecentLoad
from splitglm_cloud.gateway.service import SILENT_TOTAL, SplitService
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_cloud.gateway.speed import Speed, layer_seconds
from splitglm_cloud.gateway.tenants import Tenants
from splitglm_cloud.health import NAME as HEALTH_NAME
from splitglm_cloud.health import Health
from splitglm_cloud.metrics import METRICS_HOST, Metrics
from splitglm_cloud.operation import Operation
from splitglm_cloud.settings import CloudSettings, default_key_file, join_address, split_address
from splitglm_cloud.status import ServerStatus, WorkerStatus
from splitglm_core.errors import DeviceError
from splitglm_core.version import VERSION
from splitglm_glm.opening import Progress
from splitglm_glm.store import ModelStore
from splitglm_partitioner.profiles import CloudProfile
from splitglm_security.admission import Admission
from splitglm_security.keys import NodeKey
from splitglm_wire.frames import Draining
from splitglm_wire.limits import MAX_GRPC_MESSAGE_BYTES
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = split_pb2.DESCRIPTOR.services_by_name["SplitInference"].full_name
SWEEP_PERIOD_S = 1.0
BRIEF_RPCS = 64
"""Health checks and refusals at one moment, beside streams and handshakes, which have places of their own."""


class CloudServer:
    """A server from its settings. ``start``, then ``wait`` or ``stop``; everything on one event loop."""

    def __init__(
        self,
        settings: CloudSettings,
        *,
        progress: Progress | None = None,
        store: ModelStore | None = None,
        admission: Admission | None = None,
    ) -> None:
        """Load the model: slow, raises what loading raises, listens to nobody yet."""
        self.settings = settings
        self._admission = admission or Admission(deadline_s=settings.handshake_deadline_s)
        self.metrics = Metrics()
        self._operation = Operation(settings, self.status)
        self._tenants = Tenants.load(settings.tenants_file) if settings.tenants_file is not None else None
        self.node_key = NodeKey.load_or_create(settings.key_file or default_key_file())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[Callable[[], None]] = deque()
        self._called = False
        self.executor, self.facts = open_executor(
            engine_spec(settings, store),
            self._on_event,
            self._on_lost,
            workers=settings.workers if settings.executor == "process" else 0,
            watchdog_s=settings.watchdog_s,
            progress=progress,
        )
        try:
            self._join_up()
        except BaseException:
            self.executor.stop(0.0)
            raise

    def _join_up(self) -> None:
        """Everything between the executor and the streams."""
        settings, facts = self.settings, self.facts
        profile = CloudProfile.from_json(facts.profile)
        if settings.price_per_million_tokens:
            price = float(f"{1e-6 * settings.price_per_million_tokens / profile.layers:.6g}")
            profile = replace(profile, price_per_layer_token=price)
        self.manifest = CloudManifest(
            version=VERSION,
            fingerprint=facts.fingerprint,
            layers=facts.layers,
            embedding=facts.embedding,
            head=facts.head,
            precision=facts.precision,
            codecs=facts.codecs,
            max_context=facts.max_context,
            profile=profile.to_json(),
        )
        log_of_inputs = ReceivedLog(budget_bytes=settings.rebuild_log_bytes, hidden=facts.shape.hidden)
        self.back = Back(
            rebuilder=Rebuilder(log=log_of_inputs, clock=SystemClock()),
            executor=self.executor,
            tell=lambda session, event: self.table.on_outcome(session, event),
            watch=lambda session, rebuild: self.table.on_rebuild(session, rebuild),
            soon=self._soon,
        )
        speed = Speed(max_rows=settings.sweep_rows, engines=settings.workers, prior=layer_seconds(profile.times))
        self.table = SessionTable(
            manifest=self.manifest,
            shape=facts.shape,
            executor=self.back,
            metrics=self.metrics,
            max_sessions=settings.max_sessions,
            session_ttl_s=settings.session_ttl_s,
            attached_idle_s=settings.attached_idle_s,
            gate=LoadGate(layers=len(facts.layers), limits=load_limits(settings), speed=speed),
            load=RecentLoad(profile),
            on_reply=self._operation.on_reply,
            tenants_apart=self._tenants is not None,
        )
        self.metrics.engine.watch(self.executor.stats, self._workers)
        self.metrics_port: int | None = None
        self._health = Health(SERVICE, ready=lambda: self.executor.ready)
        self.metrics.ready.set_function(lambda: self._health.serving)
        self._listen = settings.listen
        self._started_s = time.monotonic()
        self._server: grpc.aio.Server | None = None
        self.service: SplitService | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    async def start(self) -> int:
        """Listen and report SERVING; returns the port.

        Raises:
            DeviceError: the address cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        most_rpcs = self.settings.max_streams + SILENT_TOTAL + BRIEF_RPCS
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=most_rpcs)
        self.service = service = SplitService(
            table=self.table,
            node_key=self.node_key,
            psk=self.settings.psk,
            manifest=self.manifest,
            metrics=self.metrics,
            max_streams=self.settings.max_streams,
            max_streams_per_peer=self.settings.max_streams_per_peer,
            max_silent_per_peer=self.settings.max_silent_per_peer,
            outbox_budget_bytes=self.settings.outbox_budget_bytes,
            admission=self._admission,
            handshake_deadline_s=self.settings.handshake_deadline_s,
            tenants=self._tenants,
        )
        split_pb2_grpc.add_SplitInferenceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        self._health.add_to(server)
        if self.settings.reflection:
            reflection.enable_server_reflection((SERVICE, HEALTH_NAME, reflection.SERVICE_NAME), server)
        host, port = split_address(self.settings.listen)
        try:
            bound = server.add_insecure_port(join_address(host, port))
        except RuntimeError:
            bound = 0
        if bound == 0:
            self.executor.stop(1.0)
            raise DeviceError(f"cannot listen on {self.settings.listen}", "choose another port with --listen")
        if self.settings.metrics_port is not None:
            try:
                self.metrics_port = self.metrics.serve(self.settings.metrics_port)
            except OSError as error:
                self.executor.stop(1.0)
                await server.stop(None)
                raise DeviceError(
                    f"cannot serve metrics on {METRICS_HOST}:{self.settings.metrics_port}: {error.strerror}",
                    "choose another port with --metrics-port",
                ) from None
        await server.start()
        self._server = server
        self._sweeper = asyncio.create_task(self._sweep())
        self._health.listening = True
        self._listen, self._started_s = join_address(host, bound), time.monotonic()
        await self._operation.start()
        log.info("serving", extra={"listen": self._listen, "runner": self.facts.runner, "key": self.node_key.text})
        return int(bound)

    async def wait(self) -> None:
        """Until ``stop`` has finished."""
        await self._stopped.wait()

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuse new work, tell every device, let running steps end within the grace, free everything."""
        grace_s = self.settings.drain_grace_s if grace_s is None else grace_s
        if self._server is None or self.table.draining:
            return
        self.table.draining = True
        self._health.listening = False
        for stream in self.table.streams:
            stream.send(Draining(handle=0, deadline_ms=int(1000 * grace_s)))
        deadline_s = time.monotonic() + grace_s
        while self.table.busy and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        await self._server.stop(0.2)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if not await asyncio.to_thread(self.executor.stop, 5.0):
            log.error("the engine did not stop in time")
        await asyncio.to_thread(self.metrics.close)
        await self._operation.stop()
        self._stopped.set()
        log.info("stopped")

    def status(self) -> ServerStatus:
        """For ``splitglm ps`` and ``top``; on the event loop's thread."""
        return ServerStatus(
            pid=os.getpid(),
            version=VERSION,
            model=self.settings.model,
            runner=self.facts.runner,
            executor=self.settings.executor,
            listen=self._listen,
            ready=self._health.serving,
            draining=self.table.draining,
            uptime_s=time.monotonic() - self._started_s,
            streams=len(self.table.streams),
            engine=self.executor.stats(),
            workers=self._workers(),
            sessions=self.table.status(),
        )

    def _workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(
            WorkerStatus(
                number=worker.index,
                pid=worker.pid,
                state=worker.state.value,
                restarts=worker.restarts,
                sessions=worker.sessions,
                last_end=worker.last_end,
            )
            for worker in self.executor.workers()
        )

    def _on_event(self, session: int, event: Event) -> None:
        """Called on the executor's thread."""
        self._hand_over(partial(self.back.on_event, session, event))

    def _on_lost(self, sessions: Sequence[int]) -> None:
        """Called on the executor's thread."""
        self._hand_over(partial(self.back.on_lost, tuple(sessions)))

    def _hand_over(self, call: Callable[[], None]) -> None:
        """Let the loop's thread make the call: all that have come together are made in one turn of the loop."""
        self._arrived.append(call)
        if not self._called and self._loop is not None and not self._loop.is_closed():
            self._called = True
            self._loop.call_soon_threadsafe(self._take_over)

    def _take_over(self) -> None:
        self._called = False  # before the calls are taken: one that comes after the last look rings again
        while self._arrived:
            call = self._arrived.popleft()
            try:
                call()
            except Exception:  # the others' events wait behind it
                log.exception("an event of the engine could not be handled")

    def _soon(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon(call)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            self.table.sweep(time.monotonic())


_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 64),
    # A device that vanished is noticed by pings; a device that pings too often is not punished for liveness.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 5),
    ("grpc.so_reuseport", 0),
)


async def serve(server: CloudServer, *, ready: Callable[[int], None]) -> None:
    """Serve and stop on SIGTERM or SIGINT; a second signal stops at once.

    The server is made by the caller, outside any event loop: loading can take minutes and must end at once on Ctrl-C.

    Args:
        ready: called with the port once it is serving.

    Raises:
        DeviceError: an address cannot be bound.
    """
    port = await server.start()
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if not stopping:
            stopping.append(asyncio.ensure_future(server.stop()))
        else:
            loop.call_soon(server._stopped.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    ready(port)
    await server.wait()
