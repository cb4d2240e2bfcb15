"""One connection of a load generator: gRPC stream on asyncio, handshake, sealed records, frames by session.

What ``splitglm_edge.link`` is to an app with a few conversations, for thousands of sessions in one thread: no thread
per connection, and it can misbehave on purpose (stop reading, vanish).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import date
from typing import Any

import grpc

from splitglm_core.errors import LinkError, ModelMismatch, SecurityError, SplitGlmError
from splitglm_edge.transport import OPTIONS, error_of
from splitglm_security.channel import Kind
from splitglm_security.handshake import Established, Hello, Initiator, Suite
from splitglm_security.trust import Trust
from splitglm_wire import framing
from splitglm_wire.frames import Frame, Open
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc

Inbox = asyncio.Queue[tuple[Frame, float] | None]
"""Frames of one session with the time of their arrival; None says that the stream ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The cloud under load.

    Attributes:
        address: ``host:port``.
        fingerprint: 32 bytes of the model it serves.
        trust: decides about its identity key.
        psks: 32 bytes of each pairing; the simulated devices take them in turn, so that a cloud that knows tenants by
            their pairing sees several. None: the cloud asks for no pairing.
    """

    address: str
    fingerprint: bytes
    trust: Trust
    psks: tuple[bytes, ...] = ()

    def psk_of(self, device: int) -> bytes | None:
        return self.psks[device % len(self.psks)] if self.psks else None


class LoadStream:
    """An established connection; make one with ``connect``. Everything on one event loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.sessions = 0  # that use it now; counted by its owner
        self.error: SplitGlmError | None = None
        self.manifest: CloudManifest
        self.remote_static = b""
        self._established: Established
        self._call: Any = None
        self._channel: Any = None
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._inboxes: dict[int, Inbox] = {}
        self._handles = 0
        self._opens = 0
        self._reading = asyncio.Event()
        self._reading.set()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(cls, target: Target, *, device: int = 0, timeout_s: float = 5.0) -> LoadStream:
        """Connect and shake hands as simulated device number ``device``.

        Raises:
            LinkError, Overloaded: nobody answers in time, or the cloud takes no more connections.
            PeerUntrusted, SecurityError, VersionMismatch, ModelMismatch: as for a device.
        """
        stream = cls(target)
        try:
            async with asyncio.timeout(timeout_s):
                await stream._shake_hands(target.psk_of(device))
        except grpc.RpcError as error:
            await stream._abandon()
            raise error_of(error, target.address) from None
        except TimeoutError:
            await stream._abandon()
            raise LinkError(f"{target.address} did not answer within {timeout_s:g} s", "is a cloud there?") from None
        except BaseException:
            await stream._abandon()
            raise
        return stream

    async def _shake_hands(self, psk: bytes | None) -> None:
        target = self._target
        suite = Suite.NX if psk is None else Suite.NX_PSK
        initiator = Initiator(Hello(suite=suite, model_fingerprint=target.fingerprint), psk=psk)
        self._channel = grpc.aio.insecure_channel(target.address, options=OPTIONS)
        stub = split_pb2_grpc.SplitInferenceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call = stub.Connect()
        await self._call.write(split_pb2.Sealed(frame=initiator.first_message()))
        reply = await self._call.read()
        if reply is grpc.aio.EOF:
            raise SecurityError("the cloud ended the handshake")
        self._established = initiator.finish(reply.frame)
        target.trust.check(target.address, self._established.remote_static, on_date=date.today().isoformat())
        self.remote_static = self._established.remote_static or b""
        self.manifest = CloudManifest.from_bytes(self._established.payload)
        if self.manifest.fingerprint != target.fingerprint:
            raise ModelMismatch("the cloud serves another model", "name the model that it serves")
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    def open_inbox(self) -> tuple[int, Inbox]:
        """A handle for a new session and the queue of its frames."""
        self._handles += 1
        inbox: Inbox = asyncio.Queue()
        self._inboxes[self._handles] = inbox
        if self.error is not None:
            inbox.put_nowait(None)
        return self._handles, inbox

    def drop_inbox(self, handle: int) -> None:
        self._inboxes.pop(handle, None)

    def send(self, frame: Frame) -> None:
        """Seal and queue a frame; nothing happens when the stream has ended, which the inbox tells."""
        if self.error is not None:
            return
        channel = self._established.channel
        # Each reply gets keys of its own, as on a device.
        if channel.needs_key_update or (isinstance(frame, Open) and self._opens):
            self._outgoing.put_nowait(channel.key_update())
        self._opens += isinstance(frame, Open)
        self._outgoing.put_nowait(channel.seal(framing.encode(frame)))

    def pause_reading(self) -> None:
        """Take no more records: what the cloud sends piles up on its side."""
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    async def vanish(self) -> None:
        """End the connection as a device does that loses its network: no goodbye."""
        self._end(LinkError("the connection was cut on purpose"))
        await self._abandon()

    async def close(self) -> None:
        """Say goodbye and end the stream."""
        if self.error is None:
            self._outgoing.put_nowait(self._established.channel.close())
            self._outgoing.put_nowait(None)
            self._reading.set()
            await asyncio.wait(self._tasks, timeout=2.0)
        self._end(LinkError("the connection was closed"))
        await self._abandon()

    async def _abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._call is not None:
            self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    async def _write(self) -> None:
        try:
            while (record := await self._outgoing.get()) is not None:
                await self._call.write(split_pb2.Sealed(frame=record))
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the reader knows why

    async def _read(self) -> None:
        error: SplitGlmError | None = None
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                arrived_s = time.monotonic()
                opened = self._established.channel.open(message.frame)
                if opened.kind in (Kind.FIN, Kind.ALERT):
                    break
                if opened.kind is Kind.DATA:
                    frame = framing.decode(opened.payload)
                    inbox = self._inboxes.get(frame.handle)
                    if inbox is not None:
                        inbox.put_nowait((frame, arrived_s))
                await self._reading.wait()
        except grpc.RpcError as broken:
            error = error_of(broken, self._target.address)
        except SplitGlmError as found:
            error = found
        finally:
            self._end(error or LinkError("the cloud ended the connection"))

    def _end(self, error: SplitGlmError) -> None:
        if self.error is None:
            self.error = error
            self._established.channel.discard()
            for inbox in self._inboxes.values():
                inbox.put_nowait(None)
