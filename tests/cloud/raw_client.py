"""A client of the service that keeps to no rules of its own."""

from __future__ import annotations

import queue
from typing import Any

import grpc
from running_cloud import RunningCloud

from splitglm_security.channel import Kind
from splitglm_security.handshake import Established, Hello, Initiator, Suite
from splitglm_wire import framing
from splitglm_wire.frames import Frame
from splitglm_wire.v1 import split_pb2, split_pb2_grpc


class Client:
    """One raw stream: sends what it is told, in whatever state it is in."""

    def __init__(self, cloud: RunningCloud, *options: tuple[str, int]) -> None:
        self._cloud = cloud
        self.channel = grpc.insecure_channel(cloud.address, options=[("grpc.use_local_subchannel_pool", 1), *options])
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = split_pb2_grpc.SplitInferenceStub(self.channel)
        self.call = stub.Connect(iter(self._outgoing.get, None), timeout=30)
        self.established: Established

    def raw(self, data: bytes) -> None:
        self._outgoing.put(split_pb2.Sealed(frame=data))

    def half_close(self) -> None:
        self._outgoing.put(None)

    def shake_hands(self) -> Client:
        fingerprint = self._cloud.server.manifest.fingerprint
        initiator = Initiator(Hello(suite=Suite.NX, model_fingerprint=fingerprint))
        self.raw(initiator.first_message())
        self.established = initiator.finish(next(self.call).frame)
        return self

    def frame(self, frame: Frame) -> None:
        self.raw(self.established.channel.seal(framing.encode(frame)))

    def receive(self) -> Frame:
        while True:
            opened = self.established.channel.open(next(self.call).frame)
            if opened.kind is Kind.DATA:
                return framing.decode(opened.payload)

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        """How the server ends the call."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()  # type: ignore[attr-defined]
        return grpc.StatusCode.OK, ""

    def close(self) -> None:
        self._outgoing.put(None)
        self.call.cancel()
        self.channel.close()
