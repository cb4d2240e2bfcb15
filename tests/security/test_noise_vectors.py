"""The Noise core against the 440 public vectors, message by message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security.noise import HandshakeState
from splitglm_security.noise_pattern import parse_protocol
from splitglm_security.noise_symmetric import CipherState

VECTORS = Path(__file__).parents[1] / "vectors" / "noise"
COUNTS = {"cacophony_25519": 240, "snow_25519": 200}


def load(name: str) -> list[dict[str, Any]]:
    with gzip.open(VECTORS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)["vectors"]


def side(vector: dict[str, Any], who: str, *, initiator: bool) -> HandshakeState:
    def private(field: str) -> X25519PrivateKey | None:
        text = vector.get(f"{who}_{field}")
        return None if text is None else X25519PrivateKey.from_private_bytes(bytes.fromhex(text))

    remote = vector.get(f"{who}_remote_static")
    return HandshakeState(
        parse_protocol(vector["protocol_name"]),
        initiator=initiator,
        prologue=bytes.fromhex(vector[f"{who}_prologue"]),
        static=private("static"),
        remote_static=None if remote is None else bytes.fromhex(remote),
        psks=[bytes.fromhex(psk) for psk in vector.get(f"{who}_psks", [])],
        ephemeral=private("ephemeral"),
    )


def replay(vector: dict[str, Any]) -> None:
    initiator, responder = side(vector, "init", initiator=True), side(vector, "resp", initiator=False)
    cipher = parse_protocol(vector["protocol_name"]).cipher
    transport: list[tuple[CipherState, CipherState]] = []
    for index, message in enumerate(vector["messages"]):
        payload, ciphertext = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        if transport:
            sender, receiver = transport[index % 2]
            assert sender.encrypt_with_ad(b"", payload) == ciphertext
            assert receiver.decrypt_with_ad(b"", ciphertext) == payload
            continue
        writer, reader = (initiator, responder) if index % 2 == 0 else (responder, initiator)
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
        if initiator.finished:
            assert initiator.handshake_hash == responder.handshake_hash
            if "handshake_hash" in vector:
                assert initiator.handshake_hash.hex() == vector["handshake_hash"]
            keys = initiator.split()
            assert keys == responder.split()
            transport = [(CipherState(cipher, key), CipherState(cipher, key)) for key in keys]
    assert transport, "the vector ended before the handshake did"


@pytest.mark.parametrize("name", COUNTS)
def test_every_public_noise_vector_is_reproduced_byte_by_byte(name: str) -> None:
    vectors = load(name)
    assert len(vectors) == COUNTS[name]
    for vector in vectors:
        try:
            replay(vector)
        except (AssertionError, SecurityError) as error:
            raise AssertionError(f"{vector['protocol_name']}: {error}") from error


def test_hybrid_tokens_stand_where_the_draft_puts_them() -> None:
    assert parse_protocol("Noise_NXhfs_25519+MLKEM768_AESGCM_SHA256").messages == (
        ("e", "e1"),
        ("e", "ee", "ekem1", "s", "es"),
    )
    assert parse_protocol("Noise_NXhfs+psk2_25519+MLKEM768_AESGCM_SHA256").messages == (
        ("e", "e1"),
        ("e", "ee", "ekem1", "s", "es", "psk"),
    )
    assert parse_protocol("Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256").messages == (
        ("e", "es", "e1", "s", "ss"),
        ("e", "ee", "ekem1", "se"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "Noise_ZZ_25519_AESGCM_SHA256",
        "Noise_NX_448_AESGCM_SHA256",
        "Noise_NX_25519+MLKEM768_AESGCM_SHA256",
        "Noise_NXhfs_25519_AESGCM_SHA256",
        "Noise_NXpsk9_25519_AESGCM_SHA256",
        "Noise_NXfallback_25519_AESGCM_SHA256",
        "Noise_NX_25519_AES128_SHA256",
        "Noise_NX_25519_AESGCM",
        "",
    ],
)
def test_an_unknown_protocol_name_is_refused(name: str) -> None:
    with pytest.raises(InternalError):
        parse_protocol(name)


def test_messages_out_of_turn_and_missing_keys_are_our_own_error() -> None:
    nx = parse_protocol("Noise_NX_25519_AESGCM_SHA256")
    initiator = HandshakeState(nx, initiator=True, prologue=b"")
    with pytest.raises(InternalError):
        initiator.read_message(b"")
    with pytest.raises(InternalError):
        initiator.split()
    first = initiator.write_message(b"")
    with pytest.raises(InternalError):
        initiator.write_message(b"")
    keyless = HandshakeState(nx, initiator=False, prologue=b"")
    keyless.read_message(first)
    with pytest.raises(InternalError):
        keyless.write_message(b"")
    with pytest.raises(InternalError):
        HandshakeState(nx, initiator=True, prologue=b"", psks=[bytes(32)])
    with pytest.raises(InternalError):
        HandshakeState(parse_protocol("Noise_NXpsk2_25519_AESGCM_SHA256"), initiator=True, prologue=b"", psks=[b"x"])


def test_a_failed_read_ends_the_handshake() -> None:
    nx = parse_protocol("Noise_NX_25519_AESGCM_SHA256")
    initiator = HandshakeState(nx, initiator=True, prologue=b"")
    responder = HandshakeState(nx, initiator=False, prologue=b"", static=X25519PrivateKey.generate())
    responder.read_message(initiator.write_message(b""))
    reply = responder.write_message(b"")
    with pytest.raises(SecurityError):
        initiator.read_message(reply[:-1])
    with pytest.raises(SecurityError):
        initiator.read_message(reply)
