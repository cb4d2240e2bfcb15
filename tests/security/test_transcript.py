"""The frozen transcript: what this release says and understands is what protocol version 3 says, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitglm_security.channel import Channel, Kind
from splitglm_security.handshake import Hello, Initiator, Responder, Suite
from splitglm_security.keys import NodeKey, PairingCode, parse_public_key
from splitglm_security.psk_ring import PskRing

PATH = Path(__file__).parents[1] / "vectors" / "splitglm-3.json"
DOCUMENT = json.loads(PATH.read_text())
SESSIONS = {session["noise_name"]: session for session in DOCUMENT["sessions"]}


def unhex(session: dict[str, Any], field: str) -> bytes:
    return bytes.fromhex(session[field])


@pytest.fixture(params=sorted(SESSIONS))
def session(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SESSIONS[request.param]


def psk_of(session: dict[str, Any]) -> bytes | None:
    return None if session["psk"] is None else unhex(session, "psk")


def check_records(session: dict[str, Any], channel: Channel, *, says: str, hears: str) -> None:
    for kind, text, record in session[says]:
        if kind == "KEY_UPDATE":
            made = channel.key_update()
        elif kind == "FIN":
            made = channel.close()
        else:
            made = channel.seal(bytes.fromhex(text), Kind[kind])
        assert made.hex() == record
    for kind, text, record in session[hears]:
        opened = channel.open(bytes.fromhex(record))
        assert (opened.kind.name, opened.payload.hex()) == (kind, text)


def test_the_file_covers_both_suites() -> None:
    assert DOCUMENT["protocol"] == "splitglm/3"
    assert set(SESSIONS) == {suite.noise_name for suite in Suite}


def test_a_device_with_the_seeds_replays_the_session(session: dict[str, Any]) -> None:
    initiator = Initiator._with_ephemerals(
        Hello.decode(unhex(session, "hello")),
        psk=psk_of(session),
        ephemeral=X25519PrivateKey.from_private_bytes(unhex(session, "initiator_ephemeral")),
        kem_ephemeral=MLKEM768PrivateKey.from_seed_bytes(unhex(session, "initiator_kem_seed")),
    )
    assert initiator.first_message().hex() == session["message_1"]
    assert initiator.attestation_hash.hex() == session["attestation_hash"]
    device = initiator.finish(unhex(session, "message_2"))
    assert device.payload.hex() == session["payload"]
    assert device.exporter.hex() == session["exporter"]
    assert device.export(b"resume").hex() == session["exported_resume_32"]
    assert device.log_id == session["log_id"]
    assert device.remote_static == parse_public_key(session["node_public_text"])
    check_records(session, device.channel, says="up", hears="down")


def test_a_cloud_reads_the_recorded_device(session: dict[str, Any]) -> None:
    node = NodeKey(X25519PrivateKey.from_private_bytes(unhex(session, "node_private")))
    assert node.text == session["node_public_text"]
    psk = psk_of(session)
    responder = Responder(node, psks=None if psk is None else PskRing([psk]))
    assert responder.accept(unhex(session, "message_1")).encode().hex() == session["hello"]
    assert responder.attestation_hash.hex() == session["attestation_hash"]
    channel = Channel(
        initiator=False,
        keys=(bytes.fromhex(session["keys"][0]), bytes.fromhex(session["keys"][1])),
        handshake_hash=unhex(session, "handshake_hash"),
        prologue=b"splitglm/1" + unhex(session, "hello"),
        max_record=65536,
    )
    check_records(session, channel, says="down", hears="up")


def test_the_pairing_code_of_the_transcript_gives_its_psk() -> None:
    session = SESSIONS[Suite.NX_PSK.noise_name]
    assert PairingCode.parse(session["pairing_code"]).psk().hex() == session["psk"]


def test_the_transcript_is_frozen() -> None:
    # Changing the file and the code together would pass everything above and break every client out there.
    assert (
        hashlib.sha256(PATH.read_bytes()).hexdigest()
        == "b04605318eb7f206ff82ee19697af2af3e1dbf3598abd478f4829e281f1c9ef4"
    )
