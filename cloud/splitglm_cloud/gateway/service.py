"""The gRPC servicer: one coroutine per stream turns sealed records into frames and back.

Order of checks on a new stream, cheapest first (an attacker replays one valid first message for nothing, and a
handshake costs us 0.2 ms of CPU): transport size limit, places of silent peers, places of streams, exact message
length, token bucket per peer, half-open limit, cryptography. Every failure below the session protocol looks the same
from outside: ABORTED and one constant text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import grpc

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.gateway.outbox import Outbox, OutboxBudget
from splitglm_cloud.gateway.places import Places, peer_of
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_cloud.gateway.tenants import Tenants, owner_by_address
from splitglm_cloud.metrics import Metrics
from splitglm_core.errors import (
    InternalError,
    LinkError,
    Overloaded,
    ProtocolError,
    SecurityError,
    SplitGlmError,
    VersionMismatch,
)
from splitglm_security.admission import Admission
from splitglm_security.channel import Channel, Kind
from splitglm_security.channel import Opened as Record
from splitglm_security.handshake import Established, Responder
from splitglm_security.keys import NodeKey
from splitglm_security.psk_ring import PskRing
from splitglm_wire import framing
from splitglm_wire.frames import Frame, Opened
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc

log = logging.getLogger(__name__)

PUBLIC_ERROR = "secure channel failed"
HANDSHAKE_DEADLINE_S = 5.0
GOODBYE_DEADLINE_S = 5.0
"""For the last replies of a stream whose device has said goodbye."""
SILENT_TOTAL = 256
"""Connections that may be in their handshake at once; each costs a coroutine and ends at its deadline."""


class DeviceStream:
    """One device's connection: its outbox, its channel and whose it is."""

    def __init__(self, established: Established, outbox: Outbox, owner: Owner) -> None:
        self.channel: Channel = established.channel
        self.log_id = established.log_id
        self.outbox = outbox
        self.owner = owner
        self._opened = False

    def send(self, frame: Frame) -> None:
        """Queue a frame; never blocks. A stream that cannot keep up is closed by its owner."""
        self.outbox.put(framing.encode(frame), isinstance(frame, Opened))

    def close(self) -> None:
        """Drop replies and keys."""
        self.outbox.close()
        self.channel.discard()

    async def write_all(self, write: Callable[[split_pb2.Sealed], Any], metrics: Metrics) -> None:
        """Seal and write frames until the outbox is finished, then say goodbye."""
        while (waiting := await self.outbox.get()) is not None:
            data, begins_reply = waiting
            # Each reply gets keys of its own: those of finished ones are gone when it begins.
            if self.channel.needs_key_update or (begins_reply and self._opened):
                await write(split_pb2.Sealed(frame=self.channel.key_update()))
            self._opened |= begins_reply
            started_s = time.perf_counter()
            record = self.channel.seal(data)
            metrics.in_stage["seal"].observe(time.perf_counter() - started_s)
            metrics.bytes_down.inc(len(record))
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
        max_streams_per_peer: int,
        max_silent_per_peer: int,
        outbox_budget_bytes: int,
        admission: Admission,
        handshake_deadline_s: float = HANDSHAKE_DEADLINE_S,
        tenants: Tenants | None = None,
    ) -> None:
        """Serve anybody, or with a ``psk`` who holds it, or with ``tenants`` these; not both."""
        if psk is not None and tenants is not None:
            raise InternalError("a server has one pairing or tenants")
        self._table = table
        self._node_key = node_key
        self._tenants = tenants
        self._psks = tenants.psks if tenants is not None else None if psk is None else PskRing([psk])
        self._manifest = manifest
        self._metrics = metrics
        self._admission = admission
        self._silent = Places(total=SILENT_TOTAL, per_peer=max_silent_per_peer, what="unfinished handshakes")
        self._streams = Places(total=max_streams, per_peer=max_streams_per_peer, what="streams")
        self._outboxes = OutboxBudget(outbox_budget_bytes)
        self._handshake_deadline_s = handshake_deadline_s

    async def Connect(  # the name is the schema's
        self, request_iterator: AsyncIterator[split_pb2.Sealed], context: grpc.aio.ServicerContext
    ) -> None:
        with ExitStack() as places:  # left when the call is really over: a peer that does not read can hold up its end
            try:
                opened = await self._handshake(request_iterator, context, places)
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
            if opened is not None:
                status = await self._serve(*opened, aiter(request_iterator), context)
                if status is not None:
                    await context.abort(*status)

    async def _serve(
        self,
        stream: DeviceStream,
        first: Record,
        requests: AsyncIterator[split_pb2.Sealed],
        context: grpc.aio.ServicerContext,
    ) -> tuple[grpc.StatusCode, str] | None:
        """Both directions of an established stream until it ends; the error that its device is to be told, if any."""
        self._table.attach(stream)
        writer = asyncio.create_task(stream.write_all(context.write, self._metrics))
        reader = asyncio.create_task(self._read(stream, first, requests))
        overflow = asyncio.create_task(stream.outbox.overflow.wait())
        try:
            await asyncio.wait({reader, writer, overflow}, return_when=asyncio.FIRST_COMPLETED)
            failure = next((task.exception() for task in (reader, writer) if task.done() and task.exception()), None)
            if overflow.done():
                log.warning("stream closed", extra={"stream": stream.log_id, "reason": "the device does not read"})
                return grpc.StatusCode.RESOURCE_EXHAUSTED, "replies are not read"
            if isinstance(failure, LinkError):
                log.info("stream lost", extra={"stream": stream.log_id})
            elif isinstance(failure, (SecurityError, ProtocolError)):
                log.warning("stream closed", extra={"stream": stream.log_id, "reason": type(failure).__name__})
                return grpc.StatusCode.ABORTED, PUBLIC_ERROR
            elif failure is not None:
                log.error("stream failed", extra={"stream": stream.log_id, "reason": type(failure).__name__})
                return grpc.StatusCode.INTERNAL, "internal error"
            else:
                stream.outbox.finish()
                await asyncio.wait({writer}, timeout=GOODBYE_DEADLINE_S)
            return None
        finally:
            # Before anything is awaited: if this coroutine is cancelled, nothing after an await need run.
            self._table.detach(stream, time.monotonic())
            stream.close()
            for task in (reader, writer, overflow):
                task.cancel()
            await asyncio.gather(reader, writer, overflow, return_exceptions=True)

    async def _handshake(
        self,
        request_iterator: AsyncIterator[split_pb2.Sealed],
        context: grpc.aio.ServicerContext,
        places: ExitStack,
    ) -> tuple[DeviceStream, Record] | None:
        """The stream and its first record, proven to be the device's; None when the device holds another model.

        The stream's place is left to ``places``.
        """
        peer = peer_of(context.peer())
        with self._silent.taken_by(peer):
            requests = aiter(request_iterator)
            async with asyncio.timeout(self._handshake_deadline_s):
                message = (await anext(requests)).frame
            places.enter_context(self._streams.taken_by(peer))
            ticket = self._admission.admit(peer, message, time.monotonic())
            try:
                responder = Responder(self._node_key, psks=self._psks)
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
        number = responder.psk_number
        if self._tenants is not None and number is not None:
            owner = self._tenants.owner(number)
        else:
            owner = owner_by_address(peer, established.log_id)
        return DeviceStream(established, Outbox(self._outboxes), owner), first

    async def _read(self, stream: DeviceStream, first: Record, requests: AsyncIterator[split_pb2.Sealed]) -> None:
        """Hand frames to the table until the device says goodbye.

        Raises:
            SecurityError, ProtocolError: the device broke the rules.
            LinkError: the stream was cut off, or the device gave up (an alert): no goodbye came.
        """
        last = self._take(stream, first)
        while not last and (sealed := await anext(requests, None)) is not None:
            record = sealed.frame
            self._metrics.bytes_up.inc(len(record))
            last = self._take(stream, stream.channel.open(record))
        try:
            stream.channel.finish()
        except SecurityError:
            # Not forged, only cut, as any broken network does it: its sessions wait for their device.
            raise LinkError("the stream ended without a goodbye") from None

    def _take(self, stream: DeviceStream, record: Record) -> bool:
        """Hand on the frame of a record, if it has one; whether nothing follows it."""
        if record.kind is Kind.DATA:
            started_s = time.perf_counter()
            self._table.receive(stream, framing.decode(record.payload))
            self._metrics.in_stage["open"].observe(time.perf_counter() - started_s)
        return record.kind in (Kind.FIN, Kind.ALERT)
