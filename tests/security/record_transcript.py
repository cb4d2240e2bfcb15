"""Records tests/vectors/splitglm-3.json: one session per suite, for this and other clients to reproduce.

    python tests/security/record_transcript.py > tests/vectors/splitglm-3.json

Run it only for a new protocol version: the file is frozen, and a change of it is a change of the protocol. The device's
side is fixed by seeds and reproducible to the byte. The cloud's message 2 is random (ML-KEM encapsulation cannot be
seeded in the library), so it is recorded once; everything after it follows from it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitglm_security.channel import Channel, Kind
from splitglm_security.handshake import Hello, Initiator, Responder, Suite
from splitglm_security.keys import NodeKey, PairingCode
from splitglm_security.noise import HandshakeState
from splitglm_security.noise_pattern import parse_protocol
from splitglm_security.psk_ring import PskRing

UP = [("DATA", b"open"), ("DATA", bytes(range(100))), ("KEY_UPDATE", b""), ("DATA", b""), ("FIN", b"")]
DOWN = [("DATA", b"tokens"), ("KEY_UPDATE", b""), ("KEY_UPDATE", b""), ("DATA", b"more tokens"), ("ALERT", b"BUSY")]


def seed(label: str, size: int = 32) -> bytes:
    return hashlib.shake_256(b"splitglm/1 vector " + label.encode()).digest(size)


def make(channel: Channel, kind: str, payload: bytes) -> bytes:
    """The record of ``kind``, as a session would make it."""
    if kind == "KEY_UPDATE":
        return channel.key_update()
    if kind == "FIN":
        return channel.close()
    return channel.seal(payload, Kind[kind])


def record(suite: Suite) -> dict[str, Any]:
    hello = Hello(suite=suite, model_fingerprint=seed("model"), features=0x0102, max_record=65536)
    code = PairingCode(seed("pairing", 16)) if suite is Suite.NX_PSK else None
    psk = None if code is None else code.psk()
    node = NodeKey(X25519PrivateKey.from_private_bytes(seed("node")))
    ephemeral = X25519PrivateKey.from_private_bytes(seed("ephemeral"))
    kem = MLKEM768PrivateKey.from_seed_bytes(seed("kem", 64))

    initiator = Initiator._with_ephemerals(hello, psk=psk, ephemeral=ephemeral, kem_ephemeral=kem)
    first = initiator.first_message()
    responder = Responder(node, psks=None if psk is None else PskRing([psk]))
    responder.accept(first)
    attestation_hash = responder.attestation_hash
    second, cloud = responder.reply(b"manifest of the node")
    device = initiator.finish(second)

    # The same handshake once more, one level below, for the keys that the public objects do not show.
    noise = HandshakeState(
        parse_protocol(suite.noise_name),
        initiator=True,
        prologue=b"splitglm/1" + first[: suite.opening_bytes],
        psks=() if psk is None else (psk,),
        ephemeral=ephemeral,
        kem_ephemeral=kem,
    )
    assert noise.write_message(b"") == first[suite.opening_bytes :]
    noise.read_message(second)
    handshake_hash, keys = noise.handshake_hash, noise.split()
    return {
        "noise_name": suite.noise_name,
        "pairing_code": None if code is None else code.text,
        "psk": None if psk is None else psk.hex(),
        "node_private": seed("node").hex(),
        "node_public_text": node.text,
        "initiator_ephemeral": seed("ephemeral").hex(),
        "initiator_kem_seed": seed("kem", 64).hex(),
        "hello": hello.encode().hex(),
        "hint": first[len(hello.encode()) : suite.opening_bytes].hex(),
        "message_1": first.hex(),
        "attestation_hash": attestation_hash.hex(),
        "message_2": second.hex(),
        "payload": device.payload.hex(),
        "handshake_hash": handshake_hash.hex(),
        "keys": [key.hex() for key in keys],
        "exporter": device.exporter.hex(),
        "exported_resume_32": device.export(b"resume").hex(),
        "log_id": device.log_id,
        "up": [[kind, text.hex(), make(device.channel, kind, text).hex()] for kind, text in UP],
        "down": [[kind, text.hex(), make(cloud.channel, kind, text).hex()] for kind, text in DOWN],
    }


if __name__ == "__main__":
    print(json.dumps({"protocol": "splitglm/3", "sessions": [record(suite) for suite in Suite]}, indent=1))
