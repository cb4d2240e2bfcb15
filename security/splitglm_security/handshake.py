"""The product's handshake: two Noise suites, a clear hello that both sides must agree on, and its result.

Message 1 is ``Hello [| hint] | e, e1``; message 2 is ``e, ee, ekem1, s, es [, psk] | sealed payload``. What comes in
clear, hello and hint, is the prologue, so whoever edits it on the way makes the handshake fail: that is the whole
downgrade protection, and there is no other negotiation. One round trip; no early data.

What the result proves. To the initiator: the responder holds the key ``remote_static``, which ``trust.Trust`` must
judge, and saw the same hello. To the responder: nothing about the initiator until its first record opens; in the suite
with a pairing code that record proves the code.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitglm_core.errors import InputError, InternalError, SecurityError
from splitglm_security.channel import Channel
from splitglm_security.expand import expand
from splitglm_security.hello import HELLO_BYTES, Hello, Suite, peek_hello
from splitglm_security.keys import NodeKey
from splitglm_security.limits import KEM_CIPHERTEXT_BYTES, KEY_BYTES, MANIFEST_BYTES, TAG_BYTES
from splitglm_security.noise import HandshakeState
from splitglm_security.noise_pattern import parse_protocol
from splitglm_security.psk_ring import PskRing, check_psk, psk_hint

__all__ = ["Established", "Hello", "Initiator", "Responder", "Suite", "peek_hello"]

_LABEL: Final = b"splitglm/1"
REPLY_OVERHEAD_BYTES: Final = 2 * KEY_BYTES + KEM_CIPHERTEXT_BYTES + 3 * TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """The outcome of a handshake.

    Attributes:
        channel: the session's records.
        remote_static: the responder's public key as seen by the initiator, 32 bytes; None on the responder's side.
        payload: what the responder put into message 2, authenticated.
        hello: what both sides agreed on.
        log_id: 16 hexadecimal digits that name the session in logs of both sides and reveal nothing.
        exporter: 32 secret bytes that only the two ends know; derive from it with ``export``.
    """

    channel: Channel
    remote_static: bytes | None
    payload: bytes = field(repr=False)
    hello: Hello
    log_id: str
    exporter: bytes = field(repr=False)

    def export(self, label: bytes, size: int = KEY_BYTES) -> bytes:
        """A secret for one purpose, bound to this session: resumption key, token binding, cache handle."""
        return expand(self.exporter, b"exp " + label, b"", size)


class Initiator:
    """The side that opens the session (the device).

    Args:
        hello: what is proposed; its suite says whether a psk is needed.
        psk: 32 bytes from ``keys.PairingCode.psk()``, for ``Suite.NX_PSK`` only.
    """

    def __init__(self, hello: Hello, *, psk: bytes | None = None) -> None:
        self._start(hello, psk, None, None)

    @classmethod
    def _with_ephemerals(
        cls, hello: Hello, *, psk: bytes | None, ephemeral: X25519PrivateKey, kem_ephemeral: MLKEM768PrivateKey
    ) -> Initiator:
        """For transcripts that must be reproduced; a fixed ephemeral key has no forward secrecy."""
        initiator = cls.__new__(cls)
        initiator._start(hello, psk, ephemeral, kem_ephemeral)
        return initiator

    def _start(
        self,
        hello: Hello,
        psk: bytes | None,
        ephemeral: X25519PrivateKey | None,
        kem_ephemeral: MLKEM768PrivateKey | None,
    ) -> None:
        if (psk is not None) != (hello.suite is Suite.NX_PSK):
            raise InputError(f"suite {hello.suite.name} and the pairing code do not go together")
        self._hello = hello
        self._opening = hello.encode()
        if psk is not None:
            check_psk(psk)
            ephemeral = ephemeral or X25519PrivateKey.generate()  # the hint is about it, so it must exist before
            self._opening += psk_hint(psk, self._opening + ephemeral.public_key().public_bytes_raw())
        self._noise = HandshakeState(
            parse_protocol(hello.suite.noise_name),
            initiator=True,
            prologue=_LABEL + self._opening,
            psks=() if psk is None else (psk,),
            ephemeral=ephemeral,
            kem_ephemeral=kem_ephemeral,
        )

    def first_message(self) -> bytes:
        """Message 1; once."""
        return self._opening + self._noise.write_message(b"")

    @property
    def attestation_hash(self) -> bytes:
        """``h`` between the messages: holds our fresh keys, so evidence about it cannot be an old recording."""
        return self._noise.handshake_hash

    def finish(self, message: bytes) -> Established:
        """Read message 2.

        Raises:
            SecurityError: it is not an answer to our message 1 by the owner of one key (and the pairing code).
        """
        if not REPLY_OVERHEAD_BYTES <= len(message) <= REPLY_OVERHEAD_BYTES + MANIFEST_BYTES:
            message = b""  # read all the same: a failed handshake must not be tried again
        payload = self._noise.read_message(bytes(message))
        return _established(self._noise, self._hello, payload, initiator=True)


class Responder:
    """The side that answers (the cloud). One object per handshake.

    Args:
        node_key: the node's identity.
        psks: if given, only ``Suite.NX_PSK`` with one of these is accepted, else only ``Suite.NX``: a peer cannot talk
            its way down.

    Attributes:
        psk_number: which of ``psks`` the device means, None before ``accept`` and without any. Proven only when the
            device's first record opens.
    """

    def __init__(self, node_key: NodeKey, *, psks: PskRing | None = None) -> None:
        self._node_key = node_key
        self._psks = psks
        self.psk_number: int | None = None
        self._hello: Hello | None = None
        self._noise: HandshakeState | None = None

    def accept(self, message: bytes) -> Hello:
        """Check and read message 1. Cheap: parsing and hashing, and in the psk suite an HMAC per key and, once one is
        recognised, two small decryptions.

        Raises:
            VersionMismatch: the peer speaks another version.
            SecurityError: anything else wrong.
        """
        if self._noise is not None:
            raise InternalError("a responder serves one handshake")
        hello = peek_hello(message)
        if hello.suite is not (Suite.NX if self._psks is None else Suite.NX_PSK):
            raise SecurityError()
        opening, message = bytes(message[: hello.suite.opening_bytes]), bytes(message[hello.suite.opening_bytes :])
        psks: tuple[bytes, ...] = ()
        if self._psks is not None:
            self.psk_number = self._psks.find(opening[HELLO_BYTES:], opening[:HELLO_BYTES] + message[:KEY_BYTES])
            if self.psk_number is None:
                raise SecurityError()
            psks = (self._psks[self.psk_number],)
        self._noise = HandshakeState(
            parse_protocol(hello.suite.noise_name),
            initiator=False,
            prologue=_LABEL + opening,
            static=self._node_key.private,
            psks=psks,
        )
        if self._noise.read_message(message):
            raise SecurityError()
        self._hello = hello
        return hello

    @property
    def attestation_hash(self) -> bytes:
        """``h`` after message 1: what evidence in the payload of message 2 must be bound to."""
        if self._noise is None or self._hello is None:
            raise InternalError("no message was accepted yet")
        return self._noise.handshake_hash

    def reply(self, payload: bytes) -> tuple[bytes, Established]:
        """Message 2 with ``payload`` (at most 4096 bytes) sealed in it, and the session.

        Raises:
            SecurityError: the peer's key is not a good one.
        """
        if self._noise is None or self._hello is None:
            raise InternalError("no message was accepted yet")
        if len(payload) > MANIFEST_BYTES:
            raise InternalError(f"a handshake payload of {len(payload)} bytes is over {MANIFEST_BYTES}")
        message = self._noise.write_message(bytes(payload))
        return message, _established(self._noise, self._hello, bytes(payload), initiator=False)


def _established(noise: HandshakeState, hello: Hello, payload: bytes, *, initiator: bool) -> Established:
    keys = noise.split()
    exporter = hmac.digest(noise.handshake_hash, keys[0] + keys[1], "sha256")  # HKDF-Extract(salt=h, ikm=keys)
    channel = Channel(
        initiator=initiator,
        keys=keys,
        handshake_hash=noise.handshake_hash,
        prologue=_LABEL + hello.encode(),
        max_record=hello.max_record,
    )
    return Established(
        channel=channel,
        remote_static=noise.remote_static,
        payload=payload,
        hello=hello,
        log_id=hashlib.sha256(b"log" + exporter).digest()[:8].hex(),
        exporter=exporter,
    )
