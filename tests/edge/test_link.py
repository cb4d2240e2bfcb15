"""One connection: who may be at the other end, how it ends, and who is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_cloud.gateway.service import DeviceStream
from splitglm_cloud.gateway.sessions import SessionTable
from splitglm_core.errors import (
    LinkError,
    ModelMismatch,
    Overloaded,
    PeerUntrusted,
    ProtocolError,
    SecurityError,
    VersionMismatch,
)
from splitglm_edge.connection import CloudAddress
from splitglm_edge.inbox import Inbox
from splitglm_edge.link import CloudLink
from splitglm_security.channel import Channel
from splitglm_security.handshake import Initiator
from splitglm_security.keys import NodeKey
from splitglm_sims.link_emulator import LinkEmulator
from splitglm_sims.shaper import Direction
from splitglm_wire.frames import Ping, Pong
from splitglm_wire.v1 import split_pb2


def connect(cloud: RunningCloud, *, address: str | None = None, timeout_s: float = 20.0, **where: object) -> CloudLink:
    target = CloudAddress(address=address or cloud.address, **({"key": cloud.key} | where))  # type: ignore[arg-type]
    return CloudLink.connect(
        target.address,
        fingerprint=cloud.server.manifest.fingerprint,
        trust=target.trust(),
        psk=target.psk,
        timeout_s=timeout_s,
    )


@pytest.fixture
def one(cloud: RunningCloud) -> Iterator[CloudLink]:
    made = connect(cloud)
    yield made
    made.close()


def link_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "splitglm-link"]


def test_a_ping_takes_some_time_and_is_counted(one: CloudLink) -> None:
    up, down = one.bytes_up, one.bytes_down
    assert 0.0 < one.ping() < 10.0
    one.ping(size=10_000, reply_size=20_000)
    assert 10_000 < one.bytes_up - up < 10_500 and 20_000 < one.bytes_down - down < 20_500
    assert one.manifest.layers.stop == 4 and one.error is None and len(one.log_id) == 16


def test_nobody_there_is_told_at_once_not_at_the_timeout(cloud: RunningCloud) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started_s = time.monotonic()
    with pytest.raises(LinkError, match="no splitglm cloud answers"):
        connect(cloud, address=f"127.0.0.1:{port}", timeout_s=60.0)
    assert time.monotonic() - started_s < 20.0


def test_somebody_who_never_answers_is_left_at_the_timeout(cloud: RunningCloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(LinkError):
        connect(cloud, address=f"127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.3)


def test_another_grpc_server_is_no_cloud(cloud: RunningCloud) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(LinkError, match="not a splitglm cloud"):
            connect(cloud, address=f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def test_a_wrong_or_unknown_key_is_refused(cloud: RunningCloud, tmp_path: Path) -> None:
    stranger = NodeKey.load_or_create(tmp_path / "other.key").text
    with pytest.raises(PeerUntrusted):
        connect(cloud, key=stranger)
    with pytest.raises(PeerUntrusted):
        connect(cloud, key=None, pins=tmp_path / "no-pins.json")


def test_trust_on_first_use_pins_and_holds_to_it(cloud: RunningCloud, model: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins" / "pins.json"
    connect(cloud, key=None, pins=pins, trust_on_first_use=True).close()
    connect(cloud, key=None, pins=pins).close()  # now it is known
    port = cloud.port
    other = NodeKey.load_or_create(tmp_path / "other.key").text
    with pytest.raises(PeerUntrusted):  # what was said by hand counts, not the pin
        connect(cloud, key=other, pins=pins, address=f"127.0.0.1:{port}")


def test_a_changed_key_is_refused_even_on_first_use_terms(
    cloud: RunningCloud, model: Path, home: Path, tmp_path: Path
) -> None:
    pins = tmp_path / "pins" / "pins.json"
    with running_cloud(model, home, key_file=tmp_path / "a.key") as first:
        port = first.port
        connect(first, key=None, pins=pins, trust_on_first_use=True).close()
    with (
        running_cloud(model, home, key_file=tmp_path / "b.key", listen=f"127.0.0.1:{port}") as second,
        pytest.raises(PeerUntrusted),
    ):
        connect(second, key=None, pins=pins, trust_on_first_use=True)


def test_another_model_is_told_apart_by_both_fingerprints(cloud: RunningCloud, tmp_path: Path) -> None:
    mine = write_tiny_checkpoint(tmp_path / "mine", layers=4, seed=99)
    from splitglm_glm.opening import open_checkpoint

    fingerprint = open_checkpoint(str(mine)).fingerprint
    where = CloudAddress(address=cloud.address, key=cloud.key)
    with pytest.raises(ModelMismatch) as error:
        CloudLink.connect(cloud.address, fingerprint=fingerprint, trust=where.trust())
    assert fingerprint.hex()[:12] in error.value.what
    assert cloud.server.manifest.fingerprint.hex()[:12] in error.value.what


@pytest.mark.parametrize("mine", [None, bytes(32)], ids=["none", "another"])
def test_a_wrong_pairing_fails_with_the_constant_text(model: Path, home: Path, mine: bytes | None) -> None:
    with running_cloud(model, home, psk=bytes(range(32))) as paired:
        with pytest.raises(SecurityError) as error:
            connect(paired, psk=mine)
        assert error.value.what == SecurityError().what
        connect(paired, psk=bytes(range(32))).close()


def test_a_pairing_that_the_cloud_does_not_know_fails_too(cloud: RunningCloud) -> None:
    with pytest.raises(SecurityError):
        connect(cloud, psk=bytes(32))


def test_another_protocol_version_is_a_clear_error(cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    first_message = Initiator.first_message

    def newer(self: Initiator) -> bytes:
        message = bytearray(first_message(self))
        message[4] += 1  # magic, then the version
        return bytes(message)

    monkeypatch.setattr(Initiator, "first_message", newer)
    with pytest.raises(VersionMismatch, match="another protocol version"):
        connect(cloud)


def test_a_busy_cloud_says_so(model: Path, home: Path) -> None:
    with running_cloud(model, home, max_streams=1) as cloud:
        first = connect(cloud)
        first.ping()
        with pytest.raises(Overloaded):
            connect(cloud)
        first.close()


def test_a_reset_tells_every_session_once_and_fails_the_next_send(cloud: RunningCloud, link: LinkEmulator) -> None:
    one = connect(cloud, address=f"127.0.0.1:{link.port}")
    one.ping()
    inboxes = [one.open_inbox()[1] for _ in range(3)]
    link.reset_all()
    assert [inbox.get(timeout=20) for inbox in inboxes] == [None] * 3
    assert isinstance(one.error, LinkError)
    with pytest.raises(LinkError):
        one.send(Ping(handle=1, nonce=1))
    assert one.open_inbox()[1].get(timeout=20) is None  # who comes late is told as well
    one.close()


def test_a_silent_cloud_is_given_up_in_time(cloud: RunningCloud, link: LinkEmulator) -> None:
    one = connect(cloud, address=f"127.0.0.1:{link.port}")
    one.ping()
    inbox = one.open_inbox()[1]
    link.pause(Direction.DOWN)
    started_s = time.monotonic()
    assert one.receive(inbox, timeout_s=60.0, silence_s=0.6) is None
    assert 0.4 < time.monotonic() - started_s < 10.0
    assert one.error is not None and "silent" in one.error.what
    link.resume(Direction.DOWN)
    one.close()


def test_a_cloud_that_computes_for_long_is_not_taken_for_dead(one: CloudLink) -> None:
    inbox = one.open_inbox()[1]
    with pytest.raises(LinkError, match="did not answer within"):
        one.receive(inbox, timeout_s=1.5, silence_s=0.5)  # pings are answered meanwhile
    assert one.error is None
    assert one.ping() > 0.0


def test_a_forged_record_ends_the_link_for_good(cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    one = connect(cloud)
    one.ping()
    seal = Channel.seal

    def forge(self: Channel, *values: object) -> bytes:
        record = seal(self, *values)  # type: ignore[arg-type]
        ours = threading.current_thread().name != "test-cloud"
        return record if ours else record[:-1] + bytes([record[-1] ^ 1])

    monkeypatch.setattr(Channel, "seal", forge)
    with pytest.raises(SecurityError):
        one.ping()
    monkeypatch.undo()
    assert isinstance(one.error, SecurityError)
    one.close()


def test_closing_ends_the_threads_and_may_be_repeated(cloud: RunningCloud) -> None:
    before = len(link_threads())
    made = [connect(cloud) for _ in range(3)]
    for one in made:
        one.ping()
    assert len(link_threads()) == before + 3
    for one in made:
        one.close()
        one.close()
        with pytest.raises(LinkError):
            one.send(Ping(handle=1, nonce=1))
    assert len(link_threads()) == before


def test_a_failed_connect_leaves_no_thread(cloud: RunningCloud, tmp_path: Path) -> None:
    stranger = NodeKey.load_or_create(tmp_path / "other.key").text
    before = len(link_threads())
    for _ in range(3):
        with pytest.raises(PeerUntrusted):
            connect(cloud, key=stranger)
    assert len(link_threads()) == before


def test_draining_is_noticed(model: Path, home: Path) -> None:
    with running_cloud(model, home) as cloud:
        one = connect(cloud)
        one.ping()
        inbox = one.open_inbox()[1]
        cloud.run(cloud.server.stop(0.0))
        assert inbox.get(timeout=20) is None
        assert one.draining
        one.close()


def test_answers_that_nobody_asked_for_end_the_link(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = SessionTable.receive

    def twice(self: SessionTable, stream: Any, frame: Any) -> None:
        receive(self, stream, frame)
        if isinstance(frame, Ping) and frame.size:
            stream.send(Pong(handle=frame.handle, nonce=frame.nonce))

    monkeypatch.setattr(SessionTable, "receive", twice)
    with running_cloud(model, home) as cloud:
        one = connect(cloud)
        one.ping()
        inbox = one.open_inbox()[1]
        one.ping(size=1)
        assert inbox.get(timeout=20) is None
        assert isinstance(one.error, ProtocolError) and "not sent" in one.error.what
        one.close()


def test_an_answer_of_another_size_than_asked_ends_the_link(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = SessionTable.receive

    def large(self: SessionTable, stream: Any, frame: Any) -> None:
        receive(self, stream, replace(frame, reply_size=9) if isinstance(frame, Ping) and frame.size else frame)

    monkeypatch.setattr(SessionTable, "receive", large)
    with running_cloud(model, home) as cloud:
        one = connect(cloud)
        one.ping()
        with pytest.raises(ProtocolError):
            one.ping(size=1)
        one.close()


def test_a_session_that_is_flooded_ends_the_link(cloud: RunningCloud) -> None:
    one = connect(cloud)
    handle, _ = one.open_inbox()
    inbox = one._inboxes[handle] = Inbox(max_bytes=3000)
    for nonce in range(3):
        one.send(Ping(handle=handle, nonce=nonce, reply_size=1200))
    other = one.open_inbox()[1]
    assert other.get(timeout=20) is None
    assert isinstance(one.error, ProtocolError) and "more than was asked" in one.error.what
    assert inbox._queue.qsize() <= 3  # two frames and the end
    one.close()


@pytest.mark.parametrize("goodbye", [True, False])
def test_a_stream_that_was_cut_is_told_apart_from_one_that_ended(
    model: Path, home: Path, goodbye: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ends(self: DeviceStream, write: Any, metrics: Any) -> None:
        if goodbye:
            await write(split_pb2.Sealed(frame=self.channel.close()))

    monkeypatch.setattr(DeviceStream, "write_all", ends)
    with running_cloud(model, home) as cloud:
        one = connect(cloud)
        inbox = one.open_inbox()[1]
        try:
            one.send(Ping(handle=1, nonce=1))
        except LinkError:
            pass  # it may have ended already
        assert inbox.get(timeout=20) is None
        assert type(one.error) is LinkError
        assert ("ended the connection" if goodbye else "was cut off") in one.error.what
        one.close()


@pytest.mark.parametrize("arm", ["cloud", "split", "ushape"])
def test_a_stream_that_was_cut_goes_on_in_a_new_one(
    model: Path, home: Path, ask: Any, truth: Any, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a goodbye it is unknown whether the last steps were applied: the session asks, and loses nothing."""
    write_all, cut = DeviceStream.write_all, []

    async def cuts(self: DeviceStream, write: Any, metrics: Any) -> None:
        frames = 0

        async def until_then(record: Any) -> None:
            nonlocal frames
            frames += 1
            if frames == 14 and not cut:  # after the probes
                cut.append(self)
                raise Cut
            await write(record)

        try:
            await write_all(self, until_then, metrics)
        except Cut:
            pass

    monkeypatch.setattr(DeviceStream, "write_all", cuts)
    with running_cloud(model, home) as cloud, open_agent(model, home, cloud) as agent:
        generation = ask(agent, arm)
        assert generation.result() == truth[1] and generation.token_ids == truth[0]
        assert len(cut) == 1
        assert generation.stats is not None
        assert (generation.stats.reconnects, generation.stats.fallbacks) == (1, ())


class Cut(Exception):
    pass
