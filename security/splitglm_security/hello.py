"""What the initiator says in clear before any cryptography: fixed binary, checked without cost.

44 bytes of hello; in the suite with a pairing code 16 bytes of hint follow (``psk_ring``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from splitglm_core.errors import InputError, SecurityError, VersionMismatch
from splitglm_security.limits import (
    FINGERPRINT_BYTES,
    HINT_BYTES,
    KEM_PUBLIC_BYTES,
    KEY_BYTES,
    MAX_RECORD_BYTES,
    MIN_RECORD_BYTES,
    PROTOCOL_VERSION,
    TAG_BYTES,
)

_MAGIC: Final = b"SGLM"
_HELLO: Final = struct.Struct(f">4sBBHI{FINGERPRINT_BYTES}s")
HELLO_BYTES: Final = _HELLO.size


class Suite(IntEnum):
    """The two suites, by the byte that names them in the hello."""

    NX = 1
    NX_PSK = 2  # with a pairing code mixed in

    @property
    def noise_name(self) -> str:
        return _NOISE_NAMES[self]

    @property
    def opening_bytes(self) -> int:
        """What comes in clear before the Noise message: the hello, and with a psk the hint at it."""
        return HELLO_BYTES + (HINT_BYTES if self is Suite.NX_PSK else 0)

    @property
    def first_message_bytes(self) -> int:
        """Exact length of message 1; with a psk the KEM key and the empty payload carry tags (Noise section 9.2)."""
        tags = 2 * TAG_BYTES if self is Suite.NX_PSK else 0
        return self.opening_bytes + KEY_BYTES + KEM_PUBLIC_BYTES + tags


_NOISE_NAMES: Final = {
    Suite.NX: "Noise_NXhfs_25519+MLKEM768_AESGCM_SHA256",
    Suite.NX_PSK: "Noise_NXhfs+psk2_25519+MLKEM768_AESGCM_SHA256",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What the initiator says in clear and both sides must agree on. 44 bytes.

    Attributes:
        suite: the Noise suite.
        model_fingerprint: SHA-256 of the model's canonical manifest, 32 bytes.
        features: bits of optional features, u16; their meaning is the session protocol's.
        max_record: largest plaintext of one record, bytes.
        version: protocol version.
    """

    suite: Suite
    model_fingerprint: bytes
    features: int = 0
    max_record: int = MAX_RECORD_BYTES
    version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if len(self.model_fingerprint) != FINGERPRINT_BYTES:
            raise InputError(f"a model fingerprint has {FINGERPRINT_BYTES} bytes, not {len(self.model_fingerprint)}")
        if not 0 <= self.features < 1 << 16:
            raise InputError(f"feature bits {self.features} do not fit 16 bits")
        if not MIN_RECORD_BYTES <= self.max_record <= MAX_RECORD_BYTES:
            raise InputError(f"max_record {self.max_record} is outside [{MIN_RECORD_BYTES}, {MAX_RECORD_BYTES}]")
        if self.version != PROTOCOL_VERSION:
            raise InputError(f"this release speaks protocol version {PROTOCOL_VERSION}, not {self.version}")

    def encode(self) -> bytes:
        return _HELLO.pack(
            _MAGIC, self.version, self.suite, self.features, self.max_record, bytes(self.model_fingerprint)
        )

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """The inverse of ``encode``.

        Raises:
            VersionMismatch: the magic is ours and the version is not.
            SecurityError: anything else wrong.
        """
        # Magic and version keep their place in every version; the length belongs to this one.
        if len(data) > len(_MAGIC) and data[:4] == _MAGIC and data[4] != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"the peer speaks protocol version {data[4]}, this side {PROTOCOL_VERSION}",
                "use the same splitglm release on both sides",
            )
        if len(data) != HELLO_BYTES or data[:4] != _MAGIC:
            raise SecurityError()
        _, version, suite, features, max_record, fingerprint = _HELLO.unpack(data)
        if suite not in _NOISE_NAMES or not MIN_RECORD_BYTES <= max_record <= MAX_RECORD_BYTES:
            raise SecurityError()
        return cls(
            suite=Suite(suite),
            model_fingerprint=fingerprint,
            features=features,
            max_record=max_record,
            version=version,
        )


def peek_hello(message: bytes) -> Hello:
    """The hello of message 1 after every check that costs no cryptography: magic, version, suite, exact length.

    Raises:
        VersionMismatch, SecurityError: as ``Hello.decode``.
    """
    hello = Hello.decode(bytes(message[:HELLO_BYTES]))
    if len(message) != hello.suite.first_message_bytes:
        raise SecurityError()
    return hello
