"""One connection to a cloud: gRPC stream, handshake, sealed records, frames by session.

A reader thread opens records and hands frames to the inbox of their session; sending seals under a lock, because the
order of records is the order of their nonces. When the stream ends, every inbox gets ``None`` and ``error`` says why:
whether the last steps were applied is then unknown, and resuming is the session's business, not this file's.
"""

from __future__ import annotations

import copy
import itertools
import os
import queue
import threading
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import grpc

from splitglm_core.errors import (
    DeadlineExceeded,
    LinkError,
    ModelMismatch,
    ProtocolError,
    SecurityError,
    SplitGlmError,
)
from splitglm_edge.inbox import Arrived, Inbox
from splitglm_edge.liveness import Liveness, Silence
from splitglm_edge.transport import OPTIONS, await_ready, error_of
from splitglm_security.channel import Kind
from splitglm_security.handshake import Established, Hello, Initiator, Suite
from splitglm_security.trust import Trust, Verdict
from splitglm_wire import framing
from splitglm_wire.frames import Draining, Frame, Open, Ping, Pong
from splitglm_wire.manifest import CloudManifest
from splitglm_wire.v1 import split_pb2, split_pb2_grpc


class CloudLink:
    """An established connection. Make one with ``connect``; methods may be called from any thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.manifest: CloudManifest
        self.verdict: Verdict
        self.log_id = ""
        self.error: SplitGlmError | None = None
        self.draining = False
        self.load: Pong | None = None  # the newest answer to a ping: it tells how busy the cloud is
        self.bytes_up = 0
        self.bytes_down = 0
        self._established: Established
        self._outgoing: queue.SimpleQueue[split_pb2.Sealed | None] = queue.SimpleQueue()
        self._inboxes: dict[int, Inbox] = {}
        self._pings: set[tuple[int, int, int]] = set()  # handle, nonce and size of answers that are owed
        self._handles = itertools.count(1)
        self._nonces = itertools.count(1)  # of pings that belong to no session
        self._requests = 0
        self._seal_lock = threading.Lock()
        self._closing = False
        self.liveness = Liveness(time.monotonic())
        self._used_s = time.monotonic()  # when a record last came or went
        self._channel: grpc.Channel
        self._call: Any
        self._reader: threading.Thread

    @classmethod
    def connect(
        cls, address: str, *, fingerprint: bytes, trust: Trust, psk: bytes | None = None, timeout_s: float = 5.0
    ) -> CloudLink:
        """Connect, shake hands, check whom and what we reached.

        Args:
            address: ``host:port``.
            fingerprint: 32 bytes; the checkpoint this device holds.
            trust: decides about the cloud's identity key.
            psk: 32 bytes of a pairing, or None.

        Raises:
            LinkError: nobody answers, or not in time.
            PeerUntrusted: the identity key is not the expected one.
            SecurityError: the handshake failed (wrong pairing, or somebody in between).
            VersionMismatch, ModelMismatch: the cloud is another release or serves another model.
            Overloaded: the cloud takes no more connections now.
        """
        link = cls(address)
        deadline_s = time.monotonic() + timeout_s
        link._channel = grpc.insecure_channel(address, options=OPTIONS)
        try:
            await_ready(link._channel, address, timeout_s)
            link._shake_hands(fingerprint, trust, psk, deadline_s)
        except BaseException:
            link._abandon()
            raise
        return link

    def _shake_hands(self, fingerprint: bytes, trust: Trust, psk: bytes | None, deadline_s: float) -> None:
        suite = Suite.NX if psk is None else Suite.NX_PSK
        initiator = Initiator(Hello(suite=suite, model_fingerprint=fingerprint), psk=psk)
        stub = split_pb2_grpc.SplitInferenceStub(self._channel)  # type: ignore[no-untyped-call]
        self._outgoing.put(split_pb2.Sealed(frame=initiator.first_message()))
        self._call = stub.Connect(iter(self._outgoing.get, None))
        timer = threading.Timer(max(0.0, deadline_s - time.monotonic()), self._call.cancel)
        timer.start()
        try:
            reply = next(self._call).frame
        except StopIteration:
            raise SecurityError("the cloud ended the handshake") from None
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        finally:
            timer.cancel()
        self._established = initiator.finish(reply)
        self.log_id = self._established.log_id
        self.verdict = trust.check(self.address, self._established.remote_static, on_date=date.today().isoformat())
        self.manifest = CloudManifest.from_bytes(self._established.payload)
        if self.manifest.fingerprint != fingerprint:
            raise ModelMismatch(
                f"the cloud serves model {self.manifest.fingerprint.hex()[:12]}, "
                f"this device holds {fingerprint.hex()[:12]}",
                "pull the same model on both sides (`splitglm show MODEL` prints its fingerprint)",
            )
        self._reader = threading.Thread(target=self._read, name="splitglm-link", daemon=True)
        self._reader.start()

    def idle_s(self) -> float:
        """How long the connection has carried nothing."""
        return max(0.0, time.monotonic() - self._used_s)

    def open_inbox(self) -> tuple[int, Inbox]:
        """A handle for a new session and the queue of its frames; ``None`` in it means that the stream ended."""
        handle, inbox = next(self._handles), Inbox()
        self._inboxes[handle] = inbox
        if self.error is not None:
            inbox.end()
        return handle, inbox

    def drop_inbox(self, handle: int) -> None:
        self._inboxes.pop(handle, None)

    def send(self, frame: Frame) -> int:
        """Seal and queue one frame; returns the bytes put on the wire.

        Raises:
            LinkError (or what ended the stream): the connection is gone.
        """
        data = framing.encode(frame)
        with self._seal_lock:
            if self.error is not None:
                # A copy: an error that is kept and raised collects the frames, and what is in them, of all who saw it.
                raise copy.copy(self.error)
            if self._closing:
                raise LinkError("the connection was closed", "connect again")
            channel = self._established.channel
            # Each reply gets keys of its own: those of finished ones are gone when it begins.
            self.liveness.expect(frame)
            if isinstance(frame, Ping):
                self._pings.add((frame.handle, frame.nonce, frame.reply_size))
            if channel.needs_key_update or (isinstance(frame, Open) and self._requests):
                self._put(channel.key_update())
            self._requests += isinstance(frame, Open)
            return self._put(channel.seal(data))

    def _put(self, record: bytes) -> int:
        self._outgoing.put(split_pb2.Sealed(frame=record))
        self.bytes_up += len(record)
        self._used_s = time.monotonic()
        self.liveness.sent(len(record), self._used_s)
        return len(record)

    def ping(
        self, *, size: int = 0, reply_size: int = 0, timeout_s: float = 5.0, silence_s: float | None = None
    ) -> float:
        """Seconds from sending ``size`` extra bytes to the answer with ``reply_size`` extra bytes. ``load`` keeps it.

        Raises:
            DeadlineExceeded: no answer in time.
            LinkError, SecurityError, ProtocolError: the connection ended, or what came is no answer.
        """
        handle, inbox = self.open_inbox()
        try:
            nonce = int.from_bytes(os.urandom(8), "little")
            started_s = time.perf_counter()
            self.send(Ping(handle=handle, nonce=nonce, size=size, reply_size=reply_size))
            received = self.receive(inbox, timeout_s=timeout_s, silence_s=silence_s or timeout_s)
            if received is None:
                raise copy.copy(self.error) if self.error is not None else LinkError("the connection ended")
            frame = received.frame
            if not isinstance(frame, Pong) or frame.nonce != nonce:
                raise ProtocolError("the cloud answered a ping with something else")
            return time.perf_counter() - started_s
        finally:
            self.drop_inbox(handle)

    def receive(self, inbox: Inbox, *, timeout_s: float, silence_s: float) -> Arrived | None:
        """The next frame of a session; None when the stream ended, also because the cloud was silent for too long.

        Raises:
            DeadlineExceeded: nothing for this session within ``timeout_s``, although the cloud is alive.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return inbox.get(timeout=max(0.0, min(left_s, silence_s / 6)))
            except queue.Empty:
                if left_s <= 0.0:
                    raise DeadlineExceeded(
                        f"{self.address} did not answer within {timeout_s:.1f} s", "try again, or run on the device"
                    ) from None
                self._check_alive(silence_s)

    def _check_alive(self, silence_s: float) -> None:
        """Ask a silent cloud for a sign of life; give up on one that sends none."""
        if self.error is not None:
            return
        verdict = self.liveness.judge(silence_s, time.monotonic())
        if verdict is Silence.QUESTIONABLE:
            try:
                self.send(Ping(handle=0, nonce=next(self._nonces)))
            except LinkError:
                pass  # it ended meanwhile: the inbox knows
        elif verdict is Silence.DEADLY:
            self.give_up(DeadlineExceeded(f"{self.address} has gone silent", "check the network and the cloud"))

    def give_up(self, error: SplitGlmError) -> None:
        """Treat the connection as broken; every inbox is told."""
        with self._seal_lock:
            self.error = self.error or error
        self._call.cancel()

    def close(self) -> None:
        """Say goodbye and end the stream; harmless when it ended already."""
        with self._seal_lock:
            if self.error is None and not self._closing:
                self._closing = True
                try:
                    self._put(self._established.channel.close())
                except SplitGlmError:
                    pass
        self._outgoing.put(None)
        self._reader.join(timeout=2.0)
        self._abandon()

    def _abandon(self) -> None:
        self._outgoing.put(None)
        if hasattr(self, "_call"):
            self._call.cancel()
        self._channel.close()

    def _read(self) -> None:
        error: SplitGlmError | None = None
        channel = self._established.channel
        try:
            for record in self._records():
                self.bytes_down += len(record)
                self._used_s = time.monotonic()
                self.liveness.heard(self._used_s)
                opened = channel.open(record)
                if opened.kind in (Kind.FIN, Kind.ALERT):
                    break
                if opened.kind is Kind.DATA:
                    self._dispatch(framing.decode(opened.payload), len(record))
            error = self._ending()
        except SplitGlmError as found:
            error = found
        finally:
            ended = error or LinkError("the connection ended", "connect again")
            with self._seal_lock:
                self.error = self.error or ended
                channel.discard()
            for inbox in list(self._inboxes.values()):
                inbox.end()
            self._call.cancel()
            self._outgoing.put(None)

    def _ending(self) -> LinkError:
        """What it means that the records ended: a goodbye is the cloud's own word, anything else may be anybody's."""
        try:
            self._established.channel.finish()
        except SecurityError:
            # Not forged, only cut, as any broken network does: whether the last steps were applied is unknown.
            return LinkError(f"the connection to {self.address} was cut off", "check the network and the cloud")
        return LinkError("the cloud ended the connection", "connect again")

    def _records(self) -> Iterator[bytes]:
        try:
            for sealed in self._call:
                yield sealed.frame
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def _dispatch(self, frame: Frame, record_bytes: int) -> None:
        if isinstance(frame, Draining):
            self.draining = True
            return
        self.liveness.answered(frame)
        if isinstance(frame, Pong):
            answer = (frame.handle, frame.nonce, frame.size)
            if answer not in self._pings:
                raise ProtocolError("the cloud answered a ping that was not sent", "use another cloud")
            self._pings.discard(answer)
            self.load = frame
        inbox = self._inboxes.get(frame.handle)
        if inbox is not None:
            inbox.put(frame, record_bytes)
