"""Noise rev 34, section 5: CipherState and SymmetricState, the transcript hash and its chain of keys."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security.limits import KEY_BYTES
from splitglm_security.noise_pattern import Protocol


class CipherState:
    """Section 5.1: a key and a counter nonce. Without a key, text passes in the clear."""

    __slots__ = ("_aead", "_byte_order", "_nonce")

    def __init__(self, cipher: str, key: bytes | None = None) -> None:
        self._byte_order: Literal["big", "little"] = "big" if cipher == "AESGCM" else "little"  # sections 12.3, 12.4
        self._aead: AESGCM | ChaCha20Poly1305 | None = None
        self._nonce = 0
        if key is not None:
            self._aead = AESGCM(key) if cipher == "AESGCM" else ChaCha20Poly1305(key)

    @property
    def has_key(self) -> bool:
        return self._aead is not None

    def _next_nonce(self) -> bytes:
        # "the maximum n value (2^64-1) is reserved for other use"
        if self._nonce >= 2**64 - 1:
            raise InternalError("Noise nonce exhausted")
        number = self._nonce
        self._nonce += 1
        return bytes(4) + number.to_bytes(8, self._byte_order)

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        return plaintext if self._aead is None else self._aead.encrypt(self._next_nonce(), plaintext, ad)

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        if self._aead is None:
            return ciphertext
        try:
            return self._aead.decrypt(self._next_nonce(), ciphertext, ad)
        except InvalidTag:
            pass
        raise SecurityError()  # outside the handler, so that no cause is attached


class SymmetricState:
    """Section 5.2: the chaining key ``ck``, the transcript hash ``h`` and the current cipher."""

    __slots__ = ("_ck", "_hash_name", "_protocol", "cipher", "h")

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._hash_name = protocol.hash_name
        name = protocol.name.encode()
        size = hashlib.new(self._hash_name).digest_size
        # "If protocol_name is less than or equal to HASHLEN bytes in length, sets h equal to protocol_name with zero
        # bytes appended to make HASHLEN bytes. Otherwise sets h = HASH(protocol_name)."
        self.h = name.ljust(size, b"\0") if len(name) <= size else hashlib.new(self._hash_name, name).digest()
        self._ck = self.h
        self.cipher = CipherState(protocol.cipher)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.new(self._hash_name, self.h + data).digest()

    def _hkdf(self, ikm: bytes, outputs: int) -> list[bytes]:
        # Section 4.3: HKDF of RFC 5869 with ck as salt and empty info.
        temp = hmac.digest(self._ck, ikm, self._hash_name)
        blocks: list[bytes] = []
        for i in range(1, outputs + 1):
            blocks.append(hmac.digest(temp, (blocks[-1] if blocks else b"") + bytes([i]), self._hash_name))
        return blocks

    def _install(self, temp_k: bytes) -> None:
        # "If HASHLEN is 64, then truncates temp_k to 32 bytes."
        self.cipher = CipherState(self._protocol.cipher, temp_k[:KEY_BYTES])

    def mix_key(self, ikm: bytes) -> None:
        self._ck, temp_k = self._hkdf(ikm, 2)
        self._install(temp_k)

    def mix_key_and_hash(self, ikm: bytes) -> None:
        self._ck, temp_h, temp_k = self._hkdf(ikm, 3)
        self.mix_hash(temp_h)
        self._install(temp_k)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self.cipher.encrypt_with_ad(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self.cipher.decrypt_with_ad(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys, 32 bytes each: initiator to responder, responder to initiator."""
        first, second = self._hkdf(b"", 2)
        return first[:KEY_BYTES], second[:KEY_BYTES]
