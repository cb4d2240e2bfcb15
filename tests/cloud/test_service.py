"""The service as strangers meet it: a real gRPC server on loopback and clients that do not keep to the rules."""

from __future__ import annotations

import itertools
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from raw_client import Client
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_cloud.engine.events import Evicted
from splitglm_cloud.gateway import outbox, service
from splitglm_cloud.server import SERVICE
from splitglm_cloud.settings import CloudSettings, split_address
from splitglm_core import telemetry
from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent
from splitglm_partitioner.request import Fixed
from splitglm_security.handshake import Hello, Initiator, Suite
from splitglm_wire import framing
from splitglm_wire.frames import Draining, Frame, Open, Opened, Ping, Pong, Reply, Result, Rows, Step
from splitglm_wire.limits import MAX_GRPC_MESSAGE_BYTES, MAX_PROBE_BYTES
from splitglm_wire.v1 import split_pb2

SPLIT = Fixed(arm=Arm.SPLIT, s=1)


@pytest.fixture
def client(cloud: RunningCloud) -> Iterator[Client]:
    one = Client(cloud)
    yield one
    one.close()


@pytest.fixture(scope="module")
def agent(cloud: RunningCloud, model: Path, home: Path) -> Iterator[Agent]:
    with open_agent(model, home, cloud) as one:
        yield one


@contextmanager
def undisturbed(agent: Agent) -> Iterator[None]:
    """A reply that began before goes on, to the same end and without a reconnect, after whatever happens inside."""
    options: dict[str, Any] = {"max_tokens": 30, "fixed": SPLIT, "codecs": (Codec.FP32,), "privacy": Privacy.OPEN}
    expected = agent.generate([1, 2, 3], ignore_eos=True, **options).result()
    generation = agent.generate([1, 2, 3], ignore_eos=True, **options)
    while len(generation.token_ids) < 5:
        next(generation)
    yield
    assert generation.result() == expected
    assert generation.stats is not None
    assert (generation.stats.reconnects, generation.stats.fallbacks) == (0, ())


def health(cloud: RunningCloud, name: str = "") -> int:
    with grpc.insecure_channel(cloud.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return int(reply.status)


def test_health_says_serving_and_tells_nothing_else(cloud: RunningCloud) -> None:
    assert health(cloud) == health(cloud, SERVICE) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health(cloud, "no.such.Service")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def list_services(cloud: RunningCloud) -> set[str]:
    with grpc.insecure_channel(cloud.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        reply = next(stub.ServerReflectionInfo(ask, timeout=10))
    return {one.name for one in reply.list_services_response.service}


def test_reflection_is_off_unless_asked_for(cloud: RunningCloud, model: Path, home: Path) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list_services(cloud)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    with running_cloud(model, home, reflection=True) as open_cloud:
        assert list_services(open_cloud) == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_the_only_methods_without_a_handshake_are_health(cloud: RunningCloud) -> None:
    """Every method of the schema is tried as a stranger would."""
    methods = [
        f"/{SERVICE}/{method.name}" for method in split_pb2.DESCRIPTOR.services_by_name["SplitInference"].methods
    ]
    assert methods == [f"/{SERVICE}/Connect"]
    with grpc.insecure_channel(cloud.address) as channel:
        for name in (*methods, f"/{SERVICE}/Status", "/grpc.channelz.v1.Channelz/GetServers"):
            call = channel.stream_stream(name)(iter([b"\x0a\x05hello"]), timeout=10)
            with pytest.raises(grpc.RpcError) as error:
                list(call)
            wanted = grpc.StatusCode.ABORTED if name in methods else grpc.StatusCode.UNIMPLEMENTED
            assert error.value.code() is wanted  # type: ignore[attr-defined]


def test_metrics_have_the_declared_names_and_no_content(model: Path, home: Path) -> None:
    with running_cloud(model, home, metrics_port=0) as cloud, open_agent(model, home, cloud) as agent:
        agent.generate("tourmaline-4711", max_tokens=5, fixed=SPLIT, privacy=Privacy.OPEN, ignore_eos=True).result()
        url = f"http://127.0.0.1:{cloud.server.metrics_port}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
    names = [value for key, value in vars(telemetry).items() if key.isupper() and isinstance(value, str)]
    for name in names:
        assert name in text, name
    assert "tourmaline" not in text and cloud.server.manifest.fingerprint.hex() not in text
    labels = {line.partition("{")[2].partition("}")[0] for line in text.splitlines() if "{" in line}
    assert not any("session" in label or "stream=" in label for label in labels)  # nobody is singled out
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=1)  # it ends with the server


def test_metrics_are_served_to_this_machine_only(model: Path, home: Path) -> None:
    with running_cloud(model, home, listen="0.0.0.0:0", allow_anonymous=True, metrics_port=0) as cloud:
        page = cloud.server.metrics._server
        assert page is not None and page.server_address[0] == "127.0.0.1"


GARBAGE = {
    "empty": b"",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "magic only": b"SGLM",
    "a megabyte": bytes(1 << 20),
    "random": bytes(itertools.islice(itertools.cycle(range(256)), 1260)),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_garbage_handshake_gets_the_one_constant_text(cloud: RunningCloud, client: Client, kind: str) -> None:
    client.raw(GARBAGE[kind])
    assert client.refusal() == (grpc.StatusCode.ABORTED, service.PUBLIC_ERROR)


def test_a_stream_that_says_nothing_and_ends_is_refused_alike(client: Client) -> None:
    client.half_close()
    assert client.refusal() == (grpc.StatusCode.ABORTED, service.PUBLIC_ERROR)


def test_another_protocol_version_is_told(cloud: RunningCloud, client: Client) -> None:
    message = bytearray(
        Initiator(Hello(suite=Suite.NX, model_fingerprint=cloud.server.manifest.fingerprint)).first_message()
    )
    message[4] += 1
    client.raw(bytes(message))
    assert client.refusal()[0] is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "kind", ["garbage", "replayed", "flipped", "not a frame", "unpadded", "unknown kind", "impossible open"]
)
def test_a_bad_record_ends_its_stream_and_no_other(
    cloud: RunningCloud, agent: Agent, client: Client, kind: str
) -> None:
    with undisturbed(agent):
        client.shake_hands()
        client.frame(Ping(handle=1, nonce=5))
        answer = client.receive()
        assert isinstance(answer, Pong) and (answer.handle, answer.nonce, answer.size) == (1, 5, 0)
        if kind == "replayed":
            good = client.established.channel.seal(framing.encode(Ping(handle=9, nonce=1)))
            client.raw(good)
            client.raw(good)
        elif kind == "garbage":
            client.raw(b"\x00" * 100)
        else:
            # Only the record under test is sealed, so that its number is the expected one.
            client.raw(_only(client, kind))
        assert client.refusal() == (grpc.StatusCode.ABORTED, service.PUBLIC_ERROR)


def _only(client: Client, kind: str) -> bytes:
    channel = client.established.channel
    if kind == "flipped":
        flipped = bytearray(channel.seal(framing.encode(Ping(handle=9, nonce=2))))
        flipped[-1] ^= 1
        return bytes(flipped)
    return channel.seal(
        {
            "not a frame": b"\xff" * 64,
            "unpadded": b"\x01",
            "unknown kind": b"\x63" + bytes(63),
            "impossible open": b"\x01\x00\x00\x00" + bytes(4) + (52).to_bytes(4, "little") + b"\xff" * 52,
        }[kind]
    )


def test_a_first_record_that_does_not_open_ends_the_handshake(cloud: RunningCloud, client: Client) -> None:
    client.shake_hands()
    client.raw(b"\x01" * 200)
    assert client.refusal() == (grpc.StatusCode.ABORTED, service.PUBLIC_ERROR)


def test_a_device_may_say_goodbye_before_it_has_asked_anything(
    cloud: RunningCloud, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.shake_hands()
    client.raw(client.established.channel.close())
    client.half_close()
    assert client.refusal() == (grpc.StatusCode.OK, "")
    assert "stream closed" not in caplog.messages


def test_an_oversize_message_never_reaches_the_service(cloud: RunningCloud, agent: Agent) -> None:
    client = Client(cloud, ("grpc.max_send_message_length", 64 << 20))
    with undisturbed(agent):
        client.shake_hands()
        client.raw(bytes(MAX_GRPC_MESSAGE_BYTES + 1))
        assert client.refusal()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    client.close()


@pytest.mark.parametrize("after", ["nothing", "first message"])
def test_slow_loris_is_cut_off_at_the_deadline(model: Path, home: Path, after: str) -> None:
    with running_cloud(model, home, handshake_deadline_s=0.2) as cloud:
        client = Client(cloud)
        if after == "first message":
            client.shake_hands()
        assert client.refusal() == (grpc.StatusCode.ABORTED, service.PUBLIC_ERROR)
        assert cloud.now(lambda: cloud.server._admission.half_open) == 0
        assert cloud.now(lambda: cloud.server.table.streams) == []
        client.close()


def test_streams_beyond_the_limit_are_sent_away_and_told_when_to_come_back(model: Path, home: Path) -> None:
    with running_cloud(model, home, max_streams=1) as cloud:
        first, second = Client(cloud).shake_hands(), Client(cloud)
        first.frame(Ping(handle=1, nonce=1))
        first.receive()
        second.raw(bytes(100))
        code, text = second.refusal()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "retry after" in text
        first.close()
        second.close()


def test_a_device_that_never_reads_is_bounded_and_closed(
    cloud: RunningCloud, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings ask for 256 KiB each; nothing is read. The outbox stays within its bound, then the stream is closed."""
    monkeypatch.setattr(outbox, "OUTBOX_BYTES", 4 << 20)
    held: list[int] = []
    send = service.DeviceStream.send

    def watched(self: service.DeviceStream, frame: Frame) -> None:
        send(self, frame)
        held.append(self.outbox.bytes)

    monkeypatch.setattr(service.DeviceStream, "send", watched)
    with undisturbed(agent):
        client = Client(cloud).shake_hands()
        client.frame(Ping(handle=1, nonce=0))
        client.receive()
        for number in range(200):
            client.frame(Ping(handle=1, nonce=number, reply_size=MAX_PROBE_BYTES))
        cloud.until(lambda: len(cloud.server.table.streams) == 1)  # the agent's alone
        assert (2 << 20) < max(held) <= 4 << 20
        client.close()


def _begin(client: Client, cloud: RunningCloud, generate: int) -> None:
    shape = cloud.server.facts.shape
    client.frame(
        Open(
            handle=1, session_id=bytes(range(16)), fence=1, request=1, plan=SplitPlan.cloud_only(shape.layers),
            context=500, keep=0, sampling=SamplingParams(temperature=5.0, seed=1),
        )
    )  # fmt: skip
    client.frame(
        Step(
            handle=1, fence=1, seq=1, base=0, rows_kind=Rows.IDS, rows=1, reply=Reply.TOKEN, generate=generate,
            payload=(7).to_bytes(4, "little"),
        )
    )  # fmt: skip
    assert isinstance(client.receive(), Opened)


def test_a_graceful_stop_tells_devices_and_lets_running_steps_end(model: Path, home: Path) -> None:
    with running_cloud(model, home) as cloud:
        client = Client(cloud).shake_hands()
        _begin(client, cloud, generate=400)
        assert isinstance(client.receive(), Result)
        states: list[int] = []
        stopping = threading.Thread(target=cloud.run, args=(cloud.server.stop(20.0),))
        stopping.start()
        frames: list[Frame] = []
        while not (frames and isinstance(frames[-1], Result) and frames[-1].last):
            frames.append(client.receive())
            if isinstance(frames[-1], Draining):
                states.append(health(cloud))
        stopping.join()
        assert any(isinstance(frame, Draining) for frame in frames)
        assert sum(isinstance(frame, Result) for frame in frames) == 399
        assert states == [health_pb2.HealthCheckResponse.NOT_SERVING]
        client.close()
        cloud.run(cloud.server.stop())  # a second stop is harmless
        assert cloud.server.executor.stats().kv_used_bytes == 0 and cloud.server.executor.stats().sessions == 0


def test_a_stop_without_grace_does_not_wait(model: Path, home: Path) -> None:
    with running_cloud(model, home) as cloud:
        client = Client(cloud).shake_hands()
        _begin(client, cloud, generate=400)
        cloud.run(cloud.server.stop(0.0))
        assert client.refusal()[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert cloud.server.executor.stats().kv_used_bytes == 0
        client.close()


def test_an_event_that_cannot_be_handled_does_not_hold_up_those_behind_it(
    cloud: RunningCloud, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing comes after them that would make the loop look again."""
    server, heard = cloud.server, list[int]()

    def on_event(session: int, event: object) -> None:
        heard.append(session)
        if session == 1:
            raise RuntimeError("broken")

    monkeypatch.setattr(server.back, "on_event", on_event)

    def come_together() -> None:
        for session in (1, 2):
            server._on_event(session, Evicted(None))

    cloud.now(come_together)
    cloud.until(lambda: heard == [1, 2])


def test_a_stream_that_ends_leaves_its_session_and_gives_up_everything_else(cloud: RunningCloud, agent: Agent) -> None:
    before = cloud.now(lambda: len(cloud.server.table.streams))
    client = Client(cloud).shake_hands()
    _begin(client, cloud, generate=2)
    client.close()
    cloud.until(lambda: len(cloud.server.table.streams) == before)
    assert cloud.now(lambda: cloud.server._admission.half_open) == 0


def test_a_non_loopback_address_needs_pairing_or_an_explicit_word(model: Path) -> None:
    for address in ("0.0.0.0:7411", "[::]:7411", "192.168.1.5:1", "cloud.example:7411"):
        with pytest.raises(InputError, match="refusing to serve"):
            CloudSettings(model=str(model), listen=address)
        assert CloudSettings(model=str(model), listen=address, psk=bytes(32)).psk
        assert CloudSettings(model=str(model), listen=address, allow_anonymous=True).allow_anonymous
    for address in ("127.0.0.1:0", "[::1]:7411", "localhost:7411"):
        CloudSettings(model=str(model), listen=address)


@pytest.mark.parametrize("address", ["", "7411", "host:", ":7411", "host:x", "host:65536", "host:-1"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(InputError):
        split_address(address)


def test_a_port_in_use_is_a_clear_error(cloud: RunningCloud, model: Path, home: Path) -> None:
    with pytest.raises(DeviceError, match="cannot listen"), running_cloud(model, home, listen=cloud.address):
        pass


@pytest.mark.parametrize(
    "bad",
    [
        {"runner": "jax"}, {"max_sessions": 0}, {"kv_budget_bytes": 0}, {"psk": b"short"}, {"max_context": -1},
        {"handshake_deadline_s": 0.0}, {"session_ttl_s": -1.0}, {"attached_idle_s": 0.0}, {"queue_budget_bytes": 0},
        {"outbox_budget_bytes": 0}, {"max_streams_per_peer": 0}, {"max_silent_per_peer": 0},
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(model: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CloudSettings(model=str(model), **bad)
