"""The gRPC servicer: one coroutine per stream turns sealed records into frames and back.

Order of checks on a new stream, cheapest first (an attacker replays one valid first message for nothing, and a
handshake costs us 0.2 ms of CPU): transport size limit, exact message length, token bucket per peer, half-open limit,
cryptography. Every failure below the session protocol looks the same from outside: ABORTED and one constant text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from splitglm_cloud.metrics import Metrics
from splitglm_cloud.sessions import SessionTable
from splitglm_core.errors import Overloaded, ProtocolError, SecurityError, SplitGlmError, VersionMismatch
from splitglm_security.admission import Admission
from splitglm_security.channel import Channel, Kind
from splitglm_security.handshake import Established, Responder
from splitglm_security.keys import NodeKey
from splitglm_wire import framing
from splitglm_wire.frames import Frame, Opened
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc

log = logging.getLogger(__name__)

PUBLIC_ERROR = "secure channel failed"
HANDSHAKE_DEADLINE_S = 5.0
GOODBYE_DEADLINE_S = 5.0
"""For the last replies of a stream whose device has said goodbye."""
OUTBOX_FRAMES = 4096
OUTBOX_BYTES = 64 << 20
"""Replies waiting for a device that does not read; beyond either its stream is closed. Its KV caches are kept."""


class DeviceStream:
    """One device's connection: its outbox and its channel."""

    def __init__(self, established: Established) -> None:
        self.channel: Channel = established.channel
        self.log_id = established.log_id
        self._outbox: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()
        self._outbox_bytes = 0
        self.overflow = asyncio.Event()
        self._opened = False

    def send(self, frame: Frame) -> None:
        """Queue a frame; never blocks. A stream that cannot keep up is closed by its owner."""
        if self.overflow.is_set():
            return
        data = framing.encode(frame)
        if self._outbox.qsize() >= OUTBOX_FRAMES or self._outbox_bytes + len(data) > OUTBOX_BYTES:
            self.overflow.set()
            return
        self._outbox_bytes += len(data)
        self._outbox.put_nowait((data, isinstance(frame, Opened)))

    def finish(self) -> None:
        """Nothing more will be sent: the writer says goodbye and ends."""
        self._outbox.put_nowait(None)

    async def write_all(self, write: Callable[[split_pb2.Sealed], Any], metrics: Metrics) -> None:
        """Seal and write frames until ``finish``."""
        while (waiting := await self._outbox.get()) is not None:
            data, begins_reply = waiting
            self._outbox_bytes -= len(data)
            # Each reply gets keys of its own: those of finished ones are gone when it begins.
            if self.channel.needs_key_update or (begins_reply and self._opened):
                await write(split_pb2.Sealed(frame=self.channel.key_update()))
            self._opened |= begins_reply
            started_s = time.perf_counter()
            record = self.channel.seal(data)
            metrics.stage.labels("seal").observe(time.perf_counter() - started_s)
            metrics.wire_bytes.labels("down").inc(len(record))
            await write(split_pb2.Sealed(frame=record))
        await write(split_pb2.Sealed(frame=self.channel.close()))


class SplitService(split_pb2_grpc.SplitInferenceServicer):
    """``Connect``: a handshake, then records."""

    def __init__(
        self,
        *,
        table: SessionTable,
        node_key: NodeKey,
        psk: bytes | None,
        manifest: CloudManifest,
        metrics: Metrics,
        max_streams: int,
        admission: Admission,
        handshake_deadline_s: float = HANDSHAKE_DEADLINE_S,
    ) -> None:
        self._table = table
        self._node_key = node_key
        self._psk = psk
        self._manifest = manifest
        self._metrics = metrics
        self._admission = admission
        self._max_streams = max_streams
        self._handshake_deadline_s = handshake_deadline_s

    async def Connect(  # the name is the schema's
        self, request_iterator: AsyncIterator[split_pb2.Sealed], context: grpc.aio.ServicerContext
    ) -> None:
        try:
            opened = await self._handshake(aiter(request_iterator), context)
        except VersionMismatch:
            self._metrics.handshakes.labels("version").inc()
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "protocol version not supported")
        except Overloaded as error:
            self._metrics.handshakes.labels("busy").inc()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"busy, retry after {error.retry_after_s or 1.0:.2f} s"
            )
        except (SplitGlmError, TimeoutError, StopAsyncIteration):
            self._metrics.handshakes.labels("failed").inc()
            await context.abort(grpc.StatusCode.ABORTED, PUBLIC_ERROR)
        if opened is None:
            return
        stream, first = opened
        self._table.attach(stream)
        writer = asyncio.create_task(stream.write_all(context.write, self._metrics))
        reader = asyncio.create_task(self._read(stream, first, aiter(request_iterator)))
        overflow = asyncio.create_task(stream.overflow.wait())
        status: tuple[grpc.StatusCode, str] | None = None
        try:
            await asyncio.wait({reader, writer, overflow}, return_when=asyncio.FIRST_COMPLETED)
            failure = next((task.exception() for task in (reader, writer) if task.done() and task.exception()), None)
            if overflow.done():
                log.warning("stream closed", extra={"stream": stream.log_id, "reason": "the device does not read"})
                status = grpc.StatusCode.RESOURCE_EXHAUSTED, "replies are not read"
            elif isinstance(failure, (SecurityError, ProtocolError)):
                log.warning("stream closed", extra={"stream": stream.log_id, "reason": type(failure).__name__})
                status = grpc.StatusCode.ABORTED, PUBLIC_ERROR
            elif failure is not None:
                log.error("stream failed", extra={"stream": stream.log_id, "reason": type(failure).__name__})
                status = grpc.StatusCode.INTERNAL, "internal error"
            else:
                stream.finish()
                await asyncio.wait({writer}, timeout=GOODBYE_DEADLINE_S)
        finally:
            for task in (reader, writer, overflow):
                task.cancel()
            await asyncio.gather(reader, writer, overflow, return_exceptions=True)
            self._table.detach(stream, time.monotonic())
            stream.channel.discard()
        if status is not None:
            # Last, for a device that does not read holds this up too, and with it nothing but the call itself.
            await context.abort(*status)

    async def _handshake(
        self, requests: AsyncIterator[split_pb2.Sealed], context: grpc.aio.ServicerContext
    ) -> tuple[DeviceStream, bytes] | None:
        """The stream and its first record, proven to be the device's; None when the device holds another model."""
        async with asyncio.timeout(self._handshake_deadline_s):
            message = (await anext(requests)).frame
        if len(self._table.streams) >= self._max_streams:
            raise Overloaded("too many streams", code="OVERLOADED", retry_after_s=1.0)
        ticket = self._admission.admit(_peer_host(context.peer()), message, time.monotonic())
        try:
            responder = Responder(self._node_key, psk=self._psk)
            hello = responder.accept(message)
            reply, established = responder.reply(self._manifest.to_bytes())
            await context.write(split_pb2.Sealed(frame=reply))
            if hello.model_fingerprint != self._manifest.fingerprint:
                # The authenticated manifest in the reply tells the device what is wrong.
                self._metrics.handshakes.labels("model").inc()
                established.channel.discard()
                return None
            async with asyncio.timeout(self._handshake_deadline_s):
                first = established.channel.open((await anext(requests)).frame)
            self._admission.complete(ticket, time.monotonic())
        finally:
            self._admission.abandon(ticket)
        self._metrics.handshakes.labels("ok").inc()
        return DeviceStream(established), bytes(first.payload)

    async def _read(self, stream: DeviceStream, first: bytes, requests: AsyncIterator[split_pb2.Sealed]) -> None:
        """Hand frames to the table until the device says goodbye."""
        self._table.receive(stream, framing.decode(first))
        async for sealed in requests:
            record = sealed.frame
            self._metrics.wire_bytes.labels("up").inc(len(record))
            opened = stream.channel.open(record)
            if opened.kind is Kind.FIN:
                return
            if opened.kind is Kind.DATA:
                started_s = time.perf_counter()
                self._table.receive(stream, framing.decode(opened.payload))
                self._metrics.stage.labels("open").observe(time.perf_counter() - started_s)


def _peer_host(peer: str) -> str:
    """``ipv4:1.2.3.4:5678`` to ``ipv4:1.2.3.4``: a peer's ports must not multiply its allowance."""
    return peer.rpartition(":")[0] or peer
