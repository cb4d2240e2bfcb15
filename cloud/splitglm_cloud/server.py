"""Wiring of a cloud server: model, engine, table, gRPC, health, metrics, and a graceful end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

import grpc
from grpc_reflection.v1alpha import reflection

from splitglm_cloud.engine.carousel import Carousel
from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Emit, Event, Evicted
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.profile import measure_cloud
from splitglm_cloud.engine.runner import Runner
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_cloud.execution.inline import InlineExecutor
from splitglm_cloud.gateway.load import LoadGate, LoadLimits
from splitglm_cloud.gateway.service import SILENT_TOTAL, SplitService
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_cloud.gateway.speed import Speed, layer_seconds
from splitglm_cloud.gateway.tenants import Tenants
from splitglm_cloud.health import NAME as HEALTH_NAME
from splitglm_cloud.health import Health
from splitglm_cloud.metrics import METRICS_HOST, Metrics
from splitglm_cloud.operation import Operation
from splitglm_cloud.settings import CloudSettings, default_key_file, join_address, split_address
from splitglm_cloud.status import ServerStatus
from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_core.version import VERSION
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.opening import Progress, open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore
from splitglm_security.admission import Admission
from splitglm_security.keys import NodeKey
from splitglm_wire.frames import Draining
from splitglm_wire.limits import MAX_CONTEXT, MAX_GRPC_MESSAGE_BYTES
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = split_pb2.DESCRIPTOR.services_by_name["SplitInference"].full_name
SWEEP_PERIOD_S = 1.0
BRIEF_RPCS = 64
"""Health checks and refusals at one moment, beside streams and handshakes, which have places of their own."""


class SystemClock:
    """The monotonic clock of this machine."""

    def now_s(self) -> float:
        return time.monotonic()


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
        store = store or ModelStore()
        checkpoint = open_checkpoint(settings.model, store)
        shape = checkpoint.config.shape
        layers = settings.layers or LayerRange(0, shape.layers)
        if layers.stop > shape.layers or not len(layers):
            raise InputError(f"layers {layers} are not in a model of {shape.layers} layers")
        # A cloud that can see text needs the embedding (ids come up) and the head (it samples).
        embedding, head = settings.text and layers.start == 0, settings.text and layers.stop == shape.layers
        self.runner = _make_runner(settings, checkpoint, layers, embedding, head, store, progress)
        codecs = tuple(Codec)
        profile = measure_cloud(self.runner, layers, embedding=embedding, head=head, codecs=codecs)
        self.runner.reserve(self._new_pages().total)
        self.manifest = CloudManifest(
            version=VERSION,
            fingerprint=checkpoint.fingerprint,
            layers=layers,
            embedding=embedding,
            head=head,
            precision=settings.precision if settings.runner == "onnx" else Precision.FP32,
            codecs=codecs,
            max_context=min(settings.max_context or MAX_CONTEXT, shape.max_positions),
            profile=profile.to_json(),
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self.executor = InlineExecutor(self._build_engine, self._emit, self._on_lost)
        self.table = SessionTable(
            manifest=self.manifest,
            shape=shape,
            executor=self.executor,
            metrics=self.metrics,
            max_sessions=settings.max_sessions,
            session_ttl_s=settings.session_ttl_s,
            attached_idle_s=settings.attached_idle_s,
            gate=LoadGate(
                layers=len(layers),
                limits=LoadLimits(
                    max_queue_s=settings.max_queue_s,
                    max_wait_s=2.0 * settings.max_queue_s,
                    max_queue_bytes=settings.queue_budget_bytes,
                    max_sessions_per_tenant=settings.max_sessions_per_tenant,
                    kv_admit=settings.kv_admit_watermark,
                    kv_high=settings.kv_high_watermark,
                ),
                speed=Speed(max_rows=settings.sweep_rows, prior=layer_seconds(profile.times)),
            ),
            on_reply=self._operation.on_reply,
        )
        self.metrics.engine.watch(self.executor.stats)
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
        self.executor.start()
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
        log.info("serving", extra={"listen": self._listen, "runner": self.runner.name, "key": self.node_key.text})
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
            runner=self.runner.name,
            executor=self.settings.executor,
            listen=self._listen,
            ready=self._health.serving,
            draining=self.table.draining,
            uptime_s=time.monotonic() - self._started_s,
            streams=len(self.table.streams),
            engine=self.executor.stats(),
            sessions=self.table.status(),
        )

    def _build_engine(self, emit: Emit) -> Engine:
        return Engine(self.runner, Carousel(), self._new_pages(), SystemClock(), emit)

    def _new_pages(self) -> KvPages:
        one = self.runner.shape.kv_bytes_per_token(layers=1)
        return KvPages.for_budget(self.settings.kv_budget_bytes, one)

    def _on_lost(self, sessions: Sequence[int]) -> None:
        """Called on the engine's thread."""
        for session in sessions:
            self._emit(session, Evicted(None))

    def _emit(self, session: int, outcome: Event) -> None:
        """Called on the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.table.on_outcome, session, outcome)

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


def _make_runner(
    settings: CloudSettings,
    checkpoint: Checkpoint,
    layers: LayerRange,
    embedding: bool,
    head: bool,
    store: ModelStore,
    progress: Progress | None,
) -> Runner:
    if settings.runner == "onnx":
        stack = open_stack(
            checkpoint,
            settings.precision,
            layers=layers,
            embedding=embedding,
            head=head,
            store=store,
            options=RuntimeOptions(threads=settings.threads),
            progress=progress,
        )
        return OnnxRunner(stack, layers, embedding=embedding, head=head)
    try:
        from splitglm_cloud.engine.runner_torch import TorchRunner
    except ImportError as error:
        raise DeviceError("torch is not installed", "pip install 'splitglm[torch]', or use --runner onnx") from error
    return TorchRunner(
        checkpoint, layers, embedding=embedding, head=head, dtype=settings.torch_dtype, threads=settings.threads
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
