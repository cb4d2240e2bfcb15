"""The handshake's promises between honest ends, and the errors of our own side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError, InternalError, SecurityError, VersionMismatch
from splitglm_security.handshake import Established, Hello, Initiator, Responder, Suite, peek_hello
from splitglm_security.hello import HELLO_BYTES
from splitglm_security.keys import NodeKey, PairingCode
from splitglm_security.limits import HINT_BYTES, MANIFEST_BYTES, MAX_RECORD_BYTES, MIN_RECORD_BYTES
from splitglm_security.psk_ring import PskRing

Connect = Callable[..., tuple[Established, Established]]

hellos = st.builds(
    Hello,
    suite=st.sampled_from(Suite),
    model_fingerprint=st.binary(min_size=32, max_size=32),
    features=st.integers(0, 2**16 - 1),
    max_record=st.integers(MIN_RECORD_BYTES, MAX_RECORD_BYTES),
)


@pytest.mark.parametrize("suite", list(Suite))
def test_both_ends_agree_on_everything(suite: Suite, connect: Connect, node_key: NodeKey) -> None:
    hello = Hello(suite=suite, model_fingerprint=bytes(range(32)), features=0x8001, max_record=4096)
    psk = PairingCode.generate().psk() if suite is Suite.NX_PSK else None
    device, cloud = connect(hello, psk=psk, payload=b"layers 0..24")
    assert device.remote_static == node_key.public and cloud.remote_static is None
    assert device.payload == cloud.payload == b"layers 0..24"
    assert device.hello == cloud.hello == hello
    assert device.exporter == cloud.exporter and len(device.exporter) == 32
    assert device.log_id == cloud.log_id == hashlib.sha256(b"log" + device.exporter).hexdigest()[:16]
    assert device.channel.max_record == 4096
    assert device.export(b"resume") == cloud.export(b"resume") != device.export(b"token")
    assert bytes(cloud.channel.open(device.channel.seal(b"up")).payload) == b"up"
    assert bytes(device.channel.open(cloud.channel.seal(b"down")).payload) == b"down"


def test_message_lengths_are_what_the_research_states(
    connect: Connect, hello: Hello, psk_hello: Hello, node_key: NodeKey
) -> None:
    assert len(Initiator(hello).first_message()) == HELLO_BYTES + 1216 == Suite.NX.first_message_bytes
    initiator = Initiator(psk_hello, psk=bytes(32))
    assert len(initiator.first_message()) == HELLO_BYTES + HINT_BYTES + 1248 == Suite.NX_PSK.first_message_bytes
    plain, responder = Initiator(hello), Responder(node_key)
    responder.accept(plain.first_message())
    assert len(responder.reply(b"12345")[0]) == 1200 + 5


def test_sessions_share_no_secret(connect: Connect, hello: Hello) -> None:
    ends = [connect(hello)[0] for _ in range(20)]
    assert len({end.exporter for end in ends}) == len({end.log_id for end in ends}) == 20
    assert len({end.channel.seal(b"same text") for end in ends}) == 20


def test_the_manifest_is_not_readable_on_the_wire(node_key: NodeKey, hello: Hello) -> None:
    initiator, responder = Initiator(hello), Responder(node_key)
    responder.accept(initiator.first_message())
    message, _ = responder.reply(b"manifest-manifest" * 10)
    assert b"manifest" not in message and node_key.public not in message
    assert initiator.finish(message).payload == b"manifest-manifest" * 10


def test_both_ends_bind_attestation_to_the_same_fresh_hash(node_key: NodeKey, hello: Hello) -> None:
    seen = set()
    for _ in range(3):
        initiator, responder = Initiator(hello), Responder(node_key)
        responder.accept(initiator.first_message())
        assert initiator.attestation_hash == responder.attestation_hash
        seen.add(initiator.attestation_hash)
    assert len(seen) == 3


@given(hellos)
def test_a_hello_survives_the_wire(hello: Hello) -> None:
    assert Hello.decode(hello.encode()) == hello
    assert len(hello.encode()) == HELLO_BYTES == 44


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_or_are_a_hello(data: bytes) -> None:
    try:
        hello = peek_hello(data)
    except (SecurityError, VersionMismatch):
        return
    assert hello.encode() == data[:HELLO_BYTES] and len(data) == hello.suite.first_message_bytes


@pytest.mark.parametrize("version", [0, 1, 2, 255])
@pytest.mark.parametrize("length", [5, 44, 1260, 1300])
def test_another_protocol_version_is_named_whatever_its_length(
    version: int, length: int, node_key: NodeKey, hello: Hello
) -> None:
    message = bytearray(Initiator(hello).first_message().ljust(length, b"\0")[:length])
    message[4] = version
    with pytest.raises(VersionMismatch, match=f"version {version}"):
        Responder(node_key).accept(bytes(message))


@pytest.mark.parametrize(
    "change",
    [
        {"model_fingerprint": bytes(31)},
        {"features": 1 << 16},
        {"features": -1},
        {"max_record": MIN_RECORD_BYTES - 1},
        {"max_record": MAX_RECORD_BYTES + 1},
        {"version": 1},
    ],
)
def test_a_hello_that_cannot_be_said_is_refused_at_home(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Hello(**{"suite": Suite.NX, "model_fingerprint": bytes(32), **change})  # type: ignore[arg-type]


def test_suite_and_pairing_code_must_go_together(hello: Hello, psk_hello: Hello, node_key: NodeKey) -> None:
    for wrong in (
        lambda: Initiator(hello, psk=bytes(32)),
        lambda: Initiator(psk_hello),
        lambda: Initiator(psk_hello, psk=bytes(31)),
        lambda: PskRing([bytes(33)]),
    ):
        with pytest.raises(InputError):
            wrong()


def test_calls_out_of_order_are_our_own_error(hello: Hello, node_key: NodeKey) -> None:
    initiator, responder = Initiator(hello), Responder(node_key)
    with pytest.raises(InternalError):
        responder.reply(b"")
    with pytest.raises(InternalError):
        _ = responder.attestation_hash
    first = initiator.first_message()
    with pytest.raises(InternalError):  # the same ephemeral keys twice would link and weaken sessions
        initiator.first_message()
    responder.accept(first)
    with pytest.raises(InternalError):
        responder.accept(first)
    with pytest.raises(InternalError):
        responder.reply(bytes(MANIFEST_BYTES + 1))
    message, _ = responder.reply(bytes(MANIFEST_BYTES))
    assert len(initiator.finish(message).payload) == MANIFEST_BYTES


def test_a_failed_handshake_cannot_be_tried_again(hello: Hello, node_key: NodeKey) -> None:
    initiator, responder = Initiator(hello), Responder(node_key)
    responder.accept(initiator.first_message())
    message, _ = responder.reply(b"")
    for bad in (b"", message[:-1]):
        with pytest.raises(SecurityError):
            initiator.finish(bad)
    with pytest.raises(SecurityError):
        initiator.finish(message)
