"""The Noise Protocol Framework, revision 34, with the hybrid forward secrecy tokens ``e1`` and ``ekem1``.

Source: https://noiseprotocol.org/noise.html; for the tokens the draft "Noise HFS" and the token order of snow's
``apply_hfs_modifier``. The classical part is checked byte by byte against public vectors (tests/vectors/noise), so
this module knows more patterns, ciphers and hashes than the product negotiates (``handshake.Suite``).

Sans-IO: bytes in, bytes out. Every failure that a peer can cause is the same ``SecurityError``, raised with no cause
attached, and ends the handshake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security.limits import (
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    KEY_BYTES,
    NOISE_MESSAGE_BYTES,
    TAG_BYTES,
)
from splitglm_security.noise_pattern import Protocol
from splitglm_security.noise_symmetric import SymmetricState

_T = TypeVar("_T")


class HandshakeState:
    """Section 5.3: one side of one handshake.

    Args:
        protocol: from ``parse_protocol``.
        initiator: the side that writes the first message.
        prologue: bytes that both sides must agree on.
        static: own static key, where the pattern needs one.
        remote_static: the peer's static public key, where a pre-message gives it.
        psks: one 32-byte key per ``psk`` token, in order of use.
        ephemeral, kem_ephemeral: fixed ephemeral keys for test vectors; ``None`` draws fresh ones.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        initiator: bool,
        prologue: bytes,
        static: X25519PrivateKey | None = None,
        remote_static: bytes | None = None,
        psks: Sequence[bytes] = (),
        ephemeral: X25519PrivateKey | None = None,
        kem_ephemeral: MLKEM768PrivateKey | None = None,
    ) -> None:
        if len(psks) != sum(message.count("psk") for message in protocol.messages):
            raise InternalError(f"{protocol.name} was given {len(psks)} pre-shared keys")
        if any(len(psk) != KEY_BYTES for psk in psks):
            raise InternalError("a pre-shared key is not 32 bytes")
        self._protocol = protocol
        self._initiator = initiator
        self._static = static
        self._remote_static = remote_static
        self._psks = list(psks)
        self._ephemeral = ephemeral
        self._kem_ephemeral = kem_ephemeral
        self._remote_ephemeral: bytes | None = None
        self._remote_kem: MLKEM768PublicKey | None = None
        self._next = 0
        self._dead = False
        self._symmetric = SymmetricState(protocol)
        self._symmetric.mix_hash(prologue)
        for of_initiator, tokens in zip((True, False), protocol.premessages, strict=True):
            if tokens:
                public = self._static_public() if of_initiator == initiator else self._known(remote_static)
                self._symmetric.mix_hash(public)

    @property
    def handshake_hash(self) -> bytes:
        """``h`` so far; after the last message it names the session (section 11.2, channel binding)."""
        return self._symmetric.h

    @property
    def remote_static(self) -> bytes | None:
        return self._remote_static

    @property
    def finished(self) -> bool:
        return self._next == len(self._protocol.messages)

    def split(self) -> tuple[bytes, bytes]:
        """Transport keys (initiator to responder, responder to initiator); forgets the ephemeral keys."""
        if not self.finished or self._dead:
            raise InternalError("Noise split before the handshake finished")
        self._dead = True
        self._forget()
        return self._symmetric.split()

    def write_message(self, payload: bytes) -> bytes:
        """The next handshake message with ``payload`` in it (encrypted once a key exists)."""
        tokens = self._take_turn(writing=True)
        out: list[bytes] = []
        try:
            for token in tokens:
                out.append(self._write(token))
            out.append(self._symmetric.encrypt_and_hash(payload))
        except BaseException:
            self._kill()
            raise
        message = b"".join(out)
        if len(message) > NOISE_MESSAGE_BYTES:
            raise InternalError(f"a handshake message of {len(message)} bytes is over {NOISE_MESSAGE_BYTES}")
        self._next += 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message.

        Raises:
            SecurityError: anything wrong with it; the handshake is then over.
        """
        tokens = self._take_turn(writing=False)
        if len(message) > NOISE_MESSAGE_BYTES:
            self._kill()
            raise SecurityError()
        try:
            for token in tokens:
                message = self._read(token, message)
            payload = self._symmetric.decrypt_and_hash(message)
        except BaseException:
            self._kill()
            raise
        self._next += 1
        return payload

    def _take_turn(self, *, writing: bool) -> tuple[str, ...]:
        if self._dead:
            raise SecurityError()
        if self.finished or ((self._next % 2 == 0) == self._initiator) != writing:
            raise InternalError("Noise message out of turn")
        return self._protocol.messages[self._next]

    def _write(self, token: str) -> bytes:
        match token:
            case "e":
                self._ephemeral = self._ephemeral or X25519PrivateKey.generate()
                public = self._ephemeral.public_key().public_bytes_raw()
                self._mix_ephemeral(public)
                return public
            case "s":
                return self._symmetric.encrypt_and_hash(self._static_public())
            case "e1":
                self._kem_ephemeral = self._kem_ephemeral or MLKEM768PrivateKey.generate()
                return self._symmetric.encrypt_and_hash(self._kem_ephemeral.public_key().public_bytes_raw())
            case "ekem1":
                shared, ciphertext = self._known(self._remote_kem).encapsulate()
                sealed = self._symmetric.encrypt_and_hash(ciphertext)
                self._symmetric.mix_key(shared)
                return sealed
            case _:
                self._mix(token)
                return b""

    def _read(self, token: str, message: bytes) -> bytes:
        match token:
            case "e":
                self._remote_ephemeral, rest = _cut(message, KEY_BYTES)
                self._mix_ephemeral(self._remote_ephemeral)
                return rest
            case "s":
                sealed, rest = _cut(message, KEY_BYTES + self._tag_bytes())
                self._remote_static = self._symmetric.decrypt_and_hash(sealed)
                return rest
            case "e1":
                sealed, rest = _cut(message, KEM_PUBLIC_BYTES + self._tag_bytes())
                self._remote_kem = _kem_public(self._symmetric.decrypt_and_hash(sealed))
                return rest
            case "ekem1":
                sealed, rest = _cut(message, KEM_CIPHERTEXT_BYTES + self._tag_bytes())
                # A forged ciphertext gives a secret of its own (implicit rejection); the next tag then fails.
                ciphertext = self._symmetric.decrypt_and_hash(sealed)
                self._symmetric.mix_key(self._known(self._kem_ephemeral).decapsulate(ciphertext))
                return rest
            case _:
                self._mix(token)
                return message

    def _mix(self, token: str) -> None:
        mine, theirs = self._ephemeral, self._remote_ephemeral
        match (token, self._initiator):
            case ("psk", _):
                self._symmetric.mix_key_and_hash(self._psks.pop(0))
                return
            case ("es", False) | ("se", True) | ("ss", _):
                mine = self._static
        match (token, self._initiator):
            case ("es", True) | ("se", False) | ("ss", _):
                theirs = self._remote_static
        self._symmetric.mix_key(_dh(self._known(mine), self._known(theirs)))

    def _mix_ephemeral(self, public: bytes) -> None:
        self._symmetric.mix_hash(public)
        # Section 9.2: "in a handshake with psk tokens, e is followed by MixKey(e.public_key)".
        if self._protocol.uses_psk:
            self._symmetric.mix_key(public)

    def _tag_bytes(self) -> int:
        return TAG_BYTES if self._symmetric.cipher.has_key else 0

    def _static_public(self) -> bytes:
        return self._known(self._static).public_key().public_bytes_raw()

    def _known(self, key: _T | None) -> _T:
        if key is None:
            raise InternalError(f"{self._protocol.name} needs a key that was not given")
        return key

    def _forget(self) -> None:
        self._ephemeral = self._kem_ephemeral = None
        self._psks.clear()

    def _kill(self) -> None:
        self._dead = True
        self._forget()


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise SecurityError()
    return message[:size], message[size:]


def _dh(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a low-order point: the result would be all zeros
        pass
    raise SecurityError()


def _kem_public(data: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(data)
    except ValueError:  # FIPS 203 section 7.2: a coefficient is not reduced
        pass
    raise SecurityError()
