"""How streams begin and end: who gets a place, what a cut stream is, and that nothing is left of any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from raw_client import Client
from running_cloud import RunningCloud, generous_admission, running_cloud

from splitglm_cloud.gateway import places
from splitglm_cloud.gateway.service import SplitService
from splitglm_cloud.metrics import Metrics
from splitglm_core.plan import SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_security.channel import Kind
from splitglm_security.handshake import Hello, Initiator, Suite
from splitglm_wire import framing
from splitglm_wire.frames import Open, Opened, Ping, Pong
from splitglm_wire.v1 import split_pb2


@contextmanager
def clients(cloud: RunningCloud, count: int) -> Iterator[list[Client]]:
    made = [Client(cloud) for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            client.close()


def establish(client: Client) -> None:
    client.shake_hands().frame(Ping(handle=1, nonce=1))
    answer = client.receive()
    assert isinstance(answer, Pong) and (answer.handle, answer.nonce, answer.size) == (1, 1, 0)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients count as being on another machine."""
    monkeypatch.setattr(places, "is_here", lambda peer: False)


@pytest.mark.parametrize("method", ["Watch", "List"])
def test_health_cannot_be_watched(cloud: RunningCloud, method: str) -> None:
    """A stream that anybody may hold open without a handshake would be a place that anybody may take."""
    with grpc.insecure_channel(cloud.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            if method == "Watch":
                next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))
            else:
                stub.List(health_pb2.HealthListRequest(), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_connections_that_say_nothing_do_not_lock_a_device_out(model: Path, home: Path) -> None:
    with running_cloud(model, home, max_streams=1, handshake_deadline_s=20.0) as cloud, clients(cloud, 6) as made:
        device, silent = made[0], made[1:]
        cloud.until(lambda: cloud.server.service._silent.taken == len(made))
        establish(device)
        assert cloud.now(lambda: cloud.server.service._silent.taken) == len(silent)


def test_silent_connections_of_one_peer_are_bounded(model: Path, home: Path, strangers: None) -> None:
    with running_cloud(model, home, max_silent_per_peer=3, handshake_deadline_s=20.0) as cloud:
        with clients(cloud, 3):
            cloud.until(lambda: cloud.server.service._silent.taken == 3)
            with clients(cloud, 1) as (one_more,):
                assert one_more.refusal()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED  # without a word from it
        cloud.until(lambda: cloud.server.service._silent.taken == 0)
        with clients(cloud, 1) as (device,):
            establish(device)


def test_streams_of_one_peer_are_bounded(model: Path, home: Path, strangers: None) -> None:
    with running_cloud(model, home, max_streams_per_peer=2) as cloud, clients(cloud, 3) as made:
        establish(made[0])
        establish(made[1])
        made[2].raw(bytes(100))
        code, text = made[2].refusal()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "retry after" in text
        made[0].close()
        cloud.until(lambda: cloud.server.service._streams.taken == 1)
        with clients(cloud, 1) as (device,):
            establish(device)


def test_a_place_is_taken_from_the_first_message_on(model: Path, home: Path) -> None:
    """Otherwise any number of handshakes that end together would get past the limit."""
    with running_cloud(model, home, max_streams=1) as cloud, clients(cloud, 2) as (first, second):
        first.shake_hands()
        assert cloud.now(lambda: cloud.server.table.streams) == []
        second.raw(bytes(100))
        assert second.refusal()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.frame(Ping(handle=1, nonce=1))
        assert first.receive() == Pong(handle=1, nonce=1)


def last_kinds(client: Client) -> list[Kind]:
    """Kinds of the records that still come; the call must end well."""
    kinds = [client.established.channel.open(sealed.frame).kind for sealed in client.call]
    assert client.call.code() is grpc.StatusCode.OK
    return kinds


@pytest.mark.parametrize("end", ["goodbye", "cut", "alert"])
def test_a_stream_without_a_goodbye_is_lost_and_its_sessions_wait(model: Path, home: Path, end: str) -> None:
    with running_cloud(model, home) as cloud, clients(cloud, 1) as (client,):
        establish(client)
        layers = cloud.server.facts.shape.layers
        client.frame(
            Open(
                handle=1, session_id=bytes(range(16)), fence=1, request=1, plan=SplitPlan.cloud_only(layers),
                context=500, keep=0, sampling=SamplingParams(),
            )
        )  # fmt: skip
        assert isinstance(client.receive(), Opened)
        if end == "goodbye":
            client.raw(client.established.channel.close())
        elif end == "alert":
            client.raw(client.established.channel.seal(b"", Kind.ALERT))
        client.half_close()
        # To a stream that may have been cut by anybody the cloud says no goodbye of its own.
        assert last_kinds(client) == ([Kind.FIN] if end == "goodbye" else [])
        cloud.until(lambda: cloud.server.service._streams.taken == 0)
        assert cloud.now(lambda: (len(cloud.server.table), cloud.server.table.streams)) == (1, [])


class WatchedTable:
    def __init__(self) -> None:
        self.streams: list[Any] = []

    def attach(self, stream: Any) -> None:
        self.streams.append(stream)

    def detach(self, stream: Any, now_s: float) -> None:
        self.streams.remove(stream)

    def receive(self, stream: Any, frame: Any) -> None:
        """Frames do not matter here."""


class Call:
    """The server's side of one gRPC call."""

    def __init__(self) -> None:
        self.written: asyncio.Queue[bytes] = asyncio.Queue()
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()

    def peer(self) -> str:
        return "ipv4:10.0.0.1:5000"

    async def write(self, sealed: split_pb2.Sealed) -> None:
        await self.written.put(sealed.frame)

    async def requests(self) -> AsyncIterator[split_pb2.Sealed]:
        while True:
            yield split_pb2.Sealed(frame=await self.incoming.get())


async def test_a_call_that_is_cancelled_again_while_it_ends_leaves_nothing_behind(cloud: RunningCloud) -> None:
    table, call, manifest = WatchedTable(), Call(), cloud.server.manifest
    service = SplitService(
        table=table, node_key=cloud.server.node_key, psk=None, manifest=manifest, metrics=Metrics(),  # type: ignore[arg-type]
        max_streams=4, max_streams_per_peer=4, max_silent_per_peer=4, outbox_budget_bytes=1 << 20,
        admission=generous_admission(),
    )  # fmt: skip
    task = asyncio.ensure_future(service.Connect(call.requests(), call))  # type: ignore[arg-type]
    initiator = Initiator(Hello(suite=Suite.NX, model_fingerprint=manifest.fingerprint))
    await call.incoming.put(initiator.first_message())
    channel = initiator.finish(await call.written.get()).channel
    await call.incoming.put(channel.seal(framing.encode(Ping(handle=1, nonce=1))))
    while not table.streams:
        await asyncio.sleep(0)
    assert service._streams.taken == 1
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert table.streams == [] and service._streams.taken == 0 and not service._outboxes.outboxes
